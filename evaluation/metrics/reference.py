"""Reference statistics for FID: computed once for a data set, stored with their source, and found by it.

The source is all that the statistics were made from: data set, crop and resize, split, fingerprint of the
images, their size and channels, feature network, weights and preprocessing. Stored statistics are taken only
if all of it agrees. They are looked for in assets/reference, which comes with the project, and in the cache
folder, where runs and --mode=stats put them.

The two published layouts can be read too: mean and covariance as ``mu`` and ``sigma``, and features as
``pool_3``. They do not say of which images, prepared how, by which network. So such a file is refused only if
its content does not fit, and its statistics are marked as of unknown provenance.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
from jaxtyping import Float32, UInt8

from evaluation.metrics.features import FeatureNetwork
from evaluation.metrics.fid import Moments, Source, load_moments, require_comparable, save_moments
from evaluation.store.files import cache_folder, is_local, make_folder
from sde_lib.checks import refusal, require
from solvers import progress

SHIPPED = Path(__file__).resolve().parents[2] / "assets" / "reference"

UNKNOWN = "unknown"
ROWS = 2048  # published feature vectors in memory at a time

# Rounding to float32 puts eigenvalues that are 0 this far below it, relative to the largest, at most
NEGATIVE = 1e-6

IMAGES = ("data", "split", "image_size", "num_channels", "content")  # what a source says of the images

Pieces = Iterable[UInt8[np.ndarray, "_ h w c"]]


def file_name(source: Source) -> str:
    """The name under which statistics are stored: readable words, and a hash of the whole source."""
    words = re.sub("[^a-z0-9]+", "_", f"{source.data} {source.split} {source.features}".lower())[:80]
    whole = json.dumps(dataclasses.asdict(source), sort_keys=True)
    return f"{words}_{hashlib.sha256(whole.encode()).hexdigest()[:16]}.npz"


def compute(
    pieces: Pieces, network: FeatureNetwork, *, num_images: int | None = None, **described: Any
) -> Moments:
    """Statistics of the network's features of a data set that comes in pieces.

    Args:
        pieces: the images.
        network: computes their features.
        num_images: how many there are, for the progress bar.
        described: identifies the images, as by ``data.datasets.describe``.

    Raises:
        ValueError: for fewer than two images, images that the network does not take, or features that are
            not finite, or the same for all of them.
    """
    source = Source.of(network, **described)
    with progress.bar(total=num_images, unit="image", desc="reference") as bar:
        features = (network(images, after_batch=bar.update)[0] for images in pieces)
        moments = reduce(Moments.merge, (Moments.of(part, source) for part in features))
    count, name = moments.count or 0, f"number of images in {source.data!r}"
    require(count >= 2, name, count, "at least 2 for a covariance", "use more images")
    varies, allowed = bool(np.trace(moments.scatter) > 0), "different for some images of the reference"
    fix = "correct the function of the features, or take other images"
    require(varies, f"features of {source.data!r}", "the same for all", allowed, fix)
    return moments


def first_features(pieces: Pieces, network: FeatureNetwork, *, count: int) -> Float32[np.ndarray, "count d"]:
    """The network's features of the first ``count`` images of a data set, for ``Measurement.compared``.

    Raises:
        ValueError: for a data set of fewer images, or images that the network does not take.
    """
    features = np.empty((count, network.num_features), np.float32)
    filled = 0
    with progress.bar(total=count, unit="image", desc="compared") as bar:
        for images in pieces:
            part = network(images[: count - filled], after_batch=bar.update)[0]
            features[filled : filled + len(part)] = part
            filled += len(part)
            if filled == count:
                break
    fix = f"set compared to {filled} or less, or to 0"
    require(filled == count, "compared", count, f"at most {filled}, the number of images in the data", fix)
    return features


def find(
    network: FeatureNetwork, *, given: str | None, opened: Callable[[], tuple[Pieces, int]], **described: Any
) -> Moments:
    """The reference statistics: from the given file, or else stored ones, or else computed and stored.

    If ``content`` is None because the images are absent, the statistics in assets/reference of the same data
    set, split, size and channels are taken whatever their content.

    Args:
        network: the statistics are of its features.
        given: the path of a file of statistics, or None.
        opened: opens the images, and says how many there are.
        described: identifies the images, as by ``data.datasets.describe``.

    Raises:
        ValueError: for a file of other images, features or preprocessing (saying which), or without
            statistics.
        FileNotFoundError: if there are neither statistics nor images, saying how to get either.
    """
    source = Source.of(network, **described)
    if given is not None:
        moments = load(Path(given), network)
        _require_same_images(moments.source, source, given)
        return moments
    if (stored := _stored(source, network)) is not None:
        return stored[1]
    try:
        pieces, num_images = opened()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}. FID needs these images or their statistics: set reference to a file of statistics, or "
            "sample without measuring FID"
        ) from None
    moments = compute(pieces, network, num_images=num_images, **described)
    try:
        _write(_cached(source), moments)
    except OSError as error:
        warnings.warn(f"{error}: the next run computes the reference statistics again", stacklevel=2)
    return moments


def store(
    network: FeatureNetwork, *, given: str | None, opened: Callable[[], tuple[Pieces, int]], **described: Any
) -> tuple[Path, Moments]:
    """Computes the statistics of a data set and stores them, unless they are stored already.

    Args:
        network: the statistics are of its features.
        given: the path of the file to write; None for one in the cache folder, where ``find`` looks.
        opened: opens the images, and says how many there are.
        described: identifies the images, as by ``data.datasets.describe``.

    Returns:
        The file and its content.

    Raises:
        ValueError: for a file that holds something else, or fewer than two images.
        FileNotFoundError: if the images are absent.
        OSError: if the file cannot be written, which is checked before the features are computed.
    """
    source = Source.of(network, **described)
    if given is None and (stored := _stored(source, network)) is not None:
        return stored
    fix = "store them in a local file, and copy that to the store"
    require(given is None or is_local(given), "reference", given, "a local file", fix)
    path = _cached(source) if given is None else Path(given).expanduser()
    if given is not None and path.exists():
        moments = load(path, network)
        held = moments.source
        differing = f"its {UNKNOWN} images" if _is_unknown(held) else _differing(held, source)
        allowed = f"a new file, or one with the statistics of {source.data!r}, split {source.split!r}"
        fix = f"choose another file, or remove this one, which has {differing}"
        require(not differing, "reference", given, allowed, fix)
        return path, moments
    pieces, num_images = opened()
    with _another_file_suggested():
        _require_writable(path)  # better now than after an hour of features
    moments = compute(pieces, network, num_images=num_images, **described)
    with _another_file_suggested():
        _write(path, moments)
    return path, moments


def _cached(source: Source) -> Path:
    return cache_folder("reference") / file_name(source)


def _stored(source: Source, network: FeatureNetwork) -> tuple[Path, Moments] | None:
    """The stored statistics of this source, with their file; None if there are none."""
    if source.content is None:
        # not from the cache, where a name may stand for anybody's images
        paths = sorted(SHIPPED.glob("*.npz"))
    else:
        paths = [SHIPPED / file_name(source), _cached(source)]
    for path in filter(Path.is_file, paths):
        try:
            moments = load(path, network)
        except ValueError as error:
            if path.parent != SHIPPED:
                warnings.warn(f"{error}: these statistics are computed again", stacklevel=3)
            continue
        content = source.content or moments.source.content
        if moments.source == dataclasses.replace(source, content=content):
            return path, moments
    return None


def _differing(theirs: Source, ours: Source) -> str:
    """What two sources say differently of their images; a content that is not known differs from none."""
    values = {name: (getattr(theirs, name), getattr(ours, name)) for name in IMAGES}
    if None in values["content"]:
        del values["content"]
    return "; ".join(f"{name} = {a!r} instead of {b!r}" for name, (a, b) in values.items() if a != b)


def _require_same_images(theirs: Source, ours: Source, given: str) -> None:
    """Raises ValueError, saying what differs, for the statistics of other images than the config's."""
    if _is_unknown(theirs):
        return
    differing = _differing(theirs, ours)
    allowed = f"a file with the statistics of {ours.data!r}, split {ours.split!r}"
    fix = f"this one has {differing}; choose another file, or compute these statistics to a new one"
    require(not differing, "reference", given, allowed, fix)


