"""--mode=stats and --images as users run them."""

import zipfile
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from configs.ve.digits_adaptive import get_config
from data import datasets
from evaluation.metrics.features import load_features
from evaluation.metrics.fid import fid, save_moments
from evaluation.metrics.measurement import Measurement
from evaluation.metrics.reference import compute
from evaluation.runs import measurement
from evaluation.runs import run as evaluation_run
from evaluation.runs.images import evaluate_images
from evaluation.store import workdir
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
    as_if_sampled(tmp_path / "run", prepared, images)
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


def as_if_sampled(folder, prepared, images):
    """Fills a workdir as if the run had sampled these images: nothing is missing."""
    workdir.claim(folder, prepared.identity)
    some, shard_size = np.ones(len(images), np.int32), prepared.config.eval.shard_size
    with SampleStore(folder / "samples", config_hash=prepared.config_hash, shard_size=shard_size) as store:
        ids = np.arange(len(images))
        store.add(Samples(sample_ids=ids, images=images, nfe=some, accepted=some, rejected=some, status=some))


def of_own_digits(tmp_path, images):
    """A config of the digits whose path leads to these images."""
    config = get_config()
    np.savez(tmp_path / "own.npz", images)
    config.data.path = f"{tmp_path}/own.npz"
    return config


def test_images_of_a_known_name_are_measured_against_themselves(tmp_path):
    """The statistics of the digits used to serve for all images that a config called digits."""
    digits = datasets.load(get_config().data)
    known = measurement.from_config(get_config()).reference
    own = of_own_digits(tmp_path, digits[:, ::-1])
    _, stored, _ = measurement.store_statistics(own)
    mirrored = measurement.from_config(own).reference
    assert known is not None
    assert mirrored is not None
    assert known.name == mirrored.name == "digits:train:1797"
    assert fid(mirrored, stored) == pytest.approx(0, abs=1e-9)
    assert fid(mirrored, known) > 10
    # and they do not stand in the digits' way from then on
    again = measurement.from_config(get_config()).reference
    assert again is not None
    assert fid(again, known) == pytest.approx(0, abs=1e-9)


@pytest.mark.filterwarnings("ignore:FID of 40 samples")
def test_a_result_against_other_images_of_the_same_name_is_not_taken(tmp_path):
    digits = datasets.load(get_config().data)
    found = []
    for config in (get_config(), of_own_digits(tmp_path, digits[:, ::-1])):
        config.eval.update({"num_samples": 40, "compared": 10})
        prepared = evaluation_run.prepare(config, name="ve/digits_adaptive")
        as_if_sampled(tmp_path / "run", prepared, digits[:40])
        measure = measurement.from_config(config)
        found += [
            evaluation_run.sample_and_evaluate(prepared, tmp_path / "run", measurement=measure) for _ in "ab"
        ]
    assert (found[0], found[2]) == (found[1], found[3])
    found = found[::2]
    assert found[0]["reference"] == found[1]["reference"]
    assert found[1]["fid"] > 2 * found[0]["fid"]
    assert found[1]["precision"] < found[0]["precision"]


def test_messages_name_the_keys_and_what_the_command_line_offers(moments, tmp_path):
    config = get_config()
    config.eval.num_samples = 9
    with pytest.raises(ValueError, match=r"^config.eval.num_samples must be at least 10: .*; --mode=sample "):
        measurement.from_config(config)
    with pytest.raises(ValueError, match=r"^number of images must be at least 10: .* \(got 5\): use more"):
        measurement.from_config(config, num_samples=5)
    own = of_own_digits(tmp_path, datasets.load(config.data)[:, ::-1])
    own.eval.reference = str(moments)
    message = r"^config.eval.reference must be .* content = '\w+' instead of '\w+'; .*; --mode=stats computes"
    with pytest.raises(ValueError, match=message):
        measurement.from_config(own)
    with pytest.raises(
        ValueError, match=r"^config.eval.reference must be a new file, .*other file, or remove"
    ):
        measurement.store_statistics(own)
    own.eval.reference = None
    own.data.path = "/nonexistent"
    with pytest.raises(ValueError, match=r"^config.data.path must be an existing folder"):
        measurement.from_config(own)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(png(np.zeros((8, 8, 1), np.uint8)))
    (tmp_path / "images" / "2.png").write_bytes(b"torn")
    own.data.path = f"{tmp_path}/images"
    with pytest.raises(ValueError, match=rf"^{tmp_path}/images/2.png must be "):  # which is no key
        measurement.from_config(own)


def test_absent_images_are_no_obstacle_where_a_file_has_their_statistics(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/nowhere")
    config = get_config()
    for name in ("mnist", "the data of another machine"):
        config.data.name = name
        network = load_features("digits")
        described: dict[str, Any] = datasets.describe(config.data) | {"content": "5eed"}
        digits = datasets.load(get_config().data)
        save_moments(tmp_path / "file.npz", compute([digits], network, **described))
        config.eval.reference = f"{tmp_path}/file.npz"
        found = measurement.from_config(config)
        assert found.reference_name == f"{name}:train:1797"
        assert found.reference_content == "5eed"
        config.eval.reference = None
        with pytest.raises(
            (ValueError, FileNotFoundError), match=r"^config.data.name must be .*--mode=sample"
        ):
            measurement.from_config(config)


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
