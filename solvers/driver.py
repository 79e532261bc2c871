"""Runs any solver on many samples: every lane of a batch works on its own sample, and none ever idles.

    while lanes are busy:   (x, t) = vmap(ask)(states);  s = score_fn(x, t);  states = vmap(tell)(states, s)

A lane whose sample is done hands it out and starts the next at once, inside the compiled loop, so that the
cost follows the mean number of evaluations and not the slowest sample of each batch. Every device runs a
loop of its own over its share of the lanes, in which it waits for no other. The host calls the loops for a
bounded number of iterations at a time: room for a progress bar, for saving what is finished, and for giving
the devices their next ids (solvers/queues.py). While they work on a call, what they finished in the one
before travels to the host. Where those bounds fall changes nothing in any sample, and neither does the device
that draws it.

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
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray, UInt32
from tqdm import tqdm

from sde_lib import SDE
from sde_lib import denoise as tweedie
from sde_lib.checks import require, require_count
from sde_lib.pytrees import register_dataclass
from solvers.device_memory import Devices, out_of_memory_explained
from solvers.interface import Solver, Status
from solvers.noise import sample_key
from solvers.queues import Queues, SampleIds, ids_asked_for, lanes_for, require_shared

ScoreFn = Callable[[Float[Array, "batch *shape"], Float[Array, " batch"]], Float[Array, "batch *shape"]]

SECONDS_PER_CALL = 0.5  # how long the compiled loop runs before the host looks in
MAX_EVALUATIONS = 100_000
# Ids that a device is given for each of its lanes. No call is longer than the mean sample, so that a device
# comes back before it runs out, unless many samples take less than half as long as the mean one.
IDS_PER_LANE = 2
# The shortest calls, in parts of the mean sample: while the last ids are dealt, what one device has no lane
# for yet may be what another is idle for.
LAST_CALLS = 1 / 8
# The compiler's code for what is left over when a loop is cut into vectors rounds differently from its vector
# code. Solver states therefore have rows in whole vectors, and so does the batch that the score sees where
# samples are small enough for the rows of padding to cost nothing. (A batch of one is compiled differently
# again: the score always sees two.)
VECTOR = 16  # rows
SMALL = 1024  # numbers a sample

AXIS = "device"
SHARED, OWN = PartitionSpec(), PartitionSpec(AXIS)  # the same on every device; rows of its own on each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solution:
    """Finished samples and what they cost.

    Attributes:
        x: the samples, in data units, shape [n, ...]; or what ``stream``'s ``output`` made of them.
        sample_ids: which samples they are, [n].
        nfe: network evaluations of each sample, the denoising included, [n].
        accepted, rejected: steps of each sample, [n].
        status: a ``Status`` for each sample, [n]; anything but COMPLETED is a failure.
        device_calls: batched evaluations of the score function on each device, [devices].
        lane_evaluations: lanes × calls; ``nfe`` sums to this where no lane was ever idle.
        seconds_compile, seconds_sampling: wall time of each part. What the caller does with the samples of a
            stream goes on beside the sampling, in the same seconds.
    """

    x: np.ndarray
    sample_ids: np.ndarray
    nfe: np.ndarray
    accepted: np.ndarray
    rejected: np.ndarray
    status: np.ndarray
    device_calls: np.ndarray
    lane_evaluations: int
    seconds_compile: float
    seconds_sampling: float

    @property
    def network_calls(self) -> int:
        """Batched evaluations of the score function, on all devices together."""
        return int(np.sum(self.device_calls))

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
    """One sample under way in each of a device's b lanes; what an idle lane holds is never read."""

    state: Any  # the solver's state, every leaf with a leading [b]
    sample_id: UInt32[Array, " b"]
    busy: Bool[Array, " b"]
    nfe: Int32[Array, " b"]


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Finished:
    """Where finished samples are put, in the order in which they finish; named as in ``Solution``."""

    x: Array  # [capacity, ...]
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
    devices: Devices | None = None,
    progress: bool = False,
) -> Solution:
    """Draws samples; the same ids and key give the same ones, whatever the batch size, devices and order.

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
        batch_size: lanes of all devices together, who share them evenly; fewer where there are fewer samples.
        denoise: end with one Tweedie step, one more evaluation.
        max_evaluations: a sample that needs more ends with ``Status.MAX_EVALUATIONS``.
        dtype: of the solver's state.
        devices: that share the lanes; None for all of this process.
        progress: show a bar.

    Returns:
        The solution, in the order of the ids asked for.

    Raises:
        ValueError: for counts below one, a batch size that the devices cannot share or that does not fit into
            their memory, or a score function that does not keep the batch's shape.
    """
    ids = ids_asked_for(num_samples, sample_ids)
    devices = _all_unless_named(devices)
    parts = list(
        stream(
            score_fn,
            sde,
            solver,
            key=key,
            shape=shape,
            sample_ids=ids,
            lanes=lanes_for(len(ids), batch_size, len(devices)),
            denoise=denoise,
            max_evaluations=max_evaluations,
            dtype=dtype,
            devices=devices,
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
        device_calls=np.sum([part.device_calls for part in parts], axis=0),
        lane_evaluations=sum(part.lane_evaluations for part in parts),
        seconds_compile=sum(part.seconds_compile for part in parts),
        seconds_sampling=sum(part.seconds_sampling for part in parts),
    )


def _unchanged(x: Array) -> Array:
    return x


def stream(
    score_fn: ScoreFn,
    sde: SDE,
    solver: Solver,
    *,
    key: PRNGKeyArray,
    shape: Sequence[int],
    sample_ids: SampleIds,
    lanes: int,
    total: int | None = None,
    output: Callable[[Array], Array] = _unchanged,
    denoise: bool = True,
    max_evaluations: int = MAX_EVALUATIONS,
    dtype: Any = jnp.float32,
    devices: Devices | None = None,
    progress: bool = False,
) -> Iterator[Solution]:
    """Yields samples as they finish, in no fixed order; memory stays flat for any number of them.

    As ``sample``, with exactly ``lanes`` lanes, so that a network's kernels, which can differ by batch shape,
    are the same ones however many ids are left: a run that was cut short and goes on ends with the same bits.

    Args:
        sample_ids: all ids at once; or an iterable of arrays of them (a generator, for example), of which the
            next is taken only when the devices are about to need it. Where that ends, the stream does.
        lanes: of all devices together.
        total: how many samples to expect, for the progress bar alone; None for as many as there are ids,
            where they are given at once.
        output: applied on the devices to finished samples x [n, ...], before they leave; what it makes of
            them, [n, ...], is ``Solution.x``. It is compiled in: give the same function object each time.
        score_fn, sde, solver, key, shape, denoise, max_evaluations, dtype, devices, progress: see ``sample``.
    """
    require_count(lanes=lanes, max_evaluations=max_evaluations)
    devices = _all_unless_named(devices)
    require_shared(lanes, len(devices), name="lanes")
    per_device = lanes // len(devices)
    queues = Queues(sample_ids, num_devices=len(devices), length=IDS_PER_LANE * per_device)
    if total is None and isinstance(sample_ids, Sequence | np.ndarray):
        total = len(sample_ids)
    shape = tuple(shape)
    if not isinstance(score_fn, jax.tree_util.Partial):
        score_fn = jax.tree_util.Partial(score_fn)
    check_score_shape(score_fn, per_device, shape, dtype)
    _check_output(output, shape, dtype)
    if queues.done:
        return

    mesh = Mesh(np.array(devices), (AXIS,))
    everywhere, own = NamedSharding(mesh, SHARED), NamedSharding(mesh, OWN)
    sde, solver = as_arrays((sde, solver), dtype)
    problem = jax.device_put((score_fn, sde, solver, key), everywhere)
    idle_lanes = functools.partial(_idle_lanes, *problem[1:], shape=shape, dtype=dtype, mesh=mesh)
    cap = np.int32(max_evaluations)

    def compiled(lanes: int) -> jax.stages.Compiled:
        size = lanes // len(devices)
        work = jax.eval_shape(functools.partial(idle_lanes, lanes=size))
        ids = jax.ShapeDtypeStruct((IDS_PER_LANE * lanes,), np.uint32)
        lengths = jax.ShapeDtypeStruct((len(devices),), np.int32)
        work, ids, lengths = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own), (work, ids, lengths)
        )
        static = {"lanes": size, "denoising": denoise, "output": output, "mesh": mesh}
        return _run.lower(*problem, work, ids, lengths, np.bool_(True), cap, cap, **static).compile()

    bar = tqdm(total=total, unit="sample", disable=not progress, desc="sampling")
    with bar, out_of_memory_explained(lanes, devices, compiled):
        since = time.perf_counter()
        loop = compiled(lanes)
        work = idle_lanes(lanes=per_device)
        seconds_compile = time.perf_counter() - since
        since += seconds_compile

        def solution(finished: _Finished, counts: Any) -> Solution:
            """What the devices finished in a call; waits until it is on the host."""
            nonlocal since, seconds_compile
            arrays = {
                name: _joined(array, counts.finished)
                for name, array in vars(jax.device_get(finished)).items()
            }
            now = time.perf_counter()
            part = Solution(
                **arrays,
                device_calls=counts.iterations,
                lane_evaluations=per_device * int(counts.iterations.sum()),
                seconds_compile=seconds_compile,
                seconds_sampling=now - since,
            )
            since, seconds_compile = now, 0.0
            return part

        pace = _Pace()
        call = None  # the last one, its samples still on the devices
        while not queues.done:
            dealt = queues.deal()
            ids, lengths = jax.device_put((dealt.ids.ravel(), dealt.lengths.astype(np.int32)), own)
            iterations = pace.iterations(dealt.shortest)
            start = time.perf_counter()
            work, finished, counts = loop(
                *problem, work, ids, lengths, np.bool_(dealt.more), np.int32(iterations), cap
            )
            if call is not None:
                yield solution(*call)  # while the devices work
            idle = counts.iterations.is_ready()
            counts: Any = jax.device_get(counts)
            pace.learn(counts, seconds=time.perf_counter() - start, idle=idle)
            queues.take_back(started=counts.handed_out, finished=counts.finished)
            call = finished, counts
            bar.n = round(pace.finished + float(counts.under_way.sum()), 1)
            bar.set_postfix_str(pace.summary)
        if call is not None:
            yield solution(*call)