def _require_writable(path: Path) -> None:
    with _plain_reason(path):
        make_folder(path.parent)
        tempfile.TemporaryFile(dir=path.parent).close()


def _write(path: Path, moments: Moments) -> None:
    with _plain_reason(path):
        make_folder(path.parent)
        save_moments(path, moments)


@contextlib.contextmanager
def _plain_reason(path: Path) -> Iterator[None]:
    """An OSError with the path and the reason; ``evaluation.store.files`` adds advice for workdirs."""
    try:
        yield
    except OSError as error:
        reason = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise OSError(error.errno, f"cannot write {path}: {reason.strerror or reason}") from error


@contextlib.contextmanager
def _another_file_suggested() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fix = "free some space there or make it writable, or set reference to another file"
        raise OSError(error.errno, f"{error.strerror}; {fix}") from error


def load(path: Path, network: FeatureNetwork) -> Moments:
    """Statistics of the network's features from a file, of this project or in a published layout.

    Raises:
        ValueError: for a file that is absent, holds no statistics or is from an earlier version, and for
            statistics that are no numbers' or of other features or preprocessing than the network's (saying
            which).
    """
    path = path.expanduser()
    fix = "choose a file that exists, or set reference to None for the statistics of the data"
    require(path.is_file(), "reference", str(path), "a file of statistics", fix)
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            for name in names & {"count", "mean", "scatter", "mu", "sigma", "pool_3"}:
                _require_numbers(archive, name)
        if "source" in names:
            moments = load_moments(path)
        elif {"mu", "sigma"} <= names:
            with np.load(path, allow_pickle=False) as file:
                moments = Moments(
                    count=None,
                    mean=file["mu"].astype(np.float64),
                    scatter=file["sigma"].astype(np.float64),
                    source=_unknown(path, network),
                )
        elif "pool_3" in names:
            moments = _of_features(path, network)
        else:
            raise ValueError(f"it holds {sorted(names)}, and neither mu and sigma nor pool_3")
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        allowed = "a file of statistics, of this project or with the arrays mu and sigma, or pool_3"
        fix = f"compute it again, or choose another file ({error})"
        raise ValueError(refusal("reference", str(path), allowed, fix)) from None
    _check(moments, path, network)
    return moments


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether by columns, and dtype of an array in an archive; the array follows in the file."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    return read[version](file)


