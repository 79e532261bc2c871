"""FID and feature statistics against closed forms."""

import dataclasses
import json

import numpy as np
import pytest

from evaluation.metrics import reference
from evaluation.metrics.features import load_features
from evaluation.metrics.fid import (
    Extrapolation,
    Moments,
    Source,
    fid,
    frechet_distance,
    load_moments,
    require_enough_for_line,
    save_moments,
    warn_if_few,
)
from training import classifiers

SOURCE = Source(features="plain", features_sha256="00", preprocessing="none", data="made up", split="all")


def orthogonal(d: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


def moments(covariance: np.ndarray, mean: np.ndarray | None = None, source: Source = SOURCE) -> Moments:
    mean = np.zeros(len(covariance)) if mean is None else mean
    return Moments(count=1001, mean=mean, scatter=1000 * covariance, source=source)


@pytest.mark.parametrize("d", [1, 64, pytest.param(2048, marks=pytest.mark.slow)])
def test_commuting_covariances(d):
    # C1 = U a U^T and C2 = U b U^T: the distance is |m|^2 + sum (sqrt a − sqrt b)^2
    random = np.random.default_rng(0)
    u = orthogonal(d, seed=1)
    a, b = random.uniform(0.1, 2, d), random.uniform(0.1, 2, d)
    mean = random.standard_normal(d)
    expected = mean @ mean + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert fid(moments(u * a @ u.T, mean), moments(u * b @ u.T)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("d", "rank"), [(64, 1), (64, 20), (64, 63), pytest.param(2048, 300, marks=pytest.mark.slow)]
)
def test_singular_covariances(d, rank):
    # both of this rank, sharing half of their axes; a product's square root would lose half the digits here
    random = np.random.default_rng(2)
    u = orthogonal(d, seed=3)
    a, b = np.zeros(d), np.zeros(d)
    a[:rank] = random.uniform(0.1, 2, rank)
    b[d - rank :] = random.uniform(0.1, 2, rank)
    b[: rank // 2] = a[: rank // 2] * 4
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert fid(moments(u * a @ u.T), moments(u * b @ u.T)) == pytest.approx(expected, rel=1e-6)


def test_singular_covariances_of_2048_dimensions():
    # the quick one: of rank 24, sharing half of their axes, as above, and means apart along and off these
    random = np.random.default_rng(10)
    u = np.linalg.qr(random.standard_normal((2048, 36)))[0]
    a, b = np.zeros(36), np.zeros(36)
    a[:24], b[12:] = random.uniform(0.1, 2, (2, 24))
    mean = random.standard_normal(2048)
    expected = mean @ mean + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert fid(moments(u * a @ u.T, mean), moments(u * b @ u.T)) == pytest.approx(expected, rel=1e-6)


def test_covariances_that_do_not_commute():
    # In two dimensions tr sqrt(C1 C2) = sqrt(tr(C1 C2) + 2 sqrt(det C1 det C2))
    random = np.random.default_rng(4)
    a, b = (m @ m.T for m in random.standard_normal((2, 2, 2)))
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    expected = np.trace(a) + np.trace(b) - 2 * cross
    assert frechet_distance(np.zeros(2), a, np.zeros(2), b) == pytest.approx(expected, rel=1e-10)


def test_wide_spectrum_keeps_its_small_directions():
    # eigenvalues over ten orders of magnitude, as features have; roots of the product's would keep eight
    a = np.logspace(0, -10, 64)
    u = orthogonal(64, seed=5)
    covariance = u * a @ u.T
    small = np.where(a < 1e-5, 100 * a, a)
    expected = ((np.sqrt(small) - np.sqrt(a)) ** 2).sum()
    assert fid(moments(covariance), moments(u * small @ u.T)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("counts", "d"), [((40, 30), 64), ((40, 200), 64), ((200, 200), 64)])
def test_moments_of_fewer_vectors_than_dimensions(counts, d):
    # With centred vectors X the factor of the covariance is X^T / sqrt(n − 1) itself, whatever its rank
    random = np.random.default_rng(9)
    features = [
        np.maximum(random.standard_normal((n, d)) * np.logspace(0, -4, d), 0).astype(np.float32)
        for n in counts
    ]
    means = [x.mean(axis=0, dtype=float) for x in features]
    factors = [(x - mean) / np.sqrt(len(x) - 1) for x, mean in zip(features, means, strict=True)]
    step = means[0] - means[1]
    cross = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    expected = step @ step + sum((x**2).sum() for x in factors) - 2 * cross
    assert fid(*(Moments.of(x, SOURCE) for x in features)) == pytest.approx(expected, rel=1e-10)


def test_distance_to_itself_and_to_a_point():
    covariance = np.cov(np.random.default_rng(6).standard_normal((16, 100)))
    assert fid(moments(covariance), moments(covariance)) == pytest.approx(0, abs=1e-12)
    point = np.zeros((16, 16))
    assert fid(moments(covariance), moments(point)) == pytest.approx(np.trace(covariance))
    assert fid(moments(point), moments(point)) == 0


def test_reference_implementation(golden):
    with np.load(golden("inception", "metrics.npz")) as arrays:
        expected = json.loads(str(arrays["results"]))["fid"]["frechet_inception_distance"]
        first, second = (Moments.of(arrays[name], SOURCE) for name in ("features_1", "features_2"))
    assert fid(first, second) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("pieces", [[1] * 10 + [490], [499, 1], [7, 300, 193]])
def test_merged_moments_are_those_of_the_whole(pieces):
    # far from zero: a difference of sums of squares would leave 4 digits in float32's place, and 8 here
    features = (1e4 + np.random.default_rng(7).standard_normal((500, 5))).astype(np.float32)
    parts = [Moments.of(part, SOURCE) for part in np.split(features, np.cumsum(pieces)[:-1])]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    exact = features.astype(np.float64)
    assert merged.count == 500
    np.testing.assert_allclose(merged.mean, exact.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(merged.covariance, np.cov(exact.T), rtol=1e-9, atol=1e-10)


def test_moments_of_two_processes_merge_by_way_of_the_disk(tmp_path):
    features = np.random.default_rng(11).standard_normal((500, 5))
    for process in (0, 1):
        save_moments(tmp_path / f"{process}.npz", Moments.of(features[process::2], SOURCE))
    first, second = (load_moments(tmp_path / f"{process}.npz") for process in (0, 1))
    for merged in (first.merge(second), second.merge(first)):
        assert merged.count == 500
        np.testing.assert_allclose(merged.mean, features.mean(axis=0), rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(merged.covariance, np.cov(features.T), rtol=1e-12, atol=1e-14)


def test_moments_of_many_vectors_are_taken_in_parts(monkeypatch):
    features = np.random.default_rng(12).standard_normal((103, 5))
    whole = Moments.of(features, SOURCE)
    monkeypatch.setattr("evaluation.metrics.fid.ROWS", 10)
    parts = Moments.of(features, SOURCE)
    assert parts.count == 103
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(parts.scatter, whole.scatter, rtol=1e-12, atol=1e-12)


def test_merging_is_for_parts_of_one_set():
    other = dataclasses.replace(SOURCE, split="test")
    with pytest.raises(ValueError, match="merge only the statistics of parts of one set"):
        moments(np.eye(2)).merge(moments(np.eye(2), source=other))


def test_moments_of_other_features_are_refused_by_name():
    other = dataclasses.replace(SOURCE, features_sha256="11", preprocessing="uint8 / 255", data="theirs")
    with pytest.raises(
        ValueError, match="features_sha256 = '11' instead of '00'; preprocessing = 'uint8 / 255' instead of"
    ) as caught:
        fid(moments(np.eye(2)), moments(np.eye(2), source=other))
    assert "features = 'plain'" not in str(caught.value)
    # another data set is what FID is for
    assert fid(moments(np.eye(2)), moments(np.eye(2), source=dataclasses.replace(SOURCE, data="theirs"))) == 0


def test_too_few_and_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"number of feature vectors must be at least 1 .got 0"):
        Moments.of(np.zeros((0, 3)), SOURCE)
    with pytest.raises(ValueError, match=r"count must be at least 2 for a covariance .got 1"):
        fid(Moments.of(np.zeros((1, 3)), SOURCE), moments(np.eye(3)))
    with pytest.raises(
        ValueError, match=r"features of 'made up' must be finite numbers .got .NaN or infinity in 1 of 2 vec"
    ):
        Moments.of(np.array([[0, 1], [np.nan, 1]]), SOURCE)
    with pytest.raises(
        ValueError, match=r"samples must be finite numbers .got .NaN or infinity for 'made up'"
    ):
        fid(moments(np.eye(2) * np.nan), moments(np.eye(2)))


def test_moments_survive_the_disk(tmp_path):
    network = load_features("digits")
    images, _ = classifiers.labelled_digits()
    first = reference.compute([images[:300]], network, data="digits", split="first 300")
    save_moments(tmp_path / "moments.npz", first)
    again = load_moments(tmp_path / "moments.npz")
    assert again.source == first.source == Source.of(network, data="digits", split="first 300")
    assert again.count == 300
    assert again.name == "digits:first 300:300"
    assert np.array_equal(again.mean, first.mean)
    assert np.array_equal(again.scatter, first.scatter)


def test_digits_are_nearer_to_digits_than_to_noise():
    network = load_features("digits")
    images, _ = classifiers.labelled_digits()
    halves = [reference.compute([images[i::2]], network, data="digits", split=f"half {i}") for i in (0, 1)]
    shuffled = np.random.default_rng(8).permuted(images.reshape(-1, 64), axis=1).reshape(images.shape)
    noise = reference.compute([shuffled], network, data="noise", split="all")
    assert 100 * fid(*halves) < fid(noise, halves[0])


def test_few_samples_give_a_warning_with_its_reason():
    network = load_features("digits")
    with pytest.warns(UserWarning, match="FID of 48 samples in the 48 dimensions of 'digits'.*singular"):
        warn_if_few(48, network)
    with pytest.warns(UserWarning, match="biased upwards.*raise num_samples to 240") as caught:
        warn_if_few(239, network)
    assert "singular" not in str(caught[0].message)
    warn_if_few(240, network)
    assert len(caught) == 1


# --- FID of infinitely many samples ---


def extrapolated(features: np.ndarray, reference: Moments, piece: int) -> tuple[float, float]:
    """FID, and what it tends to, of features that come in pieces."""
    line, before = Extrapolation(num_samples=len(features), reference=reference), None
    for start in range(0, len(features), piece):
        part = features[start : start + piece]
        line.add(before, part, SOURCE)
        before = Moments.of(part, SOURCE) if before is None else before.merge(Moments.of(part, SOURCE))
    assert before is not None
    distance = fid(before, reference)
    return distance, line.result(distance)


def test_extrapolation_is_unbiased_where_fid_is_not():
    # 8 dimensions and 40 samples, the fewest that are allowed; means apart by 0.3 and deviations 1.2 and 1
    random = np.random.default_rng(13)
    reference = dataclasses.replace(moments(np.eye(8)), count=None, scatter=np.eye(8))
    truth = 8 * 0.3**2 + 8 * 0.2**2
    found = [extrapolated(0.3 + 1.2 * random.standard_normal((40, 8)), reference, 40) for _ in range(60)]
    (plain, line), errors = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / np.sqrt(60)
    assert abs(line - truth) < 3 * errors[1]  # false alarm: 0.3 %
    assert plain - truth > 10 * errors[0]


def test_extrapolation_does_not_depend_on_the_pieces():
    random = np.random.default_rng(14)
    reference = moments(np.eye(3))
    features = random.standard_normal((203, 3))
    expected = extrapolated(features, reference, 203)
    for piece in (1, 50, 200):
        assert extrapolated(features, reference, piece) == pytest.approx(expected, rel=1e-10)
    # a line by hand: through FIDs of 15 sets of the first samples, a tenth of them to all
    sizes = np.linspace(20, 203, 15).astype(int)
    fids = [fid(Moments.of(features[:size], SOURCE), reference) for size in sizes]
    assert expected[1] == pytest.approx(np.polyfit(1 / sizes, fids, 1)[1], rel=1e-8)


def test_extrapolation_of_few_samples_is_refused():
    require_enough_for_line(40, 8)
    message = (
        r"fid_infinity must be False for 39 samples: a line needs 40, .*got True.: raise num_samples to 40"
    )
    with pytest.raises(ValueError, match=message):
        require_enough_for_line(39, 8)