class _Pace:
    """How many iterations the loops may take in a call."""

    def __init__(self) -> None:
        self.finished = 0
        self._evaluations = 0  # of finished samples
        self._so_far = 0  # iterations
        self._aimed = 1

    @property
    def summary(self) -> str:
        """For the progress bar."""
        if self.finished == 0:
            return "first samples under way"
        return f"mean NFE {self._evaluations / self.finished:.1f}"

    def iterations(self, shortest: float) -> int:
        """For the next call, in which the shortest queue is full to this share."""
        if self.finished == 0:
            # twice as long as the samples have taken already: a lane cannot end two of them in this call
            longest = self._so_far
        else:
            longest = self._evaluations / self.finished * max(shortest, LAST_CALLS)
        return max(1, int(min(self._aimed, longest)))

    def learn(self, counts: Any, *, seconds: float, idle: bool) -> None:
        """What the last call did, how long it seemed to take, and whether it was over before the host was."""
        ran = int(counts.iterations.max())
        self.finished += int(counts.finished.sum())
        self._evaluations += int(counts.evaluations.sum())
        self._so_far += ran
        # aim at a fixed time a call, growing at most fourfold, so that one quick call does not mislead; at
        # more where the devices waited for a caller who takes longer than that with the samples of a call
        fits = ran * SECONDS_PER_CALL / seconds
        self._aimed = max(1, int(min(max(fits, 2 * ran) if idle else fits, 4 * ran)))


