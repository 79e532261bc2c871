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
from configs.ve import mnist_adaptive
from data import datasets
from evaluation.metrics import reference
from evaluation.metrics.features import FeatureNetwork, compiled, load_features
from evaluation.metrics.fid import Moments, Source, fid, save_moments
from evaluation.metrics.measurement import Measurement
from evaluation.runs.images import evaluate_images
from tests.conftest import SHARED


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
    forward=compiled(Partial(_first_pixels)),
)
DESCRIBED = {"data": "digits", "split": "train", "image_size": 8, "num_channels": 1, "content": "d1915"}
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
    monkeypatch.setattr(reference, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    times = []

    def opened():
        times.append(1)
        return iter([images[:1000], images[1000:]]), len(images)

    return {"given": None, "opened": opened, **DESCRIBED}, times


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


@pytest.mark.parametrize("first", [reference.find, lambda *a, **k: reference.store(*a, **k)[1]])
def test_moments_are_computed_once_and_found_again(first, digits, tmp_path):
    known, opened = digits
    computed = first(NETWORK, **known)
    (path,) = tmp_path.glob("**/*.npz")
    assert path.parent == tmp_path / "cache" / "gotta-go-fast" / "reference"
    assert path.name.startswith("digits_train_pixels_")
    written = path.stat().st_mtime_ns
    again, stored = reference.store(NETWORK, **known)
    _same(stored, computed)
    _same(reference.find(NETWORK, **known), computed)
    assert len(opened) == 1
    assert (again, path.stat().st_mtime_ns) == (path, written)


@pytest.mark.parametrize(
    "changes",
    [
        {"split": "test"},
        {"data": "digits 16x16 box"},
        {"image_size": 16},
        {"num_channels": 3},
        {"content": "somebody's own digits"},
        {"network": OTHERS["features"]},
        {"network": OTHERS["features_sha256"]},
        {"network": OTHERS["preprocessing"]},
    ],
    ids=lambda changed: " ".join(changed),
)
def test_stored_moments_are_taken_for_no_others(changes, digits):
    known, opened = digits
    reference.store(NETWORK, **known)
    reference.find(
        changes.get("network", NETWORK), **known | {k: v for k, v in changes.items() if k != "network"}
    )
    assert len(opened) == 2


def test_names_that_differ_in_signs_only_have_files_of_their_own(digits):
    known, _ = digits
    for key, values in {
        "split": ("train[:100]", "train[100:]", "train[:100%]"),
        "data": ("数字", "цифры", "dig its", "dig_its", "x" * 300, "x" * 301),
    }.items():
        paths = {reference.store(NETWORK, **known | {key: value})[0] for value in values}
        assert len(paths) == len(values)
        for value in values:
            assert getattr(reference.find(NETWORK, **known | {key: value}).source, key) == value


def test_a_stored_file_whose_content_is_of_another_source_is_not_taken(digits):
    known, opened = digits
    path, _ = reference.store(NETWORK, **known)
    other, _ = reference.store(NETWORK, **known | {"content": "other"})
    other.replace(path)
    assert reference.find(NETWORK, **known).source.content == "d1915"
    assert len(opened) == 3


def test_damaged_stored_moments_are_computed_again(digits):
    known, _ = digits
    path, stored = reference.store(NETWORK, **known)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(
        UserWarning, match="must be a file of statistics.*: these statistics are computed again"
    ):
        _same(reference.find(NETWORK, **known), stored)
    _same(reference.load(path, NETWORK), stored)


def test_a_cache_that_cannot_be_written_is_no_error(digits, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    with pytest.warns(
        UserWarning, match="cannot write .*: the next run computes the reference statistics again"
    ):
        assert reference.find(NETWORK, **digits[0]).count == 1797


def test_where_the_images_are_absent_the_shipped_moments_are_taken(digits):
    """But not those of the cache, where a name may stand for anybody's images."""
    known, opened = digits

    def absent():
        raise FileNotFoundError("there is no such data set")

    nothing = known | {"content": None, "opened": absent}
    path, stored = reference.store(NETWORK, **known)
    with pytest.raises(FileNotFoundError, match="FID needs these images"):
        reference.find(NETWORK, **nothing)
    reference.SHIPPED.mkdir()
    path.rename(reference.SHIPPED / path.name)
    _same(reference.find(NETWORK, **nothing), stored)
    assert reference.store(NETWORK, **nothing)[0] == reference.SHIPPED / path.name
    _same(reference.find(NETWORK, **known), stored)
    for changes in ({"split": "test"}, {"image_size": 16}, {"data": "other"}, {"num_channels": 3}):
        with pytest.raises(FileNotFoundError):
            reference.find(NETWORK, **nothing | changes)
    with pytest.raises(FileNotFoundError):
        reference.find(OTHERS["features_sha256"], **nothing)
    reference.find(NETWORK, **known | {"content": "other"})
    assert len(opened) == 2


def test_the_shipped_moments_say_where_they_are_from():
    """They are found by their name, and are of MNIST's own files where these are at hand."""
    (path,) = reference.SHIPPED.glob("mnist_*.npz")
    network = load_features("mnist")
    source = reference.load(path, network).source
    assert path.name == reference.file_name(source)
    config = mnist_adaptive.get_config()
    files = SHARED / "data" / "mnist"
    if not files.exists():
        pytest.skip(f"MNIST's files not found at {files}")
    config.data.path = str(files)
    assert source == Source.of(network, **datasets.describe(config.data))


def test_a_stored_file_says_what_it_is_of(digits):
    path, _ = reference.store(NETWORK, **digits[0])
    with np.load(path, allow_pickle=False) as file:
        assert int(file["count"]) == 1797
        assert json.loads(str(file["source"])) == {
            "features": "pixels",
            "features_sha256": "abcdef0123456789",
            "preprocessing": "none",
            **DESCRIBED,
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
        "reference must be a new file, or one with the statistics of 'digits', split 'test' .*: choose "
        "another file, or remove this one, which has split = 'train' instead of 'test'$"
    )
    with pytest.raises(ValueError, match=message):
        reference.store(NETWORK, **known | {"split": "test"})
    path = tmp_path / "published.npz"
    np.savez(path, mu=np.zeros(6), sigma=np.eye(6))
    with (
        pytest.warns(UserWarning, match="taken on trust"),
        pytest.raises(ValueError, match=r"reference must be a new file.*which has its unknown images"),
    ):
        reference.store(NETWORK, **known | {"given": str(path)})


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"split": "test"}, "split = 'train' instead of 'test'"),
        ({"content": "my own"}, "content = 'd1915' instead of 'my own'"),
        (
            {"data": "digits 16x16 box", "image_size": 16},
            "data = 'digits' instead of 'digits 16x16 box'; image_size = 8 instead of 16",
        ),
        ({"num_channels": 3}, "num_channels = 1 instead of 3"),
    ],
)
def test_a_file_of_other_images_is_refused_by_name(changes, differing, digits, tmp_path):
    known = digits[0] | {"given": str(tmp_path / "moments.npz")}
    _, stored = reference.store(NETWORK, **known)
    message = rf"reference must be a file with the statistics of .*: this one has {differing}; choose another"
    with pytest.raises(ValueError, match=message):
        reference.find(NETWORK, **known | changes)
    # a content that is not known here is no difference
    _same(reference.find(NETWORK, **known | {"content": None}), stored)


