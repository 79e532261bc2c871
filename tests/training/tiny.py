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
from sde_lib.predictions import Reading


class TinyNet(nn.Module):
    image_size: int
    image_width: int | None
    num_channels: int
    num_classes: int
    dropout: float

    @nn.compact
    def __call__(
        self, x: jax.Array, label: jax.Array, classes: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        pixels = x.reshape(len(x), -1)
        features = jnp.concatenate([pixels, label[:, None] / 999, jnp.sin(label[:, None])], axis=1)
        if classes is not None:
            features = jnp.concatenate([features, jax.nn.one_hot(classes, self.num_classes)], axis=1)
        features = nn.Dropout(self.dropout)(features, deterministic=not train)
        return nn.Dense(pixels.shape[1])(features).reshape(x.shape)


def tiny_network(config: Any) -> models.Network:
    """Takes the place of ``models.build``."""
    data, model = config.data, config.model
    sizes = data.image_size, data.image_width, data.num_channels
    module: Any = TinyNet(*sizes, model.num_classes, model.dropout)
    reading = Reading(prediction="edm", time="published", sigma_data=model.sigma_data)
    return models.Network(module, reading)


def tiny_config(**settings: Any) -> Any:
    config: Any = get_config()
    config.model.dropout = 0.1
    config.training.update(
        {"batch_size": 16, "warmup_steps": 4, "log_every": 3, "snapshot_every": 10} | settings
    )
    return config


if __name__ == "__main__":
    models.build = tiny_network
    training.train(tiny_config(num_steps=40, checkpoint_every=4), sys.argv[1], command="test", progress=False)
