"""The sliced Wasserstein distance: closed forms of shifts and scales, and its interval holds the truth."""

import numpy as np
import pytest
import scipy.stats

from benchmarks import coverage
from evaluation.metrics.bootstrap import interval
from evaluation.metrics.features import load_features
from evaluation.metrics.sliced_wasserstein import DIRECTIONS, replicates, sliced_wasserstein
from training import classifiers


def test_of_two_sets_of_numbers_by_hand():
    # sorted: (1, 2, 6) and (0, 2, 3), squares 1, 0 and 9; in one dimension both directions are alike
    samples, reference = np.array([[6.0], [1.0], [2.0]]), np.array([[2.0], [3.0], [0.0]])
    assert sliced_wasserstein(samples, reference) == pytest.approx(3 * 10 / 3, rel=1e-12)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_a_shift_counts_three_times_its_square(size):
    """Of every basis of orthogonal directions the mean is exact."""
    random = np.random.default_rng(0)
    features = random.standard_normal((20, size))
    shift = random.standard_normal(size)
    expected = 3 * (shift**2).sum()
    # of 1,000 directions in three dimensions the last is without its basis
    exact = 1e-10 if DIRECTIONS % size == 0 else 2 / DIRECTIONS
    assert sliced_wasserstein(features + shift, features) == pytest.approx(expected, rel=exact)


def test_a_scale_counts_three_times_the_squared_change_of_the_deviations():
    """Of a set and the set times s the distance is 3 (s − 1)² times the mean squared length, exactly."""
    features = np.random.default_rng(1).standard_normal((40, 25))
    expected = 3 * 0.5**2 * (features**2).sum(axis=1).mean()
    assert sliced_wasserstein(1.5 * features, features) == pytest.approx(expected, rel=1e-10)


def test_of_samples_of_two_gaussians():
    """W2² of N(m, s²) and N(0, 1) is m² + (s − 1)²; its deviation over draws is 3.5 % of it here."""
    random = np.random.default_rng(2)
    samples = 0.5 + 1.5 * random.standard_normal((4000, 4))
    found = sliced_wasserstein(samples, random.standard_normal((4000, 4)))
    assert found == pytest.approx(3 * 4 * (0.5**2 + 0.5**2), rel=0.12)


def test_equal_sets_have_no_distance_in_whatever_order():
    features = np.random.default_rng(3).standard_normal((30, 8)).astype(np.float32)
    assert sliced_wasserstein(features[::-1], features) == 0


def test_sets_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"number of samples must be 4, the number of images .got 3.: leave"):
        sliced_wasserstein(np.zeros((3, 2)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"number of samples must be 4, .*got 3"):
        replicates(np.zeros((3, 2)), np.zeros((4, 2)), 5)


def test_replicates_are_the_distances_of_drawn_sets():
    random = np.random.default_rng(4)
    sets = random.standard_normal((2, 50, 3))
    drawn = np.random.default_rng(1).integers(50, size=(2, 6, 50))
    expected = [sliced_wasserstein(sets[0][a], sets[1][b]) for a, b in zip(*drawn, strict=True)]
    assert replicates(sets[0], sets[1], 6) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("apart", [False, True])
def test_interval_holds_the_truth_as_often_as_it_says(apart):
    found = coverage.of_sliced(6, apart, 80, repeats=40, replicates=50)
    # of 40 intervals at 95 % fewer than 33 hold it once in 1,400 times
    assert scipy.stats.binom(40, 0.95).cdf(32) < 1 / 1400
    assert found.coverage >= 33 / 40
    if apart:  # and not because they are wide: their deviation is that of the 40 figures, shown to 11 %
        claimed = (found.intervals[:, 1] - found.intervals[:, 0]).mean() / (2 * 1.96)
        assert claimed == pytest.approx(found.figures.std(ddof=1), rel=0.4)


def test_halves_of_the_real_digits_are_near_and_blurred_ones_are_not():
    images, _ = classifiers.labelled_digits()
    network = load_features("digits")
    order = np.random.default_rng(5).permutation(len(images))
    half, other = images[order[:300]], images[order[300:600]]
    features, reference = network(half)[0], network(other)[0]
    distance = sliced_wasserstein(features, reference)
    low, high = interval(distance, replicates(features, reference, 60), lowest=0.0)
    assert low == 0
    blurred = (half // 2 + np.roll(half, 1, axis=2) // 2).astype(np.uint8)
    features = network(blurred)[0]
    further = sliced_wasserstein(features, reference)
    low, _ = interval(further, replicates(features, reference, 60), lowest=0.0)
    assert low > high
