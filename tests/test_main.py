"""main.py as users run it: every refusal says what, the value, what was allowed and the fix."""

import gzip
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests import commands

ROOT = Path(__file__).resolve().parent.parent
VE = "--config=configs/ve/digits_adaptive.py"
# as quick as a run gets: five steps a sample
QUICK = ["--config.solver.name=euler_maruyama", "--config.solver.num_steps=5", "--config.eval.shard_size=16"]
TIMES = ("samples_per_second", "seconds_compile", "lane_utilization")
CACHE = f"--config.compilation_cache={ROOT / '.cache' / 'jax'}"  # that of the tests themselves


def command(*arguments: object) -> list[str]:
    """For a process that a test ends."""
    return [sys.executable, "main.py", *map(str, arguments), CACHE]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return commands.main(*arguments, *([CACHE] if VE in arguments else []))


def results(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]


def figures(result: dict) -> dict:
    return {key: value for key, value in result.items() if key not in TIMES}


def test_a_truncated_checkpoint_is_refused(tmp_path):
    shutil.copytree(ROOT / "assets" / "digits_ve", tmp_path / "checkpoint")
    largest = max((tmp_path / "checkpoint").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    content = largest.read_bytes()
    largest.write_bytes(content[: len(content) // 2])
    refused = run(VE, *QUICK, f"--checkpoint={tmp_path}/checkpoint", f"--workdir={tmp_path}/new")
    assert refused.returncode == 2
    refusal = refused.stderr.splitlines()[-1]
    assert "checkpoint must be a whole folder" in refusal
    assert f"(got '{tmp_path}/checkpoint')" in refusal
    assert "Traceback" not in refused.stderr


def test_a_checkpoint_that_states_its_network_needs_no_config(tmp_path):
    given = ["--mode=sample", "--checkpoint=assets/digits_vp", f"--workdir={tmp_path}", CACHE]
    done = run(*given, *QUICK, "--config.eval.num_samples=16")
    assert done.returncode == 0, done.stderr
    assert "assets/digits_vp   euler_maruyama   num_steps 5" in done.stdout
    identity = json.loads((tmp_path / "identity.json").read_text())
    assert (identity["sde.name"], identity["model.sigma_data"], identity["data.name"]) == (
        "vp",
        1.0,
        "digits",
    )


def test_classes_are_drawn_guided_counted_and_kept(tmp_path):
    given = ["--config=configs/vp/digits_classes.py", f"--workdir={tmp_path}", CACHE]
    settings = ["--config.solver.name=ddim", "--config.solver.num_steps=5", "--config.eval.num_samples=32"]
    done = run(*given, *settings, "--config.guidance.scale=1.5", "--config.eval.shard_size=16")
    assert done.returncode == 0, done.stderr
    (result,) = results(tmp_path)
    assert (result["nfe_mean"], result["score_calls_mean"], result["nfe_lockstep"]) == (12, 6, 10)
    assert result["accuracy"] > 0.9
    assert result["guidance.scale"] == 1.5
    with np.load(tmp_path / "samples" / "shard_000001.npz") as shard:
        assert shard["classes"].tolist() == [i % 10 for i in shard["sample_ids"]]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run of 24 samples."""
    folder = tmp_path_factory.mktemp("run")
    done = run(VE, *QUICK, "--config.eval.num_samples=24", f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_leaves_results_samples_and_a_picture(workdir):
    (result,) = results(workdir)
    assert result["num_samples"] == 24
    assert result["nfe_mean"] == result["nfe_max"] == 6
    assert result["nfe_lockstep"] == 5  # the published convention leaves out the denoising
    assert result["failed"] == 0
    assert result["fid"] > 0
    assert result["is_mean"] >= 1
    for key in ("config_hash", "git_commit", "checkpoint_sha256", "features", "devices", "versions"):
        assert key in result
    assert result["lane_utilization"] == 1.0
    assert result["samples_per_second"] > 0
    assert (workdir / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((workdir / "samples").glob("shard_*.npz"))) == 2


def test_a_second_run_computes_nothing(workdir):
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    again = run(VE, *QUICK, "--config.eval.num_samples=24", f"--workdir={workdir}")
    assert again.returncode == 0
    assert "sampling" not in again.stderr
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()} == before


def test_more_samples_add_only_what_is_missing(workdir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    more = run(VE, *QUICK, "--config.eval.num_samples=40", f"--workdir={copy}")
    assert more.returncode == 0, more.stderr
    assert "/16 [" in more.stderr  # the bar of the samples that were missing
    assert [result["num_samples"] for result in results(copy)] == [24, 40]


def test_a_workdir_of_another_config_is_refused(workdir):
    before = results(workdir)
    refused = run(VE, *QUICK, "--config.solver.num_steps=6", f"--workdir={workdir}")
    assert refused.returncode == 2
    assert "choose another workdir, or set back config.solver.num_steps = 6 (there 5)" in refused.stderr
    assert results(workdir) == before


def test_a_disk_that_refuses_a_write_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused = run(VE, *QUICK, "--config.eval.num_samples=24", f"--workdir={tmp_path}/file")
    assert refused.returncode == 2
    assert f"{tmp_path}/file" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr


def test_sample_mode_needs_no_features(tmp_path):
    done = run(VE, *QUICK, "--mode=sample", "--config.eval.num_samples=3", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    (result,) = results(tmp_path)
    assert result["fid"] is None
    assert result["nfe_mean"] == 6


@pytest.mark.slow
def test_a_profile_is_recorded_and_the_run_goes_on(workdir, tmp_path):
    """Also of a run that has all its samples; whose figures and files stay as they were."""
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    done = run(VE, *QUICK, "--config.eval.num_samples=24", "--profile", f"--workdir={copy}")
    assert done.returncode == 0, done.stderr
    (folder,) = (copy / "profile" / "plugins" / "profile").iterdir()
    assert f"xprof --logdir={copy}/profile" in done.stdout
    assert f"{folder}/perfetto_trace.json.gz on https://ui.perfetto.dev" in done.stdout
    (xplane,) = folder.glob("*.xplane.pb")
    assert xplane.stat().st_size > 100_000
    events = json.loads(gzip.decompress((folder / "perfetto_trace.json.gz").read_bytes()))["traceEvents"]
    # of the compiled loop on the devices: its program's name is in no event of the host's alone
    assert any(event.get("args", {}).get("hlo_module") == "jit_run" for event in events)
    assert "| operation " in done.stdout
    assert results(copy) == results(workdir)


@pytest.mark.slow
def test_a_model_is_trained_and_sampled_from(tmp_path):
    training = ["--config.training.num_steps=4", "--config.training.snapshot_every=4"]
    trained = run(VE, "--mode=train", *training, *QUICK, f"--workdir={tmp_path}/train")
    assert trained.returncode == 0, trained.stderr
    checkpoint = trained.stdout.splitlines()[0]
    assert list((tmp_path / "train" / "snapshots").glob("*.png"))
    words = shlex.split(trained.stdout.splitlines()[1].removeprefix("sample from it: "))
    assert words[0] == "python"
    assert words[-1] == f"--checkpoint={checkpoint}"
    assert set(QUICK) < set(words)
    assert not set(training) & set(words)  # sampling refuses them
    sampled = run(*words[2:], "--config.eval.num_samples=24", f"--workdir={tmp_path}/run")
    assert sampled.returncode == 0, sampled.stderr


def test_an_interruption_keeps_what_is_finished_and_has_its_own_status(tmp_path):
    few = ["--config.eval.num_samples=512", "--config.eval.batch_size=16", f"--workdir={tmp_path}"]
    slow = ["--config.solver.name=euler_maruyama", "--config.solver.num_steps=500"]
    process = subprocess.Popen(
        command(VE, *few, *slow, "--config.eval.shard_size=16"),
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        # a shell that runs the tests in the background lets its children ignore interruptions
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.glob("samples/shard_*.npz")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("main.py: interrupted; what is finished is kept, and the same")
    assert "Traceback" not in said
    assert not list(tmp_path.glob("samples/*.claim"))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_a_character_does_not_end_a_run(workdir, encoding):
    again = subprocess.run(
        command(VE, *QUICK, "--config.eval.num_samples=24", f"--workdir={workdir}"),
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert again.returncode == 0, again.stderr
    assert {"ascii": b" ? ", "latin-1": b" \xb1 "}[encoding] in again.stdout
