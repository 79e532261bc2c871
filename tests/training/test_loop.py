from __future__ import annotations

import gc
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]

import models
import training
from benchmarks.learning_curve import events as events_of
from evaluation.runs import run
from models import checkpoints
from tests.training.tiny import tiny_config, tiny_network
from training import settings, state_files
from training.step import initial_state

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tiny(monkeypatch):
    """Training uses a network that compiles at once."""
    monkeypatch.setattr(models, "build", tiny_network)


def _train(workdir, config, **options):
    return training.train(config, workdir, command="test", progress=False, **options)


def _state(workdir, config):
    blank = initial_state(config.training, tiny_network(config).init(jax.random.key(9)))
    restored = state_files.restore_newest(workdir / "checkpoints", blank)
    assert restored is not None
    return jax.device_get(restored[0])


def _assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The state after 40 uninterrupted steps."""
    workdir, config = tmp_path_factory.mktemp("whole"), tiny_config(num_steps=40, checkpoint_every=40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "build", tiny_network)
        _train(workdir, config)
    return _state(workdir, config)


def test_a_killed_training_ends_as_the_uninterrupted_one(tiny, tmp_path, whole):
    config = tiny_config(num_steps=40, checkpoint_every=4)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.training.tiny", str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    checkpoints, deadline = tmp_path / "checkpoints", time.monotonic() + 120
    while not list(checkpoints.glob("step_00000008/_CHECKPOINT_METADATA")):
        assert process.poll() is None, "the training ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (checkpoints / "step_00000040").exists()
    _train(tmp_path, config)
    _assert_equal(_state(tmp_path, config), whole)


def test_a_longer_run_goes_on_and_a_finished_one_is_left_alone(tiny, tmp_path, whole):
    _train(tmp_path, tiny_config(num_steps=13, checkpoint_every=5))
    config = tiny_config(num_steps=40, checkpoint_every=30)
    steps = []
    path = _train(tmp_path, config, on_snapshot=lambda step, score_fn: steps.append(step))
    assert steps == [20, 30, 40]
    _assert_equal(_state(tmp_path, config), whole)
    written = path.stat().st_mtime_ns
    assert _train(tmp_path, config, on_snapshot=lambda step, score_fn: steps.append(step)) == path
    assert steps == [20, 30, 40]
    assert path.stat().st_mtime_ns == written


def _tear(checkpoint):
    for file in checkpoint.rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:100])


def test_a_training_of_torn_checkpoints_alone_is_not_started_over(tiny, tmp_path):
    _train(tmp_path, tiny_config(num_steps=5))
    _tear(tmp_path / "checkpoints" / "step_00000005")
    message = (
        r"can be resumed \(got .*choose another workdir, or remove .*checkpoints to start over, "
        "since none of the 1 checkpoints there can be read"
    )
    with pytest.raises(ValueError, match=message):
        _train(tmp_path, tiny_config(num_steps=9))
    assert (tmp_path / "checkpoints" / "step_00000005").exists()


def test_a_torn_checkpoint_is_skipped_with_a_message(tiny, tmp_path, whole, capsys):
    _train(tmp_path, tiny_config(num_steps=20, checkpoint_every=10))
    torn = tmp_path / "checkpoints" / "step_00000020"
    _tear(torn)
    config = tiny_config(num_steps=40, checkpoint_every=10)
    steps = []
    _train(tmp_path, config, on_snapshot=lambda step, score_fn: steps.append(step))
    assert f"skipping checkpoint {torn}, which cannot be read: " in capsys.readouterr().out
    assert steps == [20, 30, 40]
    _assert_equal(_state(tmp_path, config), whole)


def test_what_a_training_leaves(tiny, tmp_path):
    scores = []

    def on_snapshot(step, score_fn):
        scores.append(score_fn(jnp.zeros((2, 8, 8, 1)), jnp.full(2, 0.5)))

    config = tiny_config(num_steps=10, checkpoint_every=2)
    path = _train(tmp_path, config, on_snapshot=on_snapshot)
    assert path == tmp_path / "checkpoint"
    assert [folder.name for folder in sorted((tmp_path / "checkpoints").iterdir())] == [
        f"step_{step:08d}" for step in (6, 8, 10)
    ]
    assert scores[0].shape == (2, 8, 8, 1)
    metadata = json.loads((path / "metadata" / "metadata").read_text())
    assert (metadata["step"], metadata["command"], metadata["sde"]["name"]) == (10, "test", "vp")
    assert 0 < metadata["loss"] < 10
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()
    assert b"images_per_second" in events.read_bytes()


def test_the_bar_shows_loss_and_rate(tiny, tmp_path, capsys):
    training.train(tiny_config(num_steps=3, checkpoint_every=3), tmp_path, command="test")
    bar = capsys.readouterr().err
    assert "3/3" in bar
    assert "loss " in bar
    assert "images/s" in bar


def test_a_training_killed_before_its_last_file_makes_it(tiny, tmp_path):
    config = tiny_config(num_steps=5)
    metadata = _train(tmp_path, config) / "metadata" / "metadata"
    before = metadata.read_text()
    shutil.rmtree(tmp_path / "checkpoint")
    _train(tmp_path, config)
    assert metadata.read_text() == before
    # killed when it went on for longer, and the file is still that of the first steps
    shutil.copytree(tmp_path / "checkpoint", tmp_path / "first")
    _train(tmp_path, tiny_config(num_steps=6))
    shutil.rmtree(tmp_path / "checkpoint")
    (tmp_path / "first").rename(tmp_path / "checkpoint")
    _train(tmp_path, tiny_config(num_steps=6))
    assert json.loads(metadata.read_text())["step"] == 6


def test_other_images_of_the_same_name_are_refused(tiny, tmp_path):
    path, workdir = tmp_path / "mine.npz", tmp_path / "training"
    config = tiny_config(num_steps=1)
    config.data.update({"name": "mine", "path": str(path)})
    np.savez(path, images=np.full((4, 8, 8, 1), 128, np.uint8))
    _train(workdir, config)
    identity = json.loads((workdir / "training.json").read_text())
    np.savez(path, images=np.full((4, 8, 8, 1), 64, np.uint8))
    config.training.num_steps = 2
    with pytest.raises(ValueError, match=r"set back images_sha256 = '[0-9a-f]{64}' \(there '[0-9a-f]{64}'\)"):
        _train(workdir, config)
    # a training of an earlier version does not say what its images were
    del identity["images_sha256"]
    (workdir / "training.json").write_text(json.dumps(identity))
    _train(workdir, config)


def test_other_classes_of_the_same_images_are_refused(tiny, tmp_path):
    path, workdir = tmp_path / "mine.npz", tmp_path / "training"
    config = tiny_config(num_steps=1)
    config.data.update({"name": "mine", "path": str(path)})
    config.model.num_classes = 2
    images = np.full((4, 8, 8, 1), 128, np.uint8)
    np.savez(path, images=images, labels=np.array([0, 0, 1, 1]))
    _train(workdir, config)
    np.savez(path, images=images, labels=np.array([0, 1, 0, 1]))
    config.training.num_steps = 2
    with pytest.raises(ValueError, match=r"set back images_sha256 = "):
        _train(workdir, config)


def test_fewer_steps_than_were_made_are_refused(tiny, tmp_path):
    _train(tmp_path, tiny_config(num_steps=5))
    message = (
        r"config.training.num_steps must be at least 5, .* \(got 4\): raise it, or choose another workdir"
    )
    with pytest.raises(ValueError, match=message):
        _train(tmp_path, tiny_config(num_steps=4))


def test_another_configs_workdir_is_refused_and_kept(tiny, tmp_path):
    _train(tmp_path, tiny_config(num_steps=1))
    before = (tmp_path / "training.json").read_text()
    config = tiny_config(num_steps=1, learning_rate=0.5)
    config.seed = 7
    message = (
        r"workdir must be a folder that is new or holds a training of this config .*choose another workdir, "
        r"or set back config.seed = 7 \(there 0\), config.training.learning_rate = 0.5 \(there 0.001\)"
    )
    with pytest.raises(ValueError, match=message):
        _train(tmp_path, config)
    assert (tmp_path / "training.json").read_text() == before
    assert json.loads(before)["training.learning_rate"] == 0.001


@pytest.mark.parametrize("name", ["checkpoint", "checkpoints", "tensorboard", "snapshots"])
def test_files_of_somebody_else_are_not_written_over(name, tiny, tmp_path):
    (tmp_path / name).mkdir()
    message = rf"workdir must be a folder that is new .* a training .*, or move {name} away"
    with pytest.raises(ValueError, match=message):
        _train(tmp_path, tiny_config(num_steps=1))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("batch_size", 0, "a whole number >= 1"),
        ("num_steps", 0, "a whole number >= 1"),
        ("checkpoint_every", 0, "a whole number >= 1"),
        ("snapshot_every", -1, "a whole number >= 1"),
        ("log_every", 0, "a whole number >= 1"),
        ("warmup_steps", -1, "a whole number >= 0"),
        ("learning_rate", 0.0, "a number > 0"),
        ("learning_rate", float("nan"), "a number > 0"),
        ("gradient_clip", -1.0, "a number > 0"),
        ("ema_rate", 1.0, r"a rate in \[0, 1\)"),
        ("ema_rate", -0.1, r"a rate in \[0, 1\)"),
        ("num_steps", None, "a whole number >= 1"),
        ("warmup_steps", None, "a whole number >= 0"),
        ("warmup_steps", 1.5, "a whole number >= 0"),
        ("warmup_steps", True, "a whole number >= 0"),
        ("warmup_steps", np.int32(-1), "a whole number >= 0"),
        ("learning_rate", None, "a number > 0"),
        ("learning_rate", np.float32(-1), "a number > 0"),
        ("gradient_clip", np.float32("nan"), "a number > 0"),
        ("gradient_clip", "1", "a number > 0"),
        ("ema_rate", None, r"a rate in \[0, 1\)"),
        ("ema_rate", np.float32(1), r"a rate in \[0, 1\)"),
        ("ema_warmup", 1, "True or False"),
        ("accumulate", 0, "a whole number >= 1"),
        ("label_dropout", 1.5, r"a share in \[0, 1\]"),
        ("label_dropout", None, r"a share in \[0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused_before_any_work(name, value, allowed, tmp_path):
    config = _with(tiny_config(), name, value)
    message = rf"config.training.{name} must be {allowed} \(got {re.escape(repr(value))}\): set "
    with pytest.raises(ValueError, match=message):
        _train(tmp_path / "new", config)
    assert not (tmp_path / "new").exists()


def _with(config, name, value):
    """The config with a setting of any type, as from a program that does not use ml_collections' checks."""
    loose: Any = ConfigDict(config.to_dict(), type_safe=False)
    loose.training[name] = value
    return loose


