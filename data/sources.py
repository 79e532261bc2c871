"""Where images are read from: prepared tensorflow-datasets, folders and zips of images, npz and IDX files.

Every source is a number of images and a function that reads the i-th, from any thread, so that any order of
any part can be read without going through the rest. TensorFlow is needed by none of them.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import re
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from sde_lib.checks import require, require_choice

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff")

# As tensorflow-datasets calls them, with what getting them takes beside the command
PREPARED = {
    "mnist": "",
    "cifar10": "",
    "celeb_a": "",
    "celeb_a_hq/256": ", after its images were put together by hand as the data set's page says",
    "lsun/church_outdoor": "",
    "lsun/bedroom": "",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Images as they are stored, of any size.

    Attributes:
        count: how many there are.
        read: i -> image i, uint8 [h, w, c], 0 <= i < count; ValueError naming an image that is broken.
        title: i -> what image i is called in messages.
    """

    count: int
    read: Callable[[int], UInt8[np.ndarray, "h w c"]]
    title: Callable[[int], str]


def decode(content: bytes, title: str) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of an encoded image: c = 1 for grey, 2 and 4 with an alpha channel, 3 for RGB.

    Raises:
        ValueError: for a broken image, or one whose channels are not of 8 bits.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            mode = image.mode
            if mode == "P":  # colours by number
                image = image.convert("RGBA" if "transparency" in image.info else "RGB")
            pixels = np.asarray(image)
    except Exception as error:  # a broken file makes Pillow's decoders raise nearly anything
        raise ValueError(
            f"{title} is no image that can be read ({error}): replace it by a whole copy, or remove it"
        ) from None
    require(
        mode in ("L", "LA", "P", "RGB", "RGBA"),
        f"Pillow's mode of {title}",
        mode,
        "8-bit grey (L) or RGB",
        "convert it to 8 bits a channel",
    )
    return pixels if pixels.ndim == 3 else pixels[..., None]


def of_array(images: np.ndarray, title: str) -> Source:
    """Images that are in memory.

    Raises:
        ValueError: unless they are uint8 [n, h, w, c].
    """
    require(
        images.dtype == np.uint8,
        f"dtype of {title}",
        str(images.dtype),
        "uint8, grey levels 0 to 255",
        "scale and round floats to 0..255 and store them as uint8",
    )
    fix = "write grey images as images[..., None]" if images.ndim == 3 else "put the axes in this order"
    require(images.ndim == 4, f"shape of {title}", images.shape, "(n, height, width, channels)", fix)
    require(len(images) > 0, f"number of images in {title}", 0, "at least 1", "name a file that holds some")
    return Source(count=len(images), read=images.__getitem__, title=lambda i: f"image {i} of {title}")


def at_path(path: str, key: str) -> Source:
    """The images in a folder (and the folders in it), a .zip or an .npz file, in the order of their names.

    Of an .npz file it is the array called images, or the only one.

    Args:
        key: what the path was given as, for messages.

    Raises:
        ValueError: for a path that is not there or holds no images.
    """
    place = epath.Path(path).expanduser()
    allowed = "a folder, a .zip or an .npz file"
    require(place.exists(), key, path, f"{allowed} that is there", "correct the path")
    if place.is_dir():
        return _of_folder(place)
    readers = {".zip": _of_zip, ".npz": _of_npz}
    require(place.suffix in readers, key, path, allowed, "put the images into a folder")
    try:
        return readers[place.suffix](place)
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}): replace it by a whole copy") from None


def _of_folder(folder: epath.Path) -> Source:
    files = sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if _is_image(name)
    )
    _require_some(files, str(folder))
    return Source(
        count=len(files),
        read=lambda i: decode(_content(files[i]), files[i]),
        title=files.__getitem__,
    )


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _of_zip(path: epath.Path) -> Source:
    archive = zipfile.ZipFile(path)  # stays open; its reads from several threads are kept apart by a lock
    files = sorted(name for name in archive.namelist() if _is_image(name))
    _require_some(files, str(path))

    def title(i: int) -> str:
        return f"{path}/{files[i]}"

    def read(i: int) -> np.ndarray:
        try:
            content = archive.read(files[i])
        except Exception as error:  # of zlib, of the archive's checksums, of encryption
            raise ValueError(
                f"{title(i)} cannot be read ({error}): replace the file by a whole copy"
            ) from None
        return decode(content, title(i))

    return Source(count=len(files), read=read, title=title)


def _is_image(name: str) -> bool:
    last = name.rpartition("/")[2]
    return last.lower().endswith(SUFFIXES) and not last.startswith(".") and "__MACOSX" not in name


def _require_some(files: list[str], place: str) -> None:
    require(
        files,
        f"number of images in {place}",
        0,
        "at least 1",
        f"name a place that holds files ending in {', '.join(SUFFIXES)}; or, if tensorflow-datasets prepared "
        "it, set config.data.name to a data set that is there",
    )


def _of_npz(path: epath.Path) -> Source:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = arrays.files
            name = names[0] if len(names) == 1 else "images"
            require(
                name in names,
                f"arrays of {path}",
                names,
                "one array, or one called 'images'",
                "store the images with np.savez(path, images=images)",
            )
            images = arrays[name]
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise ValueError(f"{path} holds Python objects: store the images as one uint8 array") from None
    return of_array(images, str(path))


