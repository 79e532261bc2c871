"""Sources of images: prepared tensorflow-datasets, folders, .zip and .npz files, and MNIST's IDX files.

Every source has random access: a number of images, and a function that reads the i-th from any thread. None
of them needs TensorFlow. Whatever is wrong with a file ends in a ValueError that names it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import math
import operator
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, cast

import numpy as np
from etils import epath
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps

from sde_lib.checks import refusal, require, require_choice

REPLACE = "replace it with an intact copy"

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp"),
    *(".tif", ".tiff", ".gif", ".pgm", ".ppm"),
)

# Bytes of an image, as a file in an archive and decoded. A larger one is refused before memory is used for
# it: a damaged or malicious file of some kilobytes may ask for gigabytes.
LARGEST = 2**28

# Bytes of each file in a folder that its fingerprint takes in: reading whole files takes too long.
HEAD = 2**16

# Where EDM and StyleGAN keep the classes of the images beside it: {"labels": [[name, class], ...]}
LISTED = "dataset.json"

Labels = Int64[np.ndarray, " n"]

# Names of tensorflow-datasets, and what preparing them takes besides the command
PREPARED = {
    "mnist": "",
    "cifar10": "",
    "celeb_a": "",
    "celeb_a_hq/256": ", after assembling its images by hand as the data set's page says",
    "lsun/church_outdoor": "",
    "lsun/bedroom": "",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Images as they are stored, of any size.

    Attributes:
        count: number of images.
        read: i -> image i, uint8 [h, w, c], for 0 <= i < count. Raises a ValueError that names the image if
            it is damaged.
        title: i -> the name of image i in messages.
        fingerprint: computes a SHA-256, in hexadecimal digits, that changes with the images.
        labels: reads the class of each image, [n]; None where nothing says it. Raises a ValueError that names
            what is damaged.

    Example:
        >>> source = of_array(np.zeros((2, 8, 8, 3), np.uint8), "black images")
        >>> source.count, source.read(1).shape, source.title(1)
        (2, (8, 8, 3), 'image 1 of black images')
    """

    count: int
    read: Callable[[int], UInt8[np.ndarray, "h w c"]]
    title: Callable[[int], str]
    fingerprint: Callable[[], str]
    labels: Callable[[], Labels | None] = lambda: None


@contextlib.contextmanager
def _readable(title: str, allowed: str = "a readable file") -> Iterator[None]:
    """Turns any error of the block into a ValueError: decoders of damaged files raise nearly anything."""
    try:
        yield
    except Exception as error:
        raise ValueError(refusal(title, error, allowed, REPLACE)) from None


def digest(parts: Iterable[bytes]) -> str:
    """The SHA-256 of some parts one after the other, in hexadecimal digits."""
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part)
    return sha256.hexdigest()


def decode(content: bytes, title: str) -> UInt8[np.ndarray, "h w c"]:
    """Decodes an image file: c = 1 for grey, 3 for RGB, and 2 or 4 for these with an alpha channel.

    The image is turned as its EXIF orientation says.

    Args:
        content: of a file in any format that Pillow reads, such as PNG or JPEG.
        title: the image's name in messages.

    Raises:
        ValueError: for a damaged image, one that is larger than ``LARGEST`` or has several frames, or one
            whose channels do not have 8 bits.
    """
    with _readable(title, "a readable image"):
        image = Image.open(io.BytesIO(content))
        # A camera's JPEG (MPO) holds the photograph first, and then previews of it
        still = image.format == "MPO" or not getattr(image, "is_animated", False)
        stored = f"{image.mode} of more than 8 bits a channel" if _is_deep(image) else image.mode
    size = image.width * image.height * len(image.getbands())
    _require_small(f"bytes of {title} when decoded", size)
    require(still, title, "several frames", "a still image", "store each frame as an image of its own")
    with _readable(title, "a readable image"):
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode == "P":  # indices into a palette
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        pixels = np.asarray(image)
    modes, fix = ("L", "LA", "P", "RGB", "RGBA"), "convert it to 8 bits a channel"
    require(stored in modes, f"Pillow's mode of {title}", stored, "8-bit grey (L) or RGB", fix)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _is_deep(image: Image.Image) -> bool:
    """Whether a file has more than 8 bits a channel; of colours, Pillow drops the others without a word."""
    for codec, _, _, arguments in getattr(image, "tile", []):
        if codec.startswith("ppm"):
            deep = isinstance(arguments, tuple) and arguments[-1] > 255  # the largest level
        else:
            deep = re.search("(?<!BGR);16", str(arguments))  # as in "RGB;16B"; "BGR;16" has 5 or 6 bits
        if deep:
            return True
    return False


