"""Continuous denoising score matching (Song et al., arXiv 2011.13456, eq. 7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from sde_lib import SDE, DiscreteVP, EDMProcess, ScoreFn
from sde_lib.checks import require, require_choice
from sde_lib.processes import Scalar

Sample = Float[Array, "*shape"]
Time = Float[Array, ""]
Batch = Float[Array, "b *shape"]
Times = Float[Array, "b"]
Weight = Callable[[Time], Any]  # scalar -> scalar

# As published, training goes closer to t = 0 than sampling, which ends at 1e-3 (sde.eps) for VP and sub-VP.
EPS_TRAIN = 1e-5

# Mean and deviation of log sigma in the training of EDM (arXiv 2206.00364, table 1)
EDM_LEVELS = (-1.2, 1.2)


def _one(t: Time) -> Time:
    return jnp.ones_like(t)


def weight_named(weighting: str, sde: SDE, sigma_data: Scalar | None) -> Weight:
    """The loss's weight as a function of time, relative to sigma(t)^2.

    - "sigma": the loss is weighted by sigma^2, so that the noise counts alike at all times (arXiv 2011.13456,
      section 3.3).
    - "likelihood": the loss is weighted by g^2 and bounds the likelihood (arXiv 2101.09258, theorem 1).
    - "edm": a network wrapped with ``sigma_data`` starts with the same loss at all times (arXiv 2206.00364,
      eq. 8).

    Args:
        weighting: one of these names.
        sde: the process that the score belongs to.
        sigma_data: standard deviation of the data that the network is wrapped with; None without a wrap.

    Raises:
        ValueError: for another name, or "edm" without ``sigma_data``.
    """
    require_choice("weighting", weighting, ("sigma", "likelihood", "edm"))
    fix = "set config.model.sigma_data, or choose 'sigma'"
    without_wrap = "'sigma' or 'likelihood' for a network without sigma_data"
    require(weighting != "edm" or sigma_data is not None, "weighting", weighting, without_wrap, fix)

    def likelihood(t: Time) -> Any:
        return (sde.diffusion(t) / sde.marginal(t)[1]) ** 2

    def edm(t: Time) -> Any:
        alpha, sigma = sde.marginal(t)
        return 1 + (sigma / (alpha * (sigma_data or 1.0))) ** 2

    return {"sigma": _one, "likelihood": likelihood, "edm": edm}[weighting]


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

    Here x = alpha x(0) + sigma z. The norm |.|^2 is the mean over the pixels, not their sum: with weight 1, a
    network that outputs zero has loss 1 at every image size, and one clipping norm suits all sizes.

    Args:
        score_fn: the score s.
        sde: the process that the score belongs to; it gives alpha and sigma.
        images: x(0) [b, ...], in the data's range.
        t: [b].
        noise: z [b, ...], standard normal.
        weight: a function of time, relative to sigma(t)^2; see ``weight_named``.

    Returns:
        [b].

    Raises:
        ValueError: for a score that has not the shape of the images.
    """

    def perturb(x: Sample, t: Time, z: Sample) -> Any:
        alpha, sigma = sde.marginal(t)
        return alpha * x + sigma * z

    def loss(score: Sample, t: Time, z: Sample) -> Any:
        _, sigma = sde.marginal(t)
        # sigma s and z are of order one at every time; s and z/sigma are not.
        return weight(t) * jnp.mean((sigma * score + z) ** 2)

    score = score_fn(jax.vmap(perturb)(images, t, noise), t)
    fix = "return one score for every element of x"
    require(
        score.shape == images.shape, "score_fn(x, t)", f"shape {score.shape}", f"of x's {images.shape}", fix
    )
    return jax.vmap(loss)(score, t, noise)


def times(sde: SDE, key: PRNGKeyArray, number: int) -> Times:
    """Times of a training, each drawn by itself: as published for the process, else uniform.

    - Uniform in [EPS_TRAIN, T], as published for VE, VP and sub-VP (arXiv 2011.13456, eq. 7) and the
      rectified flow (2209.03003); for the cosine, whose published chain draws its steps uniformly; and for
      any other process.
    - For a table of levels, uniform in [eps, T], from its first level to its last.
    - For EDM's process, log-normal noise levels, log sigma ~ N(−1.2, 1.2^2) (2206.00364, table 1), of which
      the few outside [EPS_TRAIN, T] are moved to its ends.

    Args:
        sde: the process.
        key: for the draws.
        number: how many.

    Returns:
        [number].

    Example:
        >>> from sde_lib import EDMProcess
        >>> t = times(EDMProcess(), jax.random.key(0), 10_000)
        >>> print(f"{jnp.exp(-1.2):.2f} {jnp.median(t):.2f}")
        0.30 0.30
    """
    if isinstance(sde, EDMProcess):
        mean, deviation = EDM_LEVELS
        levels = jnp.exp(mean + deviation * jax.random.normal(key, (number,)))
        return jnp.clip(levels, EPS_TRAIN, sde.T)
    first = sde.eps if isinstance(sde, DiscreteVP) else EPS_TRAIN
    return jax.random.uniform(key, (number,), minval=first, maxval=sde.T)


def draw(sde: SDE, key: PRNGKeyArray, images: Batch) -> tuple[Times, Batch]:
    """What the loss of each image is drawn at: its time, and its noise of the image's shape."""
    time_key, noise_key = jax.random.split(key)
    return times(sde, time_key, len(images)), jax.random.normal(noise_key, images.shape)


def score_matching_loss(
    score_fn: ScoreFn,
    sde: SDE,
    key: PRNGKeyArray,
    images: Batch,
    *,
    weight: Weight = _one,
) -> Float[Array, ""]:
    """The mean of ``loss_at`` over the images, each with its own time, from ``times``, and noise.

    Example:
        >>> from sde_lib import VPSDE
        >>> images = jnp.zeros((256, 8, 8, 1))
        >>> loss = score_matching_loss(lambda x, t: jnp.zeros_like(x), VPSDE(), jax.random.key(0), images)
        >>> round(float(loss), 1)  # the mean of z^2, since this score is zero
        1.0
    """
    return jnp.mean(loss_at(score_fn, sde, images, *draw(sde, key, images), weight=weight))
