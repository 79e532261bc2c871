"""Damaged files end in a ValueError and in nothing else, whatever the damage."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs.base import get_config
from data import datasets
from tests.data.sources import random_images, write_mnist, write_npz, write_zip

IMAGES = random_images(3)
FORMATS = ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm")
KINDS = ("npz", "deflated npz", "zip", "idx", "gz", *FORMATS)


def _write(kind: str, folder: Path) -> tuple[Path, Path]:
    """A data set of one kind: its path, and the file in it to damage."""
    folder.mkdir()
    if kind in ("npz", "deflated npz"):
        path = write_npz(folder / "images.npz", IMAGES)
        if kind == "deflated npz":
            np.savez_compressed(path, images=IMAGES)
        return path, path
    if kind == "zip":
        path = write_zip(folder / "images.zip", IMAGES)
        return path, path
    if kind in ("idx", "gz"):
        write_mnist(folder, IMAGES[..., 0], np.arange(3))
        file = folder / "train-images-idx3-ubyte.gz"
        if kind == "idx":
            plain = folder / "train-images-idx3-ubyte"
            plain.write_bytes(gzip.decompress(file.read_bytes()))
            file.unlink()
            return folder, plain
        return folder, file
    content = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(content, kind)
    file = folder / f"image.{kind}"
    file.write_bytes(content.getvalue())
    return folder, file


@pytest.fixture(scope="module", params=KINDS)
def place(request, tmp_path_factory) -> tuple[Any, Path, bytes]:
    """The group ``config.data`` for a data set, the file in it to damage, and its intact content."""
    path, file = _write(request.param, tmp_path_factory.mktemp("damage") / "place")
    data: Any = get_config().data
    channels = 1 if request.param in ("idx", "gz") else 3
    data.update({"name": "damaged", "num_channels": channels})
    data.path = str(path)
    assert datasets.load(data).shape[1:] == (8, 8, channels)
    return data, file, file.read_bytes()


@st.composite
def damage(draw: st.DrawFn) -> tuple[float, list[tuple[float, int]]]:
    """The share of a file that is left, and bytes to write at shares of it."""
    cut = draw(st.one_of(st.just(1.0), st.floats(0, 1)))
    places = st.floats(0, 1, exclude_max=True)
    return cut, draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6))


def check(place: tuple[Any, Path, bytes], damage: tuple[float, list[tuple[float, int]]]) -> None:
    data, file, intact = place
    cut, changes = damage
    content = bytearray(intact[: round(cut * len(intact))])
    for at, value in changes:
        if content:
            content[int(at * len(content))] = value
    file.write_bytes(content)
    for use in (datasets.fingerprint, datasets.load):
        try:
            use(data)
        except ValueError as error:
            assert " must be " in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017


@settings(max_examples=40, derandomize=True, database=None, deadline=None)
@given(damage=damage())
def test_damaged_files_are_refused(place, damage):
    check(place, damage)


@pytest.mark.slow
@settings(max_examples=1000, derandomize=True, database=None, deadline=None)
@given(damage=damage())
def test_many_damaged_files_are_refused(place, damage):
    check(place, damage)
