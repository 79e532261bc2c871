"""The examples of docs/evaluation.md of features of one's own run as written."""

import re
import sys
import types
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from evaluation.metrics import own_features
from evaluation.metrics.features import load_features

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "evaluation.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# (\w+)\.py, [^\n]*\n(.*?)```", PAGE, flags=re.DOTALL))

NETWORK = """
from flax import linen as nn

class Network(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(6)(images.reshape(len(images), -1))
"""


class Session:
    """Stands in for ONNX Runtime: the mean of an image's channels, as the first of two tokens."""

    def __init__(self, path: str) -> None:
        assert path == "dinov2.onnx"

    def get_inputs(self) -> list[types.SimpleNamespace]:
        return [types.SimpleNamespace(name="pixel_values")]

    def run(self, outputs: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        (pixels,) = inputs.values()
        assert (pixels.dtype, pixels.shape[1:]) == (np.float32, (3, 224, 224))
        mean = pixels.mean(axis=(2, 3), dtype=np.float64).astype(np.float32)
        return [np.stack([mean, 0 * mean], axis=1)]


@pytest.fixture
def network_of(tmp_path, monkeypatch):
    """Loads an example's function, from a file in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def load(name: str, image_shape: tuple[int, int, int]):
        (tmp_path / f"{name}.py").write_text(EXAMPLES[name])
        return load_features(f"{name}:features", image_shape=image_shape)

    yield load
    own_features.load.cache_clear()
    for name in (*EXAMPLES, "network"):
        sys.modules.pop(name, None)


def test_the_flax_example(network_of, tmp_path):
    (tmp_path / "network.py").write_text(NETWORK)
    params = {"Dense_0": nn.Dense(6).init(jax.random.key(0), jnp.zeros((1, 64)))["params"]}
    (tmp_path / "network.msgpack").write_bytes(flax.serialization.msgpack_serialize(params))
    network = network_of("flax_features", (8, 8, 1))
    images = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 1), np.uint8)
    features, logits = network(images)
    expected = images.reshape(70, 64) / 255 @ np.asarray(params["Dense_0"]["kernel"])
    np.testing.assert_allclose(features, expected, atol=1e-5)  # float32, sums of 64
    assert logits.shape == (70, 0)


def test_the_onnx_example(network_of, tmp_path, monkeypatch):
    runtime = types.ModuleType("onnxruntime")
    monkeypatch.setattr(runtime, "InferenceSession", Session, raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    (tmp_path / "dinov2.onnx").write_bytes(b"")
    network = network_of("dinov2", (32, 32, 3))
    images = np.full((2, 32, 32, 3), 255, np.uint8)
    features, _ = network(images)
    white = (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(features, [white, white], rtol=1e-5)