def _joined(array: Any, lengths: Any) -> np.ndarray:
    """The first so many rows of every device's share of an array, one behind the other."""
    shares = array.reshape(len(lengths), -1, *array.shape[1:])
    # cut here and copied: a slice on the device would be compiled for every count
    return np.concatenate([share[:length] for share, length in zip(shares, lengths, strict=True)])


def _all_unless_named(devices: Devices | None) -> Devices:
    devices = jax.local_devices() if devices is None else devices
    require(len(devices) > 0, "devices", devices, "at least one of jax.devices()", "leave it out for all")
    return devices


def check_score_shape(score_fn: ScoreFn, lanes: int, shape: tuple[int, ...], dtype: Any) -> None:
    x, t = jax.ShapeDtypeStruct((lanes, *shape), dtype), jax.ShapeDtypeStruct((lanes,), dtype)
    score = jax.eval_shape(score_fn, x, t)
    require(
        getattr(score, "shape", None) == x.shape,
        "score_fn(x, t)",
        score,
        f"one array of x's shape {x.shape}",
        "return one score for every element of x; t has shape [batch]",
    )


def _check_output(output: Callable[[Array], Array], shape: tuple[int, ...], dtype: Any) -> None:
    x = jax.ShapeDtypeStruct((VECTOR, *shape), dtype)
    made = jax.eval_shape(output, x)
    require(
        getattr(made, "shape", (0,))[:1] == x.shape[:1],
        "output(x)",
        made,
        f"one array with a row for each of x's {x.shape[0]} samples",
        "return one result for every sample of x",
    )


