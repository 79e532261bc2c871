from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import training
from tests.training.tiny import tiny_config, tiny_network
from training import state_files
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
    ],
)
def test_settings_out_of_range_are_refused_before_any_work(name, value, allowed, tmp_path):
    with pytest.raises(ValueError, match=rf"config.training.{name} must be {allowed} \(got {value}\): set "):
        _train(tmp_path / "new", tiny_config(**{name: value}))
    assert not (tmp_path / "new").exists()


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
