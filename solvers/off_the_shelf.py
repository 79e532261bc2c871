"""Established SDE solvers, from diffrax, on the same reverse SDE: the paper's comparison, repeated.

Here diffrax (Kidger, arXiv 2202.02435) runs the loop: a batch runs until its slowest sample is finished, and
a rejected step costs all of its evaluations again. Each sample has its own step size (PIDController), its own
Brownian path (VirtualBrownianTree) and its own end. The reverse SDE has additive noise, whose size depends on
time alone. Itô and Stratonovich solutions are then the same, and the steps of EulerHeun and of both Milstein
methods are those of Euler–Maruyama.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from sde_lib import SDE, ScoreFn, reverse_drift
from sde_lib import denoise as tweedie
from sde_lib.checks import require, require_choice, require_count, require_positive
from sde_lib.pytrees import register_dataclass
from solvers.arguments import as_arrays, check_setting, checked_score_fn, checked_shape
from solvers.driver import Solution
from solvers.interface import Status
from solvers.noise import prior_key, sample_key
from solvers.progress import bar as progress_bar
from solvers.queues import ids_asked_for

PATH = 1  # index of the key for a sample's Brownian path; its prior has index 0

# The path is resolved, and steps are allowed, down to this fraction of [eps, T], 160 times below the mean of
# 100 steps. Each halving adds draws of normal numbers to every step.
FINEST = 2.0**-14


@dataclasses.dataclass(frozen=True)
class Method:
    """A solver of diffrax.

    Attributes:
        solver: its class.
        evaluations: of the drift, per step.
        estimates_error: whether the solver estimates its own error, to choose step sizes. The others estimate
            it by step doubling (HalfSolver), with three times the evaluations.
    """

    solver: type[diffrax.AbstractSolver]
    evaluations: int
    estimates_error: bool


# Left out: the methods for underdamped Langevin equations (ALIGN, QUICSORT, ShOULD); GeneralShARK, for which
# diffrax recommends ShARK if the noise is additive; and Euler, which diffrax does not run with adaptive steps
# and which is Euler–Maruyama in this package.
METHODS = {
    "euler_heun": Method(diffrax.EulerHeun, 1, estimates_error=False),
    "ito_milstein": Method(diffrax.ItoMilstein, 1, estimates_error=False),
    "stratonovich_milstein": Method(diffrax.StratonovichMilstein, 1, estimates_error=False),
    "heun": Method(diffrax.Heun, 2, estimates_error=True),
    "sea": Method(diffrax.SEA, 1, estimates_error=False),
    "sra1": Method(diffrax.SRA1, 2, estimates_error=True),
    "shark": Method(diffrax.ShARK, 2, estimates_error=True),
    "slow_rk": Method(diffrax.SlowRK, 2, estimates_error=False),
    "spark": Method(diffrax.SPaRK, 3, estimates_error=True),
}


def sample(
    score_fn: ScoreFn,
    sde: SDE,
    solver_name: str,
    *,
    key: PRNGKeyArray,
    shape: Sequence[int],
    num_samples: int | None = None,
    sample_ids: Sequence[int] | np.ndarray | None = None,
    batch_size: int = 128,
    num_steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    first_step: float = 0.01,
    max_steps: int = 4096,
    denoise: bool = True,
    dtype: Any = jnp.float32,
    progress: bool = False,
) -> Solution:
    """Draws samples with a solver of diffrax, with the arguments of ``solvers.sample``.

    Args:
        score_fn, sde: as for ``solvers.sample``. The score function is mapped over samples and sees each as a
            batch of one. The scores are the same if it treats the samples of a batch independently.
        solver_name: a key of ``METHODS``.
        key, shape, num_samples, sample_ids: as for ``solvers.sample``.
        batch_size: samples that run together, until the slowest of them is finished.
        num_steps: number of steps of equal length; if None, the steps follow the tolerances.
        rtol, atol: relative and absolute tolerance for the error of a step, the latter in data units, as
            PIDController defines it: for the root mean square over the sample of error/(atol + rtol |x|).
        first_step: with tolerances, the step tried at t = T.
        max_steps: a sample that needs more, rejected ones included, stops with ``Status.MAX_EVALUATIONS``.
        denoise: end with one Tweedie step, which takes one more evaluation.
        dtype, progress: as for ``solvers.sample``.

    Returns:
        The solution, in the order of the ids asked for. ``nfe`` counts every evaluation for a sample's own
        steps, rejected ones included; ``lane_evaluations`` counts those of the whole batch, in
        ``network_calls`` calls. A sample whose step fell below ``FINEST`` of the interval has
        ``Status.STEP_TOO_SMALL``; its x, like that of a sample out of steps, is the last one reached. A
        sample with a non-finite score has ``Status.NON_FINITE``; with fixed steps its x may be non-finite
        too, since diffrax keeps no earlier one.

    Raises:
        ValueError: for an unknown solver, a number out of range, or a score function that does not keep the
            shape of the batch.

    Example:
        >>> import jax, sde_lib
        >>> from solvers import off_the_shelf
        >>> score_fn = lambda x, t: -x  # of standard normal data
        >>> solution = off_the_shelf.sample(
        ...     score_fn, sde_lib.VPSDE(), "shark", num_steps=10,
        ...     key=jax.random.key(0), shape=(2,), num_samples=4,
        ... )
        >>> solution.nfe.tolist()  # two evaluations a step, and one for the denoising
        [21, 21, 21, 21]
    """
    require_choice("solver_name", solver_name, METHODS)
    ids = ids_asked_for(num_samples, sample_ids)
    require_count(batch_size=batch_size, max_steps=max_steps)
    shape = checked_shape(shape)
    check_setting(sde, key, shape, dtype, solver=None)
    sde, steps = as_arrays((sde, _checked_steps(num_steps, rtol, atol, first_step)), dtype)
    lanes = min(batch_size, len(ids))
    program = _Program(
        method=METHODS[solver_name],
        adaptive=num_steps is None,
        max_steps=max_steps,
        denoising=denoise,
        shape=shape,
        dtype=jnp.dtype(dtype),
    )
    score_fn = checked_score_fn(score_fn, lanes, shape, dtype)

    start = time.perf_counter()
    padded = np.resize(ids, -(-len(ids) // lanes) * lanes)  # the last batch is filled up with the first ids
    batches = [jnp.asarray(batch) for batch in padded.reshape(-1, lanes)]
    solve = _solve_batch.lower(score_fn, sde, steps, key, batches[0], program=program).compile()
    seconds_compile = time.perf_counter() - start

    start = time.perf_counter()
    parts = []
    with progress_bar(total=len(ids), unit="sample", disable=not progress, desc="sampling") as bar:
        for batch in batches:
            parts.append(jax.device_get(solve(score_fn, sde, steps, key, batch)))
            bar.update(min(lanes, len(ids) - bar.n))
    calls = sum(int(part.pop("calls")) for part in parts)
    arrays: Any = {name: np.concatenate([part[name] for part in parts])[: len(ids)] for name in parts[0]}
    return Solution(
        **arrays,
        sample_ids=ids,
        device_calls=np.array([calls]),
        lane_evaluations=lanes * calls,
        seconds_compile=seconds_compile,
        seconds_sampling=time.perf_counter() - start,
    )


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Steps:
    """The settings of the steps; other values do not recompile."""

    num_steps: float | Float[Array, ""]
    rtol: float | Float[Array, ""]
    atol: float | Float[Array, ""]
    first: float | Float[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Program:
    """The settings that are compiled in."""

    method: Method
    adaptive: bool
    max_steps: int
    denoising: bool
    shape: tuple[int, ...]
    dtype: Any

    @property
    def doubles_steps(self) -> bool:
        return self.adaptive and not self.method.estimates_error

    @property
    def evaluations_per_step(self) -> int:
        return self.method.evaluations * (3 if self.doubles_steps else 1)


def _checked_steps(
    num_steps: int | None, rtol: float | None, atol: float | None, first_step: float
) -> _Steps:
    tolerances = {"rtol": rtol, "atol": atol}
    if num_steps is None:
        for name, value in tolerances.items():
            fix = f"set {name}, or num_steps instead of tolerances"
            require(value is not None, name, value, "a number > 0", fix)
        require_positive(rtol=rtol, atol=atol, first_step=first_step)
    else:
        require_count(num_steps=num_steps)
        for name, value in tolerances.items():
            fix = f"leave out {name} or num_steps"
            require(value is None, name, value, "None when num_steps is given", fix)
    return _Steps(num_steps=float(num_steps or 0), rtol=rtol or 0.0, atol=atol or 0.0, first=first_step)


@functools.partial(jax.jit, static_argnames="program")
def _solve_batch(
    score_fn: ScoreFn, sde: SDE, steps: _Steps, key: PRNGKeyArray, ids: Array, *, program: _Program
) -> dict[str, Array]:
    """The arrays of a ``Solution`` for one batch, and its number of calls."""
    shape, dtype = program.shape, program.dtype
    # diffrax's time u runs forward: in units of t with tolerances, in steps where their number is fixed
    interval = sde.T - sde.eps
    end = interval if program.adaptive else steps.num_steps
    rate = interval / end

    def time_at(u: Any) -> Any:
        return jnp.maximum(sde.T - rate * u, sde.eps).astype(dtype)

    def drift(u: Any, x: Any, _: Any) -> Any:
        t = time_at(u)
        score = score_fn(x[None], t[None])[0].astype(dtype)
        return -rate * reverse_drift(sde, x, t, score)

    struct = jax.ShapeDtypeStruct(shape, dtype)

    def diffusion(u: Any, _x: Any, _: Any) -> Any:
        return lineax.IdentityLinearOperator(struct) * (jnp.sqrt(rate) * sde.diffusion(time_at(u)))

    solver: Any = program.method.solver()
    if program.doubles_steps:
        solver = diffrax.HalfSolver(solver)
    controller, first, finest = _control(steps, end, program)

    def solve(sample_id: Array) -> Any:
        own = sample_key(key, sample_id)
        path = diffrax.VirtualBrownianTree(
            jnp.zeros((), dtype),
            end,
            tol=finest,
            shape=struct,
            key=jax.random.fold_in(own, PATH),
            levy_area=diffrax.SpaceTimeLevyArea,
        )
        terms = diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, path))
        return diffrax.diffeqsolve(
            terms,
            solver,
            t0=jnp.zeros((), dtype),
            t1=end,
            dt0=first,
            y0=sde.prior(prior_key(own), shape, dtype),
            stepsize_controller=controller,
            max_steps=program.max_steps,
            throw=False,
        )

    solution = jax.vmap(solve)(ids)
    u, completed = solution.ts[:, -1], solution.result == diffrax.RESULTS.successful
    # Where a sample got stuck, the cause may lie as far ahead as the last step tried: a fifth of it, the
    # controller's largest cut, would have been too small.
    t = jax.vmap(time_at)(jnp.where(completed, u, u + 5 * finest))
    return _outcome(score_fn, sde, solution, t, program)


def _control(
    steps: _Steps, end: Any, program: _Program
) -> tuple[diffrax.AbstractStepSizeController, Any, Any]:
    """The step size controller, the first step and the finest resolution, in diffrax's time."""
    if not program.adaptive:
        first = jnp.ones((), program.dtype)
        return diffrax.ConstantStepSize(), first, 0.5 * first
    finest = FINEST * end
    # the proportional part is what diffrax advises for SDEs, whose errors jump from step to step
    controller = diffrax.PIDController(
        rtol=steps.rtol, atol=steps.atol, pcoeff=0.1, icoeff=0.3, dtmin=finest, force_dtmin=False
    )
    return controller, jnp.minimum(steps.first, end), finest