def test_published_files_of_one_name_are_told_apart(tmp_path):
    contents = set()
    for number in (1, 2):
        path = tmp_path / str(number) / "published.npz"
        path.parent.mkdir()
        np.savez(path, mu=np.zeros(6), sigma=number * np.eye(6))
        with pytest.warns(UserWarning, match="taken on trust"):
            published = reference.load(path, NETWORK)
        assert published.name == "published.npz:unknown:unknown"
        contents.add(Measurement(network=NETWORK, reference=published).reference_content)
    assert len(contents) == 2


def test_files_of_earlier_versions_are_refused(digits, tmp_path):
    moments = reference.find(NETWORK, **digits[0])
    earlier = {"features": "pixels", "features_sha256": "abcdef0123456789", "preprocessing": "none"}
    earlier |= {"data": "digits", "split": "train"}
    arrays = {"mean": moments.mean, "scatter": moments.scatter, "source": json.dumps(earlier)}
    np.savez(tmp_path / "earlier.npz", count=1797, **arrays)
    message = "compute it again, .*earlier version: it does not give the image_size, num_channels, content of"
    with pytest.raises(ValueError, match=message):
        reference.find(NETWORK, **digits[0] | {"given": str(tmp_path / "earlier.npz")})


@pytest.mark.parametrize("use", [reference.find, reference.store])
def test_moments_of_one_image_are_refused_and_not_stored(use, images, digits, tmp_path):
    known = digits[0] | {"opened": lambda: (iter([images[:1]]), 1)}
    with pytest.raises(ValueError, match=r"number of images in 'digits' must be at least 2 .* \(got 1\)"):
        use(NETWORK, **known)
    assert not list(tmp_path.glob("**/*.npz"))


def test_covariances_rounded_to_float32_are_not_refused(tmp_path):
    random = np.random.default_rng(0)
    network = dataclasses.replace(NETWORK, num_features=300)
    for rank in (1, 40, 150, 299):
        factor = random.standard_normal((300, rank)) * np.logspace(0, -3, rank)
        sigma = (factor @ factor.T).astype(np.float32)
        assert rank > 150 or np.linalg.eigvalsh(sigma.astype(float))[0] < 0
        np.savez(tmp_path / "rounded.npz", mu=np.zeros(300), sigma=sigma)
        with pytest.warns(UserWarning, match="taken on trust"):
            reference.load(tmp_path / "rounded.npz", network)


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


