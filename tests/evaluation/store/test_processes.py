"""Processes that wait for the first one: its sign of life, and what they do without it."""

import threading
import time
from collections.abc import Hashable

import pytest
from etils import epath

from evaluation.store import files, processes
from evaluation.store.processes import ALIVE, ALONE, Processes

FIRST, SECOND = (Processes(index=index, count=2, seconds=50.0) for index in (0, 1))


@pytest.fixture
def clock(monkeypatch):
    """A clock that only ``time.sleep`` advances; a list of functions to be called at each sleep."""
    now, at_sleep = 1000.0, []

    def sleep(seconds):
        nonlocal now
        now += seconds
        for call in at_sleep:
            call(now - 1000.0)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    return at_sleep


def wait_for_nothing(folder) -> str:
    """The message with which a process that waits in vain gives up."""
    with SECOND.at(folder) as second, pytest.raises(ValueError, match="process 0 has ended") as caught:
        second.wait_for(lambda: None, what="a result")
    return str(caught.value)


def test_a_process_alone_has_neither_a_thread_nor_a_file(tmp_path):
    threads = threading.active_count()
    with ALONE.at(tmp_path / "run") as alone:
        assert (alone.index, alone.count, alone.is_first, alone.seconds) == (0, 1, True, 0.0)
        assert threading.active_count() == threads
    assert not (tmp_path / "run").exists()


def test_the_first_process_shows_that_it_is_alive_while_it_works(folder, monkeypatch):
    monkeypatch.setattr(processes, "BEAT", 0.01)
    path, deadline = folder / "run" / ALIVE, time.monotonic() + 60
    versions: set[Hashable] = {None}

    def work():
        with FIRST.at(folder / "run"):
            while len(versions) < 3:  # on the store a version holds for a second
                assert time.monotonic() < deadline
                versions.add(files.version(path))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not path.exists()
    time.sleep(0.1)  # and nothing writes it any more
    assert not path.exists()


def test_a_sign_of_life_of_a_killed_run_goes_with_the_run_that_ends_it(folder):
    (folder / ALIVE).write_text("host.1")
    with SECOND.at(folder):
        pass
    assert (folder / ALIVE).exists()
    with ALONE.at(folder):
        pass
    assert not (folder / ALIVE).exists()


def test_only_the_first_process_writes(tmp_path):
    with SECOND.at(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


def test_what_is_there_already_is_not_waited_for(tmp_path, clock):
    clock.append(lambda seconds: pytest.fail("it slept"))
    with SECOND.at(tmp_path) as second:
        assert second.wait_for(lambda: "found", what="a result") == "found"


def test_who_waits_does_so_as_long_as_the_first_process_shows_life(folder, clock):
    slept = []

    def beat(seconds):
        slept.append(seconds)
        if seconds < 420 and len(slept) % 10 == 1:  # every 20 s
            (folder / ALIVE).write_text("." * len(slept))

    clock.append(beat)
    with SECOND.at(folder) as second:
        assert second.wait_for(lambda: slept[-1] if slept and slept[-1] > 440 else None, what="x") == 442
    del slept[:]
    clock[:] = [slept.append]
    message = wait_for_nothing(folder)
    assert message.startswith(
        "process 1 of 2: process 0 has ended without a result (no sign of life for 50 s)"
    )
    assert "same command again" in message


@pytest.mark.parametrize("left", [True, False])
def test_a_first_process_that_never_shows_life_is_taken_for_dead(folder, clock, left):
    """Also if an earlier run, which was killed, left its file."""
    if left:
        (folder / ALIVE).write_text("host.1")
    slept = []
    clock.append(slept.append)
    wait_for_nothing(folder)
    assert 50 < slept[-1] - slept[0] + processes.POLL <= 50 + 2 * processes.POLL


def test_a_first_process_that_ends_removes_its_file_and_is_then_silent(folder, clock):
    slept = []

    def end(seconds):
        slept.append(seconds)
        if len(slept) == 10:
            (folder / ALIVE).write_text("host.1")
        if len(slept) == 12:
            epath.Path(folder / ALIVE).unlink()

    clock.append(end)
    wait_for_nothing(folder)
    assert 70 < slept[-1] <= 70 + 2 * processes.POLL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seconds": 0.0}, "--connect_seconds must be a number > 0"),
        ({"num_processes": 2}, r"--num_processes must be given together with --coordinator, --process_id"),
        (
            {"coordinator": "here", "num_processes": 2, "process_id": 0},
            "--coordinator must be a host and a port",
        ),
        (
            {"coordinator": "here:1", "num_processes": 0, "process_id": 0},
            "--num_processes must be a whole number",
        ),
        (
            {"coordinator": "here:1", "num_processes": 2, "process_id": 2},
            "--process_id must be a number from 0 to 1",
        ),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments, message):
    given = {"coordinator": None, "num_processes": None, "process_id": None, "seconds": 50.0} | arguments
    with pytest.raises(ValueError, match=message):
        processes.connect(**given)
