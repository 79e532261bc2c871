"""The training state, and the compiled step that advances it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from data import batches
from models import Network
from models.layers import AnyArray
from sde_lib import SDE
from sde_lib.pytrees import register_dataclass
from training.losses import score_matching_loss, weight_named

Params = Any
Step = Callable[["TrainState", UInt8[AnyArray, "b h w c"]], tuple["TrainState", Float[Array, ""]]]

# Keeps the random numbers of training apart from those of sample i, whose key is fold_in(key(seed), i).
_STREAM = 0x7472_6169


@register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training carries from one step to the next; config and data determine the rest.

    Attributes:
        step: number of steps taken.
        params: the weights that the optimizer updates.
        params_ema: their exponential moving average, which sampling uses.
        opt_state: the state of the optax optimizer.
    """

    step: Any  # int32 scalar; untyped, since JAX's transformations put other leaves in its place
    params: Params
    params_ema: Params
    opt_state: Any


def keys(seed: int) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """The key of the initial weights, and the root key of the steps: step n uses fold_in(root, n)."""
    init_key, step_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), _STREAM))
    return init_key, step_key


def optimizer(training: Any) -> optax.GradientTransformation:
    """Adam with a linear warm-up from 0, on gradients clipped to a global norm.

    Args:
        training: the group ``config.training``.
    """
    warmup = optax.linear_schedule(0.0, training.learning_rate, max(training.warmup_steps, 1))
    return optax.chain(optax.clip_by_global_norm(training.gradient_clip), optax.adam(warmup))


def over_devices(*axes: str) -> NamedSharding:
    """Arrays on all devices: a copy on each; or, for the axis "device", a part of the first dimension."""
    return NamedSharding(Mesh(np.array(jax.devices()), ("device",)), PartitionSpec(*axes))


def initial_state(training: Any, params: Params) -> TrainState:
    """The state before the first step.

    Args:
        training: the group ``config.training``.
        params: the initial weights.
    """
    return TrainState(
        step=jax.numpy.zeros((), jax.numpy.int32),
        params=params,
        # A copy, since the step donates its input and no buffer can be donated twice.
        params_ema=jax.tree.map(jax.numpy.copy, params),
        opt_state=optimizer(training).init(params),
    )


def make_step(config: Any, network: Network, sde: SDE) -> Step:
    """The compiled step (state, images [b, h, w, c] of grey levels 0..255) -> (state, loss).

    Every device computes the gradient of its part of the batch. The random numbers of an image do not depend
    on its device. The state, a copy on each device, is donated: one that was passed in is no longer valid.

    Raises:
        ValueError: for a weighting of the loss that does not exist or does not fit the network.
    """
    _, step_key = keys(config.seed)
    transform = optimizer(config.training)
    try:
        weight = weight_named(config.training.weighting, sde, network.reading.sigma_data)
    except ValueError as error:
        raise ValueError(f"config.training.{error}") from None

    def step(state: TrainState, images: UInt8[Array, "b h w c"]) -> tuple[TrainState, Float[Array, ""]]:
        data_key, loss_key, dropout_key = jax.random.split(jax.random.fold_in(step_key, state.step), 3)
        x0 = batches.prepare(data_key, images, config.data)

        def loss_of(params: Params) -> Float[Array, ""]:
            score_fn = functools.partial(network.score, sde, params, dropout_key=dropout_key)
            return score_matching_loss(score_fn, sde, loss_key, x0, weight=weight)

        loss, gradient = jax.value_and_grad(loss_of)(state.params)
        updates, opt_state = transform.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params_ema = optax.incremental_update(params, state.params_ema, 1 - config.training.ema_rate)
        return TrainState(state.step + 1, params, params_ema, opt_state), loss

    shardings = over_devices(), over_devices("device")
    return jax.jit(step, donate_argnums=0, in_shardings=shardings, out_shardings=over_devices())
