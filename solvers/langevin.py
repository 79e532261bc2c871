"""Langevin dynamics whose step follows a signal-to-noise ratio (Song et al., arXiv 2011.13456, appendix G).

Algorithms 4 (VE) and 5 (VP), per sample at x on the noise level of time t:

    1.  z ~ N(0, I);  g = s(x, t)
    2.  ε = 2 α (r ‖z‖/‖g‖)²                        r the signal-to-noise ratio
    3.  x ← x + ε g + √(2ε) z

α is 1 for VE. The published code has α = 1 − β_i for VP and sub-VP, with β_i of the discrete chain's step
from level t to the next level t', which keeps the fraction α(t)²/α(t')² of a signal's power. Here α is that
fraction for the continuous process and the current grid. It is 1 for VE, so that one formula serves all.

Departure: the published code averages ‖z‖ and ‖g‖ over the batch, which couples its samples. Here both norms
are those of the sample alone. This adds a bias: steps are longer where the score is small, so that the sample
leaves such places sooner. On a Gaussian in d dimensions, with q = α r² and R the distance from the mean in
standard deviations, the stationary distribution has E[1/R²] = 1/((1 + q)(d + 2)) where the Gaussian has
1/(d − 2). The variance is too large by a factor of about (1 + q)(1 + 2/d)². The factor 1 + q occurs for any
Langevin step of that length. The rest, 0.13 % at 32×32×3, is due to the norms, and remains as r goes to zero.
With a few elements it is far more than chance: 2.8 for d = 3. Both samplers warn of it.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from sde_lib import SDE
from sde_lib.checks import require_count, require_positive
from sde_lib.processes import Scalar
from sde_lib.pytrees import register_dataclass
from solvers.grids import Grid, UniformTime, grid_time
from solvers.interface import Count, Sample, Status, Time
from solvers.noise import prior_key, standard_normal
from solvers.sums import sum_of_squares

FEW_ELEMENTS = 40  # with fewer, the variance of a Gaussian is more than a tenth too large


def warn_of_few_elements(shape: tuple[int, ...]) -> None:
    """Warns of samples that are too small for the norms of a single score."""
    size = math.prod(shape)
    if size < FEW_ELEMENTS:
        factor = (1 + 2 / size) ** 2
        warnings.warn(
            f"Langevin steps need samples of many elements (got {size}): their length follows the norm of a "
            f"sample's score, and the variance of a Gaussian comes out about {factor:.2g} times too large. "
            "Use another solver, such as ReverseDiffusion or AdaptiveExponential",
            stacklevel=2,
        )


def langevin_step(
    sde: SDE, x: Sample, t: Time, t_next: Time, score: Sample, z: Sample, snr: Scalar
) -> Sample:
    """One step at the noise level t; ``t_next`` is the next level of the grid.

    For a score of zero, which has no direction, the result is not finite.
    """
    # 2. ε = 2 α (r ‖z‖/‖g‖)²
    alpha = (sde.marginal(t)[0] / sde.marginal(t_next)[0]) ** 2
    step = 2 * alpha * snr**2 * sum_of_squares(z) / sum_of_squares(score)
    # 3. x ← x + ε g + √(2ε) z
    return (x + step * score + jnp.sqrt(2 * step) * z).astype(x.dtype)


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnealedLangevinState:
    x: Sample
    t: Time  # the noise level that x has reached
    level: Time  # the noise level that the current steps lead to
    key: PRNGKeyArray
    status: Count
    accepted: Count
    rejected: Count


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnealedLangevin:
    """Langevin dynamics alone, at decreasing noise levels (Song and Ermon, arXiv 1907.05600, algorithm 1).

    The steps are those of the corrector of arXiv 2011.13456, as in its experiments without a predictor. The
    prior is already at the level of T, so the first level is the grid's first step below T. The last level is
    eps. Each Langevin step takes one evaluation and counts as one step: num_steps × corrector_steps in all.

    The levels must not fall faster than x can follow. On a Gaussian of variance v, a step reduces a variance
    V above v by the fraction 4 r² (v/V)(1 − v/V), at most r², since a larger score makes it shorter. If
    corrector_steps × r² is below the decrease of log v per level (2 log(σ_max/σ_min)/num_steps for VE on a
    uniform grid), x never catches up, and the samples stay noisy.

    Attributes:
        num_steps: number of noise levels; another number does not recompile.
        grid: times of the noise levels.
        snr: r; 0.16 for CIFAR-10 with VE, 0.01 with VP, 0.075 at 256².
        corrector_steps: Langevin steps at each level; another number does not recompile.

    Raises:
        ValueError: for counts that are not whole numbers above zero, or an snr that is not above zero.

    Warns:
        UserWarning: from ``init``, for samples of fewer than 40 elements, whose variance comes out too large.

    Example:
        >>> from solvers import AnnealedLangevin
        >>> AnnealedLangevin(num_steps=500)
        AnnealedLangevin(num_steps=500, grid=UniformTime(), snr=0.16, corrector_steps=1)
    """

    num_steps: int | Count = 1000
    grid: Grid = UniformTime()
    snr: Scalar = 0.16
    corrector_steps: int | Count = 1

    evaluations_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_count(num_steps=self.num_steps, corrector_steps=self.corrector_steps)
        require_positive(snr=self.snr)

    def init(self, sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> AnnealedLangevinState:
        warn_of_few_elements(shape)
        return AnnealedLangevinState(
            x=sde.prior(prior_key(key), shape, dtype),
            t=jnp.asarray(sde.T, dtype),
            level=grid_time(self.grid, sde, jnp.int32(1), self.num_steps, dtype),
            key=key,
            status=jnp.int32(Status.RUNNING),
            accepted=jnp.int32(0),
            rejected=jnp.int32(0),
        )

    def ask(self, state: AnnealedLangevinState) -> tuple[Sample, Time]:
        return state.x, state.level

    def tell(self, sde: SDE, state: AnnealedLangevinState, score: Sample) -> AnnealedLangevinState:
        done = state.accepted + 1
        number = state.accepted // self.corrector_steps + 1
        # after the last level the grid stays at eps, where α is 1
        level_next = grid_time(self.grid, sde, number + 1, self.num_steps, state.t.dtype)
        # 1. z ~ N(0, I)
        z = standard_normal(state.key, done, state.x.shape, state.x.dtype)
        x = langevin_step(sde, state.x, state.level, level_next, score, z, self.snr)

        settled = done == number * self.corrector_steps
        arrived = settled & (number >= self.num_steps)
        return dataclasses.replace(
            state,
            x=x,
            t=jnp.where(settled, state.level, state.t),
            level=jnp.where(settled, level_next, state.level),
            status=jnp.where(arrived, jnp.int32(Status.COMPLETED), jnp.int32(Status.RUNNING)),
            accepted=done.astype(jnp.int32),
        )
