"""SDE solvers that people trust, from diffrax, on the same reverse SDE: the paper's comparison done again.

diffrax (Kidger, arXiv 2202.02435) owns the loop here: a batch runs until its slowest sample has ended, and a
rejected step costs all of its evaluations again. Each sample has its own step size (PIDController), its own
Brownian path (VirtualBrownianTree) and its own end. The reverse SDE has additive noise, whose size depends on
time alone, so that Itô and Stratonovich solutions are the same, and so are the steps of EulerHeun and of both
Milstein methods: those of Euler–Maruyama.
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
from tqdm import tqdm

from sde_lib import SDE, ScoreFn, reverse_drift
from sde_lib import denoise as tweedie
from sde_lib.checks import require, require_choice, require_count, require_positive
from sde_lib.pytrees import register_dataclass
from solvers.driver import Solution, as_arrays, check_score_shape
from solvers.interface import Status
from solvers.noise import prior_key, sample_key
from solvers.queues import ids_asked_for

PATH = 1  # index of the key that a sample's Brownian path grows from; its prior has index 0

# The path is resolved, and steps are allowed, down to this share of [eps, T]: 160 times below the mean of 100
# steps. Each halving costs draws of normal numbers in every step.
FINEST = 2.0**-14


@dataclasses.dataclass(frozen=True)
class Method:
    """One of diffrax's solvers.

    Attributes:
        solver: its class.
        evaluations: of the drift, in a step.
        estimates_error: whether it can choose step sizes by itself. Others do so by step doubling
            (HalfSolver), with three times the evaluations.
    """

    solver: type[diffrax.AbstractSolver]
    evaluations: int
    estimates_error: bool


# Left out: methods for underdamped Langevin equations (ALIGN, QUICSORT, ShOULD), and GeneralShARK, in whose
# place diffrax recommends ShARK where noise is additive. Euler is ours; adaptive steps it is refused there.
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
    """Draws samples with a solver of diffrax; the arguments of ``solvers.sample`` mean what they mean there.

    Args:
        score_fn, sde: as for ``solvers.sample``. The score function is mapped over samples, of which it sees
            each as a batch of one: any that treats the samples of a batch apart gives the same scores.
        solver_name: a key of ``METHODS``.
        key, shape, num_samples, sample_ids: which samples.
        batch_size: samples that run together, until the slowest of them has ended.
        num_steps: of equal length; or else
        rtol, atol: relative and absolute tolerance, the latter in data units, of the error of a step as
            PIDController takes it: the root mean square over the sample of error/(atol + rtol |x|).
        first_step: with tolerances, the step tried at t = T.
        max_steps: a sample that needs more, rejected ones included, ends with ``Status.MAX_EVALUATIONS``.
        denoise: end with one Tweedie step, one more evaluation.
        dtype, progress: of the state; show a bar.

    Returns:
        The solution, in the order of the ids asked for. ``nfe`` counts every evaluation made for a sample's
        own steps, rejected ones included; ``lane_evaluations`` those that its batch made, in
        ``network_calls`` calls. A sample whose step fell below ``FINEST`` of the interval has
        ``Status.STEP_TOO_SMALL``; its x, and that of one out of steps, is where it had got to. A sample that
        met a score that is not finite has ``Status.NON_FINITE`` and, with fixed steps, an x that need not be
        finite: diffrax keeps none from before.

    Raises:
        ValueError: naming the setting, its value, what was allowed and the fix.
    """
    require_choice("solver_name", solver_name, METHODS)
    ids = ids_asked_for(num_samples, sample_ids)
    require_count(batch_size=batch_size, max_steps=max_steps)
    adaptive = num_steps is None
    if adaptive:
        for name, value in {"rtol": rtol, "atol": atol}.items():
            require(value is not None, name, value, "a number > 0", f"set {name}, or num_steps alone")
        require_positive(rtol=rtol, atol=atol, first_step=first_step)
    else:
        require_count(num_steps=num_steps)
        for name, value in {"rtol": rtol, "atol": atol}.items():
            require(value is None, name, value, "None beside num_steps", f"leave out {name} or num_steps")
    shape = tuple(shape)
    if not isinstance(score_fn, jax.tree_util.Partial):
        score_fn = jax.tree_util.Partial(score_fn)
    lanes = min(batch_size, len(ids))
    check_score_shape(score_fn, lanes, shape, dtype)

    steps = _Steps(num_steps=float(num_steps or 0), rtol=rtol or 0.0, atol=atol or 0.0, first=first_step)
    sde, steps = as_arrays((sde, steps), dtype)
    start = time.perf_counter()
    padded = np.resize(ids, -(-len(ids) // lanes) * lanes)  # the last batch is filled with ids of the first
    batches = [jnp.asarray(batch) for batch in padded.reshape(-1, lanes)]
    static = {"method": METHODS[solver_name], "adaptive": adaptive, "max_steps": max_steps}
    static |= {"denoising": denoise, "shape": shape, "dtype": jnp.dtype(dtype)}
    solve = _solve_batch.lower(score_fn, sde, steps, key, batches[0], **static).compile()
    seconds_compile = time.perf_counter() - start

    start = time.perf_counter()
    parts = []
    with tqdm(total=len(ids), unit="sample", disable=not progress, desc="sampling") as bar:
        for batch in batches:
            parts.append(jax.device_get(solve(score_fn, sde, steps, key, batch)))
            bar.update(min(lanes, len(ids) - bar.n))
    calls = sum(int(part["calls"]) for part in parts)

    def joined(name: str) -> np.ndarray:
        return np.concatenate([part[name] for part in parts])[: len(ids)]

    return Solution(
        x=joined("x"),
        sample_ids=ids,
        nfe=joined("nfe"),
        accepted=joined("accepted"),
        rejected=joined("rejected"),
        status=joined("status"),
        device_calls=np.array([calls]),
        lane_evaluations=lanes * calls,
        seconds_compile=seconds_compile,
        seconds_sampling=time.perf_counter() - start,
    )


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Steps:
    """How to choose steps; another value of any does not recompile."""

    num_steps: float | Float[Array, ""]
    rtol: float | Float[Array, ""]
    atol: float | Float[Array, ""]
    first: float | Float[Array, ""]


@functools.partial(
    jax.jit, static_argnames=("method", "adaptive", "max_steps", "denoising", "shape", "dtype")
)
def _solve_batch(
    score_fn: ScoreFn,
    sde: SDE,
    steps: _Steps,
    key: PRNGKeyArray,
    ids: Array,
    *,
    method: Method,
    adaptive: bool,
    max_steps: int,
    denoising: bool,
    shape: tuple[int, ...],
    dtype: Any,
) -> dict[str, Array]:
    """The arrays of a ``Solution`` for one batch, and its number of calls."""
    # diffrax's time u runs forward: in units of t with tolerances, in steps where their number is fixed
    interval = sde.T - sde.eps
    end = interval if adaptive else steps.num_steps
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

    solver: Any = method.solver()
    evaluations = method.evaluations
    if adaptive:
        if not method.estimates_error:
            solver, evaluations = diffrax.HalfSolver(solver), 3 * evaluations
        first = jnp.minimum(steps.first, end)
        finest = FINEST * end
        # the proportional part is what diffrax advises for SDEs, whose errors jump from step to step
        controller = diffrax.PIDController(
            rtol=steps.rtol, atol=steps.atol, pcoeff=0.1, icoeff=0.3, dtmin=finest, force_dtmin=False
        )
    else:
        first = jnp.ones((), dtype)
        finest = 0.5 * first
        controller = diffrax.ConstantStepSize()

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
            max_steps=max_steps,
            throw=False,
        )

    solution = jax.vmap(solve)(ids)
    completed = solution.result == diffrax.RESULTS.successful
    too_many = solution.result == diffrax.RESULTS.max_steps_reached
    status = jnp.where(too_many, Status.MAX_EVALUATIONS, Status.STEP_TOO_SMALL)
    status = jnp.where(completed, Status.COMPLETED, status)
    x, u = solution.ys[:, -1], solution.ts[:, -1]
    # where a sample got stuck, the cause may lie as far ahead as the last step tried: a fifth of it, the
    # controller's largest cut, would have been too small
    t = jax.vmap(time_at)(jnp.where(completed, u, u + 5 * finest))
    score = score_fn(x, t).astype(dtype)
    pixels = tuple(range(1, x.ndim))
    finite = jnp.isfinite(score).all(pixels) & jnp.isfinite(x).all(pixels)
    status = jnp.where(finite, status, Status.NON_FINITE)
    nfe = evaluations * solution.stats["num_steps"]
    calls = jnp.max(nfe)
    if denoising:
        finished = (status == Status.COMPLETED).reshape(-1, *(1,) * len(shape))
        x = jnp.where(finished, jax.vmap(tweedie, (None, 0, 0, 0))(sde, x, t, score).astype(dtype), x)
        nfe, calls = nfe + (status == Status.COMPLETED), calls + 1
    return {
        "x": x,
        "nfe": nfe.astype(jnp.int32),
        "accepted": solution.stats["num_accepted_steps"].astype(jnp.int32),
        "rejected": solution.stats["num_rejected_steps"].astype(jnp.int32),
        "status": status.astype(jnp.int32),
        "calls": calls.astype(jnp.int32),
    }
