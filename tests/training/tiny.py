"""A network of one layer, for tests of the training loop that should not wait for compilers.

``python -m tests.training.tiny WORKDIR`` trains it, for a test that kills it.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.tree_util import Partial

import models
from configs.vp.digits_adaptive import get_config
from training import loop


class TinyNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, label: jax.Array, *, train: bool = False) -> jax.Array:
        pixels = x.reshape(len(x), -1)
        features = jnp.concatenate([pixels, label[:, None] / 999, jnp.sin(label[:, None])], axis=1)
        features = nn.Dropout(0.1)(features, deterministic=not train)
        return nn.Dense(pixels.shape[1])(features).reshape(x.shape)


def init_params(config: Any, key: jax.Array) -> Any:
    size = config.data.image_size
    return TinyNet().init(key, jnp.zeros((1, size, size, config.data.num_channels)), jnp.zeros(1))["params"]


def score_fn(config: Any, sde: Any, params: Any) -> Partial:
    def score(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        def network(x: jax.Array, label: jax.Array) -> Any:
            return TinyNet().apply({"params": params}, x, label)

        return models.score_of_network(network, sde, config.model.sigma_data, x, t)

    return Partial(score, params)


# What the loop asks of ``models``
tiny_models = SimpleNamespace(build=lambda config: TinyNet(), init_params=init_params, score_fn=score_fn)


def tiny_config(**training: Any) -> Any:
    config: Any = get_config()
    config.training.update(
        {"batch_size": 16, "warmup_steps": 4, "log_every": 3, "snapshot_every": 10} | training
    )
    return config


if __name__ == "__main__":
    loop.models = tiny_models
    loop.train(tiny_config(num_steps=40, checkpoint_every=4), sys.argv[1], command="test", progress=False)