def as_arrays(settings: Any, dtype: Any) -> Any:
    """Numbers of a pytree as arrays, so that another value, given as another type, does not recompile."""
    return jax.tree.map(functools.partial(_setting, dtype), settings)


def _setting(dtype: Any, value: Any) -> Array:
    return jnp.asarray(value, dtype if isinstance(value, float) else jnp.asarray(value).dtype)


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Counts:
    """What the host learns from one call of the loop; a device has one of each."""

    iterations: Int32[Array, " devices"]
    handed_out: Int32[Array, " devices"]  # ids taken from the queue
    finished: Int32[Array, " devices"]
    evaluations: Int32[Array, " devices"]  # of the finished samples
    under_way: Float[
        Array, " devices"
    ]  # samples that the unfinished lanes add up to, by their way in log-SNR


@functools.partial(jax.jit, static_argnames=("lanes", "shape", "dtype", "mesh"))
def _idle_lanes(
    sde: SDE, solver: Solver, key: PRNGKeyArray, *, lanes: int, shape: tuple[int, ...], dtype: Any, mesh: Mesh
) -> _Lanes:
    rows = _rows(lanes)

    def on_device(sde: SDE, solver: Solver, key: PRNGKeyArray) -> _Lanes:
        ids = jnp.zeros(rows, jnp.uint32)
        return _Lanes(
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
def _run(
    score_fn: ScoreFn,
    sde: SDE,
    solver: Solver,
    key: PRNGKeyArray,
    work: _Lanes,
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
) -> tuple[_Lanes, _Finished, _Counts]:
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
    work: _Lanes,
    queue: UInt32[Array, " length"],
    queue_length: Int32[Array, " 1"],
    more: Bool[Array, ""],
    max_iterations: Int32[Array, ""],
    max_evaluations: Int32[Array, ""],
    *,
    lanes: int,
    denoising: bool,
    output: Callable[[Array], Array],
) -> tuple[_Lanes, _Finished, _Counts]:
    """Up to ``max_iterations`` evaluations of all lanes; back earlier when done or when the queue ran dry."""
    (length,) = queue_length
    rows, *shape = work.state.x.shape
    dtype = work.state.x.dtype
    scored = rows if math.prod(shape) <= SMALL else max(lanes, 2)
    # every lane's sample and every id in the queue may finish in a call; whole vectors here too, for `output`
    capacity = rows + _rows(len(queue))

    def refill(work: _Lanes, handed_out: Array) -> tuple[_Lanes, Array]:
        """Gives idle lanes the next ids, as far as they go."""
        idle = _idle(work, lanes)
        place = handed_out + jnp.cumsum(idle) - 1
        starts = idle & (place < length)
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
    finished = _Finished(
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
    counts = _Counts(
        iterations=iteration,
        handed_out=handed_out,
        finished=count,
        evaluations=jnp.sum(finished.nfe, dtype=jnp.int32),
        under_way=jnp.sum(jnp.where(work.busy, way, 0)),
    )
    finished = dataclasses.replace(finished, x=output(finished.x))
    return work, finished, jax.tree.map(lambda count: count[None], counts)


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
