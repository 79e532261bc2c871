"""SA-Solver, a stochastic Adams predictor and corrector (Xue et al., arXiv 2309.05019), with a constant τ.

In the log-SNR λ, from λ_n to λ_n + h, with s = (λ − λ_n)/h, H = (1 + τ²) h, the denoised D_n at the predicted
(x, t_n), and P_n the polynomial through the latest p predictions, D_n included:

    1.  D_n at the predicted x                                    the step's one evaluation
    2.  x ← the x' of the last step's 3. with the same z, but     SA-Corrector
        with the polynomial through the latest c predictions,
        D_n included
    3.  x' = (σ'/σ) e^(−τ²h) x + α' ∫₀¹ H e^(−H(1−s)) P_n(λ) ds   SA-Predictor, from the corrected x
             + σ' √(1 − e^(−2τ²h)) z

τ = 0 is the probability flow and τ = 1 the reverse SDE. At τ = 0, with p = 3 and c = 4, a step that uses
three predictions is one of UniPC-3.

As in the paper, the first steps use as many predictions as there are, and the last prediction is not
corrected, which would take one more evaluation. In a run of up to ten steps, their number decreases in the
same way at the end.

Departures: τ is constant, where the paper sets it to zero at the first and last noise levels of some data.
With two predictions, the published code replaces the integral of s by H/2, which changes x' by O(h³); here
the integral is exact.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from sde_lib import SDE, denoise
from sde_lib.checks import require, require_number
from sde_lib.processes import Scalar
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
from solvers.noise import standard_normal


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SASolver:
    """SA-Solver with a predictor and a corrector: one evaluation a step.

    Attributes:
        num_steps: number of steps, at least ``predictor_order``; another number does not recompile.
        grid: times at which the steps end; uniform in log-SNR.
        tau: τ ≥ 0, the share of the reverse SDE's noise: 0 for the probability flow, 1 for the reverse SDE.
        predictor_order: p, the number of predictions that the predictor uses, 1 to 3.
        corrector_order: c, the number that the corrector uses, 1 to 4.

    Raises:
        ValueError: for other orders, fewer steps than ``predictor_order``, or a tau that is not a finite
            number of at least zero.

    Example:
        >>> from solvers import SASolver
        >>> SASolver(num_steps=30)
        SASolver(num_steps=30, grid=UniformLogSNR(), tau=1.0, predictor_order=3, corrector_order=4)
    """

    num_steps: int | Count = 30
    grid: Grid = UniformLogSNR()
    tau: Scalar = 1.0
    predictor_order: int = dataclasses.field(default=3, metadata=STATIC)
    corrector_order: int = dataclasses.field(default=4, metadata=STATIC)

    evaluations_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        predictor, corrector = self.predictor_order, self.corrector_order
        require(predictor in (1, 2, 3), "predictor_order", predictor, "1, 2 or 3", "leave it out for 3")
        require(corrector in (1, 2, 3, 4), "corrector_order", corrector, "1, 2, 3 or 4", "leave it out for 4")
        fix = "set tau to 0 for the ODE or to 1 for the SDE"
        require_number("tau", self.tau, lambda tau: 0 <= tau < math.inf, "a finite number >= 0", fix)
        require_history(predictor, self.num_steps)

    @property
    def _kept(self) -> int:
        """The number of latest predictions that a step uses, without the one that corrects it."""
        return max(self.predictor_order, self.corrector_order - 1)

    def init(self, sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> FixedStepState:
        return first_state(sde, key, shape, dtype, history=self._kept - 1, corrected=True)

    def ask(self, state: FixedStepState) -> tuple[Sample, Time]:
        return state.x, state.t

    def tell(self, sde: SDE, state: FixedStepState, score: Sample) -> FixedStepState:
        t, n, dtype = state.t, state.accepted, state.x.dtype
        # 1. D_n at the predicted x
        denoised = denoise(sde, state.x, t, score).astype(dtype)
        # 2. SA-Corrector
        x = corrected(state, denoised)
        # 3. SA-Predictor
        t_next, times = latest_times(self.grid, sde, n, self.num_steps, self._kept, t.dtype)
        values = (denoised, *state.history)
        _, sigma = sde.marginal(t)
        alpha_next, sigma_next = sde.marginal(t_next)
        h, nodes = log_snr_steps(sde, t_next, times)
        previous = steps_back(n, self.num_steps)
        differences = divided_differences(values, nodes, previous)
        integrals = newton_moments(nodes, moments((1 + self.tau**2) * h, self._kept + 1))
        z = standard_normal(state.key, n + 1, x.shape, dtype)
        added = self.tau**2 * h
        known = sigma_next / sigma * jnp.exp(-added) * x + sigma_next * jnp.sqrt(-jnp.expm1(-2 * added)) * z

        def step(weights: Sequence[Number]) -> Sample:
            integral = sum(weight * d for weight, d in zip(weights, differences, strict=False))
            return known + alpha_next * integral

        # SA-Corrector of the next evaluation: the polynomial that also passes through D_(n+1) is P, through
        # the k latest, plus (D_(n+1) − P(1)) times (s − s_0) … (s − s_(k−1)) over the same product at s = 1
        others = self.corrector_order - 1
        products = newton_products(nodes)[: others + 1]
        ahead = sum(product * d for product, d in zip(products[:others], differences, strict=False))
        k = jnp.minimum(previous + 1, others)
        weight = alpha_next * jnp.stack(integrals)[k] / jnp.stack(products)[k]
        without = step(integrals[:others]) - weight * ahead
        correction = Correction(without=without.astype(dtype), weight=weight.astype(dtype))
        x_next = step(integrals[: self.predictor_order])
        return stepped(state, x_next, t_next, self.num_steps, predictions=values, correction=correction)