# The files in which MNIST, and what took its place (Fashion-MNIST, KMNIST), are given out, .gz or not
IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def idx_files(folder: str, split: str) -> tuple[epath.Path, epath.Path] | None:
    """The files of a split's images and labels, None where the folder holds no such files.

    Raises:
        ValueError: where it does, for a split other than train and test, or one whose file is missing.
    """
    place = epath.Path(folder).expanduser()

    def found(name: str) -> list[epath.Path]:
        return [file for file in (place / name, place / f"{name}.gz") if file.exists()]

    if not any(found(images) for images, _ in IDX.values()):
        return None
    require_choice("config.data.split", split, IDX)
    images, labels = IDX[split]
    require(
        found(images) and found(labels),
        f"files of {folder}",
        sorted(file.name for file in place.iterdir()),
        f"{images} and {labels}, with .gz or without",
        "put both there",
    )
    return found(images)[0], found(labels)[0]


def read_idx(path: epath.Path) -> UInt8[np.ndarray, "..."]:
    """An array of bytes in the IDX format: 0, 0, 8 (bytes), the number of axes, their big-endian lengths.

    Raises:
        ValueError: for a file that is broken, or of another format.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}): replace it by a whole copy") from None
    axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    shape = tuple(np.frombuffer(content[4:], ">u4", axes)) if len(content) >= 4 + 4 * axes else ()
    values = content[4 + 4 * axes :]
    require(
        shape and len(values) == np.prod(shape, dtype=np.int64),
        f"content of {path}",
        f"{len(content)} bytes",
        "an IDX file of bytes, as long as its header says",
        "replace it by a whole copy",
    )
    return np.frombuffer(values, np.uint8).reshape(shape)


def of_idx(folder: str, split: str) -> Source | None:
    """The grey images of MNIST's own files, None where the folder holds no such files.

    Raises:
        ValueError: as ``idx_files`` and ``read_idx``, and for a file that holds no images.
    """
    files = idx_files(folder, split)
    return None if files is None else of_array(read_idx(files[0])[..., None], str(files[0]))


def prepared_folder(name: str, path: str | None) -> epath.Path | None:
    """The folder of the newest version of a prepared data set, None where there is none.

    Args:
        name: as tensorflow-datasets calls it, with its config: "lsun/church_outdoor".
        path: such a folder itself, or the one that all data sets are in; by default that of
            tensorflow-datasets, which is TFDS_DATA_DIR or ~/tensorflow_datasets.
    """
    root = epath.Path(path or default_root()).expanduser()
    if (root / "dataset_info.json").exists():
        return root
    folder = root / name
    versions = [
        version
        for version in (folder.iterdir() if folder.is_dir() else ())
        if re.fullmatch(r"\d+\.\d+\.\d+", version.name) and (version / "dataset_info.json").exists()
    ]
    return max(versions, key=lambda version: [int(part) for part in version.name.split(".")], default=None)


def default_root() -> str:
    """Where tensorflow-datasets keeps what it prepared."""
    return os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")


def how_to_prepare(name: str) -> str:
    """What to run, and where, for a data set of ``PREPARED`` that is not there."""
    root = default_root()
    return (
        f"on a machine with a network run: pip install tensorflow; tfds build {name} "
        f"--file_format=array_record --data_dir={root}{PREPARED[name]}. Then copy {root}/{name} here "
        "(reading it needs no TensorFlow), or set config.data.path to the folder that holds it, or to a "
        "folder, .zip or .npz of the images"
    )


def of_prepared(folder: epath.Path, split: str) -> Source:
    """A split, or a slice such as "train[:5000]", of a data set that tensorflow-datasets prepared.

    Raises:
        ValueError: for a split that it does not have, no images in it, or a file format that cannot be read
            at random (and so not without TensorFlow).
    """
    import tensorflow_datasets as tfds  # seconds that only these data sets need

    builder: Any = tfds.builder_from_directory(folder)  # its features and calls are known at run time only
    require(
        builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD,
        f"file format of {folder}",
        str(builder.info.file_format and builder.info.file_format.value),
        "array_record",
        f"run: tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record "
        "--out_dir=ANOTHER, with TensorFlow installed; then name ANOTHER by config.data.path",
    )
    require(
        "image" in builder.info.features,
        f"features of {folder}",
        sorted(builder.info.features),
        "one called 'image'",
        "name another data set",
    )
    try:
        records = builder.as_data_source(
            split=split,
            # The bytes themselves: they are decoded here, so that a broken image is named
            decoders={"image": tfds.decode.SkipDecoding()},
        )
    except (KeyError, ValueError) as error:
        splits = ", ".join(map(repr, builder.info.splits))
        raise ValueError(
            f"config.data.split = {split!r}: allowed is one of {splits}, or a slice of one; {error}"
        ) from None
    require(
        len(records) > 0, "config.data.split", split, f"a part of {folder} that is not empty", "name another"
    )

    def title(i: int) -> str:
        return f"record {i} of {folder}, {split}"

    return Source(count=len(records), read=lambda i: decode(records[i]["image"], title(i)), title=title)
