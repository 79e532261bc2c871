"""How long a published-format checkpoint takes to restore, and how much memory.

python -m benchmarks.restore [--config configs/ve/cifar10_adaptive.py] [--json FILE]

Makes a training state of the config's model with random weights in the published JAX format (about 1 GB for
CIFAR-10, in a temporary folder), restores it to a score function in a process of its own, and prints seconds,
the peak memory of that process with all its libraries, and that over the size of the file (allowed are 1.6).
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", default="configs/ve/cifar10_adaptive.py")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--restore", type=Path, help=argparse.SUPPRESS)  # what the inner process is asked
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
        from benchmarks.report import write_json

        write_json(arguments.json, figures)


def restore(config: str, path: Path) -> dict[str, float]:
    """Seconds from the call to weights on the device, imports apart, and this process's peak memory."""
    import jax

    import models

    start = time.perf_counter()
    jax.block_until_ready(models.load_score_fn(load_config(config), path))
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}


def write_training_state(config: Any, path: Path) -> None:
    """A file as the published training wrote it: the weights, two moments of Adam, the averages."""
    import msgpack
    import numpy as np

    import models
    from models.weights import flatten

    packer = msgpack.Packer()
    expected = models.abstract_params(config)
    shapes = flatten(expected)
    generator = np.random.default_rng(0)

    def array(shape: tuple[int, ...]) -> bytes:
        data = generator.standard_normal(shape, np.float32) * np.float32(0.02)
        content = msgpack.packb((shape, "float32", data.tobytes()), use_bin_type=True)
        return packer.pack_ext_type(1, content)

    with path.open("wb") as file:

        def open_map(length: int) -> None:
            file.write(packer.pack_map_header(length))

        def key(name: str) -> None:
            file.write(packer.pack(name))

        def tree(node: Any, moments: bool, prefix: str = "") -> None:
            open_map(len(node))
            for name, child in node.items():
                key(name)
                place = f"{prefix}/{name}" if prefix else name
                if hasattr(child, "items"):
                    tree(child, moments, place)
                elif moments:
                    open_map(2)
                    for moment in ("grad_ema", "grad_sq_ema"):
                        key(moment)
                        file.write(array(shapes[place].shape))
                else:
                    file.write(array(shapes[place].shape))

        open_map(7)
        key("step")
        file.write(packer.pack(1))
        key("optimizer")
        open_map(2)
        key("target")
        open_map(1)
        key("params")
        tree(expected, moments=False)
        key("state")
        open_map(2)
        key("step")
        file.write(packer.pack(1))
        key("param_states")
        tree(expected, moments=True)
        for name, value in (("lr", 2e-4), ("model_state", {}), ("ema_rate", 0.999)):
            key(name)
            file.write(packer.pack(value))
        key("params_ema")
        tree(expected, moments=False)
        key("rng")
        file.write(array((2,)))


def load_config(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("config", ROOT / path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config = {path!r}: allowed is a file of configs/; name one that is there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


if __name__ == "__main__":
    main()