def _outcome(
    score_fn: ScoreFn, sde: SDE, solution: diffrax.Solution, t: Array, program: _Program
) -> dict[str, Array]:
    """The status of each sample, from the score at its end (x, t), the denoised samples, and the counts."""
    completed = solution.result == diffrax.RESULTS.successful
    too_many = solution.result == diffrax.RESULTS.max_steps_reached
    status = jnp.where(too_many, Status.MAX_EVALUATIONS, Status.STEP_TOO_SMALL)
    status = jnp.where(completed, Status.COMPLETED, status)
    ys: Any = solution.ys
    x = ys[:, -1]
    score = score_fn(x, t).astype(program.dtype)
    pixels = tuple(range(1, x.ndim))
    finite = jnp.isfinite(score).all(pixels) & jnp.isfinite(x).all(pixels)
    status = jnp.where(finite, status, Status.NON_FINITE)
    nfe = program.evaluations_per_step * solution.stats["num_steps"]
    calls = jnp.max(nfe)
    if program.denoising:
        finished = (status == Status.COMPLETED).reshape(-1, *(1,) * len(program.shape))
        denoised = jax.vmap(tweedie, (None, 0, 0, 0))(sde, x, t, score).astype(program.dtype)
        x = jnp.where(finished, denoised, x)
        nfe, calls = nfe + (status == Status.COMPLETED), calls + 1
    return {
        "x": x,
        "nfe": nfe.astype(jnp.int32),
        "accepted": solution.stats["num_accepted_steps"].astype(jnp.int32),
        "rejected": solution.stats["num_rejected_steps"].astype(jnp.int32),
        "status": status.astype(jnp.int32),
        "calls": calls.astype(jnp.int32),
    }
