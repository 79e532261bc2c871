"""The batches that training takes from a data set, each a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from data.datasets import Images
from sde_lib.checks import require_shared


def batches(
    images: Images,
    *,
    seed: int,
    batch_size: int,
    first_step: int,
    last_step: int,
    process: int = 0,
    processes: int = 1,
) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
    """The batches of the steps first_step to last_step, counted from 1, by ``batch_rows``.

    Args:
        process, processes: of several processes, each reads its own part of every batch: batch_size/processes
            images, those of process 0 first.

    Raises:
        ValueError: for a batch that the processes cannot share evenly, or an image that is broken.
    """
    require_shared("config.training.batch_size", batch_size, processes, "processes")
    share = batch_size // processes
    mine = slice(process * share, (process + 1) * share)
    if images.array is not None:
        for step in range(first_step, last_step + 1):
            yield images.array[batch_rows(seed, step - 1, batch_size, images.count)[mine]]
        return

    import grain  # seconds that only images read from a disk need

    def image(position: int) -> np.ndarray:
        step, place = divmod(position, share)
        epoch, row = divmod(step * batch_size + mine.start + place, images.count)
        return images.read(int(_permutation(seed, epoch, images.count)[row]))

    yield from (
        grain.MapDataset.range((first_step - 1) * share, last_step * share)
        .map(image)
        # one batch is read ahead while the network works on another
        .to_iter_dataset(grain.ReadOptions(num_threads=16, prefetch_buffer_size=2 * share))
        .batch(share)
    )


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
