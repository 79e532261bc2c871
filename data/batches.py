"""Training batches. Each depends on the seed and the step alone, so training can resume at any step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray, UInt8

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
    """Yields the batches of grey levels for the steps ``first_step`` to ``last_step``, in order.

    ``batch_rows`` says which images a batch holds. Images that are not held in memory are read ahead.

    Args:
        images: the data set.
        seed: determines the order of the images.
        batch_size: number of images in a batch.
        first_step, last_step: steps, counted from 1.
        process, processes: index of this process, and number of processes that share every batch. Each reads
            its own part: batch_size/processes images, those of process 0 first.

    Raises:
        ValueError: for a batch that the processes cannot share evenly, or a damaged image.

    Example:
        >>> from data.datasets import Images
        >>> grey = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
        >>> images = Images(
        ...     name="six", split="all", shape=(1, 1, 1), count=6, read=grey.__getitem__, array=grey
        ... )
        >>> first, second = batches(images, seed=0, batch_size=3, first_step=1, last_step=2)
        >>> sorted([*first.flat, *second.flat]) == list(range(6))  # an epoch shows every image once
        True
    """
    require_shared("batch_size", batch_size, processes, "processes")
    share = batch_size // processes
    mine = slice(process * share, (process + 1) * share)
    if images.array is not None:
        for step in range(first_step, last_step + 1):
            yield images.array[batch_rows(seed, step - 1, batch_size, images.count)[mine]]
        return

    import grain  # takes seconds, and only images that are read from a disk need it

    def image(position: int) -> np.ndarray:
        step, place = divmod(position, share)
        epoch, row = divmod(step * batch_size + mine.start + place, images.count)
        return images.read(int(_permutation(seed, epoch, images.count)[row]))

    yield from (
        grain.MapDataset.range((first_step - 1) * share, last_step * share)
        .map(image)
        # reads one batch ahead while the network works on another
        .to_iter_dataset(grain.ReadOptions(num_threads=16, prefetch_buffer_size=2 * share))
        .batch(share)
    )


@lru_cache(maxsize=2)  # a batch touches at most two epochs, unless it is larger than the data set
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)


def batch_rows(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """The row numbers, int [batch_size], of the images in the batch of a step.

    Every epoch is a fresh permutation of all rows, and a batch may run from one epoch into the next. The rows
    depend on the arguments alone, so training resumes at any step without replaying earlier ones.

    Args:
        seed: determines the permutations.
        step: the step, counted from 0.
        batch_size: number of rows in a batch.
        size: number of rows in the data set.
    """
    epochs, places = np.divmod(step * batch_size + np.arange(batch_size), size)
    rows = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = _permutation(seed, int(epoch), size)[places[here]]
    return rows


def batch_labels(images: Images, *, seed: int, batch_size: int, step: int) -> Int32[np.ndarray, " b"] | None:
    """The classes of the images that ``batches`` yields for a step; None if they were not asked for.

    Args:
        images: the data set.
        seed, batch_size: as for ``batches``.
        step: the step, counted from 1.
    """
    if images.labels is None:
        return None
    return images.labels[batch_rows(seed, step - 1, batch_size, images.count)]


def prepare(key: PRNGKeyArray, images: UInt8[Array, "b h w c"], data: Any) -> Float[Array, "b h w c"]:
    """Scales grey levels 0..255 to the network's range: [0, 1], or [−1, 1] if ``data.centered``.

    Two options augment the images. ``data.random_flip`` mirrors each with probability one half.
    ``data.uniform_dequantization`` adds U(0, 1) to each grey level, so that the 256 levels fill [0, 1]
    continuously (Theis et al., arXiv 1511.01844).

    Args:
        key: for the flips and the dequantization.
        images: grey levels.
        data: the group ``config.data``.
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
