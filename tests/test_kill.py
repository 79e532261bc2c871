"""main.py killed by SIGKILL at random moments, and started again until it is done."""

import contextlib
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.test_main import ROOT, TIMES, VE, command, results

NUM_SAMPLES = 140  # the last shard is half full
SHARDS = 18
SETTINGS = [
    VE,
    "--config.solver.eps_rel=0.5",
    "--config.eval.batch_size=16",
    "--config.eval.shard_size=8",
    f"--config.eval.num_samples={NUM_SAMPLES}",
]
LONGEST = 600  # seconds that any step of these tests may take, also on a busy machine


class Whole(NamedTuple):
    """An uninterrupted run, with the seconds from its first shard to its last, and then to its result."""

    workdir: Path
    sampling: float
    evaluating: float


def start(workdir: Path, log: Path) -> subprocess.Popen:
    with log.open("ab") as file:
        return subprocess.Popen(
            command(*SETTINGS, f"--workdir={workdir}"), cwd=ROOT, stdout=file, stderr=file
        )


def finish(process: subprocess.Popen, log: Path) -> None:
    assert process.wait(LONGEST) == 0, log.read_text()


def shards(workdir: Path) -> dict[str, tuple[int, int]]:
    """The shards that are there, each with a value that changes if it is written again."""
    found = {path.name: path.stat() for path in workdir.glob("samples/shard_*.npz")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def wait_for_shards(process: subprocess.Popen, workdir: Path, number: int, log: Path) -> None:
    deadline = time.monotonic() + LONGEST
    while len(shards(workdir)) < number:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def figures(workdir: Path) -> list[dict]:
    """The content of results.jsonl without times, and the commit, which may have changed."""
    return [
        {key: value for key, value in line.items() if key not in (*TIMES, "git_commit")}
        for line in results(workdir)
    ]


def check_sampled(log: Path, there: Iterable[str]) -> None:
    """Checks that a process's progress bar counted just the samples that were missing at its start."""
    sizes = [min(8, NUM_SAMPLES - 8 * int(name[len("shard_") : -len(".npz")])) for name in there]
    lacking = {str(NUM_SAMPLES - sum(sizes))} - {"0"}
    assert set(re.findall(r"/(\d+) \[", log.read_text())) == lacking


def contents(workdir: Path) -> dict[str, bytes]:
    return {name: (workdir / "samples" / name).read_bytes() for name in shards(workdir)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    workdir, log = folder / "run", folder / "log"
    finish(start(workdir, log), log)
    written = [time_ns / 1e9 for _, time_ns in shards(workdir).values()]
    assert len(written) == SHARDS
    return Whole(
        workdir=workdir,
        sampling=max(written) - min(written),
        evaluating=(workdir / "results.jsonl").stat().st_mtime - max(written),
    )


def check_killed_runs(whole: Whole, folder: Path, *, seed: int, kills: tuple[str, ...]) -> None:
    """Kills while sampling and while evaluating leave the result that a run without kills has."""
    rng = random.Random(seed)
    workdir = folder / "run"
    kept: dict[str, tuple[int, int]] = {}
    for number, kill in enumerate(kills):
        log = folder / f"log{number}"
        process = start(workdir, log)
        if kill == "sampling":  # when about a third of the missing shards, at most, are there
            wait_for_shards(process, workdir, len(kept) + rng.randint(1, (SHARDS - len(kept)) // 3), log)
            time.sleep(rng.uniform(0, whole.sampling / SHARDS))
        else:
            wait_for_shards(process, workdir, SHARDS, log)
            time.sleep(rng.uniform(0, whole.evaluating / 2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert kept.items() <= shards(workdir).items()  # complete shards are not written again
        assert len(shards(workdir)) > len(kept)
        check_sampled(log, kept)
        kept = shards(workdir)
        assert (len(kept) < SHARDS) == (kill == "sampling")
        # turns a kill that came too late into one just before the result was written
        (workdir / "results.jsonl").unlink(missing_ok=True)
    log = folder / "log"
    finish(start(workdir, log), log)
    check_sampled(log, kept)
    assert shards(workdir) == kept
    assert contents(workdir) == contents(whole.workdir)
    assert figures(workdir) == figures(whole.workdir)
    assert not (workdir / "features").exists()


def test_a_run_killed_twice_ends_like_one_that_was_not(whole, tmp_path):
    check_killed_runs(whole, tmp_path, seed=0, kills=("sampling", "evaluating"))


@pytest.mark.slow
def test_two_processes_share_a_workdir_and_one_is_killed(whole, tmp_path):
    workdir = tmp_path / "run"
    logs = [tmp_path / "first", tmp_path / "second"]
    first, second = (start(workdir, log) for log in logs)
    owners = set()
    while len(shards(workdir)) < SHARDS // 2 or len(owners) < 2:
        assert first.poll() is None, logs[0].read_text()
        assert second.poll() is None, logs[1].read_text()
        for claim in workdir.glob("samples/*.claim"):
            with contextlib.suppress(FileNotFoundError):  # the shard is complete by now
                owners |= {claim.read_text()} - {""}
        time.sleep(0.01)
    kept = shards(workdir)
    first.send_signal(signal.SIGKILL)
    first.wait()
    finish(second, logs[1])
    assert kept.items() <= shards(workdir).items()
    assert contents(workdir) == contents(whole.workdir)
    assert figures(workdir) == figures(whole.workdir)
    assert not list(workdir.glob("samples/*.claim"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 8))  # three kills each
def test_a_run_killed_twenty_times_ends_like_one_that_was_not(whole, tmp_path, seed):
    check_killed_runs(whole, tmp_path, seed=seed, kills=("sampling", "sampling", "evaluating"))
