"""The measures of benchmarks/posterior.py on exact samples and on wrong ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.posterior import (
    HUES,
    OPERATORS,
    SDE_,
    SHAPE,
    SIZE,
    alarms,
    coloured_digits,
    data,
    errors,
    limits,
    observed,
    table,
)

N = 2048


def exact(posterior, seed):
    """Samples of the posterior at eps."""
    rng = np.random.default_rng(seed)
    alpha, sigma = (float(value) for value in SDE_.marginal(SDE_.eps))
    factor = np.linalg.cholesky(alpha**2 * posterior.covariance + sigma**2 * np.eye(SIZE))
    return (alpha * posterior.mean + rng.standard_normal((N, SIZE)) @ factor.T).reshape(N, *SHAPE)


def marked(posterior, x):
    found = {f"box.some.some.{name}": value for name, value in errors(posterior.scaled(SDE_, x)).items()}
    assert len(table(found, N).splitlines()) == 5
    return {name.rpartition(".")[2] for name in alarms(found, N)}


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("operator", OPERATORS)
def test_exact_samples_are_not_marked_and_those_of_the_prior_are(operator, noise):
    posterior, observation = observed(operator, noise=noise)
    assert observation.y.shape == OPERATORS[operator](jnp.zeros(SHAPE)).shape
    assert marked(posterior, exact(posterior, 0)) == set()
    assert marked(posterior, exact(data(), 0)) == {"mean", "covariance"}


def test_an_error_has_the_size_that_it_says():
    z = np.random.default_rng(0).standard_normal((200_000, SIZE))
    moved, wide = errors(z + 0.1), errors(1.05 * z)
    assert moved["mean"] == pytest.approx(0.1, rel=0.05)
    assert wide["covariance"] == pytest.approx(1.05**2 - 1, rel=0.05)
    assert moved["covariance"] < limits(200_000)["covariance"]
    assert wide["mean"] < limits(200_000)["mean"]


def test_the_limits_are_four_standard_errors():
    """Of the squares: those of 200 sets of exact samples have the mean and deviation that they assume."""
    rng = np.random.default_rng(0)
    small = 256
    means = [np.mean(rng.standard_normal((small, SIZE)).mean(axis=0) ** 2) for _ in range(200)]
    assert 4 * np.std(means) == pytest.approx(limits(small)["mean"] ** 2, rel=0.2)
    squares = [
        np.sum((np.cov(rng.standard_normal((small, SIZE)).T) - np.eye(SIZE)) ** 2) / SIZE for _ in range(200)
    ]
    assert np.mean(squares) == pytest.approx((SIZE + 1) / small, rel=0.05)
    assert 4 * np.std(squares) == pytest.approx(limits(small)["covariance"] ** 2, rel=0.3)


def test_a_grey_image_says_nothing_about_the_hue():
    images = coloured_digits().reshape(-1, HUES, 8, 8, 3)
    grey = images.mean(axis=4)
    np.testing.assert_allclose(grey, np.broadcast_to(grey[:, :1], grey.shape), atol=1e-6)
    assert np.abs(images[:, 0] - images[:, 1]).max() > 0.5
    assert -1 <= images.min() < images.max() <= 1