SOURCE = {"features": "pixels", "features_sha256": "abcdef0123456789", "preprocessing": "none", **DESCRIBED}


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
        (_arrays(pool_3=np.array([{}], object)[None]), "dtype of pool_3 must be a type of .* .got 'object'"),
        (
            _arrays(mu=np.zeros(6, complex), sigma=np.eye(6)),
            "dtype of mu must be a type of real .*'complex128'",
        ),
        (
            _arrays(mu=np.zeros(6), sigma=1j * np.eye(6)),
            "dtype of sigma must be .*save the real part of sigma",
        ),
        (
            _arrays(mu=np.zeros(6).astype(str), sigma=np.eye(6)),
            "dtype of mu must be a type of .* .got '<U32'",
        ),
        (
            _arrays(mu=np.zeros(6), sigma=-np.eye(6)),
            "no eigenvalue below 0 .*smallest eigenvalue is -1 and the",
        ),
        (
            _arrays(mu=np.zeros(6), sigma=np.diag([1, 1, 1, 1, 1, -1e-5])),
            "the smallest eigenvalue is -1e-05 and the largest 1, and rounding explains -1e-06 of it at most",
        ),
        (
            _arrays(mu=np.zeros(6), sigma=np.zeros((6, 5))),
            r"mean has the shape \(6,\), the covariance \(6, 5\)",
        ),
        (_arrays(pool_3=np.zeros((1, 6))), "statistics of at least 2 images, not 1"),
        (_arrays(pool_3=np.zeros((0, 6))), r"shape of pool_3 must be .* .got \(0, 6\)"),
        (_arrays(images=np.zeros(6)), r"holds \['images'\], and neither mu and sigma nor pool_3"),
        (
            _arrays(mu=np.array([{}], object), sigma=np.eye(6)),
            "dtype of mu must be a type of .* .got 'object'",
        ),
        (_arrays(source="{}", count=1, mean=np.zeros(6), scatter=np.eye(6)), "earlier version"),
        (
            _arrays(source="{}", count="1", mean=np.zeros(6), scatter=np.eye(6)),
            "dtype of count must be a type of",
        ),
        (
            _arrays(source=json.dumps(SOURCE), count=1, mean=np.zeros(6), scatter=np.eye(6)),
            "statistics of at least 2 images, not 1",
        ),
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
        reference.find(NETWORK, **digits[0] | {"opened": absent, "content": None})


def test_a_path_that_cannot_be_written_is_refused_before_the_features(digits, tmp_path):
    (tmp_path / "file").write_text("no folder")
    known = digits[0] | {"given": str(tmp_path / "file" / "moments.npz")}

    def never():
        raise AssertionError("features were computed")
        yield

    message = "cannot write .*moments.npz: .*, or set reference to another file"
    with pytest.raises(OSError, match=message):
        reference.store(NETWORK, **known | {"opened": lambda: (never(), 60)})


def test_a_full_disk_leaves_nothing_behind(digits, monkeypatch, tmp_path):
    def full(file_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    message = "cannot write .*: No space left on device; free some space"
    with pytest.raises(OSError, match=message) as refused:
        reference.store(NETWORK, **digits[0])
    assert refused.value.errno == errno.ENOSPC
    assert not [path for path in tmp_path.glob("**/*") if path.is_file()]


def test_images_are_not_measured_into_results_of_somebody_else(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"epoch": 1}')

    def never():
        raise AssertionError("features were computed")
        yield

    known = {"path": "elsewhere.zip", "count": 60, "measurement": Measurement(network=NETWORK)}
    with pytest.raises(ValueError, match=r"results.jsonl must be a result of this project"):
        evaluate_images(never(), workdir=tmp_path, **known)
    assert (tmp_path / "results.jsonl").read_text() == '{"epoch": 1}'


def test_figures_of_images_are_added_to_the_results(images, digits, tmp_path, capsys):
    moments = reference.find(NETWORK, **digits[0])
    measured = {"measurement": Measurement(network=NETWORK, reference=moments), "workdir": tmp_path}
    pieces = [images[:40], images[40:60]]
    result = evaluate_images(iter(pieces), path="elsewhere.zip", count=60, **measured)
    assert json.loads((tmp_path / "results.jsonl").read_text()) == result
    bars = [line.split("[")[0] for line in capsys.readouterr().err.splitlines() if "100%" in line]
    assert [bar.replace("█", "") for bar in bars] == [
        "reference: 100%|| 1797/1797 ",
        "features: 100%|| 60/60 ",
    ]
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


def test_features_that_do_not_vary_are_refused(images):
    """Samples with the same features would have an FID of 0, whatever they are."""
    alike = dataclasses.replace(NETWORK, forward=compiled(Partial(_ones)))
    with pytest.raises(
        ValueError, match=r"features of 'digits' must be different for some .*correct the func"
    ):
        reference.compute([images[:5], images[5:8]], alike, data="digits", split="first 8")


def _ones(images):
    return 0.1 * jnp.ones((len(images), 6)), jnp.ones((len(images), 3))
