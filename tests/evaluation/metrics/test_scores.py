"""Inception Score, KID, precision and recall, density and coverage against constructed cases."""

import json

import numpy as np
import pytest
import scipy.stats

from benchmarks import coverage
from evaluation.metrics.inception_score import InceptionScore, inception_score, require_enough
from evaluation.metrics.kid import kid, squared_mmd
from evaluation.metrics.neighbours import precision_recall

# --- Inception Score ---


def certain(classes: np.ndarray, k: int = 10) -> np.ndarray:
    return np.where(np.arange(k) == classes[:, None], 0.0, -np.inf)


def test_score_of_sure_and_even_classes_is_their_number():
    mean, std = inception_score(certain(np.arange(1000) % 10))
    assert mean == pytest.approx(10, rel=1e-12)
    assert std == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("logits", [np.zeros((100, 10)), certain(np.full(100, 3)), np.full((100, 10), 1e3)])
def test_score_of_samples_that_are_all_alike_is_one(logits):
    assert inception_score(logits) == (pytest.approx(1, rel=1e-12), pytest.approx(0, abs=1e-12))


def test_score_of_two_classes_at_odds():
    # half of the samples have p = (q, 1 − q), half (1 − q, q): log IS = log 2 − H(q)
    q = 0.9
    logits = np.log(np.array([[q, 1 - q], [1 - q, q]] * 50))
    entropy = -q * np.log(q) - (1 - q) * np.log(1 - q)
    assert inception_score(logits)[0] == pytest.approx(2 * np.exp(-entropy), rel=1e-12)


def test_splits_are_in_order_and_uneven_ones_lose_nobody():
    # 7 samples in 3 splits: [0, 2), [2, 4), [4, 7) with 1, 2 and 3 classes
    mean, std = inception_score(certain(np.array([0, 0, 0, 1, 0, 1, 2])), splits=3)
    assert (mean, std) == (pytest.approx(2), pytest.approx(np.std([1, 2, 3])))


def test_pieces_of_any_size_give_the_score_of_the_whole():
    logits = np.random.default_rng(0).standard_normal((503, 7)).astype(np.float32)
    score = InceptionScore(num_samples=503, num_classes=7)
    for piece in np.split(logits, [1, 100, 101, 400]):
        score.add(piece)
    assert score.result() == pytest.approx(inception_score(logits), rel=1e-13)


def test_score_of_reference_implementation(golden):
    with np.load(golden("inception", "metrics.npz")) as arrays:
        expected = json.loads(str(arrays["results"]))["isc_noshuffle"]
        mean, std = inception_score(arrays["logits"])
    assert mean == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert std == pytest.approx(expected["inception_score_std"], rel=1e-6)


def test_fewer_samples_than_splits_are_refused():
    with pytest.raises(
        ValueError, match=r"num_samples must be at least 10: .*got 9.: use more samples, or measure neither"
    ):
        require_enough(9)
    with pytest.raises(ValueError, match=r"num_samples must be at least 2: .*got 1"):
        require_enough(1, splits=1)
    score = InceptionScore(num_samples=20, num_classes=2)
    score.add(np.zeros((5, 2)))
    with pytest.raises(ValueError, match=r"number of logits must be 20, as announced .got 5"):
        score.result()


def test_interval_is_students_of_the_splits():
    # scores 1, 2 and 3: mean 2, deviation 1 and t = 4.3027 for two degrees of freedom
    score = InceptionScore(num_samples=9, num_classes=7, splits=3)
    score.add(certain(np.array([0, 0, 0, 0, 0, 1, 0, 1, 2]), 7)[[0, 1, 2, 3, 5, 3, 6, 7, 8]])
    scores = np.array([1, np.exp(scipy.stats.entropy([2, 1])), 3])
    reach = 4.302653 * scores.std(ddof=1) / np.sqrt(3)
    assert score.interval() == pytest.approx([1, scores.mean() + reach], rel=1e-6)  # no score is below 1
    score = InceptionScore(num_samples=20, num_classes=10, splits=2)
    score.add(certain(np.arange(20) % 10))
    assert score.interval() == pytest.approx([10, 10])


