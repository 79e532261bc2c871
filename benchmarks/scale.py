"""Measure whether cost and memory grow as they should with samples, shards, cells and processes.

python -m benchmarks.scale [--quick] [--json FILE] [--only samples,store,sweep,kills] [--rounds 3]

The samples are of a mixture with an exact score (benchmarks/paths.py), by AdaptiveExponential in 128 lanes.
Those of the sweep are of the shipped digits network, and those of the kills are by the paper's solver.

    samples     ``solvers.stream`` draws 256 to 1,048,576 samples, each number in processes of its own. The
                seconds are of the processor, not of the clock, so that other work on the machine counts
                little; medians of --rounds processes, which take turns.
        <n>.spent                   evaluations of all lanes, waiting or not, over the number n of samples
        <n>.seconds                 for all n, without compilation
        <n>.peak_mb, <n>.added_mb   the peak resident memory of the process while it samples, in 10^6 bytes,
                                    its libraries included; and how much that is above what it had before
        fixed_seconds, seconds_a_million    of the line through the smallest and the largest number
        largest_deviation           of the seconds from this line, relative to it
        peak_growth                 the largest added_mb less the least, relative to the memory of the process
    store       2,000 shards of 1,024 samples are sampled into a folder.
        listing_share, claims_share, writing_share      of the seconds: looking for what is there; claims; and
                                    writing, which includes a look at the shard and the end of its claim. They
                                    are measured by cProfile, which adds to them.
        reopened_seconds            until a new store has looked at all shards, all complete
    sweep       100 cells of a sweep are sampled and measured; it is killed near the middle and started again.
        cells, repeated             cells with a result, and files of theirs that were written a second time
        idle_seconds                of the same command once more, when nothing is left to do
    kills       8 processes share a folder. Each is killed at a random moment, and another takes its place.
        killed, missing, different, rewritten, claims_left      processes; samples that are missing in the
                                    end; 1 if they are not, to the bit, those of one process that was not
                                    killed; complete shards that were written again; and claims in the end

    <part>.<figure>                 the names in --json
"""

import argparse
import cProfile
import functools
import json
import pstats
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import solvers
from benchmarks import paths
from benchmarks.evaluation import resident
from benchmarks.processes import CONFIG_HASH, begun_together, samples_of
from benchmarks.report import machine, names_in, write_json
from evaluation.runs.run import fill
from evaluation.runs.tables import markdown
from evaluation.store.processes import Processes
from evaluation.store.samples import GREY_LEVELS, SampleStore
from sde_lib import VPSDE
from solvers import Adaptive, AdaptiveExponential

ROOT = Path(__file__).resolve().parent.parent
SIZES = tuple(4**power for power in range(4, 11))
LANES, SHAPE = 128, (2, 4, 1)
FAST, PAPERS = AdaptiveExponential(), Adaptive(eps_rel=0.05)
PIECE = 4096  # ids that are given to the stream at a time
SHARDS, SHARD_SIZE = 2000, 1024  # the default of eval.shard_size
CELLS = 100
PROCESSES, KILL_SHARDS, KILL_SHARD_SIZE = 8, 128, 1024
SECONDS = 60.0  # without a sign of life, after which a process is taken for dead


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small version of each part, in two minutes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help=f"some of {', '.join(PARTS)}, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parsed = parser.parse_args(arguments)
    quick = parsed.quick
    settings: dict[str, dict[str, Any]] = {
        "samples": {"sizes": SIZES[:3], "rounds": 1} if quick else {"rounds": parsed.rounds},
        "store": {"num_shards": 50} if quick else {},
        "sweep": {"cells": 4} if quick else {},
        "kills": {"processes": 2, "num_shards": 16} if quick else {},
    }
    print(f"{machine()}\n")
    figures: dict[str, float] = {}
    for name in names_in(parser, "--only", parsed.only, PARTS, PARTS):
        found = PARTS[name](**settings[name])
        rows = [[f"{name}.{figure}", f"{value:.5g}"] for figure, value in found.items()]
        print(markdown(["figure", "value"], rows) + "\n", flush=True)
        figures |= {f"{name}.{figure}": value for figure, value in found.items()}
    if parsed.json:
        write_json(parsed.json, figures)


