"""DDIM (Song et al., arXiv 2010.02502) on the continuous (alpha, sigma) of any of the processes.

From (x, t) to (x', t'), with the denoised D, the noise prediction ε = −σ s and z ~ N(0, I):

    1.  τ = η σ' √(1 − (α σ')²/(α' σ)²)                           eq. 16
    2.  x' = α' D + √(σ'² − τ²) ε + τ z                           eq. 12

In the paper σ² = 1 − α². Here τ is written so that, for any (alpha, sigma), τ² at η = 1 is the variance of x'
given x and x(0). For VP this is eq. 16 itself, and for VE it is that of ancestral sampling (arXiv 2011.13456,
appendix F).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from sde_lib import SDE, denoise
from sde_lib.checks import require_count, require_number
from sde_lib.processes import Scalar
from sde_lib.pytrees import register_dataclass
from solvers.fixed_steps import FixedStepState, first_state, stepped
from solvers.grids import Grid, UniformTime, grid_time
from solvers.interface import Count, Sample, Time
from solvers.noise import standard_normal


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM:
    """DDIM: one evaluation a step, order 1 (weak order 1 with noise).

    Attributes:
        num_steps: number of steps; another number does not recompile.
        grid: times at which the steps end; uniform in t in the paper.
        eta: η in [0, 1], the share of the ancestral noise: 0 for the probability flow, 1 for all of it.

    Raises:
        ValueError: for fewer than one step, or an eta outside [0, 1].

    Example:
        >>> from solvers import DDIM
        >>> DDIM(num_steps=50)
        DDIM(num_steps=50, grid=UniformTime(), eta=0.0)
    """

    num_steps: int | Count = 100
    grid: Grid = UniformTime()
    eta: Scalar = 0.0

    evaluations_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_count(num_steps=self.num_steps)
        fix = "set eta to 0 for the ODE or to 1 for ancestral noise"
        require_number("eta", self.eta, lambda eta: 0 <= eta <= 1, "a number in [0, 1]", fix)

    def init(self, sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> FixedStepState:
        return first_state(sde, key, shape, dtype)

    def ask(self, state: FixedStepState) -> tuple[Sample, Time]:
        return state.x, state.t

    def tell(self, sde: SDE, state: FixedStepState, score: Sample) -> FixedStepState:
        x, t = state.x, state.t
        done = state.accepted + 1
        t_next = grid_time(self.grid, sde, done, self.num_steps, t.dtype)
        _, sigma = sde.marginal(t)
        alpha_next, sigma_next = sde.marginal(t_next)
        denoised, noise = denoise(sde, x, t, score), -sigma * score
        z = standard_normal(state.key, done, x.shape, x.dtype)
        # 1. τ; (α σ')²/(α' σ)² = e^(−2h) with the step h in log-SNR, without cancellation in short steps
        h = sde.log_snr(t_next) - sde.log_snr(t)
        share = -(self.eta**2) * jnp.expm1(-2 * h)  # (τ/σ')²
        # 2. x' = α' D + √(σ'² − τ²) ε + τ z
        x_next = alpha_next * denoised + sigma_next * (jnp.sqrt(1 - share) * noise + jnp.sqrt(share) * z)
        return stepped(state, x_next, t_next, self.num_steps)