def test_settings_may_be_numpys_numbers():
    values = {"warmup_steps": np.int64(0), "learning_rate": np.float32(0.1), "ema_rate": np.float64(0)}
    for name, value in values.items():
        settings.check(_with(tiny_config(), name, value), devices=1)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40])
def test_a_seed_that_jax_would_take_for_another_is_refused(seed, tmp_path):
    config = tiny_config()
    config.seed = seed
    message = rf"config.seed must be a whole number from 0 to 4294967295, .* \(got {seed}\): choose a seed"
    with pytest.raises(ValueError, match=message):
        _train(tmp_path / "new", config)
    with pytest.raises(ValueError, match=message):
        run.prepare(config, name="any")
    assert not (tmp_path / "new").exists()
    config.seed = 2**32 - 1
    settings.check(config, devices=1)


def _averaged(path, config):
    return models.restore_params(path, tiny_network(config), config)[0]


def test_fine_tuning_starts_from_the_averaged_weights(tiny, tmp_path):
    first = _train(tmp_path / "first", tiny_config(num_steps=8, learning_rate=0.01, ema_rate=0.5))
    before = checkpoints.checkpoint_sha256(first)
    config = tiny_config(num_steps=1)
    config.seed = 5
    path = _train(tmp_path / "second", config, checkpoint=first)
    # the warm-up's first step has the learning rate 0, so that the weights are still those of the start
    state, start = _state(tmp_path / "second", config), _averaged(first, config)
    _assert_equal(state.params, start)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state.params_ema, start)
    assert int(state.step) == 1
    metadata = json.loads((path / "metadata" / "metadata").read_text())
    assert metadata["fine_tuned_from"] == {"checkpoint": "checkpoint", "checkpoint_sha256": before}
    assert "fine_tuned_from" not in json.loads((first / "metadata" / "metadata").read_text())
    assert checkpoints.checkpoint_sha256(first) == before


