"""Data sets as uint8 images of one size.

``open_images`` opens the data set that ``config.data`` names. ``load`` reads all of it, ``pieces`` yields it
in order for evaluation, and ``data.batches`` cuts it into training batches. ``describe`` says what it was
made of, with a fingerprint of its content.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int32, UInt8
from PIL import Image

from configs import image_shape
from data import sources
from sde_lib.checks import refusal, require, require_choice, require_count

# Smaller data sets are decoded once and held in memory; larger ones are read during training.
IN_MEMORY = 2**30  # bytes

FILTERS = {  # Pillow's, which average over as many pixels as become one
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
RESIZE = (*FILTERS, "pad")

NAMES = ("digits", *sources.PREPARED)  # of data sets that need no path

SHUFFLE_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """Images of one size, in a fixed order.

    Attributes:
        name: the data set, and how its images were brought to this size.
        split: the part of the data set.
        shape: (h, w, c) of each image.
        count: number of images.
        read: i -> image i. Raises a ValueError that names the image if it is damaged, or of another size or
            number of channels.
        array: all images, uint8 [n, h, w, c], if they are held in memory.
        labels: their classes from 0 on, int32 [n], if they were asked for.

    Example:
        >>> grey = np.zeros((3, 8, 8, 1), np.uint8)
        >>> images = Images(name="black", split="all", shape=(8, 8, 1), count=3, read=grey.__getitem__)
        >>> images.array is None, held(images).array.shape
        (True, (3, 8, 8, 1))
    """

    name: str
    split: str
    shape: tuple[int, int, int]
    count: int
    read: Callable[[int], UInt8[np.ndarray, "h w c"]]
    array: UInt8[np.ndarray, "n h w c"] | None = None
    labels: Int32[np.ndarray, " n"] | None = None


def describe(data: Any) -> dict[str, Any]:
    """What identifies a config's data set, for reference statistics to carry.

    Args:
        data: the group ``config.data``.

    Returns:
        data: the data set's name, including crop and resize;
        split: the part of it;
        image_size: their side in pixels; of images that are no squares, [height, width];
        num_channels: of the images;
        content: their ``fingerprint``.

    Raises:
        ValueError: as ``open_images``.

    Example:
        >>> from configs.base import get_config
        >>> data = get_config().data
        >>> data.update({"image_size": 32, "resize": "pad"})
        >>> describe(data)["data"], describe(data)["split"]
        ('digits 32x32 pad', 'train')
    """
    name, split = _named(data)
    height, width, _ = image_shape(data)
    return {
        "data": name,
        "split": split,
        "image_size": height if height == width else [height, width],
        "num_channels": data.num_channels,
        "content": fingerprint(data),
    }


def _named(data: Any) -> tuple[str, str]:
    """The name of a config's data set, including crop and resize, and its split."""
    cropped = "" if data.crop is None else f" crop {data.crop}"
    height, width, _ = image_shape(data)
    resized = "" if data.resize is None else f" {height}x{width} {data.resize}"
    return f"{data.name}{cropped}{resized}", data.split or "train"


def fingerprint(data: Any, labels: Int32[np.ndarray, " n"] | None = None) -> str | None:
    """A SHA-256, in hexadecimal digits, of the files that ``open_images`` reads; None where they are absent.

    Of scikit-learn's digits and MNIST's own files, it takes in every byte of the images; of a .zip or an .npz
    file, the names, sizes and checksums of the images that the archive's directory states; of a folder, the
    relative name and the size of each image, and its first ``sources.HEAD`` bytes; of prepared
    tensorflow-datasets, dataset_info.json and the names and sizes of the split's files.

    Args:
        data: the group ``config.data``, of which name, path and split are used.
        labels: the classes of all images, where they matter. The fingerprint then changes with them, too.

    Raises:
        ValueError: for a path that does not exist or holds no images.
    """
    of_images = _fingerprint_of_images(data)
    if of_images is None or labels is None:
        return of_images
    return sources.digest([of_images.encode(), labels.astype("<i4").tobytes()])


def _fingerprint_of_images(data: Any) -> str | None:
    if data.path is None and data.name not in NAMES:
        return None
    _, split = _named(data)
    prepared = _prepared(data)
    if prepared is not None:
        return sources.prepared_fingerprint(prepared, split)
    try:
        return _source(data, split).fingerprint()
    except FileNotFoundError:
        return None


