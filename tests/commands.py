"""Runs ``main.py`` as users do, in a process of its own, without importing JAX anew for every command.

A server process imports what the modes need once, before JAX has started any thread, and forks a child for
each command. The child runs main.py as a script, with its own arguments, folder and output.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["evaluation.runs.modes", "sklearn.datasets"])


def main(
    *arguments: object, folder: Path = ROOT, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What ``python main.py ARGUMENTS`` in a folder ends with and prints."""
    command = [str(ROOT / "main.py"), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        variables = {"JAX_PLATFORMS": "cpu"} | dict(environment or {})
        child = _server.Process(target=_child, args=(command, str(folder), variables, str(out), str(err)))
        child.start()
        child.join()
        assert child.exitcode is not None
        return subprocess.CompletedProcess(command, child.exitcode, out.read_text(), err.read_text())


def _child(command: list[str], folder: str, variables: Mapping[str, str], out: str, err: str) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.chdir(folder)
    os.environ.update(variables)
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
