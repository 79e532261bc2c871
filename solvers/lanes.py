"""The compiled loop over the lanes of each device: ask, score, tell, hand out, start the next.

Every device runs a loop of its own over its own lanes and its own queue of sample ids, without a collective.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray, UInt32

from sde_lib import SDE, ScoreFn
from sde_lib import denoise as tweedie
from sde_lib.pytrees import register_dataclass
from solvers.interface import Solver, Status
from solvers.noise import sample_key

# The compiler's code for what is left over when a loop is cut into vectors rounds differently from its vector
# code. Solver states therefore have rows in whole vectors, and so does the batch that the score sees where
# samples are small enough for the rows of padding to cost nothing. (A batch of one is compiled differently
# again: the score always sees two.)
VECTOR = 16  # rows
SMALL = 1024  # numbers a sample

AXIS = "device"
SHARED, OWN = PartitionSpec(), PartitionSpec(AXIS)  # the same on every device; rows of its own on each


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lanes:
    """One sample under way in each of a device's b lanes; what an idle lane holds is never read."""

    state: Any  # the solver's state, every leaf with a leading [b]
    sample_id: UInt32[Array, " b"]
    busy: Bool[Array, " b"]
    nfe: Int32[Array, " b"]


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """Where finished samples are put, in the order in which they finish; named as in ``Solution``."""

    x: Array  # [capacity, ...]
    sample_ids: UInt32[Array, " capacity"]
    nfe: Int32[Array, " capacity"]
    accepted: Int32[Array, " capacity"]
    rejected: Int32[Array, " capacity"]
    status: Int32[Array, " capacity"]


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What the host learns from one call of the loop; a device has one of each."""

    iterations: Int32[Array, " devices"]
    handed_out: Int32[Array, " devices"]  # ids taken from the queue
    finished: Int32[Array, " devices"]
    evaluations: Int32[Array, " devices"]  # of the finished samples
    under_way: Float[
        Array, " devices"
    ]  # samples that the unfinished lanes add up to, by their way in log-SNR


@functools.partial(jax.jit, static_argnames=("lanes", "shape", "dtype", "mesh"))
def idle_lanes(
    sde: SDE, solver: Solver, key: PRNGKeyArray, *, lanes: int, shape: tuple[int, ...], dtype: Any, mesh: Mesh
) -> Lanes:
    rows = _rows(lanes)

    def on_device(sde: SDE, solver: Solver, key: PRNGKeyArray) -> Lanes:
        ids = jnp.zeros(rows, jnp.uint32)
        return Lanes(
            state=_first_states(sde, solver, key, ids, shape, dtype),
            sample_id=ids,
            busy=jnp.zeros(rows, bool),
            nfe=jnp.zeros(rows, jnp.int32),
        )

    each = jax.shard_map(on_device, mesh=mesh, in_specs=SHARED, out_specs=OWN, check_vma=False)
    return each(sde, solver, key)


def _rows(lanes: int) -> int:
    return -(-lanes // VECTOR) * VECTOR


def _first_states(
    sde: SDE, solver: Solver, key: PRNGKeyArray, ids: Array, shape: tuple[int, ...], dtype: Any
) -> Any:
    return jax.vmap(lambda i: solver.init(sde, sample_key(key, i), shape, dtype))(ids)


@functools.partial(
    jax.jit, static_argnames=("lanes", "denoising", "output", "mesh"), donate_argnames=("work",)
)
def run(
    score_fn: ScoreFn,
    sde: SDE,
    solver: Solver,
    key: PRNGKeyArray,
    work: Lanes,
    queue: UInt32[Array, " ids"],
    queue_length: Int32[Array, " devices"],
    more: Bool[Array, ""],
    max_iterations: Int32[Array, ""],
    max_evaluations: Int32[Array, ""],
    *,
    lanes: int,
    denoising: bool,
    output: Callable[[Array], Array],
    mesh: Mesh,
) -> tuple[Lanes, Finished, Counts]:
    """``_run_device`` on every device, each with its own rows of ``work`` and ``queue``."""
    each = jax.shard_map(
        functools.partial(_run_device, lanes=lanes, denoising=denoising, output=output),
        mesh=mesh,
        in_specs=(SHARED, SHARED, SHARED, SHARED, OWN, OWN, OWN, SHARED, SHARED, SHARED),
        out_specs=OWN,
        # the check would refuse score functions that start a loop of their own from constants
        check_vma=False,
    )
    return each(score_fn, sde, solver, key, work, queue, queue_length, more, max_iterations, max_evaluations)


def _run_device(
    score_fn: ScoreFn,
    sde: SDE,
    solver: Solver,
    key: PRNGKeyArray,
    work: Lanes,
    queue: UInt32[Array, " length"],
    queue_length: Int32[Array, " 1"],
    more: Bool[Array, ""],
    max_iterations: Int32[Array, ""],
    max_evaluations: Int32[Array, ""],
    *,
    lanes: int,
    denoising: bool,
    output: Callable[[Array], Array],
) -> tuple[Lanes, Finished, Counts]:
    """Up to ``max_iterations`` evaluations of all lanes; back earlier when done or when the queue ran dry."""
    (length,) = queue_length
    rows, *shape = work.state.x.shape
    dtype = work.state.x.dtype
    scored = rows if math.prod(shape) <= SMALL else max(lanes, 2)
    # every lane's sample and every id in the queue may finish in a call; whole vectors here too, for `output`
    capacity = rows + _rows(len(queue))

    def refill(work: Lanes, handed_out: Array) -> tuple[Lanes, Array]:
        """Gives idle lanes the next ids, as far as they go."""
        idle = _idle(work, lanes)
        place = handed_out + jnp.cumsum(idle) - 1
        starts = idle & (place < length)
        ids = queue[jnp.where(starts, place, 0)]
        fresh = Lanes(
            state=_first_states(sde, solver, key, ids, tuple(shape), dtype),
            sample_id=ids,
            busy=starts,
            nfe=jnp.zeros_like(work.nfe),
        )
        return _select(starts, fresh, work), handed_out + jnp.sum(starts, dtype=jnp.int32)

    def evaluate(work: Lanes) -> tuple[Lanes, Array]:
        """One score for every lane, and the status that each lane has then."""
        state = work.state
        arrived = state.status == Status.COMPLETED  # only the denoising is left
        x, t = jax.vmap(solver.ask)(state)
        x, t = _select(arrived, (state.x, state.t), (x, t))
        score = score_fn(x[:scored], t[:scored]).astype(dtype)
        score = jnp.pad(score, ((0, rows - scored), *((0, 0) for _ in shape)))
        told = jax.vmap(solver.tell, (None, 0, 0))(sde, state, score)
        if denoising:
            denoised = jax.vmap(tweedie, (None, 0, 0, 0))(sde, state.x, state.t, score).astype(dtype)
            told = _select(arrived, dataclasses.replace(state, x=denoised), told)

        finite = _all_finite(score) & _all_finite(told.x)
        told = dataclasses.replace(told, x=_select(finite, told.x, state.x))
        nfe = work.nfe + 1
        status = told.status
        if denoising:
            status = jnp.where((status == Status.COMPLETED) & ~arrived, Status.RUNNING, status)
        status = jnp.where(
            (status == Status.RUNNING) & (nfe >= max_evaluations), Status.MAX_EVALUATIONS, status
        )
        status = jnp.where(finite, status, Status.NON_FINITE)
        evaluated = dataclasses.replace(work, state=told, nfe=nfe)
        return _select(work.busy, evaluated, work), status.astype(jnp.int32)

    def hand_out(work: Lanes, ends: Array, status: Array, finished: Finished, count: Array) -> Finished:
        """Puts the samples of the lanes that end behind the ``count`` finished ones."""
        place = jnp.where(ends, count + jnp.cumsum(ends) - 1, capacity)
        result = Finished(
            x=work.state.x,
            sample_ids=work.sample_id,
            nfe=work.nfe,
            accepted=work.state.accepted,
            rejected=work.state.rejected,
            status=status,
        )
        return jax.tree.map(lambda to, values: to.at[place].set(values, mode="drop"), finished, result)

    def iterate(carry: tuple) -> tuple:
        work, finished, count, handed_out, iteration = carry
        hungry = jnp.any(_idle(work, lanes)) & (handed_out < length)
        work, handed_out = lax.cond(hungry, refill, lambda *unchanged: unchanged, work, handed_out)
        work, status = evaluate(work)
        ends = work.busy & (status != Status.RUNNING)
        ending = (work, ends, status, finished, count)
        finished = lax.cond(jnp.any(ends), hand_out, lambda *ending: ending[3], *ending)
        work = dataclasses.replace(work, busy=work.busy & ~ends)
        return work, finished, count + jnp.sum(ends, dtype=jnp.int32), handed_out, iteration + 1

    def goes_on(carry: tuple) -> Array:
        work, _, _, handed_out, iteration = carry
        starved = more & (handed_out == length) & jnp.any(_idle(work, lanes))
        return (iteration < max_iterations) & (jnp.any(work.busy) | (handed_out < length)) & ~starved

    none = jnp.zeros(capacity, jnp.int32)
    finished = Finished(
        x=jnp.zeros((capacity, *shape), dtype),
        sample_ids=jnp.zeros(capacity, jnp.uint32),
        nfe=none,
        accepted=none,
        rejected=none,
        status=none,
    )
    zero = jnp.int32(0)
    work, finished, count, handed_out, iteration = lax.while_loop(
        goes_on, iterate, (work, finished, zero, zero, zero)
    )
    begin, end = sde.log_snr(sde.T), sde.log_snr(sde.eps)
    way = (jax.vmap(sde.log_snr)(work.state.t) - begin) / (end - begin)
    counts = Counts(
        iterations=iteration,
        handed_out=handed_out,
        finished=count,
        evaluations=jnp.sum(finished.nfe, dtype=jnp.int32),
        under_way=jnp.sum(jnp.where(work.busy, way, 0)),
    )
    finished = dataclasses.replace(finished, x=output(finished.x))
    return work, finished, jax.tree.map(lambda count: count[None], counts)


def _idle(work: Lanes, lanes: int) -> Array:
    """Which lanes are free for a sample; the rows of padding behind them never are."""
    return ~work.busy & (jnp.arange(work.busy.shape[0]) < lanes)


def _all_finite(x: Array) -> Array:
    """For each lane, whether all of its values are finite."""
    return jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))


def _select(lanes: Array, chosen: Any, other: Any) -> Any:
    """``chosen`` where ``lanes``, ``other`` elsewhere, on every leaf [b, ...] of two pytrees."""

    def select(a: Array, b: Array) -> Array:
        return jnp.where(lanes.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(select, chosen, other)