def _require_numbers(archive: zipfile.ZipFile, name: str) -> None:
    """Raises ValueError, naming the dtype, for an array of anything else than real numbers."""
    with archive.open(f"{name}.npy") as file:
        dtype = _header(file)[2]
    fix = f"save {name}.astype(np.float64)" if dtype.kind != "c" else f"save the real part of {name}"
    require(dtype.kind in "fiu", f"dtype of {name}", str(dtype), "a type of real numbers", fix)


def _is_unknown(source: Source) -> bool:
    """Whether a source is that of a published file, which does not say of which images it is."""
    return source.split == UNKNOWN and source.image_size is None


def _unknown(path: Path, network: FeatureNetwork) -> Source:
    warnings.warn(
        f"{path} does not say what its statistics are of: it is taken on trust that they are of features of "
        f"{network.name!r}, and of images prepared as here ({network.preprocessing})",
        stacklevel=2,
    )
    with path.open("rb") as file:  # files of the same name are told apart by their bytes
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return Source.of(network, data=path.name, split=UNKNOWN, content=content)


def _of_features(path: Path, network: FeatureNetwork) -> Moments:
    """Statistics of published features, read in parts: 50,000 vectors of 2048 features have 410 MB."""
    with zipfile.ZipFile(path) as archive, archive.open("pool_3.npy") as file:
        shape, by_columns, dtype = _header(file)
        fix = "store one vector per image"
        require(len(shape) == 2 and shape[0] > 0, "shape of pool_3", shape, "(n, d) with n > 0", fix)
        fix = "save np.ascontiguousarray(pool_3)"
        require(not by_columns, "order of pool_3", "by columns", "by rows", fix)
        fix = "save pool_3.astype(np.float32)"
        require(dtype.kind == "f", "dtype of pool_3", str(dtype), "a floating-point type", fix)
        source = _unknown(path, network)
        parts = _parts(file.read, shape[0], shape[1], dtype)
        return reduce(Moments.merge, (Moments.of(part, source) for part in parts))


def _parts(read: Callable[[int], bytes], count: int, size: int, dtype: np.dtype) -> Iterator[np.ndarray]:
    for start in range(0, count, ROWS):
        rows = min(ROWS, count - start)
        yield np.frombuffer(read(rows * size * dtype.itemsize), dtype).reshape(rows, size)


def _check(moments: Moments, path: Path, network: FeatureNetwork) -> None:
    """Raises ValueError for statistics that FID with this network cannot use."""

    def require_fit(holds: Any, allowed: str, fix: str) -> None:
        require(holds, "reference", str(path), f"a file of {allowed}", fix)

    mean, scatter, size = moments.mean, moments.scatter, network.num_features
    require_fit(
        (mean.shape, scatter.shape) == ((size,), (size, size)),
        f"statistics of the {size} features of {network.name!r}",
        f"choose another file or other features; here the mean has the shape {mean.shape}, the covariance "
        f"{scatter.shape}",
    )
    count = moments.count
    require_fit(
        count is None or count >= 2, f"statistics of at least 2 images, not {count}", "use more images"
    )
    finite = np.isfinite(mean).all() and np.isfinite(scatter).all()
    require_fit(finite, "finite statistics", "compute them again")
    asymmetry = np.abs(scatter - scatter.T).max()
    symmetric = asymmetry <= 1e-5 * np.abs(scatter).max()  # some files hold float32
    require_fit(symmetric, "statistics with a symmetric covariance", "compute them again")
    smallest, largest = scipy.linalg.eigvalsh(scatter / moments.degrees_of_freedom)[[0, -1]]
    require_fit(
        smallest >= -NEGATIVE * largest,
        "statistics whose covariance has no eigenvalue below 0",
        f"compute them again; the smallest eigenvalue is {smallest:.3g} and the largest {largest:.3g}, and "
        f"rounding explains -{NEGATIVE:g} of it at most",
    )
    require_comparable(Source.of(network, data="samples", split="all"), moments.source)
