"""The samplers of "Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv 2206.00364).

Algorithms 1 and 2, for any process, in the variables x̂ = x/α and σ̂ = σ/α, in which every process is that of
the paper with s(t) = 1. With the denoiser D = (x + σ² s)/α of Tweedie's formula, the slope of x̂ along σ̂ is

    d = (x̂ − D)/σ̂ = −σ s(x, t)

and one step from σ̂ to the σ̂' of the next time on the grid is

    1.  γ = min(S_churn/N, √2 − 1) if S_tmin ≤ σ̂ ≤ S_tmax, otherwise 0      (Algorithm 2 alone)
        x̂ ← x̂ + √((σ̂ + γσ̂)² − σ̂²) S_noise z,  z ~ N(0, I);   σ̂ ← σ̂ + γσ̂
    2.  d = −σ s(x, t);                    x̂' = x̂ + (σ̂' − σ̂) d                Euler
    3.  d' = −σ' s(x', t');                x̂' = x̂ + (σ̂' − σ̂) (d + d')/2       Heun

Departures from the paper:
- The grid ends at eps, where σ̂ is above zero, and every step includes 3. The paper's last step continues to
  σ̂ = 0 by Euler alone, x̂ − σ̂ d = D: that is the driver's denoising, with one evaluation and the same value.
  So num_steps is the paper's N − 1, and there are 2N − 1 evaluations as in the paper, the denoising included.
- S_churn is divided among these num_steps steps, and the denoising is not churned. Noise that a single Euler
  step removes at once would only add the error of that step.
- Step 1 raises the noise at most to its level at T, where sampling starts, since the network was not trained
  beyond. The noise added is reduced accordingly, so that x̂ and σ̂ stay consistent. This affects the first
  step, which has no churn, and the few after it whose σ̂ + γσ̂ would exceed σ̂ at T.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from sde_lib import SDE
from sde_lib.checks import is_known, require_count, require_number, require_positive
from sde_lib.processes import Scalar
from sde_lib.pytrees import register_dataclass
from solvers.fixed_steps import status_after
from solvers.grids import Grid, Rho, grid_time
from solvers.interface import Count, Flag, Sample, Status, Time
from solvers.noise import prior_key, standard_normal

MAX_GAMMA = math.sqrt(2) - 1  # the new noise never exceeds what is there already


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class HeunState:
    """The state of both samplers; x and t are those after step 1, above the grid's time if it churned."""

    x: Sample
    t: Time
    key: PRNGKeyArray
    # The current stage. First: the score at (x, t) is needed. Second: the score at (x_proposed, t_proposed)
    # is needed, the end of Euler's step with the slope d.
    second_stage: Flag
    slope: Sample
    x_proposed: Sample
    t_proposed: Time
    status: Count
    accepted: Count
    rejected: Count


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun:
    """Algorithm 1, Heun's method on the probability-flow ODE: two evaluations a step, order 2.

    Attributes:
        num_steps: number of steps, the paper's N − 1; another number does not recompile. 17 steps are the
            paper's 35 evaluations on CIFAR-10.
        grid: times at which the steps end; with a rho of 7 in the paper.

    Raises:
        ValueError: for a number of steps that is not a whole number of at least one.

    Example:
        >>> from solvers import Heun
        >>> Heun(num_steps=9)
        Heun(num_steps=9, grid=Rho(rho=7.0))
    """

    num_steps: int | Count = 17
    grid: Grid = Rho()

    evaluations_per_step: ClassVar[int] = 2

    def __post_init__(self) -> None:
        require_count(num_steps=self.num_steps)

    def init(self, sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> HeunState:
        return _begin(sde, key, shape, dtype)

    def ask(self, state: HeunState) -> tuple[Sample, Time]:
        return _ask(state)

    def tell(self, sde: SDE, state: HeunState, score: Sample) -> HeunState:
        return _heun_stage(sde, self.grid, self.num_steps, state, score)


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class EDM:
    """Algorithm 2: every step adds noise ("churn") and then proceeds as ``Heun``; without churn, it is Heun.

    Attributes:
        num_steps: number of steps, the paper's N − 1; another number does not recompile.
        grid: times at which the steps end; with a rho of 7 in the paper.
        churn: S_churn, the noise added over all steps, as a sum of relative increases of σ̂; tuned for
            CIFAR-10 (table 5 of the paper) to 30 for VP and 80 for VE.
        churn_min, churn_max: S_tmin and S_tmax, the bounds, included, on the σ̂ = σ/α at which noise is added;
            0.01 and 1 for VP, 0.05 and 1 for VE in that table.
        churn_noise: S_noise, the standard deviation of the new noise relative to the correct one; 1.007 in
            that table, to offset the contrast that networks lose.

    Raises:
        ValueError: for a number out of range.

    Example:
        >>> from solvers import EDM
        >>> EDM(churn=30.0, churn_min=0.01, churn_max=1.0, churn_noise=1.007).num_steps
        17
    """

    num_steps: int | Count = 17
    grid: Grid = Rho()
    churn: Scalar = 0.0
    churn_min: Scalar = 0.0
    churn_max: Scalar = math.inf
    churn_noise: Scalar = 1.0

    evaluations_per_step: ClassVar[int] = 2

    def __post_init__(self) -> None:
        require_count(num_steps=self.num_steps)
        fix = "set churn to 0 for no added noise, or above zero"
        require_number("churn", self.churn, lambda churn: 0 <= churn < math.inf, "a finite number >= 0", fix)
        fix = "raise churn_max, or set churn to 0 for no added noise"
        require_number("churn_max", self.churn_max, lambda level: level >= 0, "a noise level >= 0", fix)
        if is_known(self.churn_max):
            require_number(
                "churn_min",
                self.churn_min,
                lambda level: 0 <= level <= float(self.churn_max),
                f"a noise level from 0 to churn_max = {self.churn_max}",
                "lower churn_min or raise churn_max",
            )
        require_positive(churn_noise=self.churn_noise)

    def init(self, sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> HeunState:
        # no churn: the first step starts at T
        return _begin(sde, key, shape, dtype)

    def ask(self, state: HeunState) -> tuple[Sample, Time]:
        return _ask(state)

    def tell(self, sde: SDE, state: HeunState, score: Sample) -> HeunState:
        step_ends = state.second_stage
        state = _heun_stage(sde, self.grid, self.num_steps, state, score)
        gamma = self._gamma(sde, state.t)
        churns = (gamma > 0) & step_ends & (state.status == Status.RUNNING)
        x, t = jax.tree.map(
            lambda a, b: jnp.where(churns, a, b), self._churned(sde, state, gamma), (state.x, state.t)
        )
        return dataclasses.replace(state, x=x, t=t)

    def _gamma(self, sde: SDE, t: Time) -> Time:
        sigma_hat = jnp.exp(-sde.log_snr(t))
        inside = (self.churn_min <= sigma_hat) & (sigma_hat <= self.churn_max)
        return jnp.where(inside, jnp.minimum(self.churn / self.num_steps, MAX_GAMMA), 0.0)

    def _churned(self, sde: SDE, state: HeunState, gamma: Time) -> tuple[Sample, Time]:
        """Step 1: (x, t) with the noise raised to σ̂ + γσ̂, or to its level at T."""
        x, t = state.x, state.t
        t_raised = jnp.clip(sde.inverse_log_snr(sde.log_snr(t) - jnp.log1p(gamma)), t, sde.T).astype(t.dtype)
        (alpha, sigma_hat), (alpha_raised, sigma_hat_raised) = _scaled(sde, t), _scaled(sde, t_raised)
        # the churn after the n-th step is the sample's n-th noise
        z = self.churn_noise * standard_normal(state.key, state.accepted, x.shape, x.dtype)
        new = jnp.sqrt((sigma_hat_raised - sigma_hat) * (sigma_hat_raised + sigma_hat))
        return (alpha_raised * (x / alpha + new * z)).astype(x.dtype), t_raised


def _begin(sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> HeunState:
    x, t = sde.prior(prior_key(key), shape, dtype), jnp.asarray(sde.T, dtype)
    return HeunState(
        x=x,
        t=t,
        key=key,
        second_stage=jnp.bool_(False),
        slope=jnp.zeros_like(x),
        x_proposed=x,
        t_proposed=t,
        status=jnp.int32(Status.RUNNING),
        accepted=jnp.int32(0),
        rejected=jnp.int32(0),
    )


def _ask(state: HeunState) -> tuple[Sample, Time]:
    proposed, current = (state.x_proposed, state.t_proposed), (state.x, state.t)
    return jax.tree.map(lambda a, b: jnp.where(state.second_stage, a, b), proposed, current)


def _heun_stage(sde: SDE, grid: Grid, num_steps: int | Count, state: HeunState, score: Sample) -> HeunState:
    """Step 2 or step 3, with the score it asked for."""
    x, t, second = state.x, state.t, state.second_stage
    t_next = grid_time(grid, sde, state.accepted + 1, num_steps, t.dtype)
    (alpha, sigma_hat), (alpha_next, sigma_hat_next) = _scaled(sde, t), _scaled(sde, t_next)
    # d = −σ s(x, t); in the second stage d' = −σ' s(x', t'), and its mean with d
    d = -jnp.where(second, alpha_next * sigma_hat_next, alpha * sigma_hat) * score
    slope = jnp.where(second, 0.5 * (state.slope + d), d).astype(x.dtype)
    # x̂' = x̂ + (σ̂' − σ̂) slope
    x_next = (alpha_next * (x / alpha + (sigma_hat_next - sigma_hat) * slope)).astype(x.dtype)
    accepted = state.accepted + second
    return dataclasses.replace(
        state,
        x=jnp.where(second, x_next, x),
        t=jnp.where(second, t_next, t),
        second_stage=~second,
        slope=slope,
        x_proposed=x_next,
        t_proposed=t_next,
        status=status_after(accepted, num_steps),
        accepted=accepted,
    )


def _scaled(sde: SDE, t: Time) -> tuple[Scalar, Scalar]:
    """(α, σ̂)."""
    alpha, sigma = sde.marginal(t)
    return alpha, sigma / alpha
