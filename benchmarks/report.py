"""What every benchmark prints and writes: a table, the machine, and with --json a file."""

import json
import os
import platform
from collections.abc import Sequence
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


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        return "| " + " | ".join(padded) + " |"

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def write_json(path: Path, figures: dict[str, float]) -> None:
    """Writes {"figures": {name: number}, "machine": …}."""
    path.write_text(json.dumps({"figures": figures, "machine": machine()}, indent=1) + "\n")
