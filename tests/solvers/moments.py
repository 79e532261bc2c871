"""Mean and variance of a solver's samples for Gaussian data, without drawing a sample.

With the score of a Gaussian, a fixed-step solver is affine in its start and in its noises, in the same way
for every element of x:

    x_end = c + a x_begin + Σ_k b_k z_k,    so that    var(x_end) = a² var(x_begin) + Σ_k b_k²

One run on a vector of probes finds all coefficients: the first probe starts at the mean and has no noise, the
second starts 1 higher, and the probe for k has z_k = 1 and no other noise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib import SDE
from solvers import Solver, Status
from tests.problems import Gaussian


def final_moments(
    solver: Solver, sde: SDE, problem: Gaussian, *, mean: float, variance: float, num_noises: int
) -> tuple[float, float]:
    """(mean, variance) of the samples at eps if those at T have this mean and variance; in float64.

    Exact up to rounding for solvers that treat every element of x separately and in the same way (without
    norms over a sample), and whose first state holds nothing of x but x itself.

    Args:
        num_noises: at least the largest index that ``standard_normal`` is called with. The same number for
            several step counts lets them share one compiled program.

    Raises:
        AssertionError: if a noise beyond ``num_noises`` was drawn.
    """
    with jax.enable_x64(True):
        begin = jnp.full(num_noises + 2, mean, jnp.float64).at[1].add(1.0)
        end = np.asarray(_final(solver, sde, problem, begin))
    assert np.isfinite(end).all(), "a noise beyond num_noises was drawn, or the solver diverged"
    to_start, *to_noises = end[1:] - end[0]
    return float(end[0]), float(to_start**2 * variance + np.sum(np.square(to_noises)))


def exact_moments(sde: SDE, problem: Gaussian, *, mean: float, variance: float) -> tuple[float, float]:
    """(mean, variance) at eps for the exact reverse SDE, from this mean and variance at T.

    Its law of x(eps) given x(T) is that of the forward process, in which the two are jointly Gaussian.
    """
    with jax.enable_x64(True):
        (mean_T, std_T), (mean_eps, std_eps) = (
            problem.marginal(sde, jnp.float64(t)) for t in (sde.T, sde.eps)
        )
        alpha_T, alpha_eps = (sde.marginal(jnp.float64(t))[0] for t in (sde.T, sde.eps))
    gain = float(alpha_T / alpha_eps * (std_eps / std_T) ** 2)
    return (
        float(mean_eps) + gain * (mean - float(mean_T)),
        float(std_eps) ** 2 + gain**2 * (variance - float(std_T) ** 2),
    )


def fitted_order(numbers: Sequence[int], errors: Sequence[float]) -> float:
    """The exponent p in error ~ steps^−p, by least squares on the logarithms."""
    return -float(np.polyfit(np.log(numbers), np.log(np.abs(errors)), 1)[0])


def final_samples(
    solver: Solver, sde: SDE, problem: Gaussian, *, number: int, shape: tuple[int, ...], begin: Any = None
) -> np.ndarray:
    """Samples at eps in float32, [number, *shape]; all take the same number of steps.

    They start at T from ``begin`` [number, *shape], or from draws of the prior.
    """
    return np.asarray(_samples(solver, sde, problem, begin, number=number, shape=shape))


@functools.partial(jax.jit, static_argnames=("number", "shape"))
def _samples(
    solver: Solver,
    sde: SDE,
    problem: Gaussian,
    begin: Any,
    *,
    number: int,
    shape: tuple[int, ...],
) -> Any:
    keys = jax.random.split(jax.random.key(0), number)
    states = jax.vmap(lambda key: solver.init(sde, key, shape, jnp.float32))(keys)
    if begin is not None:
        states = dataclasses.replace(states, x=begin)
    return jax.lax.while_loop(
        lambda states: states.status[0] == Status.RUNNING,
        jax.vmap(functools.partial(_told, solver, sde, problem)),
        states,
    ).x


@jax.jit
def _final(solver: Solver, sde: SDE, problem: Gaussian, begin: Any) -> Any:
    with _unit_noises():
        state = solver.init(sde, jax.random.key(0), begin.shape, begin.dtype)
        return jax.lax.while_loop(
            lambda state: state.status == Status.RUNNING,
            functools.partial(_told, solver, sde, problem),
            dataclasses.replace(state, x=begin),
        ).x


def _told(solver: Solver, sde: SDE, problem: Gaussian, state: Any) -> Any:
    x, t = solver.ask(state)
    return solver.tell(sde, state, problem.score(sde, x, t))


@contextlib.contextmanager
def _unit_noises() -> Iterator[None]:
    """Makes the k-th noise of every solver 1 at index k + 1 and 0 elsewhere; NaN if it has no such index."""

    def unit(key: Any, index: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        return jnp.where(index + 2 <= shape[0], jax.nn.one_hot(index + 1, shape[0], dtype=dtype), jnp.nan)

    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("solvers.") and hasattr(module, "standard_normal"):
                stack.enter_context(mock.patch.object(module, "standard_normal", unit))
        yield
