"""The compiled loop over the lanes of a device: ask, score, tell, hand out finished samples, start new ones.

Each device runs a loop of its own over its own lanes and its own queue of sample ids. The devices exchange
nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray, UInt32

from sde_lib import SDE, ScoreFn
from sde_lib import denoise as tweedie
from sde_lib.pytrees import register_dataclass
from solvers.interface import Solver, Status
from solvers.noise import sample_key
from solvers.rows import NOTHING, Rows, Start, StartedAt

# A compiler cuts a loop into vectors, and its code for the remainder rounds differently from its vector code.
# Solver states therefore fill whole vectors of rows. So does the batch that the score function sees, where
# samples are so small that the padding costs nothing. (A batch of one is compiled differently again, so the
# score function always sees at least two rows.)
VECTOR = 16  # rows
SMALL = 1024  # elements of a sample

AXIS = "device"
SHARED, OWN = PartitionSpec(), PartitionSpec(AXIS)  # the same on every device; rows of its own on each


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """What all samples have in common; the same on every device."""

    score_fn: ScoreFn  # takes a condition if the rows have one
    sde: SDE
    solver: Solver
    key: PRNGKeyArray  # root of all randomness
    max_evaluations: Int32[Array, ""]  # of one sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """The settings that are compiled into the loop."""

    lanes: int  # on each device
    denoising: bool
    output: Callable[[Array], Array]  # applied to the finished samples of a call
    mesh: Mesh


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lanes:
    """One sample in progress in each of a device's b lanes; the content of an idle lane is never read."""

    state: Any  # the solver's state, every leaf with a leading [b]
    sample_id: UInt32[Array, " b"]
    busy: Bool[Array, " b"]
    nfe: Int32[Array, " b"]  # calls of the score function
    condition: Any = None  # of the sample, every leaf with a leading [b]
    begin: Float[Array, " b"] | None = None  # time of the sample's start, if that is its own


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Queue:
    """The ids that the devices may start during one call; every device has the same number of rows."""

    ids: UInt32[Array | np.ndarray, " ids"]
    length: Int32[Array | np.ndarray, " devices"]  # number of valid ids
    more: Bool[Array | np.ndarray, " devices"]  # whether to return for further ids when a lane needs one
    rows: Rows = NOTHING  # of the ids


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """Finished samples, in the order in which they finish; the names are those of ``Solution``."""

    x: Array  # [capacity, ...]
    sample_ids: UInt32[Array, " capacity"]
    nfe: Int32[Array, " capacity"]
    accepted: Int32[Array, " capacity"]
    rejected: Int32[Array, " capacity"]
    status: Int32[Array, " capacity"]


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What one call of the loop reports to the host, one number per device."""

    iterations: Int32[Array, " devices"]
    handed_out: Int32[Array, " devices"]  # ids taken from the queue
    finished: Int32[Array, " devices"]
    evaluations: Int32[Array, " devices"]  # of the finished samples
    # the progress of the unfinished samples in log-SNR, each from 0 to 1, summed over the lanes
    under_way: Float[Array, " devices"]


@functools.partial(jax.jit, static_argnames=("lanes", "shape", "dtype", "mesh"))
def idle_lanes(
    sde: SDE,
    solver: Solver,
    key: PRNGKeyArray,
    example: Rows = NOTHING,
    *,
    lanes: int,
    shape: tuple[int, ...],
    dtype: Any,
    mesh: Mesh,
) -> Lanes:
    """The lanes of all devices, ``lanes`` on each, without a sample; their rows are like ``example``'s."""
    rows = _rows(lanes)

    def on_device(sde: SDE, solver: Solver, key: PRNGKeyArray, example: Rows) -> Lanes:
        ids = jnp.zeros(rows, jnp.uint32)
        given = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], (rows, *leaf.shape[1:])), example)
        return fresh_lanes(sde, solver, key, ids, given, jnp.zeros(rows, bool), shape, dtype)

    each = jax.shard_map(on_device, mesh=mesh, in_specs=SHARED, out_specs=OWN, check_vma=False)
    return each(sde, solver, key, example)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="work")
