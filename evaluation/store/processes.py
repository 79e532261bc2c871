"""Several processes, on one host or on many, that share one run through its workdir.

JAX brings the processes together once, at the start, and tells each its number. From then on they share
nothing but the workdir (evaluation/store/samples.py), so that a process that dies stops no other. If they
stayed connected, JAX would abort all of them when it lost one, and no program can catch that. As a sign of
life process 0 keeps writing a small file in the workdir: while the file changes, the others know that what
they are waiting for may still come.
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
from etils import epath

from evaluation.store.files import make_folder, show_life, version
from sde_lib.checks import refusal, require, require_count, require_positive

Found = TypeVar("Found")
POLL = 2.0  # seconds between two looks at the workdir
BEAT = 5.0  # seconds between two signs of life
ALIVE = "process_0.alive"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a run, seen from one of them; by default it is alone.

    Attributes:
        index: number of this process, from 0.
        count: number of processes that were started together.
        seconds: how long process 0, or a process that has claimed shards (evaluation/store/claims.py), may
            give no sign of life before it is taken for dead. By default an NFS client may believe for up to
            60 s what it last saw of a file or folder, so on NFS this has to be longer.
        workdir: the folder that they share, set by ``at``.

    Example:
        >>> with ALONE.at("runs/example") as processes:
        ...     processes.name, processes.is_first
        ('process 0 of 1', True)
    """

    index: int = 0
    count: int = 1
    seconds: float = 0.0
    workdir: epath.PathLike | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process computes the figures and reports them."""
        return self.index == 0

    @property
    def name(self) -> str:
        """As "process 1 of 4", counted from 0."""
        return f"process {self.index} of {self.count}"

    @contextlib.contextmanager
    def at(self, workdir: epath.PathLike) -> Iterator[Processes]:
        """These processes at work on a folder; in it the first shows the others that it is alive.

        Process 0 of several makes the folder, and writes WORKDIR/process_0.alive every few seconds from a
        thread. Process 0 removes the file at the end, also if it is alone: a run of several that was killed
        may have left one.

        Raises:
            OSError: if the folder cannot be made.
        """
        here = dataclasses.replace(self, workdir=workdir)
        if not self.is_first:
            yield here
            return
        path = epath.Path(workdir) / ALIVE
        try:
            with self._shown_alive(path):
                yield here
        finally:
            with contextlib.suppress(Exception):  # a file that stays does no harm
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _shown_alive(self, path: epath.Path) -> Iterator[None]:
        """Keeps writing a file, unless there is no other process to see it."""
        if self.count == 1:
            yield
            return
        make_folder(path.parent)
        ended = threading.Event()

        def beat() -> None:
            while True:
                show_life(path)
                if ended.wait(BEAT):
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def wait_for(self, find: Callable[[], Found | None], *, what: str) -> Found:
        """Waits for something that process 0 makes; to be called within ``at``.

        Args:
            find: gives it, or None while it is not there.
            what: its name, for the message.

        Raises:
            ValueError: if process 0 dies first: if it gives no sign of life for ``seconds``.
            OSError: if the workdir cannot be read.
        """
        assert self.workdir is not None, "wait_for is for processes within at"
        path = epath.Path(self.workdir) / ALIVE
        sign, since = version(path), time.monotonic()
        while (found := find()) is None:
            last, sign = sign, version(path) or sign  # an absent file is no sign of life
            if sign != last:
                since = time.monotonic()
            elif time.monotonic() - since > self.seconds:
                raise ValueError(
                    f"{self.name}: process 0 has ended without {what} (no sign of life for "
                    f"{self.seconds:g} s). Its own messages say why. All samples are kept: start all "
                    "processes with the same command again to resume"
                )
            time.sleep(POLL)
        return found


ALONE = Processes()


def connect(
    *, coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: float
) -> Processes:
    """Finds the other processes; to be called before anything is computed with JAX.

    Args:
        coordinator: HOST:PORT of process 0, with a free port of its host.
        num_processes: number of processes.
        process_id: number of this process, from 0. All three are None if JAX is to find them by itself, on a
            TPU pod or under Slurm or MPI.
        seconds: how long to wait for the others. Then the program ends with a message and status 2: JAX would
            abort it without saying what to do.

    Raises:
        ValueError: for arguments that do not go together, or if JAX finds no cluster.
    """
    require_positive(**{"--connect_seconds": seconds})
    flags = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    absent = [flag for flag, value in flags.items() if value is None]
    require(
        len(absent) in (0, len(flags)),
        ", ".join(flag for flag in flags if flag not in absent),
        tuple(value for value in flags.values() if value is not None),
        f"given together with {', '.join(absent)}",
        f"add {', '.join(absent)}, or use --multihost alone",
    )
    if coordinator is not None and num_processes is not None and process_id is not None:
        host, _, port = coordinator.rpartition(":")
        fix = "write --coordinator=HOST:PORT"
        require(host and port.isdecimal(), "--coordinator", coordinator, "a host and a port", fix)
        require_count(**{"--num_processes": num_processes})
        last = num_processes - 1
        fix = "give every process a number of its own"
        require(0 <= process_id <= last, "--process_id", process_id, f"a number from 0 to {last}", fix)
        # two services on one port would both seem to start, and take each other's processes
        taken = process_id == 0 and _why_silent(coordinator) is None
        fix = "choose another port, or end the run that uses this one"
        require(not taken, "--coordinator", coordinator, "an address with a free port", fix)
    # a process that dies must not end the service for the others
    jax.config.update("jax_enable_recoverability", True)
    # its handler would keep SIGTERM from ending the process
    jax.config.update("jax_enable_preemption_service", False)
    with _ended_after(seconds, lambda: _why_apart(coordinator, num_processes, seconds)):
        try:
            jax.distributed.initialize(
                coordinator, num_processes, process_id, initialization_timeout=2 * round(seconds) + 60
            )
        except (ValueError, RuntimeError) as error:
            raise ValueError(_why_refused(coordinator, error)) from None
        jax.devices()  # each process tells all others of its own here, for the last time
    processes = Processes(index=jax.process_index(), count=jax.process_count(), seconds=seconds)
    if not processes.is_first:  # which keeps JAX's service open, as others may still need it to leave
        jax.distributed.shutdown()
    return processes


@contextlib.contextmanager
def _ended_after(seconds: float, message: Callable[[], str]) -> Iterator[None]:
    """Ends the program with a message if the block takes longer than ``seconds``."""

    def end() -> None:
        print(f"main.py: {message()}", file=sys.stderr, flush=True)
        os._exit(2)  # the main thread is somewhere in JAX, deaf to exceptions

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _why_apart(coordinator: str | None, num_processes: int | None, seconds: float) -> str:
    """Says why the processes have not come together in time."""
    if coordinator is None:
        return refusal(
            "--multihost",
            True,
            f"used by processes that find each other within {seconds:g} s",
            "check that every process of the job runs, and that no firewall or proxy is between them, or "
            "raise --connect_seconds",
        )
    if (silence := _why_silent(coordinator)) is None:
        return refusal(
            "--num_processes",
            num_processes,
            f"the number of processes that reach {coordinator} within {seconds:g} s",
            "start the missing ones, each with a --process_id of its own, or raise --connect_seconds",
        )
    return refusal(
        "--coordinator",
        coordinator,
        f"an address that can be reached within {seconds:g} s",
        f"check that process 0 runs there, that host and port are right, and that no firewall or proxy is "
        f"between, or raise --connect_seconds ({silence})",
    )


def _why_refused(coordinator: str | None, error: Exception) -> str:
    """Says what JAX does not accept."""
    if coordinator is None:
        fix = f"give --coordinator=HOST:PORT --num_processes=N --process_id=I instead ({error})"
        return refusal("--multihost", True, "used on a TPU pod, or under Slurm or MPI", fix)
    fix = f"check that the host is that of process 0, or choose another port ({error})"
    return refusal("--coordinator", coordinator, "an address at which the processes can meet", fix)


def _why_silent(address: str) -> str | None:
    """Says why nobody answers at HOST:PORT; None if somebody does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=POLL).close()
    except (OSError, OverflowError, UnicodeError) as error:
        return str(error)
    return None
