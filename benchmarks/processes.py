"""The samples and the network calls of several devices and processes, against those of one device.

python -m benchmarks.processes [--json FILE] [--num_samples 16384] [--shard_size 1024]

1, 2, 4 and 8 virtual devices of one process, and 1, 2 and 4 processes with two each on loopback, which share
a folder as those of main.py do, draw the same samples of a Gaussian by its exact score and the paper's
solver, in 256 lanes of all devices together. Processes begin together, once all have compiled. With <n>:

    devices_<n>.bitwise_equal, processes_<n>.bitwise_equal      1 if all samples and their evaluations are
                                        those of one device, to the last bit, else 0
    devices_<n>.calls_deviation, processes_<n>.calls_deviation  of the network calls of a device from
                                        total / devices, the largest: processes that are slower than others
                                        leave some of their shards to these
    processes_<n>.own_deviation         the same of the evaluations of the samples that each process begins
                                        with, which processes of one speed keep
"""

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

import sde_lib
import solvers
from benchmarks.lanes import SHAPE, gaussian_score
from benchmarks.report import machine, write_json
from configs.ve.digits_adaptive import get_config
from evaluation.runs.run import fill
from evaluation.runs.tables import markdown
from evaluation.store.processes import ALONE, Processes, connect
from evaluation.store.samples import SampleStore
from solvers.driver import IDS_PER_LANE
from solvers.queues import lanes_for

