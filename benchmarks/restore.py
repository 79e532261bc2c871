"""Measure the time and the memory for restoring a checkpoint in the published format.

python -m benchmarks.restore [--config configs/ve/cifar10_adaptive.py] [--json FILE]

Writes a training state of the config's model with random weights in the published JAX format (about 1 GB for
CIFAR-10) to a temporary folder, and restores it to a score function in a new process. Prints the seconds, the
peak memory of that process with all its libraries, and this peak over the file's size (the aim is at
most 1.6).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import msgpack
import numpy as np

import models
from sde_lib.checks import refusal

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", default="configs/ve/cifar10_adaptive.py")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--restore", type=Path, help=argparse.SUPPRESS)  # for the inner process
    arguments = parser.parse_args()
    if arguments.restore:
        print(json.dumps(restore(arguments.config, arguments.restore)))
        return

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint_1"
        write_training_state(load_config(arguments.config), path)
        file_mb = path.stat().st_size / 1e6
        flags = [f"--config={arguments.config}", f"--restore={path}"]
        command = [sys.executable, "-m", "benchmarks.restore", *flags]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    figures = {"file_mb": file_mb, **json.loads(done.stdout)}
    figures["peak_over_file"] = figures["peak_mb"] / file_mb
    for name, value in figures.items():
        print(f"{name:>16}  {value:10.2f}")
    if arguments.json:
        from benchmarks.report import write_json  # imports matplotlib, which the inner process goes without

        write_json(arguments.json, figures)


def restore(config: str, path: Path) -> dict[str, float]:
    """Seconds until the weights are on the device, without the imports, and this process's peak memory."""
    start = time.perf_counter()
    jax.block_until_ready(models.load_score_fn(load_config(config), path))
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}


def write_training_state(config: Any, path: Path) -> None:
    """Write a file as the published training does: weights, two moments of Adam, averaged weights.

    Arrays are made one at a time, so that the file's 1 GB is never held in memory.
    """
    params = models.build(config).abstract_params()
    moments = jax.tree.map(lambda leaf: {"grad_ema": leaf, "grad_sq_ema": leaf}, params)
    state = {
        "step": 1,
        "optimizer": {
            "target": {"params": params},
            "state": {"step": 1, "param_states": moments},
        },
        "lr": 2e-4,
        "model_state": {},
        "ema_rate": 0.999,
        "params_ema": params,
        "rng": jax.ShapeDtypeStruct((2,), "float32"),
    }
    packer, generator = msgpack.Packer(), np.random.default_rng(0)

    def parts(node: Any) -> Iterator[bytes]:
        if isinstance(node, dict):
            yield packer.pack_map_header(len(node))
            for name, child in node.items():
                yield packer.pack(name)
                yield from parts(child)
        elif isinstance(node, jax.ShapeDtypeStruct):
            data = generator.standard_normal(node.shape, np.float32) * np.float32(0.02)
            content = msgpack.packb((node.shape, "float32", data.tobytes()), use_bin_type=True)
            yield packer.pack_ext_type(1, content)
        else:
            yield packer.pack(node)

    with path.open("wb") as file:
        file.writelines(parts(state))


def load_config(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("config", ROOT / path)
    if spec is None or spec.loader is None:
        raise ValueError(refusal("--config", path, "a Python file", "name a file in configs/"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


if __name__ == "__main__":
    main()
