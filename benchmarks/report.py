"""What every benchmark prints and writes: a table, the machine, and with --json a file.

python -m benchmarks.report FOLDER

prints all figures of the files that benchmarks wrote to a folder with --json, and on which machine.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import jax

from evaluation.runs.tables import markdown


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="All figures that benchmarks wrote to a folder")
    parser.add_argument("folder", type=Path)
    parsed = parser.parse_args(arguments)
    paths = sorted(parsed.folder.glob("*.json"))
    if not paths:
        parser.error(
            f"FOLDER = {str(parsed.folder)!r}: allowed is a folder with files of --json; "
            "make one with bash benchmarks/run_all.sh FOLDER"
        )
    reports = {path.stem: json.loads(path.read_text()) for path in paths}
    rows = [
        [name, f"{value:.6g}", benchmark]
        for benchmark, report in reports.items()
        for name, value in report["figures"].items()
    ]
    print(markdown(["figure", "value", "benchmark"], rows))
    for machine in dict.fromkeys(report["machine"] for report in reports.values()):
        of = ", ".join(benchmark for benchmark, report in reports.items() if report["machine"] == machine)
        print(f"\n{of}: {machine}")


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


def write_json(path: Path, figures: dict[str, float], details: dict[str, Any] | None = None) -> None:
    """Writes {"figures": {name: number}, "machine": …}, and beside them what is no single number."""
    report = {"figures": figures, "machine": machine(), **(details or {})}
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
