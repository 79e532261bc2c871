"""Data sets as arrays of uint8 images, and the batches that training takes from them.

To add a data set, write a function of no arguments that returns its images, uint8 [n, h, w, c], and name it
in ``_LOADERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from sde_lib.checks import require, require_choice


def _digits() -> np.ndarray:
    """scikit-learn's 1,797 handwritten digits, 8x8, whose 17 grey levels 0..16 are spread over 0..255."""
    from sklearn.datasets import load_digits  # a second's import that only this data set needs

    levels, _ = load_digits(return_X_y=True)
    return np.rint(levels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)


_LOADERS: dict[str, Callable[[], np.ndarray]] = {"digits": _digits}


def load(data: Any) -> UInt8[np.ndarray, "n h w c"]:
    """All images of the data set that a config's ``data`` group names, as grey levels 0..255.

    Raises:
        ValueError: for an unknown name, or a size or number of channels that the images do not have.
    """
    require_choice("config.data.name", data.name, _LOADERS)
    images = _LOADERS[data.name]()
    _, height, width, channels = images.shape
    for key, have in (("image_size", height), ("image_size", width), ("num_channels", channels)):
        require(
            data[key] == have,
            f"config.data.{key}",
            data[key],
            f"{have}, as the images of {data.name!r} have",
            f"set config.data.{key} = {have}",
        )
    return images


@lru_cache(maxsize=2)  # a batch touches at most two epochs, unless it is larger than the data set
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)


def batch_rows(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """Row numbers, int [batch_size], of the batch of a step: a function of its arguments alone.

    Every epoch is a fresh permutation of all ``size`` rows, and a batch runs on from one epoch into the next;
    so training resumes at any step without replaying what came before.
    """
    epochs, places = np.divmod(step * batch_size + np.arange(batch_size), size)
    rows = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = _permutation(seed, int(epoch), size)[places[here]]
    return rows


def prepare(key: PRNGKeyArray, images: UInt8[Array, "b h w c"], data: Any) -> Float[Array, "b h w c"]:
    """What the network trains on: grey levels 0..255 scaled to [0, 1], or to [−1, 1] if ``data.centered``.

    Options: each image mirrored with probability one half (``data.random_flip``); grey levels made continuous
    by adding U(0, 1) to each, the 256 levels then filling [0, 1] (``data.uniform_dequantization``; Theis et
    al., arXiv 1511.01844).
    """
    flip_key, dequantization_key = jax.random.split(key)
    x = images.astype(jnp.float32)
    if data.random_flip:
        flip = jax.random.bernoulli(flip_key, shape=(len(x), 1, 1, 1))
        x = jnp.where(flip, x[:, :, ::-1], x)
    if data.uniform_dequantization:
        x = (x + jax.random.uniform(dequantization_key, x.shape)) / 256
    else:
        x = x / 255
    return 2 * x - 1 if data.centered else x
