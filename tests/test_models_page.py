"""The examples of docs/models.md run as written, and its table of predictions names what exists."""

import re
from pathlib import Path

import numpy as np
import pytest

import sde_lib

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "models.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
LINES = re.findall(r"\| `(\w+)` \| `(prediction=.*?)` \|", PAGE)


def test_the_page_has_an_example_for_each_library():
    assert len(EXAMPLES) == 4
    assert [name in "".join(EXAMPLES) for name in ("flax", "equinox", "velocity")] == [True] * 3


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: re.findall(r"import (\w+)", example)[0])
def test_an_example_runs_as_written(example):
    if "equinox" in example:
        pytest.importorskip("equinox")
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