@pytest.mark.parametrize(
    ("num_classes", "sharpness", "num_samples"),
    [(10, 6.0, 300), (10, 6.0, 1000), (1008, 8.0, 300), (1008, 14.0, 300)],
)
def test_interval_holds_the_expected_score_as_often_as_it_says(num_classes, sharpness, num_samples):
    found = coverage.of_score(num_classes, sharpness, num_samples, repeats=80, seed=1)
    # of 80 intervals at 95 % fewer than 68 hold it once in 2,900 times
    assert scipy.stats.binom(80, 0.95).cdf(67) < 1 / 2900
    assert found.coverage >= 68 / 80
    # and not because they are wide: their deviation is that of the 80 figures, which these show to 8 %
    width = (found.intervals[:, 1] - found.intervals[:, 0]).mean()
    assert width / (2 * 2.262) == pytest.approx(found.figures.std(ddof=1), rel=0.4)


# --- KID ---


def test_mmd_of_two_points_each():
    # kernel (x y + 1)^3 in one dimension; by hand: pairs (1, 2) and (0, 3), and the four mixed ones
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])
    assert squared_mmd(x, y) == pytest.approx(27 + 1 - 2 * (1 + 64 + 1 + 343) / 4)


def test_kid_is_unbiased():
    # 200 draws of equal distributions: the mean is within 3 standard errors of 0 (false alarm: 0.3 %)
    random = np.random.default_rng(1)
    draws = [kid(*random.standard_normal((2, 30, 8)), blocks=2, block_size=20, seed=i)[0] for i in range(200)]
    assert abs(np.mean(draws)) < 3 * np.std(draws, ddof=1) / np.sqrt(200)


def test_kid_of_reference_implementation(golden):
    # its own draws of 100 blocks of 500; it computes the kernel in float32
    with np.load(golden("inception", "metrics.npz")) as arrays:
        expected = json.loads(str(arrays["results"]))["kid"]
        sets = [arrays[name].astype(np.float64) for name in ("features_1", "features_2")]
    random = np.random.RandomState(2020)
    draws = [squared_mmd(*(x[random.choice(len(x), 500, replace=False)] for x in sets)) for _ in range(100)]
    assert np.mean(draws) == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)
    assert np.std(draws) == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-5)
    # and blocks of ours lie around the same mean, by less than the deviation of a block
    mean, _ = kid(*sets, block_size=500, blocks=10)
    assert abs(mean - expected["kernel_inception_distance_mean"]) < expected["kernel_inception_distance_std"]


def test_kid_block_larger_than_a_set_is_refused():
    with pytest.raises(ValueError, match=r"block_size must be from 2 to 20, .*got 1000"):
        kid(np.zeros((20, 3)), np.zeros((30, 3)))


# --- precision, recall, density, coverage ---


def test_a_sample_inside_and_a_sample_far_away():
    # reference 0, 1, 2, 3 with k = 1: balls of radius 1; sample 0.5 is in the balls of 0 and 1, 100 in none;
    # the samples' own balls have radius 99.5 and hold all of the reference
    reference = np.arange(4.0)[:, None]
    samples = np.array([[0.5], [100.0]])
    assert precision_recall(samples, reference, neighbours=1) == {
        "precision": 0.5,
        "recall": 1.0,
        "density": 1.0,
        "coverage": 0.5,
    }


def test_equal_sets_are_all_inside():
    features = np.random.default_rng(2).standard_normal((2100, 4))  # more than one block of rows
    found = precision_recall(features, features)
    assert found["precision"] == found["recall"] == found["coverage"] == 1


def test_distant_sets_share_nothing():
    features = np.random.default_rng(3).standard_normal((50, 4))
    assert set(precision_recall(features, features + 100).values()) == {0.0}


def test_precision_and_recall_of_reference_implementation(golden):
    with np.load(golden("inception", "metrics.npz")) as arrays:
        expected = json.loads(str(arrays["results"]))["prc"]
        found = precision_recall(arrays["features_1"], arrays["features_2"])
    # exactly: the same counts, which theirs divided in float32
    for name in ("precision", "recall"):
        assert np.float32(found[name]) == np.float32(expected[name])


def test_too_few_for_the_neighbours_are_refused():
    with pytest.raises(ValueError, match=r"neighbours must be from 1 to 2, .*got 3"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
