"""What every benchmark prints and writes: a table, the machine, and with --json a file."""

import json
import os
import platform
from pathlib import Path

import jax


def machine() -> str:
    """The machine in words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            text.partition(":")[2].strip()
            for text in cpuinfo.read_text().splitlines()
            if "model name" in text
        ]
        model = names[0] if names else model
    devices = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {model}; JAX {jax.__version__} on {devices} x {jax.device_count()}"


def write_json(path: Path, figures: dict[str, float]) -> None:
    """Writes {"figures": {name: number}, "machine": …}."""
    path.write_text(json.dumps({"figures": figures, "machine": machine()}, indent=1) + "\n")
