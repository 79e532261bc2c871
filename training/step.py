"""The training state, and the compiled step that advances it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int32, PRNGKeyArray, UInt8

from data import batches
from models import Network
from sde_lib import SDE
from sde_lib.pytrees import register_dataclass
from training.losses import draw, loss_at, weight_named

Params = Any
# (state, images [b, h, w, c]) -> (state, loss); with classes [b] as a third argument if the network has any
Step = Callable[..., tuple["TrainState", Float[Array, ""]]]

# Of the randomness of a step, the key for the classes; the first three numbers are those of split(key, 3)
_CLASSES = 3

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

    That of a class-conditional network is (state, images, classes [b]) -> (state, loss). It replaces the
    share ``label_dropout`` of the classes by −1, for none.

    Every device computes the gradient of its part of the batch. The random numbers of an image do not depend
    on its device, nor, but for the network's dropout, on the number of parts that ``accumulate`` cuts a batch
    into. The state, a copy on each device, is donated: one that was passed in is no longer valid.

    Raises:
        ValueError: for a weighting of the loss that does not exist or does not fit the network.
    """
    _, step_key = keys(config.seed)
    transform = optimizer(config.training)
    try:
        weight = weight_named(config.training.weighting, sde, network.reading.sigma_data)
    except ValueError as error:
        raise ValueError(f"config.training.{error}") from None

    def step(
        state: TrainState,
        images: UInt8[Array, "b h w c"],
        classes: Int32[Array, " b"] | None = None,
    ) -> tuple[TrainState, Float[Array, ""]]:
        key = jax.random.fold_in(step_key, state.step)
        data_key, loss_key, dropout_key = jax.random.split(key, 3)
        x0 = batches.prepare(data_key, images, config.data)
        if classes is not None:
            dropped = jax.random.bernoulli(
                jax.random.fold_in(key, _CLASSES), config.training.label_dropout, classes.shape
            )
            classes = jnp.where(dropped, -1, classes)

        def loss_of(params: Params, part: Any, dropout_key: PRNGKeyArray) -> Float[Array, ""]:
            x0, classes, t, noise = part

            def score_fn(x: Array, t: Array) -> Array:
                return network.score(sde, params, x, t, classes, dropout_key=dropout_key)

            return jnp.mean(loss_at(score_fn, sde, x0, t, noise, weight=weight))

        batch = (x0, classes, *draw(sde, loss_key, x0))
        loss, gradient = _accumulated(
            jax.value_and_grad(loss_of), config.training.accumulate, state.params, batch, dropout_key
        )
        updates, opt_state = transform.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        rate = _ema_rate(config.training, state.step)
        params_ema = moving_average(params, state.params_ema, rate)
        return TrainState(state.step + 1, params, params_ema, opt_state), loss

    parts = 2 if config.model.num_classes else 1  # of a batch: images, and their classes
    shardings = over_devices(), *[over_devices("device")] * parts
    return jax.jit(step, donate_argnums=0, in_shardings=shardings, out_shardings=over_devices())


def _ema_rate(training: Any, step: Int32[Array, ""]) -> Any:
    if not training.ema_warmup:
        return training.ema_rate
    return warmed_up(training.ema_rate, step + 1)


def warmed_up(ema_rate: float, steps: Any) -> Any:
    """The rate of a moving average after so many steps, which at first averages over few."""
    return jnp.minimum(ema_rate, (1 + steps) / (10 + steps))


def moving_average(params: Params, average: Params, rate: Any) -> Params:
    """The average after a step; each array keeps its type, also where the rate has 64 bits."""
    updated = optax.incremental_update(params, average, 1 - rate)
    return jax.tree.map(lambda new, old: new.astype(old.dtype), updated, average)


def _accumulated(
    loss_and_gradient: Callable[..., tuple[Array, Params]],
    number: int,
    params: Params,
    batch: Any,
    dropout_key: PRNGKeyArray,
) -> tuple[Array, Params]:
    """The mean of losses and gradients over parts of a batch, each of which has its own dropout."""
    if number == 1:
        return loss_and_gradient(params, batch, dropout_key)

    def cut(rows: Array) -> Array:
        # Row i goes to part i mod number, so that each device keeps its rows.
        return jnp.moveaxis(rows.reshape(-1, number, *rows.shape[1:]), 1, 0)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, loss_and_gradient(params, *part)), None

    zero = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
    total, _ = jax.lax.scan(add, zero, (jax.tree.map(cut, batch), jax.random.split(dropout_key, number)))
    return jax.tree.map(lambda leaf: leaf / number, total)
