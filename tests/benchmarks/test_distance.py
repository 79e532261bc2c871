"""benchmarks/distance.py on closed forms and on samples of known laws, right and wrong."""

import functools

import numpy as np
import pytest

from benchmarks.distance import Distance, cramer_von_mises
from benchmarks.front import log_density_of_modes
from benchmarks.torture import pair

N = 4000


def test_the_distance_of_one_point_is_that_of_the_formula():
    # ∫₀ᶜ t² dt + ∫_c¹ (1 − t)² dt
    c = 0.3
    assert cramer_von_mises(np.full(5, c))[0] == pytest.approx((c**3 + (1 - c) ** 3) / 3, rel=1e-12)


def test_the_square_is_that_of_the_classical_sum():
    u = np.random.default_rng(0).uniform(size=50)
    steps = (np.arange(50) + 0.5) / 50
    expected = np.mean((steps - np.sort(u)) ** 2) + 1 / (12 * 50**2)
    assert cramer_von_mises(u)[0] == pytest.approx(expected, rel=1e-12)


def test_the_influence_is_the_effect_of_leaving_a_sample_out():
    u = np.random.default_rng(1).beta(2, 1, size=2000)
    square, influence = cramer_von_mises(u)
    assert np.mean(influence) == pytest.approx(0, abs=1e-12)
    for i in (0, 7, 100):
        without, _ = cramer_von_mises(np.delete(u, i))
        # the next term of the expansion is of order 1/n
        assert (len(u) - 1) * (square - without) == pytest.approx(influence[i], abs=2e-3)


@pytest.fixture(scope="module", params=[2, 16])
def modes(request):
    return pair(request.param, 1.0, 0.05, 0.1)


@pytest.fixture(scope="module")
def distance(modes):
    return Distance.to(functools.partial(log_density_of_modes, modes), modes.samples(40_000, seed=1))


def test_true_samples_are_at_the_floor(modes, distance):
    squares = [distance(modes.samples(N, seed=10 + i))[0] for i in range(20)]
    # D² of one set has a relative deviation below 1; five deviations of the mean of 20, and the reference's
    # own deviation from the law, which is shared by all
    assert np.mean(squares) == pytest.approx(distance.floor(N), rel=1.2)


def test_the_error_is_the_deviation_over_sets(modes, distance):
    wrong = pair(modes.centres.shape[1], 1.0, 0.06, 0.13)
    squares, errors = np.transpose([distance(wrong.samples(N, seed=100 + i)) for i in range(40)])
    # the deviation of 40 has a relative standard error of 1/√80
    assert np.mean(errors) == pytest.approx(np.std(squares), rel=4 / np.sqrt(80))


@pytest.mark.parametrize("change", ["weight", "width", "place"])
def test_a_wrong_weight_width_or_place_is_seen(modes, distance, change):
    d = modes.centres.shape[1]
    wrong = {"weight": pair(d, 1.0, 0.05, 0.13), "width": pair(d, 1.0, 0.06, 0.1), "place": modes}[change]
    x = wrong.samples(N, seed=3)
    if change == "place":
        x = x + 0.02
    square, error = distance(x)
    assert square - distance.floor(N) > 4 * error
