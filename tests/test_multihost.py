"""main.py as several processes on loopback, with two virtual devices each, against a single process."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.processes import free_port
from evaluation.store.processes import ALIVE
from tests import commands
from tests.test_main import QUICK, ROOT, TIMES, VE, command, results

NUM_SAMPLES = 52  # the last of 7 shards is half full
SETTINGS = [
    VE,
    *QUICK,
    "--config.eval.shard_size=8",
    "--config.eval.batch_size=16",
    f"--config.eval.num_samples={NUM_SAMPLES}",
]
DEVICES = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
LONGEST = 600  # seconds that any step of these tests may take, also on a busy machine
PATIENT = f"--connect_seconds={LONGEST}"


def start(*arguments: object, log: Path, environment: dict[str, str] | None = None) -> subprocess.Popen:
    variables = {**os.environ, **DEVICES, **(environment or {})}
    with log.open("wb") as file:
        return subprocess.Popen(command(*arguments), cwd=ROOT, env=variables, stdout=file, stderr=file)


def start_together(*arguments: object, count: int, folder: Path) -> list[tuple[subprocess.Popen, Path]]:
    """Processes with the same arguments, each with its log."""
    folder.mkdir(exist_ok=True)
    flags = (f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={count}")
    logs = [folder / f"log{i}" for i in range(count)]
    return [(start(*arguments, *flags, f"--process_id={i}", log=log), log) for i, log in enumerate(logs)]


def finish(*started: tuple[subprocess.Popen, Path], status: int = 0) -> list[str]:
    """The output of each process, once all have ended."""
    for process, log in started:
        assert process.wait(LONGEST) == status, log.read_text()
    return [log.read_text() for _, log in started]


def shards(workdir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in workdir.glob("samples/shard_*.npz")}


def figures(workdir: Path) -> list[dict]:
    """The content of results.jsonl without times, devices, and the commit, which may have changed."""
    others = (*TIMES, "git_commit", "devices")
    return [{key: value for key, value in line.items() if key not in others} for line in results(workdir)]


def check_equal(workdir: Path, alone: Path) -> None:
    assert shards(workdir) == shards(alone)
    assert figures(workdir) == figures(alone)
    assert (workdir / "samples.png").exists()
    assert not list(workdir.glob("samples/*.claim"))
    assert not (workdir / "features").exists()
    assert not (workdir / ALIVE).exists()


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The workdir of a single process."""
    folder = tmp_path_factory.mktemp("alone")
    finish((start(*SETTINGS, f"--workdir={folder}/run", log=folder / "log"), folder / "log"))
    return folder / "run"


def test_two_processes_make_what_one_makes(alone, tmp_path):
    workdir = tmp_path / "run"
    first, second = finish(
        *start_together(*SETTINGS, PATIENT, f"--workdir={workdir}", count=2, folder=tmp_path)
    )
    check_equal(workdir, alone)
    assert results(workdir)[0]["devices"] == "cpu x 4"
    assert "sampling:" in first
    assert "sampling:" not in second  # one progress bar
    assert "FID" in first
    assert f"process 1 of 2 is done; process 0 wrote {workdir}/results.jsonl" in second


@pytest.mark.slow
def test_more_processes_than_samples_end_well(tmp_path):
    settings = [VE, *QUICK, "--mode=sample", "--config.eval.num_samples=1", f"--workdir={tmp_path}/run"]
    _, second = finish(*start_together(*settings, PATIENT, count=2, folder=tmp_path))
    assert "process 1 of 2 is done" in second
    (result,) = results(tmp_path / "run")
    assert result["num_samples"] == 1
    assert list(shards(tmp_path / "run")) == ["shard_000000.npz"]


