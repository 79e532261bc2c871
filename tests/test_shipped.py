"""The networks that ship are small, and sample and are measured where their data are not."""

import pytest

import configs
import models
from evaluation.runs import measurement, run
from models import checkpoints

CONFIGS = [f"{sde}/{data}_adaptive" for sde in ("ve", "vp") for data in ("digits", "mnist")]
CONFIGS += ["vp/cifar10_small_adaptive"]
QUICK = ("ve/digits_adaptive", "vp/cifar10_small_adaptive")


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no_data_sets"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CONFIGS]
)
def test_a_shipped_network_samples_and_is_measured_without_its_data(name, nowhere, tmp_path):
    config = configs.load(name)
    config.eval.update({"num_samples": 40, "batch_size": 40})
    config.solver.update({"name": "adaptive_exponential", "num_evaluations": 10})
    prepared = run.prepare(config, name=name)
    files = [file for file in prepared.checkpoint.rglob("*") if file.is_file()]
    assert 0 < sum(file.stat().st_size for file in files) < 8e6
    measured = measurement.from_config(config)
    with pytest.warns(UserWarning, match="FID of 40 samples"):
        result = run.sample_and_evaluate(prepared, tmp_path, measurement=measured)
    assert result["failed"] == 0
    assert result["fid"] > 0
    assert result["is_mean"] > 1.5  # of splits of four: 4 at most, and 1 for images that are all alike
    assert result["reference"].startswith(config.data.name)


@pytest.mark.parametrize("name", [*CONFIGS, "vp/digits_classes"])
def test_a_shipped_network_says_how_it_was_made(name):
    config = configs.load(name)
    path = checkpoints.find(config.model.checkpoint)
    _, metadata = models.restore_params(path, models.build(config), config)
    assert metadata["step"] > 1000
    assert f"--config=configs/{name}.py" in metadata["command"]