def _require_small(name: str, size: int) -> None:
    require(size <= LARGEST, name, size, f"at most {LARGEST}", "resize the image, or remove it")


def of_array(images: np.ndarray, title: str, labels: Callable[[], Labels | None] = lambda: None) -> Source:
    """Images in memory.

    Args:
        images: uint8 [n, h, w, c], or [n, c, h, w] with c = 1 or 3; n >= 1.
        title: their name in messages.
        labels: reads their classes.

    Raises:
        ValueError: for another dtype or number of axes, or no images.
    """
    _require_images(images.dtype, images.shape, title)
    images = _channels_last(images)
    return Source(
        count=len(images),
        read=images.__getitem__,
        title=lambda i: f"image {i} of {title}",
        fingerprint=lambda: digest([repr(images.shape).encode(), images.tobytes()]),
        labels=labels,
    )


def _checked(labels: np.ndarray, count: int, title: str) -> Labels:
    """The classes that a file gives.

    Raises:
        ValueError: unless there is one whole number for each of ``count`` images.
    """
    found = f"{labels.dtype} of shape {labels.shape}"
    allowed = f"a whole number for each of the {count} images"
    fix = "store the classes as integers of shape [n], in the order of the images"
    require(labels.dtype.kind in "iu" and labels.shape == (count,), f"labels in {title}", found, allowed, fix)
    return labels.astype(np.int64)


def _of_names(names: list[str], listed: Callable[[], bytes] | None, place: str) -> Labels | None:
    """The classes of image files: those that ``LISTED`` has for them, else the folders that they are in.

    Args:
        names: of the images from the place on, with slashes.
        listed: reads the content of ``LISTED``, if it is there.
        place: where the images are, for messages.
    """
    if listed is None:
        parents = [name.rpartition("/")[0] for name in names]
        folders = sorted(set(parents))
        if folders[0] == "" or len(folders) == 1:  # images that no folder sorts
            return None
        number = {folder: i for i, folder in enumerate(folders)}
        return np.array([number[parent] for parent in parents], np.int64)
    title = f"{place}/{LISTED}"
    content = listed()
    with _readable(title, '{"labels": [[name, class], ...]}, or null for no classes'):
        entries = json.loads(content).get("labels")
        classes = {str(name): operator.index(label) for name, label in entries or ()}
        found = np.array([classes.get(name, 0) for name in names], np.int64)
    if entries is None:
        return None
    absent = [name for name in names if name not in classes]
    fix = f"add a class of each of the {len(absent)} images without one"
    require(not absent, f"labels in {title}", f"none of {absent[:1]}", "a class for every image", fix)
    return found


def _require_images(dtype: np.dtype, shape: tuple[int, ...], title: str) -> None:
    fix = "store grey levels as uint8"
    if dtype.kind == "f":
        fix = "convert it, from [0, 1] with np.rint(255 * images).astype(np.uint8), or from [-1, 1] with "
        fix += "np.rint(127.5 * (images + 1)).astype(np.uint8)"
    grey_levels = "uint8 with grey levels 0 to 255"
    require(dtype == np.uint8, f"dtype of {title}", str(dtype), grey_levels, fix)
    fix = "store grey images as images[..., None]" if len(shape) == 3 else "put the axes in this order"
    require(len(shape) == 4, f"shape of {title}", shape, "(n, height, width, channels)", fix)
    require(shape[0] > 0, f"number of images in {title}", 0, "at least 1", "choose a file with images")


