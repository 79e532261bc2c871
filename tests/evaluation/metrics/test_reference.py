"""Reference statistics: stored with their source, found again, and refused if they do not fit."""

from __future__ import annotations

import dataclasses
import errno
import json

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from configs.base import get_config
from data import datasets
from evaluation.metrics import reference
from evaluation.metrics.features import FeatureNetwork
from evaluation.metrics.fid import Moments, fid, save_moments
from evaluation.metrics.measurement import Measurement
from evaluation.runs.images import evaluate_images


def _first_pixels(images):
    pixels = images.reshape(len(images), -1)[:, 20:26].astype(jnp.float32)
    return pixels, pixels[:, :3]


NETWORK = FeatureNetwork(
    name="pixels",
    sha256="abcdef0123456789",
    preprocessing="none",
    num_features=6,
    num_classes=3,
    image_shape=(8, 8, 1),
    forward=Partial(_first_pixels),
)
OTHERS = {
    "features": dataclasses.replace(NETWORK, name="other"),
    "features_sha256": dataclasses.replace(NETWORK, sha256="00"),
    "preprocessing": dataclasses.replace(NETWORK, preprocessing="halved"),
}


@pytest.fixture(scope="module")
def images():
    return datasets.load(get_config().data)


@pytest.fixture
def digits(images, tmp_path, monkeypatch):
    """Arguments of ``find`` and ``store`` for the digits, and a list that grows when they are opened."""
    monkeypatch.setattr(reference, "FOLDER", tmp_path / "stored")
    opened = []

    def pieces():
        opened.append(1)
        return iter([images[:1000], images[1000:]])

    return {"given": None, "data": "digits", "split": "train", "pieces": pieces}, opened


