"""Intervals: their weights are Poisson variables of the ids, and they hold the truth as often as they say."""

import numpy as np
import pytest
import scipy.stats

from evaluation.metrics.bootstrap import FrechetReplicates, MeanReplicates, interval, weights
from evaluation.metrics.fid import Moments, Source, fid

SOURCE = Source(features="plain", features_sha256="00", preprocessing="none", data="made up", split="all")


def normal(d: int) -> Moments:
    return Moments(count=None, mean=np.zeros(d), scatter=np.eye(d), source=SOURCE)


# --- weights ---


def test_weights_are_those_of_the_ids_wherever_they_stand():
    drawn = weights(np.arange(1000, 1100), 37)
    order = np.random.default_rng(0).permutation(100)
    assert np.array_equal(weights(1000 + order, 37), drawn[order])
    assert np.array_equal(np.concatenate([weights(np.arange(1000, 1003), 37), drawn[3:]]), drawn)
    # of more replicates the first ones are the same, as long as they take as many words of the generator
    assert np.array_equal(weights(np.arange(1000, 1100), 48)[:, :37], drawn)
    assert weights(np.arange(0), 37).shape == (0, 37)


def test_weights_are_independent_poisson_variables():
    drawn = weights(np.arange(5000), 20)
    counts = np.bincount(drawn.ravel(), minlength=6)
    counts = np.append(counts[:5], counts[5:].sum())
    expected = scipy.stats.poisson.pmf(np.arange(5), 1)
    expected = 1e5 * np.append(expected, 1 - expected.sum())
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-4  # false alarm: 1 in 10,000
    # 190 correlations of replicates, and 20 of each with itself one id later, of deviation 1/sqrt(5000)
    of_replicates = np.corrcoef(drawn.T)[np.triu_indices(20, 1)]
    of_neighbours = [np.corrcoef(drawn[:-1, i], drawn[1:, i])[0, 1] for i in range(20)]
    largest = np.abs([*of_replicates, *of_neighbours]).max()
    assert largest < 5 / np.sqrt(5000)  # false alarm: 210 times 6e-7


# --- replicates: a weight is how often a sample is counted ---


def test_replicates_are_the_figures_of_repeated_samples():
    random = np.random.default_rng(1)
    features = random.standard_normal((60, 4)) + 3
    drawn = weights(np.arange(60), 6)
    mean, distance = MeanReplicates(6), FrechetReplicates(normal(4), 6)
    for part in (slice(0, 25), slice(25, 60)):
        mean.add(features[part, 0], drawn[part])
        distance.add(features[part], drawn[part])
    for i, (of_mean, of_distance) in enumerate(zip(mean.result(), distance.result(), strict=True)):
        repeated = np.repeat(np.arange(60), drawn[:, i])
        assert of_mean == pytest.approx(features[repeated, 0].mean(), rel=1e-13)
        expected = fid(Moments.of(features[repeated], SOURCE), normal(4))
        assert of_distance == pytest.approx(expected, rel=1e-10)  # second moments about 0 lose two digits


# --- intervals ---


def test_interval_is_free_of_the_bias_that_replicates_have_twice():
    random = np.random.default_rng(2).standard_normal(200)
    spread = (random - random.mean()) / random.std(ddof=1)
    assert interval(5.5, 6.0 + spread, lowest=0.0) == pytest.approx([5 - 1.959964, 5 + 1.959964])
    assert interval(5.5, 6.0 + spread, lowest=4.0) == pytest.approx([4, 5 + 1.959964])


def _fid_interval(random: np.random.Generator, ids: np.ndarray):
    features = 0.3 + 1.2 * random.standard_normal((len(ids), 3))
    replicates = FrechetReplicates(normal(3), 100)
    replicates.add(features, weights(ids, 100))
    return interval(fid(Moments.of(features, SOURCE), normal(3)), replicates.result(), lowest=0.0)


def _nfe_interval(random: np.random.Generator, ids: np.ndarray):
    nfe = 20 + random.poisson(30, len(ids))
    replicates = MeanReplicates()
    replicates.add(nfe, weights(ids))
    return interval(nfe.mean(), replicates.result(), lowest=0.0)


@pytest.mark.parametrize(
    ("of", "truth"),
    [
        # |m|^2 + sum (sqrt a − sqrt b)^2, in 3 dimensions
        (_fid_interval, 3 * 0.3**2 + 3 * 0.2**2),
        (_nfe_interval, 50),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(of, truth):
    random = np.random.default_rng(3)
    low, high = np.array([of(random, np.arange(250) + 250 * i) for i in range(40)]).T
    # of 40 intervals at 95 % fewer than 33 hold it once in 1,400 times
    assert scipy.stats.binom(40, 0.95).cdf(32) < 1 / 1400
    assert ((low <= truth) & (truth <= high)).sum() >= 33
    # and not because they are wide: their deviation is that of the 40 figures, which 40 figures show to 11 %
    claimed, shown = (high - low).mean() / (2 * 1.96), ((low + high) / 2).std(ddof=1)
    assert claimed == pytest.approx(shown, rel=0.4)


def test_samples_that_are_the_reference_itself_have_an_interval_of_no_width():
    """FID is then 0, and less by its bias: no samples of the same distribution are that near."""
    features = np.random.default_rng(4).standard_normal((250, 12))
    reference = Moments.of(features, SOURCE)
    replicates = FrechetReplicates(reference, 100)
    replicates.add(features, weights(np.arange(250), 100))
    distance = fid(reference, reference)
    assert distance == pytest.approx(0, abs=1e-12)
    assert interval(distance, replicates.result(), lowest=0.0) == [0.0, 0.0]


def test_moments_of_replicates_are_for_few_dimensions_and_enough_samples():
    assert FrechetReplicates.fit(240, 48)
    assert not FrechetReplicates.fit(239, 48)
    assert FrechetReplicates.fit(50_000, 192)
    assert not FrechetReplicates.fit(50_000, 768)
    # 200 x 353 x 354 / 2 numbers of 8 bytes are 99.97 MB
    assert FrechetReplicates.fit(50_000, 352)
    assert not FrechetReplicates.fit(50_000, 353)