def _channels_last(images: UInt8[np.ndarray, "n _ _ _"]) -> UInt8[np.ndarray, "n h w c"]:
    """The images, whose channels may be the second axis instead of the last."""
    channels = (1, 3)
    first = images.shape[1] in channels and images.shape[3] not in channels
    return images.transpose(0, 2, 3, 1) if first else images


def existing(path: str, key: str) -> epath.Path:
    """The path of images that a flag or config key gives.

    Raises:
        ValueError: naming the key, if there is nothing at the path, if the path is empty, or of a store that
            cannot be reached.
    """
    allowed = "an existing folder, .zip or .npz file"
    try:
        place = epath.Path(path).expanduser()
        there = path != "" and place.exists()
    except Exception as error:  # the clients of the stores have no common one
        raise ValueError(refusal(key, path, allowed, f"copy it to this machine ({error})")) from None
    require(there, key, path, allowed, "correct the path")
    return place


def at_path(path: str, key: str) -> Source:
    """The images in a folder and its subfolders, a .zip or an .npz file, in the order of their names.

    Links to folders are followed. Names that begin with a dot and files that are no images are skipped, and a
    line on stderr says how many. In an .npz file, the images are the only array, or the one called images or,
    as guided-diffusion writes it, arr_0.

    Args:
        path: the folder or file.
        key: the name of the flag or config key that gave the path, for messages.

    Raises:
        ValueError: for a path that does not exist or holds no images.
    """
    place = existing(path, key)
    if place.is_dir():
        return _of_folder(place)
    readers, suffix = {".zip": _of_zip, ".npz": _of_npz}, place.suffix.lower()
    fix = "put the images into a folder"
    require(suffix in readers, key, path, "a folder, a .zip or an .npz file", fix)
    return readers[suffix](place)


HIDDEN, AGAIN = "hidden", "again"


def _is_hidden(name: str) -> bool:
    # macOS puts its own notes into archives
    return (name.startswith(".") and name not in (".", "..")) or name == "__MACOSX"


def _is_image(name: str, skipped: collections.Counter[str]) -> bool:
    """Whether a file is an image, by its last name; counts it among those skipped if not."""
    if name.lower().endswith(SUFFIXES):
        return True
    skipped[os.path.splitext(name)[1].lower() or "no suffix"] += 1
    return False


def _of_folder(folder: epath.Path) -> Source:
    files, skipped, visited = [], collections.Counter[str](), set()

    def refuse(error: OSError) -> None:
        fix = "make it readable, or remove it"
        raise ValueError(refusal(str(error.filename), error, "a readable folder", fix))

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(parent)
        if real in visited:  # a link may lead to a folder above it
            skipped[AGAIN] += 1
            folders.clear()
            continue
        visited.add(real)
        shown = [name for name in (*folders, *names) if not _is_hidden(name)]
        skipped[HIDDEN] += len(folders) + len(names) - len(shown)
        folders[:] = sorted(set(folders) & set(shown))
        files += [os.path.join(parent, name) for name in set(names) & set(shown) if _is_image(name, skipped)]
    files.sort()
    _require_some(files, str(folder), skipped)

    def part(file: str) -> bytes:
        with _readable(file), open(file, "rb") as opened:
            size, head = os.fstat(opened.fileno()).st_size, opened.read(HEAD)
        return b"%b\0%d\0%b" % (os.fsencode(os.path.relpath(file, folder)), size, digest([head]).encode())

    def fingerprint() -> str:
        with ThreadPoolExecutor() as pool:
            return digest(pool.map(part, files))

    def labels() -> Labels | None:
        names = [os.path.relpath(file, folder).replace(os.sep, "/") for file in files]
        listed = os.path.join(folder, LISTED)
        read = functools.partial(_content, listed) if os.path.exists(listed) else None
        return _of_names(names, read, str(folder))

    return Source(
        count=len(files),
        read=lambda i: decode(_content(files[i]), files[i]),
        title=files.__getitem__,
        fingerprint=fingerprint,
        labels=labels,
    )


