from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import models
import training
from configs.base import get_config
from data import batches, datasets
from tests.training.tiny import tiny_config, tiny_network
from training import state_files
from training.step import initial_state


def _data(**changes):
    data: Any = get_config().data
    data.update(changes)
    return data


@pytest.mark.parametrize(
    ("given", "changes", "expected"),
    [
        # as it is
        ((2, 3), {}, [[0, 1, 2], [3, 4, 5]]),
        # the rows between the outer ones have the shape of the target, and squares of four pixels their mean
        ((6, 6), {"resize": "box"}, [[10, 12, 14], [22, 24, 26]]),
        # zeros around, the odd one to the right
        ((2, 2), {"resize": "pad"}, [[0, 1, 0], [2, 3, 0]]),
    ],
)
def test_images_need_not_be_squares(given, changes, expected, tmp_path):
    image = np.arange(np.prod(given), dtype=np.uint8).reshape(1, *given, 1)
    np.savez(tmp_path / "images.npz", images=image)
    data = _data(name="mine", path=str(tmp_path / "images.npz"), image_size=2, image_width=3, **changes)
    np.testing.assert_array_equal(datasets.load(data)[0, ..., 0], expected)
    assert datasets.describe(data)["image_size"] == [2, 3]


def test_other_sizes_than_the_rectangles_are_refused(tmp_path):
    np.savez(tmp_path / "images.npz", images=np.zeros((1, 4, 6, 1), np.uint8))
    given = {"name": "mine", "path": str(tmp_path / "images.npz"), "image_size": 2, "image_width": 3}
    fix = "set config.data.image_size = 4 and config.data.image_width = 6, or resize the images"
    with pytest.raises(ValueError, match=rf"size of .* must be \(2, 3\), .* \(got \(4, 6\)\): {fix}"):
        datasets.load(_data(**given))
    with pytest.raises(ValueError, match=r"config.data.crop must be None for images that are no squares"):
        datasets.load(_data(**given, crop=2))
    with pytest.raises(ValueError, match=r"config.data.image_width must be .* \(got -3\)"):
        datasets.load(_data(**given | {"image_width": -3}))


def _prepare(images, **changes):
    return np.asarray(batches.prepare(jax.random.key(0), jnp.asarray(images), _data(**changes)))


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
        ({"name": "digit"}, r"config.data.name must be one of .* \(got 'digit'\): did you mean 'digits'\?"),
        (
            {"image_size": 32},
            r"size of .* must be \(32, 32\), .* \(got \(8, 8\)\): set config.data.image_size = 8",
        ),
        (
            {"num_channels": 3},
            r"config.data.num_channels must be 1, .* \(got 3\): set config.data.num_channels = 1",
        ),
    ],
)
def test_data_that_do_not_exist_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        datasets.load(_data(**changes))


