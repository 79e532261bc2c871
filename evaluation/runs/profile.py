"""A profile of the devices during sampling: recorded for the usual viewers, with its longest operations."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

import solvers
from evaluation.runs.run import WRITES, Run, drawing
from evaluation.runs.tables import markdown
from evaluation.store import workdir as workdirs
from evaluation.store.files import is_local, make_folder
from sde_lib.checks import require

# The warm-up lasts until calls of the compiled loop have their full length. Two seconds of the digits network
# take 10 MB; a whole run would take gigabytes.
WARM_UP_SECONDS = 2.0
SECONDS = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """An operation of a device, by the compiler's name.

    Attributes:
        name: of the kernel (GPU) or the operation (CPU, TPU).
        seconds: total time of its calls in the recording, without the operations inside it.
        share: of the total time of all operations.
    """

    name: str
    seconds: float
    share: float


@contextlib.contextmanager
def recorded(folder: epath.PathLike) -> Iterator[None]:
    """Records devices and host inside the context, below plugins/profile/ in a local folder."""
    jax.profiler.start_trace(folder, create_perfetto_trace=True)
    try:
        yield
    finally:
        jax.profiler.stop_trace()


def record_sampling(run: Run, workdir: epath.PathLike) -> str:
    """Records two seconds of a run's sampling to profile/ in its workdir; returns a report for people.

    The samples are drawn for the recording alone, by the loop and the lanes of the run itself, and thrown
    away. So the recording slows nothing that the run reports, and a run that has all its samples can be
    recorded too. A call of the loop that takes longer than two seconds is recorded to its end.

    Raises:
        ValueError: for a workdir that is not local, or that holds another config's samples.
        OSError: for one that cannot be written.
    """
    require(
        is_local(workdir),
        "--workdir",
        str(workdir),
        "a local folder with --profile, since JAX writes the recording",
        "drop --profile, or name a local folder",
    )
    workdirs.claim(workdir, run.identity, writes=WRITES)
    folder = Path(workdir) / "profile"
    make_folder(folder)
    draw, lanes = drawing(run)
    sampling = draw(sample_ids=(np.arange(start, start + lanes) for start in itertools.count(0, lanes)))
    next(sampling)  # compiles
    _draw(sampling, WARM_UP_SECONDS)
    with recorded(folder):
        calls = _draw(sampling, SECONDS)
    longest = [[it.name, f"{it.seconds:.3f}", f"{it.share:.1%}"] for it in longest_operations(folder)]
    return (
        f"profile of {calls} network calls of {lanes} lanes: {folder}\n"
        f"{markdown(['operation', 'seconds', 'share'], longest)}\n"
        f"to open it: pip install xprof && xprof --logdir={folder}   (or TensorBoard with that installed)\n"
        f"or drop {latest(folder) / 'perfetto_trace.json.gz'} on https://ui.perfetto.dev"
    )


def _draw(sampling: Iterable[solvers.Solution], seconds: float) -> int:
    """Number of network calls in so many seconds, or a little more: the loop ends between two calls."""
    calls, since = 0, time.perf_counter()
    for part in sampling:
        calls += part.network_calls
        if time.perf_counter() - since >= seconds:
            break
    return calls


def latest(folder: epath.PathLike) -> Path:
    """The folder of the last recording in a folder."""
    return max((Path(folder) / "plugins" / "profile").iterdir())  # they are named by date and time


def longest_operations(folder: epath.PathLike, *, count: int = 10) -> list[Operation]:
    """The operations that took most of the devices' time in the last recording, the longest first.

    Empty where the devices were not recorded: GPU drivers may allow that to administrators only.
    """
    seconds: dict[str, float] = defaultdict(float)
    (path,) = latest(folder).glob("*.xplane.pb")
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for name, own in _seconds(_operations(plane.name, line)):
                seconds[name] += own
    everything = sum(seconds.values())
    longest = sorted(seconds.items(), key=lambda item: item[1], reverse=True)[:count]
    return [Operation(name=name, seconds=own, share=own / everything) for name, own in longest]


def _operations(plane: str, line: Any) -> list[Any]:
    """The events of a line that are a device's operations."""
    if plane == "/host:CPU":  # among what else its threads did
        return [event for event in line.events if "hlo_op" in dict(event.stats)]
    # a GPU's queues of kernels, a TPU's operations; other lines show the same time by program or by step
    of_device = plane.startswith("/device:") and (line.name.startswith("Stream") or line.name == "XLA Ops")
    return list(line.events) if of_device else []


def _seconds(events: Iterable[Any]) -> list[tuple[str, float]]:
    """Names and own times, without the events inside each, so that no loop's body counts twice."""
    own: list[float] = []
    around: list[tuple[float, int]] = []  # (end, place) of those that have not ended yet, outermost first
    # of those that start together, the longest is around the others
    ordered = sorted(events, key=lambda event: (event.start_ns, -event.duration_ns))
    for place, event in enumerate(ordered):
        while around and around[-1][0] <= event.start_ns:
            around.pop()
        if around:
            own[around[-1][1]] -= event.duration_ns / 1e9
        own.append(event.duration_ns / 1e9)
        around.append((event.start_ns + event.duration_ns, place))
    return [(event.name, seconds) for event, seconds in zip(ordered, own, strict=True)]