def samples(*, sizes: Sequence[int] = SIZES, rounds: int) -> dict[str, float]:
    """Seconds and peak memory for these numbers of samples, and how far both are from what they should be."""
    records: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size, found in records.items():
            found.append(stream_in_new_process(size))
    medians = {
        size: {name: statistics.median(record[name] for record in found) for name in found[0]}
        for size, found in records.items()
    }
    seconds = {size: median["seconds"] for size, median in medians.items()}
    added = [median["added_mb"] for median in medians.values()]
    least, most = min(sizes), max(sizes)
    each = (seconds[most] - seconds[least]) / (most - least)
    fixed = seconds[least] - least * each
    return {
        **{f"{size}.{name}": value for size, median in medians.items() for name, value in median.items()},
        "fixed_seconds": fixed,
        "seconds_a_million": 1e6 * each,
        "largest_deviation": max(abs(value / (fixed + size * each) - 1) for size, value in seconds.items()),
        "peak_growth": (max(added) - min(added)) / medians[least]["peak_mb"],
    }


def stream_in_new_process(num_samples: int) -> dict[str, float]:
    """``stream_of`` in a process of its own, free of what this one holds."""
    code = f"import json; from benchmarks import scale; print(json.dumps(scale.stream_of({num_samples})))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def stream_of(num_samples: int) -> dict[str, float]:
    """What so many samples cost this process: see ``<n>`` above."""

    def draw(number: int) -> int:
        starts = range(0, number, PIECE)
        pieces = (np.arange(start, min(start + PIECE, number)) for start in starts)
        return sum(part.lane_evaluations for part in drawing()(sample_ids=pieces))

    draw(2 * LANES)  # compiles
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present use
    before, start = resident("VmRSS"), time.process_time()
    spent = draw(num_samples) / num_samples
    seconds, peak = time.process_time() - start, resident("VmHWM")
    return {"spent": spent, "seconds": seconds, "peak_mb": peak / 1e6, "added_mb": (peak - before) / 1e6}


def drawing(solver: solvers.Solver = FAST) -> Callable[..., Iterator[solvers.Solution]]:
    """``solvers.stream`` of the mixture, with grey levels as output."""
    sde = VPSDE()
    return functools.partial(
        solvers.stream,
        paths.mixture().score_fn(sde),
        sde,
        solver,
        key=jax.random.key(0),
        shape=SHAPE,
        lanes=LANES,
        output=GREY_LEVELS[True, "nearest"],
    )


def store(*, num_shards: int = SHARDS) -> dict[str, float]:
    """The shares of a sampling that go into the store, and the seconds until a new store knows all of it."""
    num_samples = num_shards * SHARD_SIZE
    settings: dict[str, Any] = {"config_hash": CONFIG_HASH, "shard_size": SHARD_SIZE}
    list(drawing()(sample_ids=np.arange(2 * LANES)))  # compiles
    with tempfile.TemporaryDirectory() as folder:
        with cProfile.Profile() as profile, SampleStore(folder, **settings) as filled:
            start = time.perf_counter()
            fill(filled, num_samples, draw=drawing())
            seconds = time.perf_counter() - start
        start = time.perf_counter()
        assert len(SampleStore(folder, **settings).missing(num_samples)) == 0
        reopened = time.perf_counter() - start

    def spent(module: str, *names: str) -> float:
        """Seconds in functions of a module and what they call; an error if one of them was not called."""
        found = {
            name: each[3]
            for (file, _, name), each in pstats.Stats(profile).stats.items()  # pyright: ignore[reportAttributeAccessIssue]
            if file.endswith(f"{module}.py")
        }
        return sum(found[name] for name in names)

    listing = spent("store/samples", "_look")
    claims = spent("store/claims", "_take", "release", "renew", "_remove_leftovers")
    return {
        "shards": num_shards,
        "seconds": seconds,
        "listing_share": listing / seconds,
        "claims_share": claims / seconds,
        "writing_share": spent("store/samples", "_write") / seconds,
        "reopened_seconds": reopened,
    }