def test_fine_tuning_resumes_with_the_same_checkpoint_alone(tiny, tmp_path):
    first = _train(tmp_path / "first", tiny_config(num_steps=2))
    for workdir, num_steps in (("whole", 6), ("parts", 3), ("parts", 6)):
        _train(tmp_path / workdir, tiny_config(num_steps=num_steps), checkpoint=str(first))
    config = tiny_config(num_steps=6)
    _assert_equal(_state(tmp_path / "whole", config), _state(tmp_path / "parts", config))
    with pytest.raises(ValueError, match=r"set back checkpoint_sha256 = absent \(there '[0-9a-f]{64}'\)"):
        _train(tmp_path / "parts", config)
    assert "checkpoint_sha256" not in json.loads((tmp_path / "first" / "training.json").read_text())
    with pytest.raises(ValueError, match=r"set back checkpoint_sha256 = '[0-9a-f]{64}' \(there absent\)"):
        _train(tmp_path / "first", tiny_config(num_steps=2), checkpoint=first)


def test_a_training_on_classes(tiny, tmp_path):
    def conditional(num_classes):
        config = tiny_config(num_steps=2)
        config.model.num_classes = num_classes
        return config

    scores = []

    def on_snapshot(step, score_fn):
        scores.append(score_fn(jnp.zeros((2, 8, 8, 1)), jnp.full(2, 0.5), jnp.array([0, -1])))

    path = _train(tmp_path / "first", conditional(10), on_snapshot=on_snapshot)
    assert scores[0].shape == (2, 8, 8, 1)
    assert (scores[0][0] != scores[0][1]).any()
    assert json.loads((path / "metadata" / "metadata").read_text())["model"]["num_classes"] == 10
    _train(tmp_path / "second", conditional(10), checkpoint=path)
    with pytest.raises(ValueError, match=r"num_classes"):
        _train(tmp_path / "new", conditional(0), checkpoint=path)
    with pytest.raises(ValueError, match=r"^label of image 9 of digits must be a class from 0 to 8"):
        _train(tmp_path / "new", conditional(9))
    assert not (tmp_path / "new").exists()


