"""The training state and the compiled step that moves it on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

import models
from data import batches
from models.layers import AnyArray
from sde_lib import SDE
from sde_lib.pytrees import register_dataclass
from training.losses import score_matching_loss, weight_named

Params = Any
Step = Callable[["TrainState", UInt8[AnyArray, "b h w c"]], tuple["TrainState", Float[Array, ""]]]

# Training's randomness branches off here, apart from that of sample i, which is fold_in(key(seed), i).
_STREAM = 0x7472_6169


@register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training carries from step to step; with the config and the data it determines the rest.

    Attributes:
        step: steps taken.
        params: the weights that the optimizer moves.
        params_ema: their exponential moving average, which is what samples are made with.
        opt_state: optax's.
    """

    step: Any  # int32 scalar; untyped, since JAX puts other leaves in its place
    params: Params
    params_ema: Params
    opt_state: Any


def keys(seed: int) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """The key of the initial weights, and the root of the steps' keys: step n uses fold_in(root, n)."""
    init_key, step_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), _STREAM))
    return init_key, step_key


def optimizer(training: Any) -> optax.GradientTransformation:
    """Adam with a linear warm-up from 0, and gradients clipped to a global norm."""
    warmup = optax.linear_schedule(0.0, training.learning_rate, max(training.warmup_steps, 1))
    return optax.chain(optax.clip_by_global_norm(training.gradient_clip), optax.adam(warmup))


def over_devices(*axes: str) -> NamedSharding:
    """Arrays on all devices: one copy on each, or by "device" in as many parts along their first axis."""
    return NamedSharding(Mesh(np.array(jax.devices()), ("device",)), PartitionSpec(*axes))


def initial_state(training: Any, params: Params) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jax.numpy.zeros((), jax.numpy.int32),
        params=params,
        # A copy: the step donates its input, and one buffer cannot be given away twice.
        params_ema=jax.tree.map(jax.numpy.copy, params),
        opt_state=optimizer(training).init(params),
    )


def make_step(config: Any, model: nn.Module, sde: SDE) -> Step:
    """The compiled step (state, grey levels 0..255) -> (state, loss).

    Every device computes the gradient of its part of the batch; the numbers drawn for an image do not depend
    on where it is. The state, a copy on each device, is donated: keep none that went in.
    """
    _, step_key = keys(config.seed)
    transform = optimizer(config.training)
    weight = weight_named(config.training.weighting, sde, config.model.sigma_data)

    def step(state: TrainState, images: UInt8[Array, "b h w c"]) -> tuple[TrainState, Float[Array, ""]]:
        data_key, loss_key, dropout_key = jax.random.split(jax.random.fold_in(step_key, state.step), 3)
        x0 = batches.prepare(data_key, images, config.data)

        def loss_of(params: Params) -> Float[Array, ""]:
            def network(x: Array, label: Array) -> Any:
                return model.apply({"params": params}, x, label, train=True, rngs={"dropout": dropout_key})

            def score_fn(x: Array, t: Array) -> Array:
                return models.score_of_network(network, sde, config.model.sigma_data, x, t)

            return score_matching_loss(score_fn, sde, loss_key, x0, weight=weight)

        loss, gradient = jax.value_and_grad(loss_of)(state.params)
        updates, opt_state = transform.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params_ema = optax.incremental_update(params, state.params_ema, 1 - config.training.ema_rate)
        return TrainState(state.step + 1, params, params_ema, opt_state), loss

    shardings = over_devices(), over_devices("device")
    return jax.jit(step, donate_argnums=0, in_shardings=shardings, out_shardings=over_devices())
