"""The mixture with known scores: its formulas against derivatives and large samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.mixture import Mixture, digits_mixture, pixel_unit
from tests.problems import SDES


def points(sde, mixture, t, num_samples=64):
    x = mixture.samples(sde, t, key=jax.random.key(0), num_samples=num_samples)
    return x, jnp.full(num_samples, t, jnp.float32)


def in_float64(mixture, sde, x, t):
    """Logarithms of the terms of p_t(x), one for each centre, as the module's docstring defines them."""
    alpha, variance = (np.float64(value) for value in mixture.marginal(sde, t))
    centres = np.asarray(mixture.centres, np.float64) + np.asarray(mixture.offset, np.float64)
    difference = np.asarray(x, np.float64).reshape(len(x), 1, -1) - alpha * centres
    exponents = -np.sum(difference**2, axis=2) / (2 * variance)
    return difference, variance, exponents - np.log(len(centres)) - 32 * np.log(2 * np.pi * variance)


@pytest.mark.parametrize("bandwidth", [0.05, 0.2])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", SDES)
def test_score_and_density_are_those_of_double_precision(name, share, bandwidth):
    """From eps to σ = 50, in float32.

    The error of a centre's log-weight is a few roundings of |x||c|/s², at most 5e-4 at eps. Where a point
    belongs to two centres, the score's numerator changes by that share of their distance.
    """
    sde = SDES[name]
    t = sde.eps + share * (sde.T - sde.eps)
    mixture = digits_mixture(sde, bandwidth)
    x, times = points(sde, mixture, t, num_samples=16)
    difference, variance, logs = in_float64(mixture, sde, x, t)
    largest = logs.max(axis=1, keepdims=True)
    density = np.log(np.sum(np.exp(logs - largest), axis=1)) + largest[:, 0]
    weights = np.exp(logs - density[:, None])
    score = -np.einsum("bk,bkd->bd", weights, difference) / variance
    # the density's terms reach d/2 log(2 π s²), about 300 at σ = 50
    np.testing.assert_allclose(mixture.log_density(sde, x, times), density, atol=2e-3)
    ours = np.asarray(mixture.score_fn(sde)(x, times)).reshape(16, -1)
    assert np.abs(ours - score).max() < 5e-4 * np.abs(score).max()
    np.testing.assert_array_equal(mixture.nearest(sde, x, times), logs.argmax(axis=1))
    residual = np.sum(weights * np.sum(difference**2, axis=2), axis=1) / (64 * variance)
    np.testing.assert_allclose(mixture.residual(sde, x, times), residual, rtol=1e-3)


def test_the_score_is_the_gradient_of_the_log_density():
    """For overlapping modes, where every centre contributes; the two differ by rounding only."""
    sde = SDES["vp"]
    mixture = digits_mixture(sde, 0.2)
    x, t = points(sde, mixture, 0.3)
    gradient = jax.grad(lambda x: jnp.sum(mixture.log_density(sde, x, t)))(x)
    np.testing.assert_allclose(mixture.score_fn(sde)(x, t), gradient, atol=1e-3)


@pytest.mark.parametrize("name", SDES)
def test_moments_are_those_of_large_samples(name):
    """For n samples, errors of a mean over the deviation are N(0, 1/n), of a variance's ratio N(0, 2/n).

    A mixture's pixels have no heavier tails than a Gaussian's. So one of 64 means or variances exceeds five
    standard deviations less than once in 10,000 runs (the key here is fixed).
    """
    sde, n = SDES[name], 20_000
    mixture = digits_mixture(sde, 0.1)
    x, times = points(sde, mixture, sde.eps, num_samples=n)
    mean, covariance = mixture.moments(sde, sde.eps)
    flat = np.asarray(x, np.float64).reshape(n, -1)
    deviation = np.sqrt(np.diag(covariance))
    assert np.abs((flat.mean(axis=0) - mean) / deviation).max() < 5 / np.sqrt(n)
    # pixels that are nearly always blank have a kurtosis above 3: so the sum of the variances is tested
    total = np.trace(np.cov(flat, rowvar=False)) / np.trace(covariance)
    assert abs(total - 1) < 5 * np.sqrt(2 / n)
    # the mean square of d = 64 Gaussian numbers has a relative deviation of sqrt(2/64)
    assert abs(float(jnp.mean(mixture.residual(sde, x[:4096], times[:4096]))) - 1) < 5 * np.sqrt(
        2 / 64 / 4096
    )


def test_every_process_has_the_same_target_images():
    scaled = {}
    for name, sde in SDES.items():
        mixture, unit = digits_mixture(sde, 0.1), pixel_unit(sde)
        assert float(mixture.bandwidth) == pytest.approx(0.1 * unit)
        low = 0.0 if unit == 1 else -1.0
        scaled[name] = (np.asarray(mixture.offset + mixture.centres) - low) / unit
        assert scaled[name].min() == pytest.approx(0, abs=1e-6)
        assert scaled[name].max() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(scaled["ve"], scaled["vp"], atol=1e-6)


def test_one_centre_is_a_gaussian():
    sde = SDES["vp"]
    mixture = Mixture.around(np.full((1, 2), 0.3), 0.2)
    x, t = jnp.asarray([[0.1, 0.7]], jnp.float32), jnp.asarray([0.5], jnp.float32)
    alpha, sigma = sde.marginal(0.5)
    variance = (0.2 * alpha) ** 2 + sigma**2
    np.testing.assert_allclose(mixture.score_fn(sde)(x, t), (0.3 * alpha - x) / variance, rtol=1e-5)
    np.testing.assert_allclose(
        mixture.residual(sde, x, t), jnp.mean((x - 0.3 * alpha) ** 2) / variance, rtol=1e-5
    )
