"""DPM-Solver++ multistep, for the probability flow and for the reverse SDE (Lu et al., arXiv 2211.01095).

In the log-SNR λ, from λ_n to λ_n + h, with the denoised D_n at (x, t_n) and s = (λ − λ_n)/h:

    2M      x' = (σ'/σ) x + α' (1 − e^(−h)) (D_n + d/2)                         Algorithm 2 of the paper
    3M      x' = (σ'/σ) x + α' ∫₀¹ h e^(−h(1−s)) (D_n + s d + s (s − s_1) d₂) ds
    SDE 2M  x' = (σ'/σ) e^(−h) x + α' (1 − e^(−2h)) (D_n + d/2) + σ' √(1 − e^(−2h)) z

d and d₂ are the divided differences of D_n, D_(n−1), D_(n−2) at s_0 = 0, s_1, s_2. The first step has no d,
and so order 1; the second has no d₂, and is one of 2M. In a run of up to ten steps, the last step has no d
and the one before it no d₂.

Departure: the published code of 3M uses half of the integral of s² (it gives d₂, which is half of the second
derivative, the weight of a whole one), and converges with order 2. The integral above is exact for a
quadratic D, and has order 3.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from sde_lib import SDE, denoise
from sde_lib.checks import require
from sde_lib.pytrees import STATIC, register_dataclass
from solvers.exponential import (
    divided_differences,
    latest_times,
    log_snr_steps,
    moments,
    newton_moments,
    require_history,
    steps_back,
)
from solvers.fixed_steps import FixedStepState, first_state, stepped
from solvers.grids import Grid, UniformLogSNR
from solvers.interface import Count, Sample, Time
from solvers.noise import standard_normal


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPP:
    """DPM-Solver++ 2M and 3M: one evaluation a step.

    Attributes:
        num_steps: number of steps, at least ``order``; another number does not recompile.
        grid: times at which the steps end; uniform in log-SNR in the paper, for images of 32 x 32.
        order: 2 or 3.

    Raises:
        ValueError: for another order, or fewer steps than the order.

    Example:
        >>> from solvers import DPMSolverPP
        >>> DPMSolverPP(order=2)
        DPMSolverPP(num_steps=20, grid=UniformLogSNR(), order=2)
    """

    num_steps: int | Count = 20
    grid: Grid = UniformLogSNR()
    order: int = dataclasses.field(default=3, metadata=STATIC)

    evaluations_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        fix = "use DDIM with eta = 0 for order 1"
        require(self.order in (2, 3), "order", self.order, "2 or 3", fix)
        require_history(self.order, self.num_steps)

    def init(self, sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> FixedStepState:
        return first_state(sde, key, shape, dtype, history=self.order - 1)

    def ask(self, state: FixedStepState) -> tuple[Sample, Time]:
        return state.x, state.t

    def tell(self, sde: SDE, state: FixedStepState, score: Sample) -> FixedStepState:
        x, t, n = state.x, state.t, state.accepted
        t_next, times = latest_times(self.grid, sde, n, self.num_steps, self.order, t.dtype)
        values = (denoise(sde, x, t, score).astype(x.dtype), *state.history)
        _, sigma = sde.marginal(t)
        alpha_next, sigma_next = sde.marginal(t_next)
        h, nodes = log_snr_steps(sde, t_next, times)
        previous = steps_back(n, self.num_steps)
        differences = divided_differences(values, nodes, previous)
        weights = newton_moments(nodes, moments(h, self.order))
        if self.order == 2:
            weights[1] = weights[0] / 2
        else:
            weights[1] = jnp.where(previous == 1, weights[0] / 2, weights[1])  # then the step is 2M
        # x' = (σ'/σ) x + α' ∫ …
        integral = sum(weight * d for weight, d in zip(weights, differences, strict=True))
        x_next = sigma_next / sigma * x + alpha_next * integral
        return stepped(state, x_next, t_next, self.num_steps, predictions=values)


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SDEDPMSolverPP:
    """SDE-DPM-Solver++ 2M, for the reverse SDE: one evaluation a step.

    Attributes:
        num_steps: number of steps, at least 2; another number does not recompile.
        grid: times at which the steps end; uniform in log-SNR in the paper, for images of 32 x 32.

    Raises:
        ValueError: for fewer than two steps.

    Example:
        >>> from solvers import SDEDPMSolverPP
        >>> SDEDPMSolverPP(num_steps=25)
        SDEDPMSolverPP(num_steps=25, grid=UniformLogSNR())
    """

    num_steps: int | Count = 50
    grid: Grid = UniformLogSNR()

    evaluations_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_history(2, self.num_steps)

    def init(self, sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> FixedStepState:
        return first_state(sde, key, shape, dtype, history=1)

    def ask(self, state: FixedStepState) -> tuple[Sample, Time]:
        return state.x, state.t

    def tell(self, sde: SDE, state: FixedStepState, score: Sample) -> FixedStepState:
        x, t, n = state.x, state.t, state.accepted
        t_next, times = latest_times(self.grid, sde, n, self.num_steps, 2, t.dtype)
        denoised = denoise(sde, x, t, score).astype(x.dtype)
        values = (denoised, *state.history)
        _, sigma = sde.marginal(t)
        alpha_next, sigma_next = sde.marginal(t_next)
        h, nodes = log_snr_steps(sde, t_next, times)
        _, d = divided_differences(values, nodes, steps_back(n, self.num_steps))
        z = standard_normal(state.key, n + 1, x.shape, x.dtype)
        # x' = (σ'/σ) e^(−h) x + α' (1 − e^(−2h)) (D_n + d/2) + σ' √(1 − e^(−2h)) z
        lost = -jnp.expm1(-2 * h)
        x_next = (
            sigma_next / sigma * jnp.exp(-h) * x
            + alpha_next * lost * (denoised + d / 2)
            + sigma_next * jnp.sqrt(lost) * z
        )
        return stepped(state, x_next, t_next, self.num_steps, predictions=values)