def _same(first: Moments, second: Moments) -> None:
    for a, b in zip(dataclasses.astuple(first), dataclasses.astuple(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_moments_in_pieces_are_those_of_all_images(images, digits):
    moments = reference.find(NETWORK, **digits[0])
    pixels = images.reshape(1797, -1)[:, 20:26].astype(np.float64)
    assert moments.name == "digits:train:1797"
    # sums of 1,797 numbers below 256, by another order of addition
    np.testing.assert_allclose(moments.mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(pixels.T), rtol=1e-10, atol=1e-9)


def test_moments_are_computed_once_and_found_again(digits):
    known, opened = digits
    computed = reference.find(NETWORK, **known)
    path, stored = reference.store(NETWORK, **known)
    _same(computed, stored)
    assert len(opened) == 2
    assert path.parent == reference.FOLDER
    written = path.stat().st_mtime_ns
    _same(reference.store(NETWORK, **known)[1], stored)
    _same(reference.find(NETWORK, **known), stored)
    assert len(opened) == 2
    assert path.stat().st_mtime_ns == written
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    # another part, other data and other features are not taken for these
    for changes in ({"split": "test"}, {"data": "digits 16x16 box"}):
        reference.find(NETWORK, **known | changes)
    reference.find(OTHERS["features_sha256"], **known)
    assert len(opened) == 5


def test_a_stored_file_says_what_it_is_of(digits):
    path, _ = reference.store(NETWORK, **digits[0])
    with np.load(path, allow_pickle=False) as file:
        assert int(file["count"]) == 1797
        assert json.loads(str(file["source"])) == {
            "features": "pixels",
            "features_sha256": "abcdef0123456789",
            "preprocessing": "none",
            "data": "digits",
            "split": "train",
        }


@pytest.mark.parametrize("key", OTHERS)
def test_moments_of_other_features_or_preprocessing_are_refused(key, digits, tmp_path):
    known = digits[0] | {"given": str(tmp_path / "moments.npz")}
    reference.store(OTHERS[key], **known)
    for use in (reference.find, reference.store):
        with pytest.raises(
            ValueError, match=f"reference must be of the same features and preprocessing .*got .{key} = "
        ):
            use(NETWORK, **known)


def test_a_file_of_other_data_is_not_overwritten(digits, tmp_path):
    known = digits[0] | {"given": str(tmp_path / "moments.npz")}
    reference.store(NETWORK, **known)
    message = (
        r"reference must be a new file.*: choose another file, or remove this one, .*\('digits', 'train'\)"
    )
    with pytest.raises(ValueError, match=message):
        reference.store(NETWORK, **known | {"split": "test"})
    # but a file that is given explicitly is read, such as the test set's statistics
    assert reference.find(NETWORK, **known | {"split": "test"}).source.split == "train"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_published_layouts_are_read_and_marked_as_unknown(dtype, digits, tmp_path):
    moments = reference.find(NETWORK, **digits[0])
    path = tmp_path / "published.npz"
    np.savez(path, mu=moments.mean.astype(dtype), sigma=moments.covariance.astype(dtype))
    with pytest.warns(UserWarning, match="does not say what its statistics are of: it is taken on trust"):
        published = reference.load(path, NETWORK)
    assert published.name == "published.npz:unknown:unknown"
    rounding = 256**2 * float(np.finfo(dtype).eps)  # of products of grey levels
    np.testing.assert_allclose(published.covariance, moments.covariance, atol=rounding)
    # six variances whose roots are off by rounding/sqrt(variance), with variances above 1
    assert fid(published, moments) == pytest.approx(0, abs=6 * 2 * 256 * rounding)
    with pytest.raises(
        ValueError, match=r"count must be the number of vectors .* of .published.npz. .got None"
    ):
        published.merge(published)


def test_published_features_are_read_in_parts(images, digits, tmp_path, monkeypatch):
    moments = reference.find(NETWORK, **digits[0])
    path = tmp_path / "published.npz"
    np.savez(path, pool_3=images.reshape(1797, -1)[:, 20:26].astype(np.float32), logits=np.zeros(3))
    monkeypatch.setattr(reference, "ROWS", 500)
    with pytest.warns(UserWarning, match="taken on trust"):
        published = reference.load(path, NETWORK)
    assert published.name == "published.npz:unknown:1797"
    np.testing.assert_allclose(published.covariance, moments.covariance, rtol=1e-10, atol=1e-9)


def test_features_of_the_first_images(images):
    opened = []

    def pieces():
        for piece in (images[:100], images[100:200], images[200:]):
            opened.append(len(piece))
            yield piece

    features = reference.first_features(pieces(), NETWORK, count=150)
    assert np.array_equal(features, images[:150].reshape(150, -1)[:, 20:26])
    assert opened == [100, 100]
    with pytest.raises(
        ValueError, match=r"compared must be at most 1797, the number of images in the data .got 1798"
    ):
        reference.first_features([images], NETWORK, count=1798)


def _arrays(**arrays):
    return lambda path: np.savez(path, **arrays)


@pytest.mark.filterwarnings("ignore:.*taken on trust")
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_arrays(mu=np.full(6, np.nan), sigma=np.eye(6)), "must be a file of finite statistics"),
        (
            _arrays(mu=np.zeros(6), sigma=np.diag([1, 1, 1, 1, 1, np.inf])),
            "must be a file of finite statistics",
        ),
        (
            _arrays(pool_3=np.full((9, 6), np.nan)),
            "must be finite numbers .got 'NaN or infinity in 9 of 9 vec",
        ),
        (_arrays(mu=np.zeros(5), sigma=np.eye(5)), r"6 features of 'pixels' .*mean has the shape \(5,\)"),
        (_arrays(mu=np.zeros(6), sigma=np.eye(5)), r"6 features of 'pixels' .* the covariance \(5, 5\)"),
        (
            _arrays(mu=np.zeros(6), sigma=np.triu(np.ones((6, 6)))),
            "a file of statistics with a symmetric cov",
        ),
        (_arrays(pool_3=np.zeros(6)), r"shape of pool_3 must be \(n, d\) with n > 0 .got \(6,\)"),
        (_arrays(pool_3=np.zeros((6, 9)).T), "order of pool_3 must be by rows .got 'by columns'"),
        (_arrays(pool_3=np.array([{}], object)[None]), "dtype of pool_3 must be a floating-.* .got 'object'"),
        (_arrays(pool_3=np.zeros((0, 6))), r"shape of pool_3 must be .* .got \(0, 6\)"),
        (_arrays(images=np.zeros(6)), r"holds \['images'\], and neither mu and sigma nor pool_3"),
        (_arrays(mu=np.array([{}], object), sigma=np.eye(6)), "allow_pickle=False"),
        (_arrays(source="{}", count=1, mean=np.zeros(6), scatter=np.eye(6)), "missing .*required"),
        (_arrays(source="no JSON"), "compute it again, or choose another file"),
        (
            lambda path: path.write_bytes(b"PK\x03\x04 and no more"),
            "compute it again, or choose another file",
        ),
        (lambda path: None, "reference must be a file of statistics .*: choose a file that exists"),
    ],
)
def test_files_that_are_no_moments_are_refused(write, message, tmp_path):
    write(tmp_path / "bad.npz")
    with pytest.raises(ValueError, match=message) as refused:
        reference.load(tmp_path / "bad.npz", NETWORK)
    assert "bad.npz" in str(refused.value)