def test_a_training_on_rectangles_ends_in_samples_of_their_shape(tiny, tmp_path):
    np.savez(tmp_path / "wide.npz", images=np.full((8, 4, 6, 3), 128, np.uint8))
    config = tiny_config(num_steps=2)
    config.data.update({"name": "wide", "path": str(tmp_path / "wide.npz"), "image_size": 4})
    config.data.update({"image_width": 6, "num_channels": 3})
    config.model.checkpoint = str(_train(tmp_path / "training", config))
    config.solver.update({"name": "unipc", "num_steps": 3})
    config.eval.num_samples = 2
    run.sample_and_evaluate(run.prepare(config, name="wide"), tmp_path / "run", measurement=None)
    (shard,) = (tmp_path / "run" / "samples").glob("shard_*.npz")
    assert np.load(shard)["images"].shape == (2, 4, 6, 3)


def test_a_checkpoint_that_does_not_fit_leaves_no_workdir(tiny, tmp_path):
    first = _train(tmp_path / "first", tiny_config(num_steps=1))
    other = tiny_config()
    other.data.centered = not other.data.centered
    for checkpoint, config in ((first, other), (tmp_path / "absent", tiny_config())):
        with pytest.raises(ValueError, match=r"checkpoint"):
            _train(tmp_path / "new", config, checkpoint=checkpoint)
    assert not (tmp_path / "new").exists()


