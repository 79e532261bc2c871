"""Runs any solver on many samples, with a sample of its own in every lane of a batch.

    while lanes are busy:   (x, t) = vmap(ask)(states);  s = score_fn(x, t);  states = vmap(tell)(states, s)

A lane whose sample is finished starts the next sample at once, inside the compiled loop. The cost therefore
follows the mean number of evaluations, not the slowest sample of each batch. Every device runs its own loop
over its share of the lanes (solvers/lanes.py) and waits for no other device. The host calls the loops for a
bounded number of iterations at a time. Between two calls it updates the progress bar, hands over finished
samples, and gives the devices their next ids (solvers/queues.py). The finished samples of one call travel to
the host while the devices work on the next. The end of a call changes nothing in any sample, and neither does
the device that draws it.

The driver alone enforces the cap on evaluations, handles non-finite values, does the final denoising, and
counts.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.tree_util import Partial
from jaxtyping import Array, PRNGKeyArray
from tqdm import tqdm

from sde_lib import SDE, ScoreFn
from sde_lib.checks import require_count, require_number, require_shared
from sde_lib.guidance import evaluations_of
from sde_lib.pytrees import as_partial
from solvers.arguments import (
    all_unless_named,
    as_arrays,
    check_output,
    check_setting,
    checked_score_fn,
    checked_shape,
)
from solvers.device_memory import Devices, out_of_memory_explained
from solvers.interface import Solver, Status
from solvers.lanes import (
    AXIS,
    OWN,
    SHARED,
    Counts,
    Finished,
    Lanes,
    Problem,
    Program,
    Queue,
    idle_lanes,
    run,
)
from solvers.layouts import FlatScore, Layout
from solvers.progress import bar as progress_bar
from solvers.queues import Dealt, Queues, SampleIds, checked_ids, ids_asked_for, lanes_for
from solvers.review import review
from solvers.rows import Rows, RowSource, Start

SECONDS_PER_CALL = 0.5  # aim for the length of a call of the compiled loop
MAX_EVALUATIONS = 100_000
LANES = 128  # by default, if the devices can share them
# Ids that a device is given for each of its lanes. No call is longer than the mean sample, so a device
# returns before it runs out of ids, unless many samples take less than half as long as the mean.
IDS_PER_LANE = 2
# The shortest calls, as a fraction of the mean sample. They are needed while the last ids are dealt: an id
# that waits for a lane on one device may find an idle lane on another.
LAST_CALLS = 1 / 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solution:
    """Finished samples and their cost.

    Attributes:
        x: the samples, in data units, shape [n, ...], or a pytree of such arrays; or the result of
            ``stream``'s ``output`` on them.
        sample_ids: the id of each sample, [n].
        nfe: network evaluations of each sample, the denoising included, [n].
        accepted, rejected: steps of each sample, [n].
        status: a ``Status`` for each sample, [n]; anything but COMPLETED is a failure.
        device_calls: batched evaluations of the score function on each device, [devices].
        lane_evaluations: network evaluations of all lanes, idle or not; equal to the sum of ``nfe`` if no
            lane was ever idle.
        seconds_compile, seconds_sampling: wall time of each part. The time that the caller of ``stream``
            spends on samples overlaps with the sampling and is included.
        evaluations_per_call: network evaluations in one call of the score function, such as 2 with
            classifier-free guidance. A sample's calls are nfe/evaluations_per_call.
    """

    x: Any
    sample_ids: np.ndarray
    nfe: np.ndarray
    accepted: np.ndarray
    rejected: np.ndarray
    status: np.ndarray
    device_calls: np.ndarray
    lane_evaluations: int
    seconds_compile: float
    seconds_sampling: float
    evaluations_per_call: int = 1

    @property
    def network_calls(self) -> int:
        """Batched evaluations of the score function, summed over the devices."""
        return int(np.sum(self.device_calls))

    @property
    def failed(self) -> int:
        """Number of samples that did not complete."""
        return int(np.sum(self.status != Status.COMPLETED))

    @property
    def lane_utilization(self) -> float:
        """Useful evaluations over lanes × calls."""
        return float(np.sum(self.nfe)) / max(self.lane_evaluations, 1)


def sample(
    score_fn: ScoreFn,
    sde: SDE,
    solver: Solver,
    *,
    key: PRNGKeyArray,
    shape: Any,
    num_samples: int | None = None,
    sample_ids: Sequence[int] | np.ndarray | None = None,
    conditions: Any = None,
    start: Start | None = None,
    batch_size: int | None = None,
    denoise: bool = True,
    max_evaluations: int = MAX_EVALUATIONS,
    dtype: Any = jnp.float32,
    devices: Devices | None = None,
    progress: bool = False,
) -> Solution:
    """Draws samples, which depend on the key and their ids alone, not on batch size, devices or order.

    Args:
        score_fn: (x [b, ...], t [b]) -> score [b, ...], forward time t in [eps, T]. A
            ``jax.tree_util.Partial`` passes its weights to the compiled loop as arguments; any other callable
            is compiled as it stands.
        sde: the process that the score belongs to.
        solver: the method that takes a sample from T to eps.
        key: root of all randomness, one key of ``jax.random.key``.
        shape: of one sample; or a pytree of shapes, where score_fn takes and returns a pytree of batches.
        num_samples: how many to draw, with the ids 0 to num_samples − 1.
        sample_ids: the ids to draw, instead of ``num_samples``; unsigned 32-bit.
        conditions: what the score function gets with each sample, such as its class: a pytree of arrays with
            one row a sample id, in their order. The score function is then one of (x, t, condition).
        start: where the samples start, one row a sample id, instead of at a draw of the prior.
        batch_size: lanes of all devices together, shared evenly; fewer are used if there are fewer samples.
            None for 128, or the next lower number that the devices can share.
        denoise: end with one Tweedie step, which takes one more evaluation.
        max_evaluations: a sample that needs more stops with ``Status.MAX_EVALUATIONS``.
        dtype: of the solver's state.
        devices: the devices that share the lanes; None for all devices of this process.
        progress: show a progress bar.

    Returns:
        The solution, in the order of the ids asked for.

    Raises:
        ValueError: for a count below one, a batch size that the devices cannot share or that does not fit in
            their memory, a score function that does not keep the shape of the batch or is not real, a process
            or solver whose class is not a pytree, conditions or starts that do not match the ids, a start
            outside (eps, T], or a call inside ``jax.jit``, ``jax.vmap`` or ``jax.grad``.

    Warns:
        UserWarning: if samples without a ``start`` are smaller than the noise at eps, or far from the size
            that a setting of the solver assumes. Their distribution may then be wrong.

    Example:
        >>> import jax, sde_lib, solvers
        >>> sde = sde_lib.VPSDE()
        >>> def score_fn(x, t):  # of data that are 0.5 in every pixel
        ...     alpha, sigma = (part[:, None, None] for part in jax.vmap(sde.marginal)(t))
        ...     return (0.5 * alpha - x) / sigma**2
        >>> solver = solvers.AdaptiveExponential()
        >>> solution = solvers.sample(
        ...     score_fn, sde, solver, key=jax.random.key(0), shape=(4, 4), num_samples=8
        ... )
        >>> solution.x.shape, solution.failed
        ((8, 4, 4), 0)
        >>> print(solution.x.mean().round(2))
        0.5
    """
    ids = ids_asked_for(num_samples, sample_ids)
    devices = all_unless_named(devices)
    if batch_size is None:
        batch_size = max(LANES // len(devices), 1) * len(devices)
    parts = list(
        stream(
            score_fn,
            sde,
            solver,
            key=key,
            shape=shape,
            sample_ids=ids,
            conditions=conditions,
            start=start,
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

    def joined(name: str) -> Any:
        arrays = [getattr(part, name) for part in parts]
        return jax.tree.map(lambda *pieces: np.concatenate(pieces)[order], *arrays)

    solution = Solution(
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
        evaluations_per_call=parts[0].evaluations_per_call,
    )
    if start is None:  # from a start of the caller's own, samples need not end as data
        review(sde, solver, solution.x, solution.status)
    return solution


def _unchanged(x: Array) -> Array:
    return x


def stream(
    score_fn: ScoreFn,
    sde: SDE,
    solver: Solver,
    *,
    key: PRNGKeyArray,
    shape: Any,
    sample_ids: SampleIds,
    lanes: int,
    conditions: Any = None,
    start: Start | Callable[[np.ndarray], Start] | None = None,
    total: int | None = None,
    output: Callable[[Any], Array] = _unchanged,
    denoise: bool = True,
    max_evaluations: int = MAX_EVALUATIONS,
    dtype: Any = jnp.float32,
    devices: Devices | None = None,
    progress: bool = False,
) -> Iterator[Solution]:
    """Yields samples as they finish, in no fixed order; memory stays flat for any number of them.

    The number of lanes is exactly ``lanes``, however many ids are left. The kernels of a network can differ
    with the batch shape, so a run that is interrupted and resumed gives the same bits only with the same
    number of lanes.

    Args:
        sample_ids: all ids at once; or an iterable of arrays of ids (a generator, for example), of which the
            next is taken only when the devices are about to need it. The stream ends with the iterable.
        lanes: of all devices together.
        total: the number of samples to expect, for the progress bar only; None for the number of ids, where
            they are given at once.
        conditions, start: see ``sample``; or functions from ids [n] to their rows, which are called when the
            devices are about to need them. Rows must depend on the id alone.
        output: applied on the devices to finished samples x [n, ...]; the result, [n, ...], is
            ``Solution.x``. It is compiled into the loop: pass the same function object each time.
        score_fn, sde, solver, key, shape, denoise, max_evaluations, dtype, devices, progress: see ``sample``.

    Yields:
        The samples that finished in one call of the compiled loop, possibly none.

    Raises:
        ValueError: as ``sample``, and for lanes that the devices cannot share, or an output that does not
            keep one row per sample.

    Example:
        >>> import jax, sde_lib, solvers
        >>> score_fn = lambda x, t: -x  # of standard normal data
        >>> parts = solvers.stream(
        ...     score_fn, sde_lib.VPSDE(), solvers.EulerMaruyama(num_steps=10),
        ...     key=jax.random.key(0), shape=(2,), sample_ids=range(100), lanes=16,
        ... )
        >>> sum(len(part.x) for part in parts)
        100
    """
    require_count(lanes=lanes, max_evaluations=max_evaluations)
    allowed, fix = "below 2^31", "lower it; no sample needs as many"
    require_number("max_evaluations", max_evaluations, lambda most: most < 2**31, allowed, fix)
    devices = all_unless_named(devices)
    require_shared("lanes", lanes, len(devices), "devices")
    lanes = int(lanes)  # a static argument, which no array can be
    per_device = lanes // len(devices)
    queues = Queues(sample_ids, num_devices=len(devices), length=IDS_PER_LANE * per_device)
    if total is None and isinstance(sample_ids, Sequence | np.ndarray):
        total = len(sample_ids)
    per_call = evaluations_of(score_fn)
    layout = Layout.of(shape)
    if layout is not None:
        shape, score_fn = (layout.size,), Partial(FlatScore(layout), as_partial(score_fn))
        output = output if output is _unchanged else _OfTree(layout, output)
    shape = checked_shape(shape)
    check_setting(sde, key, shape, dtype, solver=solver)
    given_ids: Any = sample_ids
    known_ids = checked_ids(given_ids) if isinstance(given_ids, Sequence | np.ndarray) else None
    rows = RowSource(
        conditions=conditions, start=start, ids=known_ids, shape=shape, layout=layout, dtype=dtype, sde=sde
    )
    if queues.done:
        return
    example = rows(queues.waiting[:1])
    known = {"condition": example.condition, "total": None if known_ids is None else len(known_ids)}
    score_fn = checked_score_fn(score_fn, per_device, shape, dtype, **known)
    check_output(output, shape, dtype)

    sde, solver = as_arrays((sde, solver), dtype)
    mesh = Mesh(np.array(devices), (AXIS,))
    cap = jnp.int32(-(-max_evaluations // per_call))  # calls
    problem = Problem(score_fn=score_fn, sde=sde, solver=solver, key=key, max_evaluations=cap)
    problem = jax.device_put(problem, NamedSharding(mesh, SHARED))
    shared = problem.sde, problem.solver, problem.key, example
    idle = functools.partial(idle_lanes, *shared, shape=shape, dtype=dtype, mesh=mesh)

    def compiled(lanes: int) -> jax.stages.Compiled:
        program = Program(lanes=lanes // len(devices), denoising=denoise, output=output, mesh=mesh)
        work = jax.eval_shape(functools.partial(idle, lanes=program.lanes))
        return _compile_loop(problem, program, work, example)

    bar = progress_bar(total=total, unit="sample", disable=not progress, desc="sampling")
    with bar, out_of_memory_explained(lanes, devices, compiled):
        begin = time.perf_counter()
        loop, work = compiled(lanes), idle(lanes=per_device)
        since = time.perf_counter()
        seconds_compile = since - begin
        call = functools.partial(loop, problem)
        pace = _Pace(per_call)
        for finished, counts in _calls(call, work, queues, rows, NamedSharding(mesh, OWN), pace, bar):
            arrays = _on_host(finished, counts)
            arrays["nfe"] = per_call * arrays["nfe"]
            if layout is not None and output is _unchanged:
                arrays["x"] = layout.unflatten(arrays["x"])
            now = time.perf_counter()
            yield Solution(
                **arrays,
                evaluations_per_call=per_call,
                device_calls=np.asarray(counts.iterations),
                lane_evaluations=per_call * per_device * int(counts.iterations.sum()),
                seconds_compile=seconds_compile,
                seconds_sampling=now - since,
            )
            since, seconds_compile = now, 0.0


@dataclasses.dataclass(frozen=True)
class _OfTree:
    """An ``output`` of trees as one of flat samples."""

    layout: Layout
    output: Callable[[Any], Array]

    def __call__(self, x: Array) -> Array:
        return self.output(self.layout.unflatten(x))


def _compile_loop(problem: Problem, program: Program, work: Lanes, example: Rows) -> jax.stages.Compiled:
    """``run`` for lanes of these shapes, and rows like those of ``example``."""
    devices = program.mesh.size
    length = IDS_PER_LANE * program.lanes * devices
    queue = Queue(
        ids=np.zeros(length, np.uint32),
        length=np.zeros(devices, np.int32),
        more=np.zeros(devices, bool),
        rows=_room(example, length),
    )
    own = NamedSharding(program.mesh, OWN)
    work, queue = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own), (work, queue)
    )
    return run.lower(problem, work, queue, np.int32(0), program=program).compile()


def _room(example: Rows, length: int) -> Rows:
    """Zeros for this many rows like those of ``example``."""
    return jax.tree.map(lambda leaf: np.zeros((length, *leaf.shape[1:]), leaf.dtype), example)


def _dealt(dealt: Dealt, rows: RowSource) -> Queue:
    """The ids that the devices may start in their next call, with their rows."""
    valid = np.arange(dealt.ids.shape[1]) < dealt.lengths[:, None]
    places = np.flatnonzero(valid)
    given = rows(dealt.ids[valid])

    def placed(some: np.ndarray) -> np.ndarray:
        room = np.zeros((valid.size, *some.shape[1:]), some.dtype)
        room[places] = some
        return room

    return Queue(
        ids=dealt.ids.ravel(),
        length=dealt.lengths.astype(np.int32),
        more=np.full(len(dealt.lengths), dealt.more),
        rows=jax.tree.map(placed, given),
    )


def _calls(
    loop: Callable[[Lanes, Queue, np.int32], tuple[Lanes, Finished, Counts]],
    work: Lanes,
    queues: Queues,
    rows: RowSource,
    own: NamedSharding,
    pace: _Pace,
    bar: tqdm,
) -> Iterator[tuple[Finished, Counts]]:
    """Calls the loop until all samples are finished.

    Yields the result of a call when the next one has started, so that the caller fetches the finished
    samples, which are still on the devices, while these work.
    """
    last = None
    while not queues.done:
        dealt = queues.deal()
        queue = _dealt(dealt, rows)
        iterations = np.int32(pace.iterations(dealt.shortest))
        start = time.perf_counter()
        work, finished, counts = loop(work, jax.device_put(queue, own), iterations)
        if last is not None:
            yield last
        idle = counts.iterations.is_ready()
        counts: Any = jax.device_get(counts)
        pace.learn(counts, seconds=time.perf_counter() - start, idle=idle)
        queues.take_back(started=counts.handed_out, finished=counts.finished)
        last = finished, counts
        bar.n = round(pace.finished + float(counts.under_way.sum()), 1)
        bar.set_postfix_str(pace.summary)
    if last is not None:
        yield last


class _Pace:
    """Decides how many iterations the loops may run in a call."""

    def __init__(self, evaluations_per_call: int) -> None:
        self.finished = 0
        self._evaluations_per_call = evaluations_per_call
        self._evaluations = 0  # calls of the score function of finished samples
        self._so_far = 0  # iterations
        self._aimed = 1

    @property
    def summary(self) -> str:
        """Text for the progress bar."""
        if self.finished == 0:
            return "first samples under way"
        return f"mean NFE {self._evaluations_per_call * self._evaluations / self.finished:.1f}"

    def iterations(self, shortest: float) -> int:
        """The limit of the next call, when the shortest queue is filled to this fraction."""
        if self.finished == 0:
            # no longer than all calls so far: a lane cannot finish two samples in this call
            longest = self._so_far
        else:
            longest = self._evaluations / self.finished * max(shortest, LAST_CALLS)
        return max(1, int(min(self._aimed, longest)))

    def learn(self, counts: Any, *, seconds: float, idle: bool) -> None:
        """Takes in the counts of the last call, its duration, and whether the devices waited for the host."""
        ran = int(counts.iterations.max())
        self.finished += int(counts.finished.sum())
        self._evaluations += int(counts.evaluations.sum())
        self._so_far += ran
        # Aim for a fixed time per call. Grow at most fourfold, so that a single quick call does not mislead.
        # Aim for more if the devices waited, because the caller took longer than a call with its samples.
        fits = ran * SECONDS_PER_CALL / seconds
        self._aimed = max(1, int(min(max(fits, 2 * ran) if idle else fits, 4 * ran)))


def _on_host(finished: Finished, counts: Counts) -> dict[str, np.ndarray]:
    """The finished samples of all devices, one device after the other; waits for the transfer."""
    arrays = vars(finished)
    # the room for them is that of several batches, so it stays on the devices if it is empty
    if not np.any(counts.finished):
        return {name: np.zeros((0, *array.shape[1:]), array.dtype) for name, array in arrays.items()}
    return {name: _joined(array, counts.finished) for name, array in jax.device_get(arrays).items()}


def _joined(array: Any, lengths: Any) -> np.ndarray:
    """The first ``lengths[i]`` rows of device i's share of an array, for all i, concatenated."""
    shares = array.reshape(len(lengths), -1, *array.shape[1:])
    # cut and copied on the host: on the device, a slice would be compiled for every length
    return np.concatenate([share[:length] for share, length in zip(shares, lengths, strict=True)])
