"""Features by a function of one's own: what it may be, its identity, and what is refused before any work."""

import dataclasses
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

import configs
from evaluation.metrics import own_features, reference
from evaluation.metrics.features import load_features
from evaluation.metrics.figures import evaluate
from evaluation.runs import measurement
from evaluation.store.samples import Samples

SHAPE = (8, 8, 1)

FUNCTIONS = """
import jax
import jax.numpy as jnp
import numpy as np

@jax.jit
def on_devices(images):
    return images.reshape(len(images), -1)[:, :5].astype(jnp.float32) / 255

def on_host(images):
    pixels = np.asarray(images, np.float64).reshape(len(images), -1) / 255
    return pixels[:, :4], pixels[:, 4:7]

def weighted(images):
    return np.asarray(images, np.float32).mean(axis=(1, 2))

weighted.weights = ["first.bin", "second.bin"]

def numbered(images):
    return weighted(images)

numbered.weights = 3

number = 3

def flat(images):
    return np.zeros(len(images))

def other_length(images):
    return np.zeros((2, 3), np.float32)

def whole(images):
    return np.zeros((len(images), 3), int)

def listed(images):
    return [[0.0]] * len(images)

def without_width(images):
    return np.zeros((len(images), 0))

def bad_logits(images):
    return on_host(images)[0], np.zeros(3)

def infinite(images):
    return np.full((len(images), 3), 1e39)

def raises(images):
    raise RuntimeError("no such layer")

def chance(images):
    return np.random.default_rng().standard_normal((len(images), 3))

def of_the_batch(images):
    pixels = on_host(images)[0]
    return (pixels - pixels.mean(axis=0)) / pixels.std(axis=0)

from json import dumps
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a module whose functions nobody has imported yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    (tmp_path / "broken.py").write_text("import absent_package")
    (tmp_path / "first.bin").write_bytes(b"1")
    (tmp_path / "second.bin").write_bytes(b"2")
    yield tmp_path
    forget()


def forget() -> None:
    """As a new process: Python imports a module once."""
    own_features.load.cache_clear()
    for name in ("mine", "broken"):
        sys.modules.pop(name, None)


def load(name: str):
    return load_features(name, image_shape=SHAPE)


def digits(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *SHAPE), np.uint8)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("name", "sizes"), [("on_devices", (5, 0)), ("on_host", (4, 3))])
def test_features_are_those_of_the_function(name, sizes):
    network = load(f"mine:{name}")
    assert (network.num_features, network.num_classes) == sizes
    images = digits(100)
    features, logits = network(images)
    pixels = images.reshape(100, -1) / np.float32(255)
    np.testing.assert_allclose(features, pixels[:, : sizes[0]], rtol=1e-6)
    np.testing.assert_allclose(logits, pixels[:, sizes[0] : sum(sizes)], rtol=1e-6)
    assert (features.dtype, logits.dtype) == (np.float32, np.float32)


def test_identity_is_that_of_the_files(folder):
    def sha256() -> str:
        forget()
        return load("mine:weighted").sha256

    parts = [(folder / name).read_bytes() for name in ("mine.py", "first.bin", "second.bin")]
    expected = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    assert sha256() == sha256() == expected
    found = {expected}
    for name in ("mine.py", "first.bin", "second.bin"):
        with (folder / name).open("ab") as file:
            file.write(b"\n")
        found.add(sha256())
    assert len(found) == 4


def test_code_and_identity_stay_together_in_a_process(folder):
    before = load("mine:on_devices")
    (folder / "mine.py").write_text(FUNCTIONS.replace("/ 255", "/ 100"))
    again = load("mine:on_devices")
    assert again.sha256 == before.sha256
    assert np.array_equal(again(digits(3))[0], before(digits(3))[0])


def test_statistics_of_changed_weights_are_refused(folder):
    network = load("mine:weighted")
    moments = reference.compute([digits(30)], network, data="noise", split="all")
    path = folder / "statistics.npz"
    reference.save_moments(path, moments)
    assert reference.load(path, network).source.features_sha256 == network.sha256
    (folder / "second.bin").write_bytes(b"3")
    forget()
    with pytest.raises(ValueError, match=r"reference must be of the same features .*features_sha256 = "):
        reference.load(path, load("mine:weighted"))


ABSENT = r"features must be MODULE:FUNCTION, of a module that is installed or lies in "


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "yours:f",
            ABSENT + r".*got 'yours:f'.: it cannot be imported .ModuleNotFoundError: No module",
        ),
        ("broken:f", ABSENT + r".*No module named 'absent_package'"),
        (":f", ABSENT),
        ("mine:on_device", r"of a function in .*mine.py .*did you mean 'on_devices'"),
        ("mine:", r"of a function in .*mine.py .*define it there"),
        ("mine:number", r"features must be a function .*got 'mine:number'.: it is a int: name a function"),
        ("mine:numbered", r"mine:numbered.weights must be the path of a file, or a list of paths .got 3."),
        ("mine:dumps", r"a function that mine defines itself .*name that module, .*: json:dumps"),
        ("sys:exit", r"a function whose module is a file"),
        ("mine:flat", r"float features \(b, d\), .*for 64 images its features are float64 of shape \(64,\)"),
        (
            "mine:other_length",
            r"are float32 of shape \(2, 3\); make them an array of floats of shape \(64, n\)",
        ),
        ("mine:whole", r"its features are int64 of shape \(64, 3\)"),
        ("mine:listed", r"its features are list"),
        ("mine:without_width", r"its features are float64 of shape \(64, 0\)"),
        ("mine:bad_logits", r"its logits are float64 of shape \(3,\)"),
        ("mine:infinite", r"some of its features are NaN or infinite in float32"),
        ("mine:raises", r"it raised RuntimeError for a batch of shape \(64, 8, 8, 1\): no such layer"),
        ("mine:chance", r"features of an image do not depend on the other images or on chance .*dropout"),
        ("mine:of_the_batch", r"do not depend on the other images"),
        ("mine", r"features must be one of 'digits', .*'MODULE:FUNCTION' .got 'mine'"),
    ],
)
def test_what_gives_no_features_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        load(name)


def test_absent_weights_are_refused(folder):
    (folder / "second.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"file with weights .got 'second.bin'.: correct mine:we"):
        load("mine:weighted")


@pytest.mark.usefixtures("folder")
def test_a_function_is_tried_with_images_of_a_shape():
    with pytest.raises(ValueError, match=r"image_shape must be the .h, w, c. of the images .got None"):
        load_features("mine:on_devices")


def evaluated(network, count: int = 60) -> dict:
    config = configs.load("ve/digits_adaptive")
    config.eval.update({"features": network, "num_samples": count, "compared": 50})
    ids = np.arange(count)
    samples = Samples(sample_ids=ids, images=digits(count), nfe=ids, accepted=ids, rejected=ids, status=ids)
    return evaluate(
        [samples],
        num_samples=count,
        batch_size=8,
        evaluations_per_step=1,
        measurement=dataclasses.replace(measurement.from_config(config), replicates=4),
    )


@pytest.mark.usefixtures("folder")
def test_figures_of_own_features(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = evaluated("mine:on_devices")
    assert found["fid"] > 0
    assert found["sliced_wasserstein"] > 0
    assert found["is_mean"] is found["is_std"] is found["is_interval"] is None  # without logits
    found = evaluated("mine:on_host")
    assert 1 <= found["is_mean"] <= 3
    with pytest.raises(ValueError, match=r"config.eval.num_samples must be at least 2"):
        evaluated("mine:on_devices", 1)
    with pytest.raises(ValueError, match=r"config.eval.features must be a function .*no such layer"):
        evaluated("mine:raises")


def test_the_command_finds_the_function_in_the_current_folder(folder):
    root = configs.__path__[0]
    command = [sys.executable, os.path.join(root, "..", "main.py"), "--mode=stats"]
    command += ["--config=configs/ve/digits_adaptive.py", "--config.eval.features=mine:on_host"]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "features mine:on_host" in done.stdout
