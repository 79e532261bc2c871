"""A network of one layer, for tests of the training loop that should not wait for compilers.

``python -m tests.training.tiny WORKDIR`` trains it, for a test that kills it.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

import models
import training
from configs.vp.digits_adaptive import get_config


class TinyNet(nn.Module):
    image_size: int
    num_channels: int

    @nn.compact
    def __call__(self, x: jax.Array, label: jax.Array, *, train: bool = False) -> jax.Array:
        pixels = x.reshape(len(x), -1)
        features = jnp.concatenate([pixels, label[:, None] / 999, jnp.sin(label[:, None])], axis=1)
        features = nn.Dropout(0.1)(features, deterministic=not train)
        return nn.Dense(pixels.shape[1])(features).reshape(x.shape)


def tiny_network(config: Any) -> models.Network:
    """Takes the place of ``models.build``."""
    module: Any = TinyNet(config.data.image_size, config.data.num_channels)
    return models.Network(module, config.model.sigma_data)


def tiny_config(**settings: Any) -> Any:
    config: Any = get_config()
    config.training.update(
        {"batch_size": 16, "warmup_steps": 4, "log_every": 3, "snapshot_every": 10} | settings
    )
    return config


if __name__ == "__main__":
    models.build = tiny_network
    training.train(tiny_config(num_steps=40, checkpoint_every=4), sys.argv[1], command="test", progress=False)