def _content(path: str) -> bytes:
    with _readable(path), open(path, "rb") as file:
        return file.read()


def _of_zip(path: epath.Path) -> Source:
    with _readable(str(path)):
        archive = zipfile.ZipFile(path)  # stays open; its own lock serialises reads from several threads
    files, skipped = [], collections.Counter[str]()
    for member in archive.infolist():
        parts = member.filename.split("/")
        if member.is_dir():
            continue
        if any(map(_is_hidden, parts)):
            skipped[HIDDEN] += 1
        elif _is_image(parts[-1], skipped):
            files.append(member)
    files.sort(key=lambda member: member.filename)

    def title(i: int) -> str:
        return f"{path}/{files[i].filename}"

    for i, member in enumerate(files):
        _require_small(f"bytes of {title(i)}", member.file_size)
    _require_some(files, str(path), skipped)

    def content(member: zipfile.ZipInfo) -> bytes:
        with _readable(f"{path}/{member.filename}"), archive.open(member) as file:
            return file.read(member.file_size)  # without a number, it would decompress whatever comes

    def labels() -> Labels | None:
        names, listed = [member.filename for member in files], None
        if LISTED in archive.namelist():
            member = archive.getinfo(LISTED)
            _require_small(f"bytes of {path}/{LISTED}", member.file_size)
            listed = functools.partial(content, member)
        return _of_names(names, listed, str(path))

    return Source(
        count=len(files),
        read=lambda i: decode(content(files[i]), title(i)),
        title=title,
        fingerprint=lambda: _directory(files),
        labels=labels,
    )


def _directory(members: Iterable[zipfile.ZipInfo]) -> str:
    """The fingerprint of an archive's files, by what its directory says of them."""
    return digest(f"{file.filename}\0{file.file_size}\0{file.CRC}\0".encode() for file in members)


def _require_some(files: list[Any], place: str, skipped: collections.Counter[str]) -> None:
    """Refuses a place without images; where there are some, says which other files are skipped."""
    fix = (
        f"choose a path with files ending in {', '.join(SUFFIXES)}; or, if it holds prepared "
        "tensorflow-datasets, set config.data.name to one of them"
    )
    require(files, f"number of images in {place}", 0, "at least 1", fix)
    hidden, again = skipped.pop(HIDDEN, 0), skipped.pop(AGAIN, 0)
    suffixes = ", ".join(suffix for suffix, _ in skipped.most_common(4))
    kinds = {
        "hidden (a name that begins with a dot)": hidden,
        f"not an image ({suffixes})": skipped.total(),
        "a folder that was read under another name": again,
    }
    if number := sum(kinds.values()):
        reasons = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        _say(f"{place}: read {len(files)} images, skipped {number} other files or folders: {reasons}")