def run(
    problem: Problem, work: Lanes, queue: Queue, max_iterations: Int32[Array, ""], *, program: Program
) -> tuple[Lanes, Finished, Counts]:
    """Runs the loop on every device, over its own rows of ``work`` and ``queue``."""
    each = jax.shard_map(
        functools.partial(_run_device, program=program),
        mesh=program.mesh,
        in_specs=(SHARED, OWN, OWN, SHARED),
        out_specs=OWN,
        # the check would refuse score functions that start a loop of their own from constants
        check_vma=False,
    )
    return each(problem, work, queue, max_iterations)


def _run_device(
    problem: Problem, work: Lanes, queue: Queue, max_iterations: Int32[Array, ""], *, program: Program
) -> tuple[Lanes, Finished, Counts]:
    """Evaluates all lanes up to ``max_iterations`` times.

    Returns early when no sample is left, or when a lane needs an id that the host may still have.
    """
    length, more = queue.length[0], queue.more[0]

    def iterate(carry: tuple) -> tuple:
        work, finished, count, handed_out, iteration = carry
        hungry = jnp.any(_idle(work, program.lanes)) & (handed_out < length)
        refill = functools.partial(_refill, problem, queue, program.lanes)
        work, handed_out = lax.cond(hungry, refill, lambda *unchanged: unchanged, work, handed_out)
        work, status = _evaluate(problem, program, work)
        ends = work.busy & (status != Status.RUNNING)
        ending = (work, ends, status, finished, count)
        finished = lax.cond(jnp.any(ends), _hand_out, lambda *ending: ending[3], *ending)
        work = dataclasses.replace(work, busy=work.busy & ~ends)
        return work, finished, count + jnp.sum(ends, dtype=jnp.int32), handed_out, iteration + 1

    def goes_on(carry: tuple) -> Array:
        work, _, _, handed_out, iteration = carry
        starved = more & (handed_out == length) & jnp.any(_idle(work, program.lanes))
        return (iteration < max_iterations) & (jnp.any(work.busy) | (handed_out < length)) & ~starved

    zero = jnp.int32(0)
    begin = (work, _none_finished(work, queue), zero, zero, zero)
    work, finished, count, handed_out, iterations = lax.while_loop(goes_on, iterate, begin)
    counts = Counts(
        iterations=iterations,
        handed_out=handed_out,
        finished=count,
        evaluations=jnp.sum(finished.nfe, dtype=jnp.int32),
        under_way=_progress(problem.sde, work),
    )
    finished = dataclasses.replace(finished, x=program.output(finished.x))
    return work, finished, jax.tree.map(lambda count: count[None], counts)


def _refill(
    problem: Problem, queue: Queue, lanes: int, work: Lanes, handed_out: Array
) -> tuple[Lanes, Array]:
    """Starts the next ids of the queue in the idle lanes, as far as the ids go."""
    _, *shape = work.state.x.shape
    idle = _idle(work, lanes)
    place = handed_out + jnp.cumsum(idle) - 1
    starts = idle & (place < queue.length[0])
    place = jnp.where(starts, place, 0)
    ids, rows = jax.tree.map(lambda leaf: leaf[place], (queue.ids, queue.rows))
    setting = problem.sde, problem.solver, problem.key
    fresh = fresh_lanes(*setting, ids, rows, starts, tuple(shape), work.state.x.dtype)
    return _select(starts, fresh, work), handed_out + jnp.sum(starts, dtype=jnp.int32)


def _evaluate(problem: Problem, program: Program, work: Lanes) -> tuple[Lanes, Array]:
    """Evaluates the score once in every lane; returns the lanes and the status that each has afterwards."""
    sde, solver, state = problem.sde, problem.solver, work.state
    arrived = state.status == Status.COMPLETED  # only the denoising is left
    x, t = jax.vmap(solver.ask)(state)
    x, t = _select(arrived, (state.x, state.t), (x, t))
    score = _score(problem.score_fn, x, t, work.condition, program.lanes)
    told = jax.vmap(lambda begin, *told: solver.tell(_process(sde, begin), *told))(work.begin, state, score)
    if program.denoising:
        denoised = jax.vmap(tweedie, (None, 0, 0, 0))(sde, state.x, state.t, score).astype(x.dtype)
        told = _select(arrived, dataclasses.replace(state, x=denoised), told)

    finite = _all_finite(score) & _all_finite(told.x)
    told = dataclasses.replace(told, x=_select(finite, told.x, state.x))
    nfe = work.nfe + 1
    status = told.status
    if program.denoising:
        status = jnp.where((status == Status.COMPLETED) & ~arrived, Status.RUNNING, status)
    status = jnp.where(
        (status == Status.RUNNING) & (nfe >= problem.max_evaluations), Status.MAX_EVALUATIONS, status
    )
    status = jnp.where(finite, status, Status.NON_FINITE)
    told, nfe = _select(work.busy, (told, nfe), (state, work.nfe))
    return dataclasses.replace(work, state=told, nfe=nfe), status.astype(jnp.int32)


