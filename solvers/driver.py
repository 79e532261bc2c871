"""Runs any solver on many samples: every lane of a batch works on its own sample, and none ever idles.

    while lanes are busy:   (x, t) = vmap(ask)(states);  s = score_fn(x, t);  states = vmap(tell)(states, s)

A lane whose sample is done hands it out and starts the next at once, inside the compiled loop, so that the
cost follows the mean number of evaluations and not the slowest sample of each batch. The host calls the loop
for a bounded number of iterations at a time: room for a progress bar and for saving what is finished. Where
those bounds fall changes nothing in any sample.

The driver alone owns the cap on evaluations, the policy for non-finite values, the final denoising, and the
counts.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray, UInt32
from tqdm import tqdm

from sde_lib import SDE
from sde_lib import denoise as tweedie
from sde_lib.checks import require, require_count
from sde_lib.pytrees import register_dataclass
from solvers.interface import Solver, Status
from solvers.noise import sample_key

ScoreFn = Callable[[Float[Array, "batch *shape"], Float[Array, " batch"]], Float[Array, "batch *shape"]]

SECONDS_PER_CALL = 0.5  # how long the compiled loop runs before the host looks in
MAX_EVALUATIONS = 100_000
# The compiler's code for what is left over when a loop is cut into vectors rounds differently from its vector
# code. Solver states therefore have rows in whole vectors, and so does the batch that the score sees where
# samples are small enough for the rows of padding to cost nothing. (A batch of one is compiled differently
# again: the score always sees two.)
VECTOR = 16  # rows
SMALL = 1024  # numbers a sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solution:
    """Finished samples and what they cost.

    Attributes:
        x: the samples, in data units, shape [n, ...].
        sample_ids: which samples they are, [n].
        nfe: network evaluations of each sample, the denoising included, [n].
        accepted, rejected: steps of each sample, [n].
        status: a ``Status`` for each sample, [n]; anything but COMPLETED is a failure.
        network_calls: batched evaluations of the score function.
        lane_evaluations: lanes × calls; ``nfe`` sums to this where no lane was ever idle.
        seconds_compile, seconds_sampling: wall time of each part.
    """

    x: np.ndarray
    sample_ids: np.ndarray
    nfe: np.ndarray
    accepted: np.ndarray
    rejected: np.ndarray
    status: np.ndarray
    network_calls: int
    lane_evaluations: int
    seconds_compile: float
    seconds_sampling: float

    @property
    def failed(self) -> int:
        """How many samples did not complete."""
        return int(np.sum(self.status != Status.COMPLETED))

    @property
    def lane_utilization(self) -> float:
        """Useful evaluations over lanes × iterations."""
        return float(np.sum(self.nfe)) / max(self.lane_evaluations, 1)


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Lanes:
    """One sample under way in each of b lanes; what an idle lane holds is never read."""

    state: Any  # the solver's state, every leaf with a leading [b]
    sample_id: UInt32[Array, " b"]
    busy: Bool[Array, " b"]
    nfe: Int32[Array, " b"]


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Finished:
    """Where finished samples are put, in the order in which they finish; named as in ``Solution``."""

    x: Float[Array, "capacity ..."]
    sample_ids: UInt32[Array, " capacity"]
    nfe: Int32[Array, " capacity"]
    accepted: Int32[Array, " capacity"]
    rejected: Int32[Array, " capacity"]
    status: Int32[Array, " capacity"]


def sample(
    score_fn: ScoreFn,
    sde: SDE,
    solver: Solver,
    *,
    key: PRNGKeyArray,
    shape: Sequence[int],
    num_samples: int | None = None,
    sample_ids: Sequence[int] | np.ndarray | None = None,
    batch_size: int = 128,
    denoise: bool = True,
    max_evaluations: int = MAX_EVALUATIONS,
    dtype: Any = jnp.float32,
    progress: bool = False,
) -> Solution:
    """Draws samples; the same ids and key give the same samples, whatever the batch size or the order.

    Args:
        score_fn: (x [b, ...], t [b]) -> score [b, ...], forward time t in [eps, T]. A
            ``jax.tree_util.Partial`` keeps weights as arguments of the compiled loop; anything else
            callable is compiled as it stands.
        sde: the process that the score belongs to.
        solver: how to go from T to eps.
        key: root of all randomness.
        shape: of one sample.
        num_samples: how many, with ids 0 to num_samples − 1.
        sample_ids: which, instead of ``num_samples``; unsigned 32-bit.
        batch_size: lanes; at most one a sample is used.
        denoise: end with one Tweedie step, one more evaluation.
        max_evaluations: a sample that needs more ends with ``Status.MAX_EVALUATIONS``.
        dtype: of the solver's state.
        progress: show a bar.

    Returns:
        The solution, in the order of the ids asked for.

    Raises:
        ValueError: for counts below one, or a score function that does not keep the batch's shape.
    """
    if sample_ids is None:
        require_count(num_samples=num_samples)
        sample_ids = range(num_samples or 0)
    elif num_samples is not None:
        require(False, "num_samples", num_samples, "None beside sample_ids", "give only one of the two")
    ids = _checked_ids(sample_ids)
    require_count(batch_size=batch_size)
    parts = list(
        stream(
            score_fn,
            sde,
            solver,
            key=key,
            shape=shape,
            sample_ids=ids,
            lanes=min(batch_size, len(ids)),
            denoise=denoise,
            max_evaluations=max_evaluations,
            dtype=dtype,
            progress=progress,
        )
    )
    found = np.concatenate([part.sample_ids for part in parts])
    order = np.argsort(found, kind="stable")
    order = order[np.searchsorted(found[order], ids)]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])[order]

    return Solution(
        x=joined("x"),
        sample_ids=ids,
        nfe=joined("nfe"),
        accepted=joined("accepted"),
        rejected=joined("rejected"),
        status=joined("status"),
        network_calls=sum(part.network_calls for part in parts),
        lane_evaluations=sum(part.lane_evaluations for part in parts),
        seconds_compile=sum(part.seconds_compile for part in parts),
        seconds_sampling=sum(part.seconds_sampling for part in parts),
    )


def stream(
    score_fn: ScoreFn,
    sde: SDE,
    solver: Solver,
    *,
    key: PRNGKeyArray,
    shape: Sequence[int],
    sample_ids: Sequence[int] | np.ndarray,
    lanes: int,
    denoise: bool = True,
    max_evaluations: int = MAX_EVALUATIONS,
    dtype: Any = jnp.float32,
    progress: bool = False,
) -> Iterator[Solution]:
    """Yields samples as they finish, in no fixed order; memory stays flat for any number of them.

    As ``sample``, with exactly ``lanes`` lanes, so that a network's kernels, which can differ by batch shape,
    are the same ones however many ids are left: a run that was cut short and goes on ends with the same bits.
    """
    ids = _checked_ids(sample_ids)
    require_count(lanes=lanes, max_evaluations=max_evaluations)
    shape = tuple(shape)
    if not isinstance(score_fn, jax.tree_util.Partial):
        score_fn = jax.tree_util.Partial(score_fn)
    _check_score_shape(score_fn, lanes, shape, dtype)
    # settings become arrays of the state's dtype: another value, given as another type, does not recompile
    sde, solver = jax.tree.map(functools.partial(_setting, dtype), (sde, solver))

    work = _idle_lanes(sde, solver, key, lanes, shape, dtype)
    cap = jnp.int32(max_evaluations)
    start = time.perf_counter()
    queue = _queue(ids, lanes, iterations=1)
    loop = _run.lower(score_fn, sde, solver, key, work, *queue, cap, lanes=lanes, denoising=denoise).compile()
    seconds_compile = time.perf_counter() - start

    iterations = 1
    handed_out = done = evaluations = 0
    with tqdm(total=len(ids), unit="sample", disable=not progress, desc="sampling") as bar:
        while done < len(ids):
            start = time.perf_counter()
            queue = _queue(ids[handed_out:], lanes, iterations)
            work, finished, counts = loop(score_fn, sde, solver, key, work, *queue, cap)
            count, calls = int(counts.finished), int(counts.iterations)
            part = Solution(
                # cut here and copied: a slice on the device would be compiled for every count
                **{name: np.asarray(array)[:count].copy() for name, array in vars(finished).items()},
                network_calls=calls,
                lane_evaluations=lanes * calls,
                seconds_compile=seconds_compile,
                seconds_sampling=time.perf_counter() - start,
            )
            handed_out += int(counts.handed_out)
            done += count
            evaluations += int(part.nfe.sum())
            bar.n = round(done + float(counts.under_way), 1)
            bar.set_postfix_str(f"mean NFE {evaluations / done:.1f}" if done else "first samples under way")
            # aim at a fixed time a call, growing at most fourfold, so that one quick call does not mislead
            aimed = int(calls * SECONDS_PER_CALL / part.seconds_sampling)
            iterations = max(1, min(aimed, 4 * iterations))
            seconds_compile = 0.0
            yield part


def _checked_ids(sample_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    ids = np.asarray(sample_ids)
    fits = ids.ndim == 1 and ids.size > 0 and np.issubdtype(ids.dtype, np.integer)
    require(fits, "sample_ids", sample_ids, "a list of at least one whole number", "name the samples to draw")
    limit = np.iinfo(np.uint32).max
    ends = int(ids.min()), int(ids.max())
    inside = ends[0] >= 0 and ends[1] <= limit
    require(inside, "sample_ids from and to", ends, f"numbers from 0 to {limit}", "take ids in this range")
    return ids.astype(np.uint32)


def _check_score_shape(score_fn: ScoreFn, lanes: int, shape: tuple[int, ...], dtype: Any) -> None:
    x, t = jax.ShapeDtypeStruct((lanes, *shape), dtype), jax.ShapeDtypeStruct((lanes,), dtype)
    score = jax.eval_shape(score_fn, x, t)
    require(
        getattr(score, "shape", None) == x.shape,
        "score_fn(x, t)",
        score,
        f"one array of x's shape {x.shape}",
        "return one score for every element of x; t has shape [batch]",
    )


def _setting(dtype: Any, value: Any) -> Array:
    return jnp.asarray(value, dtype if isinstance(value, float) else jnp.asarray(value).dtype)


def _queue(ids: np.ndarray, lanes: int, iterations: int) -> tuple[Array, Array, Array, Array]:
    """The next ids for the loop, how many they are, whether the host has more, and the iterations allowed."""
    queue = np.zeros(lanes, np.uint32)
    queue[: len(ids)] = ids[:lanes]
    length = min(len(ids), lanes)
    return jnp.asarray(queue), jnp.int32(length), jnp.bool_(len(ids) > lanes), jnp.int32(iterations)


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Counts:
    """What the host learns from one call of the loop."""

    iterations: Int32[Array, ""]
    handed_out: Int32[Array, ""]  # ids taken from the queue
    finished: Int32[Array, ""]
    under_way: Float[Array, ""]  # samples that the unfinished lanes add up to, by their way in log-SNR


@functools.partial(jax.jit, static_argnames=("lanes", "shape", "dtype"))
def _idle_lanes(
    sde: SDE, solver: Solver, key: PRNGKeyArray, lanes: int, shape: tuple[int, ...], dtype: Any
) -> _Lanes:
    rows = -(-lanes // VECTOR) * VECTOR
    ids = jnp.zeros(rows, jnp.uint32)
    return _Lanes(
        state=_first_states(sde, solver, key, ids, shape, dtype),
        sample_id=ids,
        busy=jnp.zeros(rows, bool),
        nfe=jnp.zeros(rows, jnp.int32),
    )


def _first_states(
    sde: SDE, solver: Solver, key: PRNGKeyArray, ids: Array, shape: tuple[int, ...], dtype: Any
) -> Any:
    return jax.vmap(lambda i: solver.init(sde, sample_key(key, i), shape, dtype))(ids)


@functools.partial(jax.jit, static_argnames=("lanes", "denoising"), donate_argnames=("work",))
def _run(
    score_fn: ScoreFn,
    sde: SDE,
    solver: Solver,
    key: PRNGKeyArray,
    work: _Lanes,
    queue: UInt32[Array, " b"],
    queue_length: Int32[Array, ""],
    more: Bool[Array, ""],
    max_iterations: Int32[Array, ""],
    max_evaluations: Int32[Array, ""],
    lanes: int,
    denoising: bool,
) -> tuple[_Lanes, _Finished, _Counts]:
    """Up to ``max_iterations`` evaluations of all lanes; back earlier when done or when the queue ran dry."""
    rows, *shape = work.state.x.shape
    dtype = work.state.x.dtype
    scored = rows if math.prod(shape) <= SMALL else max(lanes, 2)
    capacity = 2 * lanes  # every lane's sample and every id in the queue may finish in one call

    def refill(work: _Lanes, handed_out: Array) -> tuple[_Lanes, Array]:
        """Gives idle lanes the next ids, as far as they go."""
        idle = _idle(work, lanes)
        place = handed_out + jnp.cumsum(idle) - 1
        starts = idle & (place < queue_length)
        ids = queue[jnp.where(starts, place, 0)]
        fresh = _Lanes(
            state=_first_states(sde, solver, key, ids, tuple(shape), dtype),
            sample_id=ids,
            busy=starts,
            nfe=jnp.zeros_like(work.nfe),
        )
        return _select(starts, fresh, work), handed_out + jnp.sum(starts, dtype=jnp.int32)

    def evaluate(work: _Lanes) -> tuple[_Lanes, Array]:
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

    def hand_out(work: _Lanes, ends: Array, status: Array, finished: _Finished, count: Array) -> _Finished:
        """Puts the samples of the lanes that end behind the ``count`` finished ones."""
        place = jnp.where(ends, count + jnp.cumsum(ends) - 1, capacity)
        result = _Finished(
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
        hungry = jnp.any(_idle(work, lanes)) & (handed_out < queue_length)
        work, handed_out = lax.cond(hungry, refill, lambda *unchanged: unchanged, work, handed_out)
        work, status = evaluate(work)
        ends = work.busy & (status != Status.RUNNING)
        ending = (work, ends, status, finished, count)
        finished = lax.cond(jnp.any(ends), hand_out, lambda *ending: ending[3], *ending)
        work = dataclasses.replace(work, busy=work.busy & ~ends)
        return work, finished, count + jnp.sum(ends, dtype=jnp.int32), handed_out, iteration + 1

    def goes_on(carry: tuple) -> Array:
        work, _, _, handed_out, iteration = carry
        starved = more & (handed_out == queue_length) & jnp.any(_idle(work, lanes))
        return (iteration < max_iterations) & (jnp.any(work.busy) | (handed_out < queue_length)) & ~starved

    counts = jnp.zeros(capacity, jnp.int32)
    finished = _Finished(
        x=jnp.zeros((capacity, *shape), dtype),
        sample_ids=jnp.zeros(capacity, jnp.uint32),
        nfe=counts,
        accepted=counts,
        rejected=counts,
        status=counts,
    )
    zero = jnp.int32(0)
    work, finished, count, handed_out, iteration = lax.while_loop(
        goes_on, iterate, (work, finished, zero, zero, zero)
    )
    begin, end = sde.log_snr(sde.T), sde.log_snr(sde.eps)
    way = (jax.vmap(sde.log_snr)(work.state.t) - begin) / (end - begin)
    return (
        work,
        finished,
        _Counts(
            iterations=iteration,
            handed_out=handed_out,
            finished=count,
            under_way=jnp.sum(jnp.where(work.busy, way, 0)),
        ),
    )


def _idle(work: _Lanes, lanes: int) -> Array:
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
