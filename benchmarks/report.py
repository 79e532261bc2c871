"""Shared by all benchmarks: the machine's description, their files and plots, and names in a flag.

python -m benchmarks.report FOLDER

prints all figures that benchmarks wrote to files in a folder with --json, and the machines they ran on.
"""

import argparse
import hashlib
import json
import os
import platform
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

from evaluation.runs.tables import markdown
from evaluation.store.files import atomic_file
from sde_lib.checks import refusal, require_choice

Run = TypeVar("Run")
# in plots, of AdaptiveExponential and of the paper's solver
OURS: dict[str, Any] = {"color": "black", "linewidth": 2, "marker": "o", "zorder": 3}
PAPERS: dict[str, Any] = {**OURS, "color": "tab:red"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Print all figures that benchmarks wrote to a folder")
    parser.add_argument("folder", type=Path)
    parsed = parser.parse_args(arguments)
    paths = sorted(parsed.folder.glob("*.json"))
    if not paths:
        fix = "make one with bash benchmarks/run_all.sh FOLDER"
        parser.error(refusal("FOLDER", str(parsed.folder), "a folder with files that --json wrote", fix))
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


def table_of_runs(
    figures: Mapping[str, float], marked: Collection[str], *, about: Sequence[str], forms: Mapping[str, str]
) -> str:
    """One row for each run, whose figures are named <run>.<measure>; a star behind those that are marked.

    Args:
        figures: by name; a run's name has as many parts between dots as ``about``.
        marked: names of figures.
        about: the header of the run's parts.
        forms: the measures in order, each with the form of its numbers.
    """

    def cell(name: str, form: str) -> str:
        return f"{figures[name]:{form}}{'*' if name in marked else ''}" if name in figures else ""

    runs = dict.fromkeys(name.rpartition(".")[0] for name in figures)
    rows = [
        [*run.split("."), *(cell(f"{run}.{measure}", form) for measure, form in forms.items())]
        for run in runs
    ]
    return markdown([*about, *(measure.replace("_", ", ") for measure in forms)], rows)


def names_in(
    parser: argparse.ArgumentParser,
    flag: str,
    given: str | None,
    choices: Iterable[str],
    default: Iterable[str],
) -> list[str]:
    """The names in a flag's comma-separated value, or the default; ends the program on an unknown name."""
    names = given.split(",") if given else list(default)
    try:
        for name in names:
            require_choice(flag, name, choices)
    except ValueError as error:
        parser.error(str(error))
    return names


def machine() -> str:
    """A description of the machine: cores, processor, JAX's version and devices."""
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


def hash_of(*what: Any) -> str:
    """The identity of a run: a hash of all that determines its record, which JSON has to know."""
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


class Records:
    """The records of a benchmark's runs in a file, a line of JSON each, with which a killed one goes on."""

    def __init__(self, path: Path) -> None:
        """Reads what is there; a line that a kill cut off is left out."""
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        text = path.read_text() if path.exists() else ""
        if text and not text.endswith("\n"):  # the next record is not to share the line that was cut off
            path.write_text(text + "\n")
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            self._known[record["identity"]] = record

    def of(self, identity: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The record of a run, from the file, or measured and added to it."""
        if identity not in self._known:
            self._known[identity] = measure() | {"identity": identity}
            with self._path.open("a") as file:
                file.write(json.dumps(self._known[identity]) + "\n")
        return self._known[identity]


def kept(path: Path, run: Run, measure: Callable[[Run], dict[str, float]]) -> dict[str, float]:
    """The figures of a run, read from its file, or measured and written there with the run's description."""
    if path.exists():
        return json.loads(path.read_text())
    figures = measure(run)
    with atomic_file(path) as file:
        file.write(json.dumps(figures | {"run": str(run)}, indent=1).encode())
    return figures


def write_json(path: Path, figures: dict[str, float], details: dict[str, Any] | None = None) -> None:
    """Write {"figures": {name: number}, "machine": …}, and the details that are not single numbers."""
    report = {"figures": figures, "machine": machine(), **(details or {})}
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