def sweep(*, cells: int = CELLS) -> dict[str, float]:
    """What a sweep that is killed near the middle does when it is started again."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "sweep")
        seeds = ",".join(map(str, range(cells)))
        settings = {"solver.name": "euler_maruyama", "solver.num_steps": 5, "eval.num_samples": 64}
        command = [sys.executable, "-W", "ignore", "main.py", "--mode=sweep", f"--sweep=seed={seeds}"]
        command += ["--config=configs/vp/digits_adaptive.py", f"--workdir={folder}"]
        command += [f"--config.{key}={value}" for key, value in settings.items()]
        quiet: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

        def results() -> dict[str, tuple[int, int]]:
            return written(folder, "cells/*/results.jsonl")

        running = subprocess.Popen(command, **quiet)
        while len(results()) < cells // 2:
            if running.poll() is not None:
                raise RuntimeError(f"the sweep ended with exit status {running.returncode}: {command}")
            time.sleep(0.05)
        running.send_signal(signal.SIGKILL)
        running.wait()
        before = results() | written(folder, "cells/*/samples/shard_*.npz")
        subprocess.run(command, check=True, **quiet)
        after = results() | written(folder, "cells/*/samples/shard_*.npz")
        start = time.perf_counter()
        subprocess.run(command, check=True, **quiet)
        return {
            "cells": len(results()),
            "before_the_kill": sum(name.endswith(".jsonl") for name in before),
            "repeated": sum(after[name] != version for name, version in before.items()),
            "idle_seconds": time.perf_counter() - start,
        }


def written(folder: Path, pattern: str) -> dict[str, tuple[int, int]]:
    """The files of a folder, each with a value that changes when it is written again."""
    found = {str(path.relative_to(folder)): path.stat() for path in folder.glob(pattern)}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def kills(*, processes: int = PROCESSES, num_shards: int = KILL_SHARDS) -> dict[str, float]:
    """What is in a folder in the end whose processes were all killed, one after the other, and replaced."""
    sizes = {"num_samples": num_shards * KILL_SHARD_SIZE, "shard_size": KILL_SHARD_SIZE}
    generator = random.Random(0)
    # all are killed before four fifths of the shards are there
    moments = sorted(generator.sample(range(num_shards * 4 // 5), processes))

    def start(folder: Path, index: int, count: int) -> subprocess.Popen:
        code = f"from benchmarks import scale; scale.work({str(folder)!r}, {index}, {count}, {num_shards})"
        return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)

    with tempfile.TemporaryDirectory() as place:
        alone, shared = Path(place, "alone"), Path(place, "shared")
        for folder in (alone, shared):
            folder.mkdir()
        finish([start(alone, 0, 1)])
        running = dict(enumerate(start(shared, index, processes) for index in range(processes)))
        order = generator.sample(range(processes), processes)
        seen: dict[str, tuple[int, int]] = {}
        for moment, index in zip(moments, order, strict=True):
            while len(seen := written(shared, "samples/shard_*.npz") | seen) <= moment:
                time.sleep(0.01)
            time.sleep(generator.uniform(0, 0.2))
            running[index].send_signal(signal.SIGKILL)
            running[index].wait()
            running[index] = start(shared, index, processes)
        finish(list(running.values()))
        there = written(shared, "samples/shard_*.npz")
        settings: dict[str, Any] = {"config_hash": CONFIG_HASH, "shard_size": KILL_SHARD_SIZE}
        missing = len(SampleStore(shared / "samples", **settings).missing(sizes["num_samples"]))
        digests = {samples_of(folder, count=1, **sizes)[0] for folder in (alone, shared)}
        return {
            "killed": processes,
            "missing": missing,
            "different": len(digests) - 1,
            "rewritten": sum(there[name] != version for name, version in seen.items()),
            "claims_left": len(list(shared.glob("samples/*.claim"))),
        }


def finish(running: list[subprocess.Popen]) -> None:
    statuses = [process.wait() for process in running]
    if any(statuses):
        raise RuntimeError(f"some of {len(running)} processes failed, with exit statuses {statuses}")


def work(folder: str, index: int, count: int, num_shards: int) -> None:
    """Samples one process's share of the shards in FOLDER/samples; the first ``count`` begin together."""
    processes = Processes(index=index, count=count, seconds=SECONDS)

    def draw(*, sample_ids: Iterator[np.ndarray], **options: Any) -> Iterator[solvers.Solution]:
        together = begun_together(sample_ids, Path(folder), processes, first=2 * LANES)
        return drawing(PAPERS)(sample_ids=together, **options)

    with SampleStore(Path(folder, "samples"), config_hash=CONFIG_HASH, shard_size=KILL_SHARD_SIZE) as shared:
        fill(shared, num_shards * KILL_SHARD_SIZE, draw=draw, processes=processes)


PARTS: dict[str, Callable[..., dict[str, float]]] = {
    "samples": samples,
    "store": store,
    "sweep": sweep,
    "kills": kills,
}


if __name__ == "__main__":
    main()
