"""Time grids of the fixed-step solvers, as data.

A grid gives the time at the fraction i/n of n steps. ``grid_time`` turns the number of a step into its time,
and is exact at both ends.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sde_lib import SDE
from sde_lib.checks import require_positive
from sde_lib.processes import Scalar
from sde_lib.pytrees import register_dataclass


@runtime_checkable
class Grid(Protocol):
    """A frozen dataclass pytree that distributes steps over [eps, T]."""

    def time(self, sde: SDE, fraction: Scalar) -> Any:
        """The time when this fraction of the steps is done: T at 0, decreasing to eps at 1."""
        ...


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformTime:
    """Uniform in t (Song et al., arXiv 2011.13456).

    Example:
        >>> from sde_lib import VPSDE
        >>> from solvers import UniformTime
        >>> UniformTime().time(VPSDE(), 0.25)
        0.75025
    """

    def time(self, sde: SDE, fraction: Scalar) -> Any:
        return sde.T - fraction * (sde.T - sde.eps)


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformLogSNR:
    """Uniform in lambda = log(alpha/sigma) (Lu et al., arXiv 2206.00927, section 3).

    Example:
        >>> from sde_lib import VPSDE
        >>> from solvers import UniformLogSNR
        >>> print(UniformLogSNR().time(VPSDE(), 0.5).round(3))
        0.305
    """

    def time(self, sde: SDE, fraction: Scalar) -> Any:
        begin, end = sde.log_snr(sde.T), sde.log_snr(sde.eps)
        return sde.inverse_log_snr(begin + fraction * (end - begin))


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rho:
    """Uniform in (sigma/alpha)^(1/rho) (Karras et al., arXiv 2206.00364, eq. 5).

    Attributes:
        rho: the larger it is, the more steps are taken at low noise; 7 in the paper.

    Raises:
        ValueError: for a rho that is not above zero.

    Example:
        >>> from sde_lib import VPSDE
        >>> from solvers import Rho
        >>> print(Rho(rho=7.0).time(VPSDE(), 0.5).round(3))
        0.592
    """

    rho: Scalar = 7.0

    def __post_init__(self) -> None:
        require_positive(rho=self.rho)

    def time(self, sde: SDE, fraction: Scalar) -> Any:
        begin, end = (jnp.exp(-sde.log_snr(t) / self.rho) for t in (sde.T, sde.eps))
        return sde.inverse_log_snr(-self.rho * jnp.log(begin + fraction * (end - begin)))


def grid_time(
    grid: Grid, sde: SDE, step: Int[Array, ""], num_steps: int | Int[Array, ""], dtype: Any
) -> Float[Array, ""]:
    """The time after ``step`` of ``num_steps`` steps; exactly T and eps at the ends and beyond them.

    It is computed from the step's number, so that rounding errors do not accumulate.
    """
    inside = grid.time(sde, jnp.asarray(step, dtype) / num_steps)
    return jnp.where(step <= 0, sde.T, jnp.where(step >= num_steps, sde.eps, inside)).astype(dtype)