def open_images(data: Any, num_classes: int = 0) -> Images:
    """Opens the data set that a config's ``data`` group names, and reads its first image as a check.

    With ``num_classes``, it reads the class of every image as well: docs/data.md says where from.

    Args:
        data: the group ``config.data``. Its ``path`` may be a folder, a .zip or an .npz file of images, a
            folder with MNIST's original files (``sources.IDX``), or one of prepared tensorflow-datasets. With
            a path to images, ``data.name`` may be any name.
        num_classes: ``config.model.num_classes``; 0 for images without classes.

    Raises:
        ValueError: for an unknown name, a path that does not exist or holds no images, a split that the data
            set does not have, or a size, crop or number of channels that does not fit the first image; with
            ``num_classes``, for a data set without classes, or an image whose class is not below it.
        FileNotFoundError: for a known data set that is not on this machine, with the commands that get it.
    """
    if data.resize is not None:
        require_choice("config.data.resize", data.resize, RESIZE)
    if data.crop is not None:
        require(data.crop >= 1, "config.data.crop", data.crop, "at least 1 pixel", "set None for no crop")
    name, split = _named(data)
    source = _source(data, split)
    images = _of_one_size(source, data, name=name, split=split, crop=data.crop, resize=data.resize)
    if num_classes == 0:
        return images
    return dataclasses.replace(images, labels=_labels(source, name, num_classes))


def _labels(source: sources.Source, name: str, num_classes: int) -> Int32[np.ndarray, " n"]:
    labels, key = source.labels(), "config.model.num_classes"
    allowed = f"0 for {name}, whose images have no classes"
    fix = "set it to 0, or store the classes beside the images as docs/data.md says"
    if labels is None:
        raise ValueError(refusal(key, num_classes, allowed, fix))
    (outside,) = np.nonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        first = int(outside[0])
        allowed = f"a class from 0 to {num_classes - 1}, since {key} = {num_classes}"
        raised = f"set {key} to {int(labels.max()) + 1}, or " if labels.max() >= num_classes else ""
        fix = f"{raised}correct the classes"
        raise ValueError(refusal(f"label of {source.title(first)}", int(labels[first]), allowed, fix))
    return labels.astype(np.int32)


def held_out(data: Any) -> Any:
    """The group ``config.data`` with the split that a training leaves out: "test", unless one is set.

    Raises:
        ValueError: for a data set that has no such split, as far as its name and its path say.
    """
    if data.split is None:
        plain = (
            data.path is not None and _prepared(data) is None and sources.idx_files(data.path, "test") is None
        )
        name, value = ("config.data.path", data.path) if plain else ("config.data.name", data.name)
        has_split = not plain and (data.path is not None or data.name != "digits")
        fix = "name such images with --images=PATH, or set config.data.split=train for those of the training"
        require(has_split, name, value, "a data set with held-out images", fix)
    data = data.copy_and_resolve_references()
    data.split = data.split or "test"
    return data


def shuffled(images: Images) -> Images:
    """The same images in an order that depends on their number alone.

    Figures of random parts of a data set, such as the Inception Score's splits, need it: files are often
    sorted by class.

    Example:
        >>> grey = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
        >>> images = Images(name="three", split="all", shape=(1, 1, 1), count=3, read=grey.__getitem__)
        >>> [int(shuffled(images).read(i)[0, 0, 0]) for i in range(3)]
        [2, 0, 1]
    """
    order = np.random.default_rng(SHUFFLE_SEED).permutation(images.count)
    array, labels = (None if rows is None else rows[order] for rows in (images.array, images.labels))
    return dataclasses.replace(images, read=lambda i: images.read(int(order[i])), array=array, labels=labels)


def open_samples(path: str, data: Any) -> Images:
    """Opens images from another source, ``shuffled``. They must have the config's size: none is resized.

    Args:
        path: a folder, a .zip or an .npz file of images.
        data: the group ``config.data``, of which size and number of channels are used.

    Raises:
        ValueError: for a path that does not exist or holds no images, or a first image of another size or
            number of channels.
    """
    source = sources.at_path(path, "--images")
    return shuffled(_of_one_size(source, data, name=path, split="all", crop=None, resize=None))


def _prepared(data: Any) -> epath.Path | None:
    """The folder of the prepared tensorflow-datasets that a config names, if it is there."""
    if data.path is not None:
        sources.existing(data.path, "config.data.path")
    elif data.name == "digits":
        return None
    return sources.prepared_folder(data.name, data.path)


