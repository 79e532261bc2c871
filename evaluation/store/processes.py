"""Several processes, on one host or on many, that make one run on a shared workdir.

JAX brings them together once, at the start, and each learns which of them it is. From then on they share
nothing but the workdir (evaluation/store/samples.py). So a process that dies stops no other, whereas JAX ends all
that it holds together as soon as one is lost, by an abort that no program can catch. Process 0 alone keeps
JAX's service open: while its port answers, the others know that what they wait for may still come.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
from jax._src.distributed import global_state

from sde_lib.checks import require, require_count, require_positive

Found = TypeVar("Found")
POLL = 2.0  # seconds between two looks at the workdir


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """Those of a run, seen from one of them; by default it is alone.

    Attributes:
        index: of this one.
        count: of all that were started together.
        coordinator: HOST:PORT, at which process 0 answers as long as it lives.
        seconds: for which process 0, or one that has taken shards (evaluation/store/claims.py), has to be silent to
            be taken for dead. What it wrote last is in sight by then on file systems that remember for a
            while what they have seen, as NFS does.
    """

    index: int = 0
    count: int = 1
    coordinator: str = ""
    seconds: float = 0.0

    @property
    def is_first(self) -> bool:
        """Whether this process makes the figures and reports."""
        return self.index == 0

    @property
    def name(self) -> str:
        """As "process 1 of 4", counted from 0."""
        return f"process {self.index} of {self.count}"

    def wait_for(self, find: Callable[[], Found | None], *, what: str) -> Found:
        """What process 0 makes, as soon as ``find`` has it.

        Raises:
            ValueError: if process 0 ends before.
        """
        last_seen = time.monotonic()
        while (found := find()) is None:
            now = time.monotonic()
            if _why_silent(self.coordinator) is None:
                last_seen = now
            elif now - last_seen > self.seconds:
                raise ValueError(
                    f"{self.name}: process 0 has ended without {what}; all samples are kept: its own "
                    "messages say why, and the same command for all processes goes on from here"
                )
            time.sleep(POLL)
        return found


ALONE = Processes()


def connect(
    *, coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: float
) -> Processes:
    """Finds the other processes; to be called before anything is computed with JAX.

    Args:
        coordinator: HOST:PORT of process 0, a port of its host that is free.
        num_processes, process_id: how many there are, and which this is. With ``coordinator`` None for those
            that JAX learns from a TPU pod, Slurm or MPI.
        seconds: to wait for the others. When they are over, the program ends with a message and status 2:
            JAX would abort it without one that says what to do.

    Raises:
        ValueError: for arguments that do not go together, and where JAX knows of no cluster.
    """
    require_positive(**{"--connect_seconds": seconds})
    given = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    absent = [flag for flag, value in given.items() if value is None]
    require(
        len(absent) in (0, len(given)),
        " ".join(flag for flag in given if flag not in absent),
        tuple(value for value in given.values() if value is not None),
        f"all of {', '.join(given)}, or none of them with --multihost",
        f"add {', '.join(absent)}",
    )
    if coordinator is not None and num_processes is not None and process_id is not None:
        host, _, port = coordinator.rpartition(":")
        fix = "write --coordinator=HOST:PORT"
        require(host and port.isdecimal(), "--coordinator", coordinator, "a host and a port", fix)
        require_count(**{"--num_processes": num_processes})
        last = num_processes - 1
        fix = "give every process one of its own"
        require(0 <= process_id <= last, "--process_id", process_id, f"a number from 0 to {last}", fix)
        # two services on one port would both seem to start, and take each other's processes
        taken = process_id == 0 and _why_silent(coordinator) is None
        fix = "take another port, or end the run that holds it"
        require(not taken, "--coordinator", coordinator, "a port that is free, and this one answers", fix)
    # a process that dies must not end the service for the others
    jax.config.update("jax_enable_recoverability", True)
    # its handler would keep SIGTERM from ending the process
    jax.config.update("jax_enable_preemption_service", False)
    with _ended_after(seconds):
        try:
            jax.distributed.initialize(
                coordinator, num_processes, process_id, initialization_timeout=2 * round(seconds) + 60
            )
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"--multihost: the processes cannot be brought together ({error}); where there is no TPU "
                "pod, Slurm or MPI, give --coordinator=HOST:PORT --num_processes=N --process_id=I"
            ) from None
        jax.devices()  # each process tells all others of its own here, for the last time
    processes = Processes(
        index=jax.process_index(),
        count=jax.process_count(),
        coordinator=global_state.coordinator_address or "",
        seconds=seconds,
    )
    if not processes.is_first:
        jax.distributed.shutdown()
    return processes


@contextlib.contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """Ends the program with a message if what is within takes longer."""

    def end() -> None:
        print(f"main.py: {_what_is_wrong(seconds)}", file=sys.stderr, flush=True)
        os._exit(2)  # the main thread is somewhere in JAX, deaf to exceptions

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _what_is_wrong(seconds: float) -> str:
    address, count = global_state.coordinator_address, global_state.num_processes
    silence = None if address is None else _why_silent(address)
    if address is None or silence is None:
        return (
            f"--num_processes = {count}: not all of them have come to {address} within {seconds:g} s; start "
            "the others, each with a --process_id of its own, or raise --connect_seconds"
        )
    return (
        f"--coordinator = {address!r} cannot be reached within {seconds:g} s ({silence}); check that process "
        "0 runs there, that host and port are right, and that no firewall or proxy is between, or raise "
        "--connect_seconds"
    )


def _why_silent(address: str) -> str | None:
    """Why nobody answers at HOST:PORT; None if somebody does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=POLL).close()
    except (OSError, OverflowError, UnicodeError) as error:
        return str(error)
    return None
