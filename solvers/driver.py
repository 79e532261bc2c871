"""Runs any solver on many samples: every lane of a batch works on its own sample, and none ever idles.

    while lanes are busy:   (x, t) = vmap(ask)(states);  s = score_fn(x, t);  states = vmap(tell)(states, s)

A lane whose sample is done hands it out and starts the next at once, inside the compiled loop, so that the
cost follows the mean number of evaluations and not the slowest sample of each batch. Every device runs a
loop of its own over its share of the lanes (solvers/lanes.py), in which it waits for no other. The host calls
the loops for a bounded number of iterations at a time: room for a progress bar, for saving what is finished,
and for giving the devices their next ids (solvers/queues.py). While they work on a call, what they finished
in the one before travels to the host. Where those bounds fall changes nothing in any sample, and neither does
the device that draws it.

The driver alone owns the cap on evaluations, the policy for non-finite values, the final denoising, and the
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
from jaxtyping import Array, PRNGKeyArray
from tqdm import tqdm

from sde_lib import SDE, ScoreFn
from sde_lib.checks import require, require_count, require_shared
from solvers.device_memory import Devices, out_of_memory_explained
from solvers.interface import Solver, Status
from solvers.lanes import AXIS, OWN, SHARED, VECTOR, Finished, idle_lanes, run
from solvers.queues import Queues, SampleIds, ids_asked_for, lanes_for

SECONDS_PER_CALL = 0.5  # how long the compiled loop runs before the host looks in
MAX_EVALUATIONS = 100_000
# Ids that a device is given for each of its lanes. No call is longer than the mean sample, so that a device
# comes back before it runs out, unless many samples take less than half as long as the mean one.
IDS_PER_LANE = 2
# The shortest calls, in parts of the mean sample: while the last ids are dealt, what one device has no lane
# for yet may be what another is idle for.
LAST_CALLS = 1 / 8


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
    require_shared("lanes", lanes, len(devices), "devices")
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
    blank = functools.partial(idle_lanes, *problem[1:], shape=shape, dtype=dtype, mesh=mesh)
    cap = np.int32(max_evaluations)

    def compiled(lanes: int) -> jax.stages.Compiled:
        size = lanes // len(devices)
        work = jax.eval_shape(functools.partial(blank, lanes=size))
        ids = jax.ShapeDtypeStruct((IDS_PER_LANE * lanes,), np.uint32)
        lengths = jax.ShapeDtypeStruct((len(devices),), np.int32)
        work, ids, lengths = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own), (work, ids, lengths)
        )
        static = {"lanes": size, "denoising": denoise, "output": output, "mesh": mesh}
        return run.lower(*problem, work, ids, lengths, np.bool_(True), cap, cap, **static).compile()

    bar = tqdm(total=total, unit="sample", disable=not progress, desc="sampling")
    with bar, out_of_memory_explained(lanes, devices, compiled):
        since = time.perf_counter()
        loop = compiled(lanes)
        work = blank(lanes=per_device)
        seconds_compile = time.perf_counter() - since
        since += seconds_compile

        def solution(finished: Finished, counts: Any) -> Solution:
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
