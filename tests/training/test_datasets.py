from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from configs.base import get_config
from training import datasets


def _data(**changes):
    data: Any = get_config().data
    data.update(changes)
    return data


def _prepare(images, **changes):
    return np.asarray(datasets.prepare(jax.random.key(0), jnp.asarray(images), _data(**changes)))


def test_digits_keep_their_seventeen_levels():
    images = datasets.load(_data())
    assert images.shape == (1797, 8, 8, 1)
    assert images.dtype == np.uint8
    assert len(np.unique(images)) == 17
    levels, _ = load_digits(return_X_y=True)
    np.testing.assert_array_equal(np.rint(images / 255 * 16).reshape(1797, 64), levels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "digit"}, r"config.data.name = 'digit': allowed is one of .*did you mean 'digits'\?"),
        ({"image_size": 32}, r"config.data.image_size = 32: allowed is 8, .*set config.data.image_size = 8"),
        (
            {"num_channels": 3},
            r"config.data.num_channels = 3: allowed is 1, .*set config.data.num_channels = 1",
        ),
    ],
)
def test_data_that_do_not_exist_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        datasets.load(_data(**changes))


@pytest.mark.parametrize(("batch_size", "size"), [(5, 20), (7, 20), (45, 20)])
def test_every_epoch_shows_every_image_once(batch_size, size):
    rows = np.concatenate([datasets.batch_rows(3, step, batch_size, size) for step in range(20)])
    epochs = rows[: len(rows) // size * size].reshape(-1, size)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(size), (len(epochs), 1)))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # in another order each time


def test_a_batch_depends_on_seed_and_step_alone():
    late_first = [datasets.batch_rows(3, step, 7, 20) for step in (9, 0, 4)]
    datasets._permutation.cache_clear()
    again = [datasets.batch_rows(3, step, 7, 20) for step in (9, 0, 4)]
    np.testing.assert_array_equal(late_first, again)
    assert not np.array_equal(again[0], datasets.batch_rows(4, 9, 7, 20))


def test_grey_levels_fill_the_range():
    images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    x = _prepare(images)
    assert (x.min(), x.max()) == (0, 1)
    np.testing.assert_array_equal(np.rint(x * 255), images)
    np.testing.assert_allclose(_prepare(images, centered=True), 2 * x - 1, rtol=1e-6)


def test_dequantization_stays_within_its_level():
    images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    x = _prepare(images, uniform_dequantization=True)
    np.testing.assert_array_equal(np.floor(x * 256), images)
    assert len(np.unique(x * 256 - images)) > 200


def test_flips_mirror_whole_images_and_about_half_of_them():
    images = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 1), dtype=np.uint8)
    x, plain = _prepare(images, random_flip=True), _prepare(images)
    mirrored = (x == plain[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(x[~mirrored], plain[~mirrored])
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(400)  # five standard deviations
