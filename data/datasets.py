"""Data sets as uint8 images of one size.

``open_images`` opens what ``config.data`` names, and ``pieces`` gives evaluation all images in order, the same
whether the images are held in memory or read one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data import sources
from sde_lib.checks import require, require_choice

# Images up to this size together are decoded once and held; more are read as training comes to them
IN_MEMORY = 2**30  # bytes

FILTERS = {  # Pillow's, which average over as many pixels as become one
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
RESIZE = (*FILTERS, "pad")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """Images of one size, in a fixed order.

    Attributes:
        name: what they are of and how they were made this size, in words.
        split: the part of it.
        shape: (h, w, c) of each.
        count: how many there are.
        read: i -> image i; ValueError naming an image that is broken or of another size or kind.
        array: all of them, uint8 [n, h, w, c], where they are held in memory.
    """

    name: str
    split: str
    shape: tuple[int, int, int]
    count: int
    read: Callable[[int], UInt8[np.ndarray, "h w c"]]
    array: UInt8[np.ndarray, "n h w c"] | None = None


def describe(data: Any) -> tuple[str, str]:
    """What the images of a config's ``data`` group are of and how they were made their size; and which part.

    Reference moments are known by these, also where the images themselves are not.
    """
    cropped = "" if data.crop is None else f" crop {data.crop}"
    resized = "" if data.resize is None else f" {data.image_size}x{data.image_size} {data.resize}"
    return f"{data.name}{cropped}{resized}", data.split or "train"


def open_images(data: Any) -> Images:
    """The data set that a config's ``data`` group names, with its first image read.

    ``data.path`` names a folder, a .zip or an .npz file of images, whatever ``data.name`` calls them, the
    folder of MNIST's own files (``sources.IDX``), or of prepared tensorflow-datasets.

    Raises:
        ValueError: for an unknown name, a path that is not there or holds no images, a split that the data
            set does not have, or a size, crop or number of channels that the first image does not fit.
        FileNotFoundError: for a data set that is known but not on this machine, saying how to get it.
    """
    if data.resize is not None:
        require_choice("config.data.resize", data.resize, RESIZE)
    if data.crop is not None:
        require(
            data.crop >= 1, "config.data.crop", data.crop, "pixels a side, at least 1", "set None for none"
        )
    name, split = describe(data)
    return _of_one_size(
        _source(data, split), data, name=name, split=split, crop=data.crop, resize=data.resize
    )


def open_samples(path: str, data: Any) -> Images:
    """Images that were made elsewhere, which have to be of the config's size: they are never resized.

    Raises:
        ValueError: for a path that is not there or holds no images, or a first image of another size or kind.
    """
    source = sources.at_path(path, "--images")
    return _of_one_size(source, data, name=path, split="all", crop=None, resize=None)


def _source(data: Any, split: str) -> sources.Source:
    if data.name == "digits" and data.path is None:
        require(split == "train", "config.data.split", split, "'train', which is all digits", "drop it")
        return sources.of_array(_digits(), "digits")
    prepared = sources.prepared_folder(data.name, data.path)
    if prepared is not None:
        return sources.of_prepared(prepared, split)
    if data.path is not None:
        return sources.of_idx(data.path, split) or sources.at_path(data.path, "config.data.path")
    names = ("digits", *sources.PREPARED)
    if data.name not in names:
        try:
            require_choice("config.data.name", data.name, names)
        except ValueError as error:
            raise ValueError(
                f"{error} Images of another name are found by config.data.path: a folder, .zip or .npz file"
            ) from None
    raise FileNotFoundError(
        f"config.data.name = {data.name!r}: there is no such data set in {sources.default_root()}; "
        + sources.how_to_prepare(data.name)
    )


def _digits() -> np.ndarray:
    """scikit-learn's 1,797 handwritten digits, 8x8, whose 17 grey levels 0..16 are spread over 0..255."""
    from sklearn.datasets import load_digits  # a second's import that only this data set needs

    levels, _ = load_digits(return_X_y=True)
    return np.rint(levels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)


def _of_one_size(
    source: sources.Source, data: Any, *, name: str, split: str, crop: int | None, resize: str | None
) -> Images:
    size, channels = data.image_size, data.num_channels

    def read(i: int) -> np.ndarray:
        return _fitted(source.read(i), source.title(i), size, channels, crop, resize)

    return Images(name=name, split=split, shape=read(0).shape, count=source.count, read=read)


def _fitted(
    image: np.ndarray, title: str, size: int, channels: int, crop: int | None, resize: str | None
) -> np.ndarray:
    """The image at size x size: its central square, resized or padded as the config says.

    Raises:
        ValueError: for an image of other channels, or of another size where nothing is to be done about it.
    """
    have = image.shape[-1]
    require(
        have == channels,
        "config.data.num_channels",
        channels,
        f"{have}, as {title} has",
        (f"set config.data.num_channels = {have}, or " if have in (1, 3) else "")
        + f"write all images as {'grey' if channels == 1 else 'RGB'}"
        + (" without an alpha channel" if have in (2, 4) else ""),
    )
    height, width = image.shape[:2]
    if crop is not None:
        fits = crop <= min(height, width)
        allowed = f"at most {min(height, width)}, as {title} is {height}x{width}"
        require(fits, "config.data.crop", crop, allowed, "set a smaller one")
        image = _central(image, crop)
    elif resize in FILTERS:
        image = _central(image, min(height, width))
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    if resize in FILTERS:
        grey = channels == 1
        resized = Image.fromarray(image[..., 0] if grey else image).resize((size, size), FILTERS[resize])
        return np.asarray(resized).reshape(size, size, channels)
    if resize == "pad" and max(height, width) <= size:
        above, left = (size - height) // 2, (size - width) // 2
        padding = (above, size - height - above), (left, size - width - left), (0, 0)
        return np.pad(image, padding)
    fix = f"set config.data.image_size = {height}, or " if height == width else ""
    raise ValueError(
        f"config.data.image_size = {size}: allowed is {height if height == width else 'none'}, as {title} is "
        f"{height}x{width}; {fix}resize the images, by config.data.resize if they are to train on"
    )


def _central(image: np.ndarray, side: int) -> np.ndarray:
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def load(data: Any) -> UInt8[np.ndarray, "n h w c"]:
    """All images of the data set that a config's ``data`` group names, as grey levels 0..255.

    Raises:
        ValueError, FileNotFoundError: as ``open_images``, and for any image that is broken or does not fit.
    """
    return _all(open_images(data))


def held(images: Images) -> Images:
    """The same images, in memory if they fit into ``IN_MEMORY``; any that is broken is then found at once."""
    if images.array is not None or images.count * int(np.prod(images.shape)) > IN_MEMORY:
        return images
    return dataclasses.replace(images, array=_all(images))


def _all(images: Images) -> np.ndarray:
    array = np.empty((images.count, *images.shape), np.uint8)
    for i in range(images.count):
        array[i] = images.read(i)
    return array


def pieces(images: Images, limit: int = 4096) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
    """All images in their order, at most ``limit`` of them and 64 MB at a time.

    How they are cut depends on nothing else, so that sums over the pieces are the same to the last bit.
    """
    size = min(max(2**26 // int(np.prod(images.shape)), 1), limit)
    with ThreadPoolExecutor() as pool:  # decoders let go of Python's lock
        for start in range(0, images.count, size):
            part = range(start, min(start + size, images.count))
            yield np.stack(list(pool.map(images.read, part))) if images.array is None else images.array[part]
