"""A Gaussian mixture around real images, known exactly at every noise level.

The data are x(0) ~ (1/K) Σ_k N(c_k, b² I). They stay a mixture under noise: with (α, σ) of the process at t,

    p_t(x) = (1/K) Σ_k N(x; α c_k, s² I),      s² = α² b² + σ²

so that its score, density, moments and samples have a closed form at any t. It has as many modes as there are
images. Because no network is involved, every error in a sample is the solver's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Float64, Int, PRNGKeyArray
from sklearn.datasets import load_digits

from sde_lib import SDE, VESDE
from sde_lib.pytrees import register_dataclass

SHAPE = (8, 8, 1)


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """A mixture of Gaussians of equal weight and equal width.

    Attributes:
        offset: mean of the centres, [d]. All computations are relative to it, because squares of smaller
            numbers lose less to rounding.
        centres: c_k less the offset, [K, d].
        bandwidth: b, in the same units.
    """

    offset: Float[Array, " d"]
    centres: Float[Array, "K d"]
    bandwidth: Float[Array, ""]

    @classmethod
    def around(cls, images: Float[np.ndarray, "K ..."], bandwidth: float) -> Mixture:
        """The mixture with a centre at each image."""
        flat = images.reshape(len(images), -1).astype(np.float64)
        offset = flat.mean(axis=0)
        return cls(
            offset=jnp.asarray(offset, jnp.float32),
            centres=jnp.asarray(flat - offset, jnp.float32),
            bandwidth=jnp.float32(bandwidth),
        )

    def marginal(self, sde: SDE, t: Any) -> tuple[Any, Any]:
        """(α, s²) at t."""
        alpha, sigma = sde.marginal(t)
        return alpha, (alpha * self.bandwidth) ** 2 + sigma**2

    def score_fn(self, sde: SDE) -> Partial:
        """The score, (x [b, ...], t [b]) -> ∇ log p_t(x) [b, ...]; equal shapes share compiled programs."""
        return Partial(_score, self, sde)

    def log_density(self, sde: SDE, x: Float[Array, "b *shape"], t: Float[Array, " b"]) -> Float[Array, " b"]:
        """log p_t(x), in nats for the whole image."""
        y, alpha, variance = _seen_from_offset(self, sde, x, t)
        squares = jnp.sum(y**2, axis=1) / (-2 * variance[:, 0])
        mixed = jax.scipy.special.logsumexp(_logits(self, y, alpha, variance), axis=1)
        count, d = self.centres.shape
        return squares + mixed - jnp.log(count) - 0.5 * d * jnp.log(2 * jnp.pi * variance[:, 0])

    def nearest(self, sde: SDE, x: Float[Array, "b *shape"], t: Float[Array, " b"]) -> Int[Array, " b"]:
        """The index of the centre that x most likely came from."""
        y, alpha, variance = _seen_from_offset(self, sde, x, t)
        return jnp.argmax(_logits(self, y, alpha, variance), axis=1)

    def residual(self, sde: SDE, x: Float[Array, "b *shape"], t: Float[Array, " b"]) -> Float[Array, " b"]:
        """E[|x − α c_k|² | x] / (d s²), where k is the centre that x came from; its mean over p_t is 1."""
        y, alpha, variance = _seen_from_offset(self, sde, x, t)
        distance = jnp.sum(y**2, axis=1, keepdims=True) - 2 * variance * _logits(self, y, alpha, variance)
        weights = jax.nn.softmax(_logits(self, y, alpha, variance), axis=1)
        return jnp.sum(weights * distance, axis=1) / (self.centres.shape[1] * variance[:, 0])

    def moments(self, sde: SDE, t: Any) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, "d d"]]:
        """Mean and covariance of p_t for flattened images."""
        alpha, variance = (np.float64(value) for value in self.marginal(sde, t))
        centres = np.asarray(self.centres, np.float64)
        mean = np.asarray(self.offset, np.float64) + centres.mean(axis=0)
        spread = np.cov(centres, rowvar=False, bias=True)
        return alpha * mean, alpha**2 * spread + variance * np.eye(len(mean))

    def samples(
        self, sde: SDE, t: Any, *, key: PRNGKeyArray, num_samples: int, shape: tuple[int, ...] = SHAPE
    ) -> Float[Array, "n ..."]:
        """Exact samples of p_t."""
        key_k, key_z = jax.random.split(key)
        alpha, variance = self.marginal(sde, t)
        k = jax.random.randint(key_k, (num_samples,), 0, len(self.centres))
        z = jax.random.normal(key_z, (num_samples, self.centres.shape[1]))
        x = alpha * (self.offset + self.centres[k]) + jnp.sqrt(variance) * z
        return x.reshape(num_samples, *shape).astype(jnp.float32)


def digits_mixture(sde: SDE, bandwidth: float) -> Mixture:
    """The mixture around scikit-learn's 1,797 digits of 8 × 8 pixels, in the data units of ``sde``.

    ``bandwidth`` is in units of images in [0, 1] for every process, so that all have the same target
    distribution: for VP and sub-VP, with data in [−1, 1], it is doubled.
    """
    unit = pixel_unit(sde)
    images, _ = load_digits(return_X_y=True)
    images = np.asarray(images) / 16
    return Mixture.around(images if unit == 1 else 2 * images - 1, bandwidth * unit)


def pixel_unit(sde: SDE) -> float:
    """The length of the image range [0, 1] in data units: VE has data in [0, 1], the others in [−1, 1]."""
    return 1.0 if isinstance(sde, VESDE) else 2.0


def _score(mixture: Mixture, sde: SDE, x: Array, t: Array) -> Array:
    y, alpha, variance = _seen_from_offset(mixture, sde, x, t)
    logits = _logits(mixture, y, alpha, variance)
    weights = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
    posterior = _product(weights, mixture.centres) / jnp.sum(weights, axis=1, keepdims=True)
    return ((alpha * posterior - y) / variance).reshape(x.shape)


def _seen_from_offset(mixture: Mixture, sde: SDE, x: Array, t: Array) -> tuple[Array, Array, Array]:
    """x − α offset [b, d], α and s² [b, 1]."""
    alpha, variance = jax.vmap(lambda t: mixture.marginal(sde, t))(t)
    alpha, variance = alpha[:, None], variance[:, None]
    return x.reshape(len(x), -1) - alpha * mixture.offset, alpha, variance


def _logits(mixture: Mixture, y: Array, alpha: Array, variance: Array) -> Array:
    """log of the centres' weights given x, up to a shared constant, [b, K].

    The shared |y|² is left out: at σ = 50 it is 1e5, and its rounding error would be as large as a logit.
    """
    squares = jnp.sum(mixture.centres**2, axis=1)
    return _product(alpha / variance * y, mixture.centres.T) - 0.5 * alpha**2 / variance * squares


def _product(a: Array, b: Array) -> Array:
    # by default, accelerators would round to three digits
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
