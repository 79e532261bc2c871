"""The samplers of "Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv 2206.00364).

Algorithms 1 and 2, for any process, in the variables x̂ = x/α and σ̂ = σ/α, in which every process is theirs
with s(t) = 1. With the denoiser D = (x + σ² s)/α of Tweedie's formula, the slope of x̂ along σ̂ is

    d = (x̂ − D)/σ̂ = −σ s(x, t)

and one step from σ̂ to the σ̂' of the next time on the grid is

    1.  γ = min(S_churn/N, √2 − 1) if S_tmin ≤ σ̂ ≤ S_tmax, otherwise 0      (Algorithm 2 alone)
        x̂ ← x̂ + √((σ̂ + γσ̂)² − σ̂²) S_noise z,  z ~ N(0, I);   σ̂ ← σ̂ + γσ̂
    2.  d = −σ s(x, t);                    x̂' = x̂ + (σ̂' − σ̂) d                Euler
    3.  d' = −σ' s(x', t');                x̂' = x̂ + (σ̂' − σ̂) (d + d')/2       Heun

Departures from the paper:
- The grid ends at eps, where σ̂ is above zero, and step 3 is done on every step. The paper's last step goes on
  to σ̂ = 0 by Euler alone, x̂ − σ̂ d = D: that is the driver's denoising, one evaluation and the same value. So
  num_steps here is the paper's N − 1, and the evaluations are its 2N − 1, the denoising included.
- S_churn is shared among these num_steps steps, and the denoising is not churned: noise that is added to be
  taken out at once by a single Euler step only adds that step's error.
- Step 1 raises the noise no further than to that at T, where the sampling began: the network was never
  trained beyond. The noise that is added is what that leaves, so that x̂ and σ̂ still belong together. It
  concerns the first step, which goes without churn, and the few behind it whose σ̂ + γσ̂ would pass T's.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from sde_lib import SDE
from sde_lib.checks import is_known, require, require_count, require_positive
from sde_lib.processes import Scalar
from sde_lib.pytrees import register_dataclass
from solvers.grids import Grid, Rho, grid_time
from solvers.interface import Count, Flag, Sample, Status, Time
from solvers.noise import prior_key, standard_normal

MAX_GAMMA = math.sqrt(2) - 1  # never more new noise than there is


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class HeunState:
    """Of both samplers; x and t as step 1 left them, that is at a time above the grid's where it churned."""

    x: Sample
    t: Time
    key: PRNGKeyArray
    # The stage under way. First: the score at (x, t) is wanted. Second: that at (x_proposed, t_proposed),
    # where Euler's step with the slope d led.
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
    """Algorithm 1, the probability-flow ODE by Heun's method; two evaluations a step, order 2.

    Attributes:
        num_steps: how many, the paper's N − 1; another number does not recompile. 17 are its 35
            evaluations on CIFAR-10.
        grid: where they end; the paper's rho of 7 there.

    Raises:
        ValueError: for fewer than one step, or not a whole number.
    """

    num_steps: int | Count = 17
    grid: Grid = Rho()

    evaluations_per_step: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if is_known(self.num_steps):
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
    """Algorithm 2: every step first adds noise ("churn"), then goes on as ``Heun``; without churn it is Heun.

    Attributes:
        num_steps: how many, the paper's N − 1; another number does not recompile.
        grid: where they end; the paper's rho of 7 there.
        churn: S_churn, the noise added over all steps, as a sum of relative rises of σ̂; in CIFAR-10's tuned
            settings (table 5 there) 30 for VP and 80 for VE.
        churn_min, churn_max: S_tmin and S_tmax, the σ̂ = σ/α between which it is added, both included; 0.01
            and 1 for VP, 0.05 and 1 for VE in that table.
        churn_noise: S_noise, the standard deviation of the new noise over what is right; 1.007 in that table,
            against the contrast that networks lose.

    Raises:
        ValueError: naming the setting, its value, what was allowed and the fix.
    """

    num_steps: int | Count = 17
    grid: Grid = Rho()
    churn: Scalar = 0.0
    churn_min: Scalar = 0.0
    churn_max: Scalar = math.inf
    churn_noise: Scalar = 1.0

    evaluations_per_step: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if is_known(self.num_steps):
            require_count(num_steps=self.num_steps)
        if is_known(self.churn):
            finite = 0 <= self.churn < math.inf
            require(finite, "churn", self.churn, "a number >= 0", "set churn to 0 for no noise, or above")
        if is_known(self.churn_min, self.churn_max):
            require(
                0 <= self.churn_min <= self.churn_max,
                "churn_min",
                self.churn_min,
                f"a noise level from 0 to churn_max = {self.churn_max}",
                "lower churn_min or raise churn_max",
            )
        require_positive(churn_noise=self.churn_noise)

    def init(self, sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> HeunState:
        # no churn: the first step begins at T
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
        """Step 1: (x, t) with the noise raised to σ̂ + γσ̂, or to T's."""
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
    """Step 2 or step 3 with the score that it asked for."""
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
        status=jnp.where(accepted >= num_steps, jnp.int32(Status.COMPLETED), jnp.int32(Status.RUNNING)),
        accepted=accepted,
    )


def _scaled(sde: SDE, t: Time) -> tuple[Scalar, Scalar]:
    """(α, σ̂)."""
    alpha, sigma = sde.marginal(t)
    return alpha, sigma / alpha
