"""Closed forms that every process is held to."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib import denoise
from tests.problems import Gaussian


def check_moment_equations(sde: Any, times: np.ndarray) -> None:
    """For dx = a(t) x dt + g dw: d alpha/dt = a alpha and d sigma^2/dt = 2 a sigma^2 + g^2; in float64."""
    for t in times:
        (alpha, sigma), (alpha_rate, sigma_rate) = jax.jvp(sde.marginal, (t,), (1.0,))
        rate = sde.drift(jnp.ones(()), t)
        np.testing.assert_allclose(alpha_rate, rate * alpha, rtol=1e-9, atol=1e-12)
        # where alpha falls to 0 the two terms on the right cancel: each is of the size of 2 a sigma^2
        np.testing.assert_allclose(
            2 * sigma * sigma_rate,
            2 * rate * sigma**2 + sde.diffusion(t) ** 2,
            rtol=1e-9,
            atol=1e-12 * abs(2 * rate * sigma**2),
        )


def check_denoising(sde: Any, times: np.ndarray) -> None:
    """Denoising is the posterior mean of Gaussian data; in float64."""
    problem, x = Gaussian(), jnp.linspace(-2.0, 2.0, 5)
    for t in times:
        alpha, sigma = sde.marginal(t)
        gain = alpha * problem.std**2 / ((alpha * problem.std) ** 2 + sigma**2)
        expected = problem.mean + gain * (x - alpha * problem.mean)
        np.testing.assert_allclose(denoise(sde, x, t, problem.score(sde, x, t)), expected, rtol=1e-6)
