"""Continuous denoising score matching (Song et al., arXiv 2011.13456, eq. 7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from sde_lib import SDE, ScoreFn
from sde_lib.checks import require, require_choice

Sample = Float[Array, "*shape"]
Time = Float[Array, ""]
Batch = Float[Array, "b *shape"]
Times = Float[Array, "b"]
Weight = Callable[[Time], Any]  # scalar -> scalar

# Training goes closer to the data than VP and sub-VP are sampled to (sde.eps is 1e-3 there), as published.
EPS_TRAIN = 1e-5


def _one(t: Time) -> Time:
    return jnp.ones_like(t)


def weight_named(name: str, sde: SDE, sigma_data: float | None) -> Weight:
    """The weight of the loss at a time, relative to sigma(t)^2, that ``config.training.weighting`` names.

    - "sigma": sigma^2 in all, which weighs the noise alike at all times (arXiv 2011.13456, section 3.3).
    - "likelihood": g^2, for which the loss bounds the likelihood (arXiv 2101.09258, theorem 1).
    - "edm": for networks wrapped with ``sigma_data``, which then learn alike at all times (arXiv 2206.00364,
      eq. 8).

    Raises:
        ValueError: for another name, or "edm" without ``sigma_data``.
    """
    require_choice("config.training.weighting", name, ("sigma", "likelihood", "edm"))
    fix = "set config.model.sigma_data, or config.training.weighting='sigma'"
    wrapped = sigma_data is not None
    require(name != "edm" or wrapped, "config.model.sigma_data", sigma_data, "a number with 'edm'", fix)

    def likelihood(t: Time) -> Any:
        return (sde.diffusion(t) / sde.marginal(t)[1]) ** 2

    def edm(t: Time) -> Any:
        alpha, sigma = sde.marginal(t)
        return 1 + (sigma / (alpha * (sigma_data or 1.0))) ** 2

    return {"sigma": _one, "likelihood": likelihood, "edm": edm}[name]


def loss_at(
    score_fn: ScoreFn,
    sde: SDE,
    images: Batch,
    t: Times,
    noise: Batch,
    *,
    weight: Weight = _one,
) -> Times:
    """The loss of each image at its own time t and noise z: weight(t) sigma^2 |s(x, t) + z/sigma|^2.

    Here x = alpha x(0) + sigma z, and |.|^2 is a mean over the pixels, not their sum: with weight 1 a network
    that outputs zero then has loss 1 for every image size, and one clipping norm suits all.

    Args:
        images: x(0), in the data's range.
        noise: z, standard normal.
        weight: of a time, relative to sigma(t)^2, see ``weight_named``.
    """

    def perturb(x: Sample, t: Time, z: Sample) -> Any:
        alpha, sigma = sde.marginal(t)
        return alpha * x + sigma * z

    def loss(score: Sample, t: Time, z: Sample) -> Any:
        _, sigma = sde.marginal(t)
        # Written as sigma s + z, whose terms are of order one at every time; those of s + z/sigma are not.
        return weight(t) * jnp.mean((sigma * score + z) ** 2)

    return jax.vmap(loss)(score_fn(jax.vmap(perturb)(images, t, noise), t), t, noise)


def score_matching_loss(
    score_fn: ScoreFn,
    sde: SDE,
    key: PRNGKeyArray,
    images: Batch,
    *,
    weight: Weight = _one,
) -> Float[Array, ""]:
    """``loss_at`` averaged over images, with t ~ U(EPS_TRAIN, T) and fresh noise for each."""
    time_key, noise_key = jax.random.split(key)
    t = jax.random.uniform(time_key, (len(images),), minval=EPS_TRAIN, maxval=sde.T)
    noise = jax.random.normal(noise_key, images.shape)
    return jnp.mean(loss_at(score_fn, sde, images, t, noise, weight=weight))
