"""The examples of docs/models.md run as written, and its table of predictions names what exists."""

import contextlib
import importlib.util
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import sde_lib

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "models.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
LINES = re.findall(r"\| `(\w+)` \| `(prediction=.*?)` \|", PAGE)


def test_the_page_has_an_example_for_each_library():
    assert len(EXAMPLES) == 6
    assert [name in "".join(EXAMPLES) for name in ("flax", "equinox", "torch", "velocity")] == [True] * 4


def stand_in_for_torch() -> types.ModuleType:
    """The names of PyTorch that the page uses, on NumPy."""

    class Tensor(np.ndarray):
        def numpy(self) -> np.ndarray:
            return np.asarray(self)

    class Linear:
        def __init__(self, inputs: int, outputs: int) -> None:
            weights = np.random.default_rng(0).uniform(-1, 1, (inputs, outputs)) / inputs**0.5
            self.weights = weights.astype(np.float32)

        def __call__(self, x: Tensor) -> Tensor:
            assert isinstance(x, Tensor)
            return x @ self.weights

    torch = types.ModuleType("torch")
    names = {"tensor": lambda array: np.array(array).view(Tensor), "no_grad": contextlib.nullcontext}
    torch.__dict__.update(names, nn=types.SimpleNamespace(Linear=Linear))
    return torch


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: re.findall(r"import (\w+)", example)[0])
def test_an_example_runs_as_written(example, monkeypatch):
    if "equinox" in example:
        pytest.importorskip("equinox")
    if "torch" in example and importlib.util.find_spec("torch") is None:
        monkeypatch.setitem(sys.modules, "torch", stand_in_for_torch())
    names: dict = {}
    exec(compile(example, "docs/models.md", "exec"), names)
    assert names["solution"].failed == 0
    assert np.isfinite(names["solution"].x).all()


@pytest.mark.parametrize(("process", "settings"), LINES)
def test_every_line_of_the_table_is_taken(process, settings):
    table = np.linspace(1e-4, 0.02, 1000)
    kind = getattr(sde_lib, process)
    sde = kind.from_betas(table) if process == "DiscreteVP" else kind()
    score_fn = eval(f"as_score(lambda x, t: x, sde, {settings})", {"as_score": sde_lib.as_score, "sde": sde})
    assert np.isfinite(score_fn(np.ones((2, 3), np.float32), np.full(2, 0.5, np.float32))).all()


def test_the_table_has_every_prediction_and_time():
    assert len(LINES) == 9
    for name in ("score", "epsilon", "denoised", "v", "velocity", "edm", "t", "log_sigma", "index"):
        assert any(f'="{name}"' in settings for _, settings in LINES), name
