"""--mode=stats and --images as users run them."""

import zipfile

import numpy as np
import pytest
from sklearn.datasets import load_digits

from configs.ve.digits_adaptive import get_config
from data import datasets
from evaluation.metrics.features import load_features
from evaluation.metrics.measurement import Measurement
from evaluation.runs import measurement
from evaluation.runs import run as evaluation_run
from evaluation.runs.images import evaluate_images
from evaluation.store.samples import Samples, SampleStore
from tests import commands
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
        # Images of an archive are measured in a fixed random order, which the names here undo: the order of
        # the run's samples decides which splits the Inception Score takes, and the last bits of sums.
        for place, image in zip(random_order(40), images, strict=True):
            archive.writestr(f"{place:02d}.png", png(image))
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


def random_order(count):
    return np.random.default_rng(datasets.SHUFFLE_SEED).permutation(count)


def test_figures_do_not_depend_on_folders_by_class(tmp_path):
    """The Inception Score of digits sorted by class used to be 1.1, since each split held one class."""
    config = get_config()
    digits, labels = datasets.load(config.data), load_digits(return_X_y=True)[1]
    measure = Measurement(network=load_features(config.eval.features, None))
    scores = {}
    for name, order in (("mixed", np.arange(1797)), ("by_class", np.argsort(labels, kind="stable"))):
        np.savez(tmp_path / f"{name}.npz", digits[order])
        opened = datasets.open_samples(f"{tmp_path}/{name}.npz", config.data)
        pieces = datasets.pieces(opened)
        found = evaluate_images(
            pieces, path=name, count=opened.count, measurement=measure, workdir=tmp_path / name
        )
        scores[name] = found["is_mean"]
    assert scores["mixed"] > 7
    assert abs(scores["by_class"] / scores["mixed"] - 1) < 0.05


def test_the_compared_images_are_a_random_part_of_the_data():
    config = get_config()
    config.eval.compared = 50
    measure = measurement.from_config(config)
    assert measure.compared is not None
    chosen = datasets.load(config.data)[random_order(1797)[:50]]
    # the network sees 50 images here and more at once there: sums in another order
    np.testing.assert_allclose(measure.compared(), measure.network(chosen)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--images=absent"],
            "--images must be an existing folder, .zip or .npz file (got 'absent'): correct",
        ),
        (["--images="], "--images must be an existing folder, .zip or .npz file (got ''): correct the path"),
        (
            ["--mode=stats", "--config.data.path=/nonexistent"],  # though statistics of digits are stored
            "config.data.path must be an existing folder, .zip or .npz file (got '/nonexistent'): correct",
        ),
        (
            ["--mode=stats", "--config.data.name=mnist"],
            "config.data.name must be a data set that is present in /nowhere (got 'mnist'): on a machine "
            "with internet access, run: pip install tensorflow; tfds build mnist --file_format=array_record "
            "--data_dir=/nowhere",
        ),
    ],
)
def test_bad_input_is_refused_in_a_line(arguments, message):
    refused = commands.main(VE, *arguments, environment={"TFDS_DATA_DIR": "/nowhere"})
    assert refused.returncode == 2
    assert message in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("main.py: ")
    assert "Traceback" not in refused.stderr
