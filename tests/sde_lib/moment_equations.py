"""The moment equations that the marginals of every process solve."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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