@pytest.fixture
def limit_files():
    """Sets a size beyond which no file can be written, which ends a write as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_that_cannot_be_written_ends_the_training_in_a_line(
    tiny, tmp_path, whole, limit_files, capfd, caplog
):
    config = tiny_config(num_steps=40, checkpoint_every=10)

    def fill_the_disk(step, score_fn):
        if step == 20:
            limit_files(4096)

    with pytest.raises(OSError, match="cannot write checkpoint") as refused:
        _train(tmp_path, config, on_snapshot=fill_the_disk)
    limit_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    message = str(refused.value)
    assert f"cannot write checkpoint {tmp_path}/checkpoints/step_00000020: File too large; free" in message
    assert message.endswith("Finished work is kept: the same command resumes from it")
    assert "\n" not in message
    finished = (tmp_path / "checkpoints").glob("step_????????")  # threads of orbax may still be writing
    assert [path.name for path in finished] == ["step_00000010"]
    assert capfd.readouterr().err == ""
    assert caplog.text == ""
    _train(tmp_path, config)
    _assert_equal(_state(tmp_path, config), whole)
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))


def test_a_report_that_cannot_be_written_ends_the_training_in_a_line(tiny, tmp_path, limit_files, capfd):
    def fill_the_disk(step, score_fn):
        limit_files(100)

    with pytest.raises(OSError, match=rf"cannot write {tmp_path}/tensorboard/events.*: File too large; free"):
        _train(tmp_path, tiny_config(num_steps=100, checkpoint_every=7), on_snapshot=fill_the_disk)
    limit_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert (tmp_path / "checkpoints" / "step_00000007").exists()
    gc.collect()
    assert capfd.readouterr().err == ""


def test_too_small_a_disk_is_refused_before_the_first_step(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 10))
    with pytest.raises(OSError, match=rf"cannot write {tmp_path}: 0.1 MB are needed, and 0.0 MB are free"):
        _train(tmp_path, tiny_config(num_steps=3))
    assert not (tmp_path / "checkpoints").exists()


def test_tensorboard_shows_every_report_once(tiny, tmp_path):
    for num_steps in (3, 6):
        _train(tmp_path, tiny_config(num_steps=num_steps, checkpoint_every=100))
    first, second = (
        list(events_of(path.read_bytes())) for path in sorted((tmp_path / "tensorboard").iterdir())
    )
    for events, step in ((first, 1), (second, 4)):
        assert (events[0].file_version, events[1].session_log.status) == ("brain.Event:2", SessionLog.START)
        assert [event.step for event in events] == [step, step, step + 2, step + 2]  # the first two purge
        assert [event.summary.value[0].tag for event in events[2:]] == ["loss", "images_per_second"]
        assert 0 < events[2].summary.value[0].simple_value < 10


def test_an_object_store_is_refused():
    with pytest.raises(ValueError, match=r"workdir must be a local folder \(got 'gs://bucket/run'\)"):
        _train("gs://bucket/run", tiny_config())


def test_a_weighting_that_does_not_exist_leaves_no_workdir(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"config.training.weighting must be one of .* \(got 'none'\)"):
        _train(tmp_path / "new", tiny_config(weighting="none"))
    assert not (tmp_path / "new").exists()


def test_a_file_is_no_workdir(tiny, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(
        ValueError, match=r"workdir must be a folder, new or existing \(got .*or remove the file"
    ):
        _train(tmp_path / "file", tiny_config())
    assert (tmp_path / "file").read_text() == "kept"


def test_a_loss_that_is_not_finite_ends_the_training(tiny, tmp_path):
    config = tiny_config(num_steps=30, checkpoint_every=1, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(
        FloatingPointError, match=r"loss at step \d+ must be finite \(got (nan|inf)\): lower config.training"
    ):
        _train(tmp_path, config)
    finite = jax.tree.map(lambda leaf: np.isfinite(leaf).all(), _state(tmp_path, config).opt_state)
    assert all(jax.tree.leaves(finite))


@pytest.mark.slow
def test_a_real_network_goes_on_as_uninterrupted(tmp_path):
    states = []
    for workdir, num_steps in (("whole", 6), ("parts", 3), ("parts", 6)):
        config = tiny_config(num_steps=num_steps)
        config.model.update({"nf": 4, "ch_mult": (1,), "dropout": 0.1})
        params, metadata = models.restore_params(
            _train(tmp_path / workdir, config), models.build(config), config
        )
        assert metadata["step"] == num_steps
        states.append(params)
    _assert_equal(states[0], states[2])