def _score(score_fn: ScoreFn, x: Array, t: Array, condition: Any, lanes: int) -> Array:
    """The score in the rows that hold lanes, and zero in the padding behind them."""
    rows, *shape = x.shape
    scored = rows if math.prod(shape) <= SMALL else max(lanes, 2)
    conditions = () if condition is None else (jax.tree.map(lambda leaf: leaf[:scored], condition),)
    score = score_fn(x[:scored], t[:scored], *conditions).astype(x.dtype)
    return jnp.pad(score, ((0, rows - scored), *((0, 0) for _ in shape)))


def _none_finished(work: Lanes, queue: Queue) -> Finished:
    """Room for every sample that may finish during a call."""
    rows, *shape = work.state.x.shape
    # every lane's sample and every id of the queue; whole vectors here too, for `output`
    capacity = rows + _rows(len(queue.ids))
    none = jnp.zeros(capacity, jnp.int32)
    return Finished(
        x=jnp.zeros((capacity, *shape), work.state.x.dtype),
        sample_ids=jnp.zeros(capacity, jnp.uint32),
        nfe=none,
        accepted=none,
        rejected=none,
        status=none,
    )


def _hand_out(work: Lanes, ends: Array, status: Array, finished: Finished, count: Array) -> Finished:
    """Appends the samples of the lanes that end to the ``count`` finished ones."""
    capacity = len(finished.nfe)
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


def _progress(sde: SDE, work: Lanes) -> Array:
    """How many samples the unfinished ones amount to, by their progress in log-SNR."""
    begin = sde.log_snr(sde.T) if work.begin is None else jax.vmap(sde.log_snr)(work.begin)
    end = sde.log_snr(sde.eps)
    progress = (jax.vmap(sde.log_snr)(work.state.t) - begin) / (end - begin)
    return jnp.sum(jnp.where(work.busy, progress, 0))


def fresh_lanes(
    sde: SDE,
    solver: Solver,
    key: PRNGKeyArray,
    ids: Array,
    rows: Rows,
    busy: Array,
    shape: tuple[int, ...],
    dtype: Any,
) -> Lanes:
    """Lanes at the start of the samples with these ids and rows."""
    start = rows.start
    begin = None if start is None else start.t

    def first(i: Array, start: Start | None) -> Any:
        process = sde if start is None else StartedAt(sde, start.t, start.x)
        return solver.init(process, sample_key(key, i), shape, dtype)

    return Lanes(
        state=jax.vmap(first)(ids, start),
        sample_id=ids,
        busy=busy,
        nfe=jnp.zeros(len(ids), jnp.int32),
        condition=rows.condition,
        begin=begin,
    )


def _process(sde: SDE, begin: Array | None) -> SDE:
    """The process of one sample."""
    return sde if begin is None else StartedAt(sde, begin)


def _rows(lanes: int) -> int:
    """The least number of whole vectors that holds the lanes, in rows."""
    return -(-lanes // VECTOR) * VECTOR


def _idle(work: Lanes, lanes: int) -> Array:
    """Which lanes are free for a sample; the padding rows behind them never are."""
    return ~work.busy & (jnp.arange(work.busy.shape[0]) < lanes)


def _all_finite(x: Array) -> Array:
    """For each lane, whether all of its values are finite."""
    return jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))


def _select(lanes: Array, chosen: Any, other: Any) -> Any:
    """``chosen`` where ``lanes``, ``other`` elsewhere, on every leaf [b, ...] of two pytrees."""

    def select(a: Array, b: Array) -> Array:
        return jnp.where(lanes.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(select, chosen, other)