def test_stored_moments_with_nan_are_refused(digits, tmp_path):
    moments = reference.find(NETWORK, **digits[0])
    save_moments(tmp_path / "bad.npz", dataclasses.replace(moments, mean=moments.mean * np.nan))
    with pytest.raises(ValueError, match=r"reference must be a file of finite statistics .got .*bad.npz"):
        reference.load(tmp_path / "bad.npz", NETWORK)


def test_images_that_are_absent_are_named_with_both_ways_out(digits):
    def absent():
        raise FileNotFoundError("there is no such data set; run tfds build")

    message = "run tfds build. FID needs these images or their statistics: set reference"
    with pytest.raises(FileNotFoundError, match=message):
        reference.find(NETWORK, **digits[0] | {"pieces": absent})


def test_a_path_that_cannot_be_written_is_refused_before_the_features(digits, tmp_path):
    (tmp_path / "file").write_text("no folder")
    known = digits[0] | {"given": str(tmp_path / "file" / "moments.npz")}

    def never():
        raise AssertionError("features were computed")
        yield

    message = "cannot write .*moments.npz: .*, or set reference to another file"
    with pytest.raises(OSError, match=message):
        reference.store(NETWORK, **known | {"pieces": never})


def test_a_full_disk_leaves_nothing_behind(digits, monkeypatch):
    def full(file_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    message = "cannot write .*: No space left on device; free some space"
    with pytest.raises(OSError, match=message) as refused:
        reference.store(NETWORK, **digits[0])
    assert refused.value.errno == errno.ENOSPC
    assert list(reference.FOLDER.iterdir()) == []


def test_figures_of_images_are_added_to_the_results(images, digits, tmp_path):
    moments = reference.find(NETWORK, **digits[0])
    measured = {"measurement": Measurement(network=NETWORK, reference=moments), "workdir": tmp_path}
    pieces = [images[:40], images[40:60]]
    result = evaluate_images(iter(pieces), path="elsewhere.zip", count=60, **measured)
    assert json.loads((tmp_path / "results.jsonl").read_text()) == result
    part = reference.compute(pieces, NETWORK, data="part", split="first 60")
    assert result["fid"] == fid(part, moments)
    assert (result["num_samples"], result["images"], result["nfe_mean"]) == (60, "elsewhere.zip", None)
    assert result["reference"] == "digits:train:1797"
    again = evaluate_images(iter([images[:60]]), path="moved", count=60, **measured)
    assert again["images_sha256"] == result["images_sha256"]


def test_fewer_images_than_splits_are_refused(images, digits, tmp_path):
    measurement = Measurement(network=NETWORK, reference=reference.find(NETWORK, **digits[0]))
    with pytest.raises(ValueError, match=r"num_samples must be at least 10: .*got 9"):
        evaluate_images(iter([images[:9]]), path="few", count=9, measurement=measurement, workdir=tmp_path)
