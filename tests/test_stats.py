"""--mode=stats and --images as users run them."""

import zipfile

import numpy as np
import pytest

from configs.ve.digits_adaptive import get_config
from data import datasets
from evaluation.runs import measurement
from evaluation.runs import run as evaluation_run
from evaluation.store.samples import Samples, SampleStore
from tests.data.sources import png
from tests.test_main import VE, results, run

FIGURES = ("fid", "is_mean", "is_std", "num_samples", "features", "reference")


@pytest.fixture(scope="module")
def moments(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "digits.npz"
    done = run(VE, "--mode=stats", f"--config.eval.reference={path}")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("digits:train:1797, features digits ")
    assert second == str(path)
    return path


def test_images_made_elsewhere_get_the_numbers_of_a_run_with_the_same(moments, tmp_path):
    config = get_config()
    config.eval.update({"num_samples": 40, "shard_size": 16})
    images = datasets.load(config.data)[:40]
    prepared = evaluation_run.prepare(config, name="ve/digits_adaptive")
    some = np.ones(40, np.int32)
    store = SampleStore(tmp_path / "run" / "samples", config_hash=prepared.config_hash, shard_size=16)
    with store:  # as if the run had sampled these: nothing is missing
        store.add(
            Samples(
                sample_ids=np.arange(40), images=images, nfe=some, accepted=some, rejected=some, status=some
            )
        )
    # this run computes the moments itself, where the images below are measured against the stored ones
    sampled = evaluation_run.sample_and_evaluate(
        prepared, tmp_path / "run", measurement=measurement.from_config(config)
    )
    with zipfile.ZipFile(tmp_path / "elsewhere.zip", "w") as archive:
        for i, image in enumerate(images):
            archive.writestr(f"{i:02d}.png", png(image))
    done = run(
        VE,
        "--config.eval.shard_size=16",
        f"--images={tmp_path}/elsewhere.zip",
        f"--config.eval.reference={moments}",
        f"--workdir={tmp_path}/elsewhere",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("FID ")
    (measured,) = results(tmp_path / "elsewhere")
    assert {key: measured[key] for key in FIGURES} == {key: sampled[key] for key in FIGURES}
    assert measured["images"] == f"{tmp_path}/elsewhere.zip"
    assert measured["nfe_mean"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--images=absent"],
            "--images = 'absent': allowed is a folder, a .zip or an .npz file that is there",
        ),
        (
            ["--mode=stats", "--config.data.name=mnist"],
            "config.data.name = 'mnist': there is no such data set in /nowhere; on a machine with a network "
            "run: pip install tensorflow; tfds build mnist --file_format=array_record --data_dir=/nowhere",
        ),
    ],
)
def test_bad_input_is_refused_in_a_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/nowhere")
    refused = run(VE, *arguments, f"--workdir={tmp_path}/new")
    assert refused.returncode == 2
    assert message in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("main.py: ")
    assert "Traceback" not in refused.stderr
