"""Euler–Maruyama on the reverse SDE with a fixed number of steps (Song et al., arXiv 2011.13456)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from sde_lib import SDE, reverse_drift
from sde_lib.checks import require_count
from sde_lib.pytrees import register_dataclass
from solvers.fixed_steps import FixedStepState, first_state, stepped
from solvers.grids import Grid, UniformTime, grid_time
from solvers.interface import Count, Sample, Time
from solvers.noise import standard_normal


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class EulerMaruyama:
    """Euler–Maruyama on the reverse SDE: one evaluation a step.

    Attributes:
        num_steps: number of steps; another number does not recompile.
        grid: times at which the steps end; uniform in t in the paper.

    Raises:
        ValueError: for a number of steps that is not a whole number of at least one.

    Example:
        >>> from solvers import EulerMaruyama
        >>> EulerMaruyama(num_steps=250)
        EulerMaruyama(num_steps=250, grid=UniformTime())
    """

    num_steps: int | Count = 1000
    grid: Grid = UniformTime()

    evaluations_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_count(num_steps=self.num_steps)

    def init(self, sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> FixedStepState:
        return first_state(sde, key, shape, dtype)

    def ask(self, state: FixedStepState) -> tuple[Sample, Time]:
        return state.x, state.t

    def tell(self, sde: SDE, state: FixedStepState, score: Sample) -> FixedStepState:
        x, t = state.x, state.t
        done = state.accepted + 1
        t_next = grid_time(self.grid, sde, done, self.num_steps, t.dtype)
        h = t - t_next
        z = standard_normal(state.key, done, x.shape, x.dtype)
        # x ← x − h [f(x, t) − g(t)² s(x, t)] + g(t) √h z
        x_next = x - h * reverse_drift(sde, x, t, score) + sde.diffusion(t) * jnp.sqrt(h) * z
        return stepped(state, x_next, t_next, self.num_steps)
