"""Continuous denoising score matching (Song et al., arXiv 2011.13456, eq. 7)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from sde_lib import SDE

Sample = Float[Array, "*shape"]
Time = Float[Array, ""]
Batch = Float[Array, "b *shape"]
Times = Float[Array, "b"]
BatchScore = Callable[[Batch, Times], Batch]

# Training goes closer to the data than VP and sub-VP are sampled to (sde.eps is 1e-3 there), as published.
EPS_TRAIN = 1e-5


def loss_at(
    score_fn: BatchScore,
    sde: SDE,
    images: Batch,
    t: Times,
    noise: Batch,
    *,
    likelihood_weighting: bool = False,
) -> Times:
    """The loss of each image at its own time t and noise z: lambda(t) |s(x, t) + z/sigma|^2.

    Here x = alpha x(0) + sigma z, and |.|^2 is a mean over the pixels, not their sum: with lambda = sigma^2 a
    network that outputs zero then has loss 1 for every image size, and one clipping norm suits all.

    Args:
        images: x(0), in the data's range.
        noise: z, standard normal.
        likelihood_weighting: lambda = g(t)^2, for which the loss bounds the likelihood (Song et al.,
            arXiv 2101.09258, theorem 1), instead of sigma(t)^2, which weighs the noise alike at all times.
    """

    def perturb(x: Sample, t: Time, z: Sample) -> Sample:
        alpha, sigma = sde.marginal(t)
        return alpha * x + sigma * z

    def loss(score: Sample, t: Time, z: Sample) -> Time:
        _, sigma = sde.marginal(t)
        # Written as sigma s + z, whose terms are of order one at every time; those of s + z/sigma are not.
        loss = jnp.mean((sigma * score + z) ** 2)
        return loss * (sde.diffusion(t) / sigma) ** 2 if likelihood_weighting else loss

    return jax.vmap(loss)(score_fn(jax.vmap(perturb)(images, t, noise), t), t, noise)


def score_matching_loss(
    score_fn: BatchScore,
    sde: SDE,
    key: PRNGKeyArray,
    images: Batch,
    *,
    likelihood_weighting: bool = False,
) -> Float[Array, ""]:
    """``loss_at`` averaged over images, with t ~ U(EPS_TRAIN, T) and fresh noise for each."""
    time_key, noise_key = jax.random.split(key)
    t = jax.random.uniform(time_key, (len(images),), minval=EPS_TRAIN, maxval=sde.T)
    noise = jax.random.normal(noise_key, images.shape)
    return jnp.mean(loss_at(score_fn, sde, images, t, noise, likelihood_weighting=likelihood_weighting))