@functools.cache  # a command opens the same place several times
def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _of_npz(path: epath.Path) -> Source:
    title = str(path)
    with _readable(title), zipfile.ZipFile(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
    names = [*members] if len(members) == 1 else [name for name in ("images", "arr_0") if name in members]
    allowed = "a single array, or several with one called 'images' or 'arr_0'"
    fix = "store the images with np.savez(path, images=images)"
    require(names, f"content of {title}", [*members], allowed, fix)
    member = members[names[0]]
    with _readable(title), zipfile.ZipFile(path) as archive, archive.open(member) as file:
        opened = cast(BinaryIO, file)
        version = np.lib.format.read_magic(opened)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = header[version](opened)
        size = member.file_size - opened.tell()
    _require_images(dtype, shape, title)
    allowed = f"{math.prod(shape)}, as its shape {shape} says"
    require(size == math.prod(shape), f"bytes of the images in {title}", size, allowed, REPLACE)

    @functools.cache  # not read before the first image is: the fingerprint needs none
    def images() -> np.ndarray:
        with _readable(title), zipfile.ZipFile(path) as archive, archive.open(member) as file:
            return _channels_last(np.lib.format.read_array(cast(BinaryIO, file), allow_pickle=False))

    def labels() -> Labels | None:
        member = next((members[name] for name in ("labels", "arr_1") if name in members), None)
        if member is None or len(members) == 1:
            return None
        _require_small(f"bytes of the labels in {title}", member.file_size)
        with _readable(title), zipfile.ZipFile(path) as archive, archive.open(member) as file:
            found = np.lib.format.read_array(cast(BinaryIO, file), allow_pickle=False)
        return _checked(found, shape[0], title)

    return Source(
        count=shape[0],
        read=lambda i: images()[i],
        title=lambda i: f"image {i} of {title}",
        fingerprint=lambda: _directory([member]),
        labels=labels,
    )


# The original files of MNIST and its successors (Fashion-MNIST, KMNIST), with or without .gz
IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def idx_files(folder: str, split: str) -> tuple[epath.Path, epath.Path] | None:
    """The files with the images and the labels of a split of MNIST; None for a folder without such files.

    Args:
        folder: where the files are.
        split: "train" or "test".

    Raises:
        ValueError: for another split, or one of which a file is missing.
    """
    place = epath.Path(folder).expanduser()

    def found(name: str) -> list[epath.Path]:
        return [file for file in (place / name, place / f"{name}.gz") if file.exists()]

    if not any(found(images) for images, _ in IDX.values()):
        return None
    require_choice("config.data.split", split, IDX)
    images, labels = IDX[split]
    present = sorted(file.name for file in place.iterdir())
    allowed, fix = f"{images} and {labels}, with or without .gz", "copy both into the folder"
    require(found(images) and found(labels), f"files in {folder}", present, allowed, fix)
    return found(images)[0], found(labels)[0]


def read_idx(path: epath.Path) -> UInt8[np.ndarray, "..."]:
    """Reads an array of bytes in the IDX format, compressed with gzip if the name ends in .gz.

    The file starts with the bytes 0, 0, 8 (for the type: bytes) and the number of axes, followed by their
    lengths as big-endian 32-bit integers and the values.

    Raises:
        ValueError: for a damaged file, or another format.
    """
    with _readable(str(path)), path.open("rb") as raw:
        file = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        start = file.read(4)
        axes = start[3] if start[:3] == b"\0\0\x08" and len(start) == 4 else 0
        shape = tuple(map(int, np.frombuffer(file.read(4 * axes), ">u4", axes)))
        # one byte more than there should be, to notice what is too long
        values = np.frombuffer(file.read(math.prod(shape) + 1), np.uint8)
    allowed = f"an array of bytes in the IDX format, of the shape {shape} that its header says"
    whole = shape and values.size == math.prod(shape)
    require(whole, f"content of {path}", f"{values.size} bytes", allowed, REPLACE)
    return values.reshape(shape)


def of_idx(folder: str, split: str) -> Source | None:
    """The grey images of a split of MNIST's original files; None for a folder without such files.

    Raises:
        ValueError: as ``idx_files`` and ``read_idx``, and for a file without images.
    """
    files = idx_files(folder, split)
    if files is None:
        return None
    images = read_idx(files[0])[..., None]
    return of_array(images, str(files[0]), lambda: _checked(read_idx(files[1]), len(images), str(files[1])))


def prepared_folder(name: str, path: str | None) -> epath.Path | None:
    """The folder of the newest version of a prepared data set; None if there is none.

    Args:
        name: the name in tensorflow-datasets, including its config, such as "lsun/church_outdoor".
        path: the folder of one version, or the one that contains all data sets; None for the default of
            tensorflow-datasets, see ``default_root``.
    """
    root = epath.Path(default_root() if path is None else path).expanduser()
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
    """The folder in which tensorflow-datasets keeps prepared data sets: TFDS_DATA_DIR or its default."""
    return os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")


def how_to_prepare(name: str) -> str:
    """Instructions for getting a data set of ``PREPARED``."""
    root = default_root()
    return (
        f"on a machine with internet access, run: pip install tensorflow; tfds build {name} "
        f"--file_format=array_record --data_dir={root}{PREPARED[name]}. Then copy {root}/{name} here "
        "(reading it needs no TensorFlow), or set config.data.path to the folder that contains it, or to "
        "a folder, .zip or .npz file of the images"
    )


def of_prepared(folder: epath.Path, split: str) -> Source:
    """A split, or a slice such as "train[:5000]", of a data set that tensorflow-datasets prepared.

    Args:
        folder: of one version of the data set, see ``prepared_folder``.
        split: in the syntax of tensorflow-datasets.

    Raises:
        ValueError: for a split that the data set does not have, a split without images, or a file format
            without random access (which cannot be read without TensorFlow).
    """
    import tensorflow_datasets as tfds  # takes seconds, and only these data sets need it

    builder: Any  # type checkers do not know its features and calls
    with _readable(str(folder), "a readable folder of tensorflow-datasets"):
        builder = tfds.builder_from_directory(folder)
    require(
        builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD,
        f"file format of {folder}",
        str(builder.info.file_format and builder.info.file_format.value),
        "array_record",
        f"run: tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record "
        "--out_dir=ANOTHER, with TensorFlow installed; then set config.data.path to ANOTHER",
    )
    features, allowed = sorted(builder.info.features), "a list that contains 'image'"
    require("image" in features, f"features of {folder}", features, allowed, "choose another data set")
    try:
        records = builder.as_data_source(
            split=split,
            # The encoded bytes: ``decode`` names a damaged image.
            decoders={"image": tfds.decode.SkipDecoding()},
        )
    except (KeyError, ValueError) as error:
        allowed = f"one of {', '.join(map(repr, builder.info.splits))}, or a slice of one"
        fix = f"choose one of these ({error})"
        raise ValueError(refusal("config.data.split", split, allowed, fix)) from None
    allowed = f"a part of {folder} that is not empty"
    require(len(records) > 0, "config.data.split", split, allowed, "choose a larger part")

    def title(i: int) -> str:
        return f"record {i} of {folder}, {split}"

    def read(i: int) -> np.ndarray:
        with _readable(title(i), "a readable record"):
            content = records[i]["image"]
        return decode(content, title(i))

    def label(i: int) -> int:
        with _readable(title(i), "a readable record with a whole number as its label"):
            return operator.index(records[i]["label"])

    def labels() -> Labels | None:
        return np.array([label(i) for i in range(len(records))]) if "label" in features else None

    return Source(
        count=len(records),
        read=read,
        title=title,
        fingerprint=functools.partial(prepared_fingerprint, folder, split),
        labels=labels,
    )


def prepared_fingerprint(folder: epath.Path, split: str) -> str:
    """A SHA-256 of a split's files, by their names and sizes, and of what dataset_info.json says of them.

    It needs no tensorflow-datasets, and works for every file format.
    """
    splits = re.findall(r"(?<!\w)[A-Za-z]\w*", split)  # of a sum of slices, as in "train[:100]+test"
    files = sorted(file for file in folder.iterdir() if any(f"-{name}." in file.name for name in splits))
    parts = [f"{file.name}\0{file.stat().length}\0".encode() for file in files]
    return digest([split.encode(), (folder / "dataset_info.json").read_bytes(), *parts])
