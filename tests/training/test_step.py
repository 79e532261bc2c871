from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import models
from data import batches, datasets
from sde_lib import VPSDE
from tests.training.tiny import tiny_config, tiny_network
from training import settings
from training.step import initial_state, keys, make_step, moving_average, optimizer


def _run(config, steps, state=None):
    """The states after each step, on the host; and the losses."""
    images = datasets.held(datasets.open_images(config.data, config.model.num_classes))
    network = tiny_network(config)
    state = state or initial_state(config.training, network.init(keys(config.seed)[0]))
    step_fn, states, losses = make_step(config, network, VPSDE()), [jax.device_get(state)], []
    for _ in range(steps):
        here: Any = {"seed": config.seed, "batch_size": config.training.batch_size}
        step = int(state.step) + 1
        (batch,) = batches.batches(images, first_step=step, last_step=step, **here)
        classes = batches.batch_labels(images, step=step, **here)
        state, loss = step_fn(state, batch, *([] if classes is None else [classes]))
        states.append(jax.device_get(state))
        losses.append(float(loss))
    return states, losses


def _assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_training_learns():
    _, losses = _run(tiny_config(learning_rate=1e-2), 150)
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:5])


def test_a_step_counts_and_averages_the_weights():
    states, _ = _run(tiny_config(ema_rate=0.75), 6)
    assert [int(state.step) for state in states] == list(range(7))
    for before, after in itertools.pairwise(states):
        expected = jax.tree.map(lambda ema, new: 0.75 * ema + 0.25 * new, before.params_ema, after.params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.params_ema, expected
        )


def test_warm_up_is_linear_from_zero():
    config = tiny_config(warmup_steps=4, learning_rate=1e-3)
    states, _ = _run(config, 1)
    _assert_equal(states[0].params, states[1].params)  # the first step has rate 0
    # Under a constant gradient Adam's every step is its rate.
    params, gradient = {"w": jnp.zeros(())}, {"w": jnp.ones(())}
    transform = optimizer(config.training)
    state, sizes = transform.init(params), []
    for _ in range(6):
        update: Any
        update, state = transform.update(gradient, state)
        sizes.append(-float(update["w"]))
    np.testing.assert_allclose(sizes, 1e-3 * np.array([0, 0.25, 0.5, 0.75, 1, 1]), rtol=1e-4)


def test_gradients_are_clipped_to_their_global_norm():
    transform = optimizer(tiny_config(gradient_clip=0.5).training)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(())}
    gradient = {"a": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}
    state: Any = transform.update(gradient, transform.init(params))[1]
    adam = state[1][0]
    np.testing.assert_allclose(adam.mu["a"], [0.1 * 0.3, 0], rtol=1e-5)  # 5 -> 0.5, and Adam's 1 − 0.9 of it
    np.testing.assert_allclose(adam.mu["b"], 0.1 * 0.4, rtol=1e-5)


def test_going_on_from_a_state_is_the_uninterrupted_run():
    config = tiny_config()
    whole, _ = _run(config, 8)
    resumed, _ = _run(config, 5, state=jax.tree.map(jnp.asarray, whole[3]))
    _assert_equal(resumed[-1], whole[-1])


def _conditional(**changes):
    config = tiny_config(**changes)
    config.model.num_classes = 10
    return config


def test_a_step_of_parts_is_that_of_the_whole_batch():
    config = _conditional()
    config.model.dropout = 0.0  # the parts draw their own
    whole, losses = _run(config, 3)
    config.training.accumulate = 4
    states, parts = _run(config, 3)
    np.testing.assert_allclose(parts, losses, rtol=1e-5)  # float32 sums in another order
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), states[-1].params, whole[-1].params
    )


class Spy(nn.Module):
    """Shows the classes that a network gets."""

    see: Any
    num_classes: int = 10

    def __call__(self, x, label, classes, train):
        jax.debug.callback(lambda classes: self.see(np.asarray(classes)), classes)
        return x


def test_the_share_of_classes_that_is_dropped():
    config, seen = _conditional(label_dropout=0.25, batch_size=1600), []
    network = models.Network(Spy(seen.append), tiny_network(config).reading)  # pyright: ignore[reportArgumentType]
    step_fn = make_step(config, network, VPSDE())
    state = initial_state(config.training, {})
    classes = np.arange(1600, dtype=np.int32) % 10
    for _ in range(2):
        state, _ = step_fn(state, np.zeros((1600, 8, 8, 1), np.uint8), classes)
    jax.effects_barrier()
    dropped = [batch == -1 for batch in seen]
    assert (dropped[0] != dropped[1]).any()
    for batch, gone in zip(seen, dropped, strict=True):
        np.testing.assert_array_equal(batch[~gone], classes[~gone])
        # five standard errors of a share of 1,600
        assert abs(gone.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 1600)


def test_the_average_keeps_its_type():
    with jax.enable_x64(True):
        zero, one = jnp.zeros((), jnp.float32), jnp.ones((), jnp.float32)
        average = moving_average({"w": one}, {"w": zero}, jnp.float64(0.75))["w"]
    assert average.dtype == jnp.float32
    assert average == 0.25


def test_the_average_warms_up():
    states, _ = _run(tiny_config(ema_rate=0.3, ema_warmup=True), 6)
    for n, (before, after) in enumerate(itertools.pairwise(states), start=1):
        rate = min(0.3, (1 + n) / (10 + n))
        expected = jax.tree.map(
            lambda ema, new, rate=rate: rate * ema + (1 - rate) * new, before.params_ema, after.params
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.params_ema, expected
        )


def test_devices_share_a_batch(tmp_path):
    # a process of its own, for there the number of devices can be chosen
    program = """
import sys
import jax, numpy as np
from tests.training.test_step import _conditional, _run
assert jax.device_count() == 4
states, losses = _run(_conditional(accumulate=2), 6)
np.savez(sys.argv[1], *jax.tree.leaves(states[-1].params_ema), losses=losses)
"""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    path, root = tmp_path / "state.npz", Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program, path], check=True, cwd=root, env=environment)
    states, losses = _run(_conditional(accumulate=2), 6)
    with np.load(path) as file:
        # float32 sums in another order, of 16 images and 64 pixels, over six steps
        np.testing.assert_allclose(file["losses"], losses, rtol=1e-5)
        for i, leaf in enumerate(jax.tree.leaves(states[-1].params_ema)):
            np.testing.assert_allclose(file[f"arr_{i}"], leaf, atol=1e-5)


def test_a_batch_that_the_devices_cannot_share_is_refused():
    with pytest.raises(
        ValueError, match=r"config.training.batch_size must be .*the 4 devices \(got 18\): set it to 20"
    ):
        settings.check(tiny_config(batch_size=18), devices=4)
    with pytest.raises(
        ValueError, match=r"config.training.accumulate must be a divisor of 4, .* \(got 3\): choose"
    ):
        settings.check(tiny_config(accumulate=3), devices=4)


def test_seed_and_weighting_reach_the_step():
    config, losses = tiny_config(), set()
    for change in ({}, {"seed": 1}, {"training": {"weighting": "likelihood"}}):
        config.update(change)
        losses.add(_run(config, 1)[1][0])
    assert len(losses) == 3