ROOT = Path(__file__).resolve().parent.parent
DEVICES, PROCESSES, DEVICES_EACH = (1, 2, 4, 8), (1, 2, 4), 2
LANES, EPS_REL = 256, 0.05
IDENTITY = "a Gaussian"
CONNECT_SECONDS = 300.0


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Devices and processes against one device")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--num_samples", type=int, default=16_384)
    parser.add_argument("--shard_size", type=int, default=1024)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)  # FOLDER COORDINATOR COUNT INDEX
    parsed = parser.parse_args(arguments)
    sizes = {"num_samples": parsed.num_samples, "shard_size": parsed.shard_size}
    if parsed.worker:
        folder, coordinator, count, index = parsed.worker
        processes = ALONE
        if coordinator:
            processes = connect(
                coordinator=coordinator,
                num_processes=int(count),
                process_id=int(index),
                seconds=CONNECT_SECONDS,
            )
        return work(Path(folder), processes, **sizes)

    shards = -(-parsed.num_samples // parsed.shard_size)
    if shards < max(PROCESSES):
        parser.error(
            f"--shard_size = {parsed.shard_size}: allowed is at most {parsed.num_samples // max(PROCESSES)}, "
            f"so that each of {max(PROCESSES)} processes has a shard of its own"
        )
    figures, rows = measure(**sizes)
    print(f"{machine()}\n{parsed.num_samples:,} samples, {parsed.shard_size:,} a shard, {LANES} lanes\n")
    print(
        markdown(["", "devices", "equal bitwise", "network calls", "deviation", "of its own samples"], rows)
    )
    if parsed.json:
        write_json(parsed.json, figures)


def measure(
    *,
    num_samples: int,
    shard_size: int,
    devices: tuple[int, ...] = DEVICES,
    processes: tuple[int, ...] = PROCESSES,
) -> tuple[dict[str, float], list[list[str]]]:
    """The figures, and the rows of a table, of so many devices of one process and of so many processes."""
    figures, rows, first = {}, [], None
    ways = [("devices", number, 1, number) for number in devices]
    ways += [("processes", number, number, DEVICES_EACH) for number in processes]
    for name, number, count, each in ways:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            coordinator = "" if name == "devices" else f"127.0.0.1:{free_port()}"
            start(folder, coordinator, count=count, devices=each, sizes=[num_samples, shard_size])
            calls = np.concatenate([json.loads((folder / f"{i}.json").read_text()) for i in range(count)])
            digest, own = samples_of(folder, count=count, num_samples=num_samples, shard_size=shard_size)
        first = first or digest
        key = f"{name}_{number}"
        figures[f"{key}.bitwise_equal"] = float(digest == first)
        figures[f"{key}.calls_deviation"] = deviation(calls)
        row = [key, f"{len(calls)}", "yes" if digest == first else "NO", f"{calls.sum():,}"]
        row += [f"{deviation(calls):.2%}", ""]
        if name == "processes":
            figures[f"{key}.own_deviation"] = deviation(own)
            row[-1] = f"{deviation(own):.2%}"
        rows.append(row)
    return figures, rows


def start(folder: Path, coordinator: str, *, count: int, devices: int, sizes: list[int]) -> None:
    """Runs the processes of one way, until all have ended."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
    options = [f"--num_samples={sizes[0]}", f"--shard_size={sizes[1]}", "--worker", str(folder), coordinator]
    command = [sys.executable, "-m", "benchmarks.processes", *options, str(count)]
    running = [subprocess.Popen([*command, str(i)], cwd=ROOT, env=environment) for i in range(count)]
    statuses = [process.wait() for process in running]
    if any(statuses):
        raise RuntimeError(f"of {count} processes with {devices} devices each some failed: {statuses}")


def work(folder: Path, processes: Processes, *, num_samples: int, shard_size: int) -> None:
    """What one of the processes does; writes the network calls of each of its devices."""
    sde = sde_lib.from_config(get_config().sde)
    devices = jax.local_device_count()
    lanes = lanes_for(num_samples, LANES // processes.count, devices)

    def draw(*, sample_ids: Iterator[np.ndarray], **options: Any) -> Iterator[solvers.Solution]:
        return solvers.stream(
            Partial(gaussian_score, sde),
            sde,
            solvers.Adaptive(eps_rel=EPS_REL),
            key=jax.random.key(0),
            shape=SHAPE,
            sample_ids=begun_together(sample_ids, folder, processes, first=IDS_PER_LANE * lanes),
            lanes=lanes,
            output=bits,
            **options,
        )

    with SampleStore(folder / "samples", identity=IDENTITY, shard_size=shard_size) as store:
        parts = fill(store, num_samples, draw=draw, processes=processes)
    calls = np.sum([part.device_calls for part in parts], axis=0) if parts else np.zeros(devices)
    (folder / f"{processes.index}.json").write_text(json.dumps(calls.tolist()))


def begun_together(
    sample_ids: Iterator[np.ndarray], folder: Path, processes: Processes, *, first: int
) -> Iterator[np.ndarray]:
    """The ids, of which no process gets more than the first before all have compiled their loops."""
    for ids in sample_ids:
        yield ids[:first]  # for the first call, so that the next are asked for after the compilation
        (folder / f"{processes.index}.ready").touch()
        while len(list(folder.glob("*.ready"))) < processes.count:
            time.sleep(0.001)
        yield ids[first:]


def bits(x: jax.Array) -> jax.Array:
    """Samples float32 [n, h, w, 1] as they are in memory, uint8 [n, h, w, 4]."""
    return jax.lax.bitcast_convert_type(x[..., 0], np.uint8)


def samples_of(folder: Path, *, count: int, num_samples: int, shard_size: int) -> tuple[str, np.ndarray]:
    """The SHA-256 of all samples by id; evaluations of those that each process begins with, [count]."""
    digest, own = hashlib.sha256(), np.zeros(count)
    store = SampleStore(folder / "samples", identity=IDENTITY, shard_size=shard_size)
    for number, samples in enumerate(store.shards(num_samples)):
        digest.update(samples.images.tobytes() + samples.nfe.tobytes())
        own[number % count] += samples.nfe.sum()
    return digest.hexdigest(), own


def deviation(shares: np.ndarray) -> float:
    """The largest of shares of a whole against equal ones, relatively."""
    return float(np.abs(shares / shares.mean() - 1).max())


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


if __name__ == "__main__":
    main()
