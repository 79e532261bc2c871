"""Check that several devices and processes draw one device's samples, and share the work evenly.

python -m benchmarks.processes [--json FILE] [--num_samples 16384] [--shard_size 1024]

The same samples of a Gaussian are drawn by 1, 2, 4 and 8 virtual devices of one process, and by 1, 2 and 4
processes with two devices each, which share a folder as the processes of main.py do. The solver is the
paper's, the score is exact, and all devices together have 256 lanes. The processes start sampling together,
once all have compiled. For a number <n> of devices or processes:

    devices_<n>.bitwise_equal, processes_<n>.bitwise_equal      1 if all samples and their evaluations equal
                                        those of one device, to the last bit, else 0
    devices_<n>.calls_deviation, processes_<n>.calls_deviation  the largest relative deviation of a device's
                                        network calls from total / devices; a slower process leaves some of
                                        its shards to the others
    processes_<n>.own_deviation         the same for the evaluations of the samples that each process is first
                                        assigned; processes of equal speed keep these samples
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
from sde_lib.checks import refusal
from solvers.driver import IDS_PER_LANE
from solvers.queues import lanes_for

ROOT = Path(__file__).resolve().parent.parent
DEVICES, PROCESSES, DEVICES_EACH = (1, 2, 4, 8), (1, 2, 4), 2
LANES, EPS_REL = 256, 0.05
CONFIG_HASH = "a Gaussian"
CONNECT_SECONDS = 300.0


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compare several devices and processes with one device")
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
        allowed = f"at most {parsed.num_samples // max(PROCESSES)}"
        fix = f"lower it, or raise --num_samples, so that each of {max(PROCESSES)} processes has a shard"
        parser.error(refusal("--shard_size", parsed.shard_size, allowed, fix))
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
    """The figures and the table's rows for the given numbers of devices of one process and of processes."""
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
    """Run ``count`` processes with so many devices each, until all have ended."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
    options = [f"--num_samples={sizes[0]}", f"--shard_size={sizes[1]}", "--worker", str(folder), coordinator]
    command = [sys.executable, "-m", "benchmarks.processes", *options, str(count)]
    running = [subprocess.Popen([*command, str(i)], cwd=ROOT, env=environment) for i in range(count)]
    statuses = [process.wait() for process in running]
    if any(statuses):
        raise RuntimeError(
            f"some of {count} processes with {devices} devices each failed, with exit statuses {statuses}"
        )


def work(folder: Path, processes: Processes, *, num_samples: int, shard_size: int) -> None:
    """Do the work of one process; writes the network calls of each of its devices to a file."""
    sde = sde_lib.from_config(get_config().sde)
    devices = jax.local_device_count()
    lanes = lanes_for(num_samples, LANES // processes.count, devices)

    def draw(*, sample_ids: Iterator[np.ndarray], **options: Any) -> Iterator[solvers.Solution]:
        return solvers.stream(
            Partial(gaussian_score, sde),
            sde,
            solvers.Adaptive(eps_rel=EPS_REL, noise_on_rejection="redraw"),
            key=jax.random.key(0),
            shape=SHAPE,
            sample_ids=begun_together(sample_ids, folder, processes, first=IDS_PER_LANE * lanes),
            lanes=lanes,
            output=bits,
            **options,
        )

    with SampleStore(folder / "samples", config_hash=CONFIG_HASH, shard_size=shard_size) as store:
        parts = fill(store, num_samples, draw=draw, processes=processes)
    calls = np.sum([part.device_calls for part in parts], axis=0) if parts else np.zeros(devices)
    (folder / f"{processes.index}.json").write_text(json.dumps(calls.tolist()))


def begun_together(
    sample_ids: Iterator[np.ndarray], folder: Path, processes: Processes, *, first: int
) -> Iterator[np.ndarray]:
    """Yield the ids, but hold back all except the first until every process has compiled its loop."""
    for ids in sample_ids:
        yield ids[:first]  # enough for the first call: the driver asks for more only after compiling
        (folder / f"{processes.index}.ready").touch()
        while len(list(folder.glob("*.ready"))) < processes.count:
            time.sleep(0.001)
        yield ids[first:]


def bits(x: jax.Array) -> jax.Array:
    """The bytes, uint8 [n, h, w, 4], of samples float32 [n, h, w, 1]."""
    return jax.lax.bitcast_convert_type(x[..., 0], np.uint8)


def samples_of(folder: Path, *, count: int, num_samples: int, shard_size: int) -> tuple[str, np.ndarray]:
    """The SHA-256 of all samples by id, and the evaluations of each process's first assignment, [count]."""
    digest, own = hashlib.sha256(), np.zeros(count)
    store = SampleStore(folder / "samples", config_hash=CONFIG_HASH, shard_size=shard_size)
    for number, samples in enumerate(store.shards(num_samples)):
        digest.update(samples.images.tobytes() + samples.nfe.tobytes())
        own[number % count] += samples.nfe.sum()
    return digest.hexdigest(), own


def deviation(shares: np.ndarray) -> float:
    """The largest relative deviation of shares of a whole from equal shares."""
    return float(np.abs(shares / shares.mean() - 1).max())


def free_port() -> int:
    """A port on loopback that no program listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


if __name__ == "__main__":
    main()