@pytest.mark.parametrize(("batch_size", "size"), [(5, 20), (7, 20), (45, 20)])
def test_every_epoch_shows_every_image_once(batch_size, size):
    rows = np.concatenate([batches.batch_rows(3, step, batch_size, size) for step in range(20)])
    epochs = rows[: len(rows) // size * size].reshape(-1, size)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(size), (len(epochs), 1)))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # in another order each time


def test_a_batch_depends_on_seed_and_step_alone():
    late_first = [batches.batch_rows(3, step, 7, 20) for step in (9, 0, 4)]
    batches._permutation.cache_clear()
    again = [batches.batch_rows(3, step, 7, 20) for step in (9, 0, 4)]
    np.testing.assert_array_equal(late_first, again)
    assert not np.array_equal(again[0], batches.batch_rows(4, 9, 7, 20))


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


def _streamed(images, **arguments):
    assert images.array is None
    return list(batches.batches(images, **arguments))


def test_streamed_batches_are_those_from_memory_from_any_step_on():
    images = datasets.open_images(_data())
    whole = list(batches.batches(datasets.held(images), seed=3, batch_size=500, first_step=1, last_step=8))
    rows = [batches.batch_rows(3, step, 500, 1797) for step in range(8)]
    np.testing.assert_array_equal(whole, [datasets.load(_data())[row] for row in rows])
    # into a third epoch; resumed after step 5
    np.testing.assert_array_equal(_streamed(images, seed=3, batch_size=500, first_step=1, last_step=8), whole)
    np.testing.assert_array_equal(
        _streamed(images, seed=3, batch_size=500, first_step=6, last_step=8), whole[5:]
    )


@pytest.mark.parametrize("held", [True, False])
def test_every_process_reads_its_own_part(held):
    images = datasets.open_images(_data())
    images = datasets.held(images) if held else images
    step = {"seed": 1, "batch_size": 900, "first_step": 2, "last_step": 3}
    whole = list(batches.batches(datasets.held(images), **step))
    parts = [list(batches.batches(images, process=i, processes=3, **step)) for i in range(3)]
    assert parts[0][0].shape == (300, 8, 8, 1)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    with pytest.raises(
        ValueError, match=r"^batch_size must be a multiple of the 7 .* \(got 900\): set it to 903"
    ):
        next(batches.batches(images, process=0, processes=7, **step))


def test_what_is_too_large_is_not_held_in_memory(monkeypatch):
    images = datasets.open_images(_data())
    monkeypatch.setattr(datasets, "IN_MEMORY", 1797 * 64 - 1)
    assert datasets.held(images).array is None
    monkeypatch.setattr(datasets, "IN_MEMORY", 1797 * 64)
    assert datasets.held(images).array is not None


def test_pieces_are_all_images_in_order_and_few_at_a_time():
    images = datasets.open_images(_data())
    pieces = list(datasets.pieces(images, limit=1000))
    assert [len(piece) for piece in pieces] == [1000, 797]
    np.testing.assert_array_equal(np.concatenate(pieces), datasets.load(_data()))
    assert len(next(datasets.pieces(images))) == 1797
    large = datasets.Images(
        name="large",
        split="all",
        shape=(1024, 1024, 3),
        count=50,
        read=lambda i: np.zeros((1024, 1024, 3), np.uint8),
    )
    assert len(next(datasets.pieces(large))) == 2**26 // (3 * 2**20)


def test_any_part_of_shuffled_images_is_like_the_whole():
    images = datasets.open_images(_data())
    by_level = np.argsort(datasets.load(_data()).mean((1, 2, 3)), kind="stable")
    ordered = dataclasses.replace(images, read=lambda i: images.read(int(by_level[i])))
    shuffled = datasets.shuffled(ordered)
    (piece,) = datasets.pieces(shuffled)
    assert sorted(map(bytes, piece)) == sorted(map(bytes, datasets.load(_data())))  # each once
    means = np.array([part.mean() for part in np.array_split(piece, 10)])
    deviation = np.concatenate(list(datasets.pieces(ordered))).mean((1, 2, 3)).std() / np.sqrt(179)
    assert np.abs(means - piece.mean()).max() < 4 * deviation
    held = next(datasets.pieces(datasets.shuffled(datasets.held(ordered))))
    np.testing.assert_array_equal(held, piece)


def test_training_from_a_disk_goes_on_as_uninterrupted_from_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "build", tiny_network)
    states = []
    for workdir, num_steps, limit in (("memory", 12, 2**30), ("disk", 5, 0), ("disk", 12, 0)):
        monkeypatch.setattr(datasets, "IN_MEMORY", limit)
        config = tiny_config(num_steps=num_steps)
        training.train(config, tmp_path / workdir, command="test", progress=False)
        blank = initial_state(config.training, tiny_network(config).init(jax.random.key(9)))
        restored = state_files.restore_newest(tmp_path / workdir / "checkpoints", blank)
        assert restored is not None
        states.append(jax.device_get(restored[0]))
    jax.tree.map(np.testing.assert_array_equal, states[0], states[2])
