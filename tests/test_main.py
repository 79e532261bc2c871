"""main.py as users run it: every refusal says what, the value, what was allowed and the fix."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VE = "--config=configs/ve/digits_adaptive.py"
# as quick as a run gets: five steps a sample
QUICK = ["--config.solver.name=euler_maruyama", "--config.solver.num_steps=5", "--config.eval.shard_size=16"]
TIMES = ("samples_per_second", "seconds_compile", "lane_utilization")


def command(*arguments: object) -> list[str]:
    cache = f"--config.compilation_cache={ROOT / '.cache' / 'jax'}"
    return [sys.executable, "main.py", *map(str, arguments), *([cache] if VE in arguments else [])]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command(*arguments), cwd=ROOT, env=environment, capture_output=True, text=True)


def results(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]


def figures(result: dict) -> dict:
    return {key: value for key, value in result.items() if key not in TIMES}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/ve/digit_adaptive.py"], "did you mean configs/ve/digits_adaptive.py?"),
        ([VE, "--config.solver.eps_rell=0.1"], 'Did you mean "eps_rel" instead of "eps_rell"?'),
        ([VE, "--config.solver.eps_rel=small"], "--config.solver.eps_rel=small: could not convert"),
        ([VE, "--config.eval.num_samples=1.5"], "--config.eval.num_samples=1.5: invalid literal for int()"),
        (
            [VE, "--config.solver.eps_rel=0"],
            "config.solver.eps_rel must be a number > 0 (got 0.0): set",
        ),
        (
            [VE, "--config.eval.num_samples=0"],
            "config.eval.num_samples must be a whole number >= 1 (got 0): set",
        ),
        (
            [VE, "--config.eval.batch_size=-1"],
            "config.eval.batch_size must be a whole number >= 1 (got -1): ",
        ),
        (
            [VE, "--config.sde.sigma_min=9"],
            "config.sde.sigma_min must be a level below sigma_max = 5.0 (got 9.0)",
        ),
        ([VE, "--config.solver.name=adaptiv"], "did you mean 'adaptive'?"),
        (
            [VE, "--mode=evl"],
            "--mode must be one of 'eval', 'sample', 'sweep', 'reproduce', 'stats', 'train', ",
        ),
        (
            [VE, "--mode=stats", "--profile"],
            "--profile must be absent with --mode=stats (got True): drop it, or choose --mode=eval or --mode",
        ),
        ([VE, "extra"], "arguments must be flags only (got ['extra']): "),
        ([VE, "--checkpoint=absent"], "checkpoint = 'absent': there is nothing at"),
        (
            ["--mode=eval"],
            "--config must be a config file of configs/ (got None): add --config=configs/",
        ),
        (
            [VE, "--mode=convert"],
            "--checkpoint must be the checkpoint to convert (got ''): add --checkpoint=PATH",
        ),
        (
            [VE, "--config.solver.name=ddim", "--config.solver.eps_rel=0.9"],
            "config.solver.eps_rel must be None with config.solver.name = 'ddim', which has no such setting "
            "(got 0.9): leave it out, or choose a solver that has it: adaptive, adaptive_exponential",
        ),
        (
            [VE, "--mode=train", "--checkpoint=absent"],
            "--checkpoint must be absent with --mode=train (got 'absent'): drop it, or choose --mode=eval",
        ),
        (
            [VE, "--images=assets", "--num_processes=2"],
            "--images must be without --profile, and measured by one process (got 'assets'): drop",
        ),
        ([VE, "--checkpoint=assets/digits_vp"], "assets/digits_vp"),
        ([VE, "--config.model.nf=32"], "assets/digits_ve"),
    ],
)
def test_bad_input_is_refused_in_a_line(arguments, message, tmp_path):
    refused = run(*arguments, f"--workdir={tmp_path}/new")
    assert refused.returncode == 2
    assert message in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("main.py: ")
    assert "Traceback" not in refused.stderr
    assert not list(tmp_path.glob("new/samples/*"))


def test_a_truncated_checkpoint_is_refused(tmp_path):
    shutil.copytree(ROOT / "assets" / "digits_ve", tmp_path / "checkpoint")
    largest = max((tmp_path / "checkpoint").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    content = largest.read_bytes()
    largest.write_bytes(content[: len(content) // 2])
    refused = run(VE, *QUICK, f"--checkpoint={tmp_path}/checkpoint", f"--workdir={tmp_path}/new")
    assert refused.returncode == 2
    assert f"checkpoint {tmp_path}/checkpoint must be a whole folder" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr


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
    sampled = run(
        VE, *QUICK, f"--checkpoint={checkpoint}", "--config.eval.num_samples=24", f"--workdir={tmp_path}/run"
    )
    assert sampled.returncode == 0, sampled.stderr