def test_a_coordinator_that_cannot_be_reached_is_named(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    flags = [f"--coordinator={address}", "--num_processes=2", "--process_id=1", "--connect_seconds=1"]
    log = tmp_path / "log"
    (said,) = finish((start(*SETTINGS, *flags, f"--workdir={tmp_path}/run", log=log), log), status=2)
    last = said.splitlines()[-1]
    assert last.startswith("main.py: --coordinator must be an address that can be reached within 1 s (got ")
    assert f"(got {address!r}): check that process 0 runs there" in last
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--process_id=1"], "--process_id must be given together with --coordinator, --num_processes (got "),
        (
            ["--coordinator=here", "--num_processes=2", "--process_id=0"],
            "--coordinator must be a host and a port (got 'here'): write --coordinator=HOST:PORT",
        ),
        (
            ["--coordinator=here:1", "--num_processes=2", "--process_id=2"],
            "--process_id must be a number from 0 to 1 (got 2): ",
        ),
        (
            ["--multihost", "--mode=train"],
            "--multihost must be absent with --mode=train (got True): drop it, ",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_refused(arguments, message, tmp_path):
    refused = commands.main(VE, *arguments, f"--workdir={tmp_path}/run")
    assert refused.returncode == 2
    assert message in refused.stderr.splitlines()[-1]


def test_two_configs_in_one_workdir_are_refused_by_every_process(alone, tmp_path):
    """The processes find each other by Slurm's variables."""
    before = figures(alone)
    job = {"SLURM_JOB_ID": str(random.randrange(4096)), "SLURM_STEP_NODELIST": "localhost"}
    other = [*SETTINGS, "--config.solver.num_steps=6", f"--workdir={alone}", PATIENT, "--multihost"]
    started = []
    for i in ("0", "1"):
        task = {"SLURM_NTASKS": "2", "SLURM_PROCID": i, "SLURM_LOCALID": i}
        started.append((start(*other, log=tmp_path / i, environment=job | task), tmp_path / i))
    for said in finish(*started, status=2):
        assert "choose another workdir, or set back config.solver.num_steps = 6 (there 5)" in said
    assert figures(alone) == before


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4, 8])
def test_any_number_of_processes_makes_what_one_makes(alone, tmp_path, count):
    """Eight processes are more than there are shards."""
    workdir = tmp_path / "run"
    finish(*start_together(*SETTINGS, PATIENT, f"--workdir={workdir}", count=count, folder=tmp_path))
    check_equal(workdir, alone)


@pytest.mark.slow
def test_every_sample_has_its_class_in_whatever_process_it_is_drawn(tmp_path):
    guided = ["--config=configs/vp/digits_classes.py", *SETTINGS[1:], "--config.guidance.scale=2.0"]
    log = tmp_path / "log"
    finish((start(*guided, f"--workdir={tmp_path}/alone", log=log), log))
    finish(*start_together(*guided, PATIENT, f"--workdir={tmp_path}/run", count=4, folder=tmp_path))
    check_equal(tmp_path / "run", tmp_path / "alone")


@pytest.mark.slow
def test_without_their_first_process_the_others_finish_the_samples_and_exit(alone, tmp_path):
    workdir, settings = tmp_path / "run", [*SETTINGS, "--connect_seconds=60", f"--workdir={tmp_path}/run"]
    (first, _), *others = start_together(*settings, count=3, folder=tmp_path)
    wait_for_files(workdir, 1, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    for said in finish(*others, status=2):
        assert f"process 0 has ended without a result in {workdir}/results.jsonl" in said.splitlines()[-1]
    assert shards(workdir) == shards(alone)
    finish(*start_together(*settings, count=2, folder=tmp_path / "again"))
    check_equal(workdir, alone)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_kill_of_one_of_four_processes_changes_nothing(alone, tmp_path, seed):
    """Any process, at any moment of the sampling or the features; resumed by another number of processes."""
    rng = random.Random(seed)
    workdir, killed = tmp_path / "run", rng.randrange(4)
    settings = [*SETTINGS, "--connect_seconds=60", f"--workdir={workdir}"]
    started = start_together(*settings, count=4, folder=tmp_path)
    wait_for_files(workdir, rng.randint(0, 14), started[killed][0])
    time.sleep(rng.uniform(0, 1))
    started[killed][0].send_signal(signal.SIGKILL)
    started[killed][0].wait()
    # the others continue, or exit with a message; JAX aborts them if process 0 dies while they connect
    for process, log in started:
        assert process.wait(LONGEST) in (0, 2, -signal.SIGABRT, -signal.SIGKILL), log.read_text()
    finish(*start_together(*settings, count=rng.randint(1, 4), folder=tmp_path / "again"))
    check_equal(workdir, alone)


def wait_for_files(workdir: Path, number: int, process: subprocess.Popen) -> None:
    """Waits until there are so many shards of samples and features together, or the process is done."""
    deadline = time.monotonic() + LONGEST
    while process.poll() is None:
        found = [*workdir.glob("samples/shard_*.npz"), *workdir.glob("features/*/shard_*.npz")]
        if len(found) >= number:
            return
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.wait() == 0