def _source(data: Any, split: str) -> sources.Source:
    prepared = _prepared(data)
    if prepared is not None:
        return sources.of_prepared(prepared, split)
    if data.path is not None:
        return sources.of_idx(data.path, split) or sources.at_path(data.path, "config.data.path")
    if data.name == "digits":
        require(split == "train", "config.data.split", split, "'train', which is all digits", "leave it out")
        images, labels = _digits()
        return sources.of_array(images, "digits", lambda: labels)
    if data.name not in NAMES:
        try:
            require_choice("config.data.name", data.name, NAMES)
        except ValueError as error:
            fix = "for other images set config.data.path to a folder, .zip or .npz file"
            raise ValueError(f"{error}; {fix}") from None
    present = f"a data set that is present in {sources.default_root()}"
    fix = sources.how_to_prepare(data.name)
    raise FileNotFoundError(refusal("config.data.name", data.name, present, fix))


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits, 8x8, with their 17 grey levels 0..16 spread over 0..255.

    The second array has their classes.
    """
    from sklearn.datasets import load_digits  # takes a second, and only this data set needs it

    levels, labels = load_digits(return_X_y=True)
    return np.rint(levels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1), labels.astype(np.int64)


def _of_one_size(
    source: sources.Source, data: Any, *, name: str, split: str, crop: int | None, resize: str | None
) -> Images:
    height, width, channels = image_shape(data)
    sides = {"config.data.image_size": height, "config.data.image_width": width}
    require_count(**sides, **{"config.data.num_channels": channels})
    fix = "resize with config.data.resize, which takes the largest central part of the images' shape"
    allowed = "None for images that are no squares"
    require(crop is None or height == width, "config.data.crop", crop, allowed, fix)

    def read(i: int) -> np.ndarray:
        return _fitted(source.read(i), source.title(i), (height, width), channels, crop, resize)

    return Images(name=name, split=split, shape=read(0).shape, count=source.count, read=read)


def _fitted(
    image: np.ndarray, title: str, size: tuple[int, int], channels: int, crop: int | None, resize: str | None
) -> np.ndarray:
    """The image at the size (height, width), after the crop, resizing or padding that the config asks for.

    Raises:
        ValueError: for an image with another number of channels, or of another size without a resize.
    """
    have = image.shape[-1]
    require(
        have == channels,
        "config.data.num_channels",
        channels,
        f"{have}, the number of channels of {title}",
        (f"set config.data.num_channels = {have}, or " if have in (1, 3) else "")
        + f"write all images as {'grey' if channels == 1 else 'RGB'}"
        + (" without an alpha channel" if have in (2, 4) else ""),
    )
    height, width = image.shape[:2]
    if crop is not None:
        fits = crop <= min(height, width)
        allowed = f"at most {min(height, width)}, the shorter side of {title}"
        require(fits, "config.data.crop", crop, allowed, "choose a smaller square")
        image = _central(image, (crop, crop))
    elif resize in FILTERS:
        image = _central(image, _largest(size, within=(height, width)))
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    if resize in FILTERS:
        grey = channels == 1
        resized = Image.fromarray(image[..., 0] if grey else image).resize(
            (size[1], size[0]), FILTERS[resize]
        )
        return np.asarray(resized).reshape(*size, channels)
    if resize == "pad" and height <= size[0] and width <= size[1]:
        above, left = (size[0] - height) // 2, (size[1] - width) // 2
        padding = (above, size[0] - height - above), (left, size[1] - width - left), (0, 0)
        return np.pad(image, padding)
    allowed = f"{size}, the config's height and width"
    fix = f"set config.data.image_size = {height}"
    fix += ", or " if height == width else f" and config.data.image_width = {width}, or "
    fix += "resize the images, those of a data set with config.data.resize"
    raise ValueError(refusal(f"size of {title}", (height, width), allowed, fix))


def _central(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    top, left = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
    return image[top : top + size[0], left : left + size[1]]


def _largest(size: tuple[int, int], *, within: tuple[int, int]) -> tuple[int, int]:
    """The largest (height, width) of the shape of ``size`` that fits, to whole pixels.

    Example:
        >>> _largest((2, 3), within=(100, 90))
        (60, 90)
    """
    scale = min(within[0] / size[0], within[1] / size[1])
    return max(round(scale * size[0]), 1), max(round(scale * size[1]), 1)


def load(data: Any) -> UInt8[np.ndarray, "n h w c"]:
    """Reads all images of the data set that a config's ``data`` group names, as grey levels 0..255.

    Raises:
        ValueError, FileNotFoundError: as ``open_images``, and for any image that is damaged or does not fit.

    Example:
        >>> from configs.base import get_config
        >>> load(get_config().data).shape
        (1797, 8, 8, 1)
    """
    return _all(open_images(data))


def held(images: Images) -> Images:
    """The same images, held in memory if they fit into ``IN_MEMORY``.

    Raises:
        ValueError: for a damaged image, if they are held.
    """
    if images.array is not None or images.count * int(np.prod(images.shape)) > IN_MEMORY:
        return images
    return dataclasses.replace(images, array=_all(images))


def _all(images: Images) -> np.ndarray:
    array = np.empty((images.count, *images.shape), np.uint8)
    for i in range(images.count):
        array[i] = images.read(i)
    return array


def pieces(images: Images, limit: int = 4096) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
    """Yields all images in order, at most ``limit`` of them and 64 MB at a time.

    The pieces are the same whether the images are held in memory or not, so that sums over them are the same
    to the last bit.

    Raises:
        ValueError: for a damaged image.
    """
    size = min(max(2**26 // int(np.prod(images.shape)), 1), limit)
    with ThreadPoolExecutor() as pool:  # decoders release Python's lock
        for start in range(0, images.count, size):
            part = range(start, min(start + size, images.count))
            yield np.stack(list(pool.map(images.read, part))) if images.array is None else images.array[part]
