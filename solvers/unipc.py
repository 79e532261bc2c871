"""UniPC, a predictor and a corrector that share each evaluation (Zhao et al., arXiv 2302.04867).

In the log-SNR λ, from λ_n to λ_n + h, with s = (λ − λ_n)/h, the denoised D_n at the predicted (x, t_n), and
P_n the polynomial through the latest p predictions, D_n included:

    1.  D_n at the predicted x                                    the step's one evaluation
    2.  x ← x + α w (D_n − P_(n−1)(λ_n))                          UniC-p
    3.  x' = (σ'/σ) x + α' ∫₀¹ h e^(−h(1−s)) P_n(λ) ds            UniP-p, from the corrected x

This is the data prediction, with B(h) = 1 − e^(−h), the paper's B₂. The weight w turns the integral that gave
the predicted x into that of the polynomial that also passes through D_n. The paper states its coefficients as
solutions of linear systems. These require exactly these integrals, and B(h) cancels. But where there is a
single coefficient, in UniP-2 and UniC-1, the paper sets it to 1/2, and B(h)/2 replaces the integral of s.

As in the paper, the first steps have p = 1, then 2, and the last prediction is not corrected, which would
take one more evaluation. In a run of up to ten steps, p decreases in the same way at the end.
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
    Number,
    divided_differences,
    latest_times,
    log_snr_steps,
    moments,
    newton_moments,
    newton_products,
    require_history,
    steps_back,
)
from solvers.fixed_steps import Correction, FixedStepState, corrected, first_state, stepped
from solvers.grids import Grid, UniformLogSNR
from solvers.interface import Count, Sample, Time


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniPC:
    """UniPC of order p: UniP-p with UniC-p, one evaluation a step; it converges with order p + 1.

    Attributes:
        num_steps: number of steps, at least ``order``; another number does not recompile.
        grid: times at which the steps end; uniform in log-SNR in the paper, for images of 32 x 32.
        order: p, 2 or 3.

    Raises:
        ValueError: for another order, or fewer steps than the order.

    Example:
        >>> from solvers import UniPC
        >>> UniPC(num_steps=10)
        UniPC(num_steps=10, grid=UniformLogSNR(), order=3)
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
        return first_state(sde, key, shape, dtype, history=self.order - 1, corrected=True)

    def ask(self, state: FixedStepState) -> tuple[Sample, Time]:
        return state.x, state.t

    def tell(self, sde: SDE, state: FixedStepState, score: Sample) -> FixedStepState:
        t, n, dtype = state.t, state.accepted, state.x.dtype
        # 1. D_n at the predicted x
        denoised = denoise(sde, state.x, t, score).astype(dtype)
        # 2. UniC-p
        x = corrected(state, denoised)
        # 3. UniP-p
        t_next, times = latest_times(self.grid, sde, n, self.num_steps, self.order, t.dtype)
        values = (denoised, *state.history)
        _, sigma = sde.marginal(t)
        alpha_next, sigma_next = sde.marginal(t_next)
        h, nodes = log_snr_steps(sde, t_next, times)
        previous = steps_back(n, self.num_steps)
        p = jnp.minimum(previous + 1, self.order)
        differences = divided_differences(values, nodes, previous)
        integrals = newton_moments(nodes, moments(h, self.order + 1))
        linear = sigma_next / sigma * x

        def prediction(weights: list[Number]) -> Sample:
            integral = sum(weight * d for weight, d in zip(weights, differences, strict=False))
            return linear + alpha_next * integral

        half = integrals[0] / 2
        predictor = [integrals[0], jnp.where(p == 2, half, integrals[1]), *integrals[2:]]
        # UniC-p of the next evaluation: the polynomial that also passes through D_(n+1) is P plus
        # (D_(n+1) − P(1)) times (s − s_0) … (s − s_(p−1)) over the same product at s = 1
        products = newton_products(nodes)
        ahead = sum(product * d for product, d in zip(products, differences, strict=False))
        exact = jnp.stack(integrals)[p] / jnp.stack(products)[p]
        weight = alpha_next * jnp.where(p == 1, half, exact)
        without = prediction(integrals) - weight * ahead
        correction = Correction(without=without.astype(dtype), weight=weight.astype(dtype))
        return stepped(
            state, prediction(predictor), t_next, self.num_steps, predictions=values, correction=correction
        )
