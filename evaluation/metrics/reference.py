"""Reference statistics for FID: computed once for a data set, stored with their source, and found by it.

The two published layouts can be read too: mean and covariance as ``mu`` and ``sigma``, and features as
``pool_3``. They do not say of which images, prepared how, by which network. So such a file is refused only if
its shape does not fit, and its statistics are marked as of unknown provenance.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from evaluation.metrics.features import FeatureNetwork
from evaluation.metrics.fid import Moments, Source, load_moments, require_comparable, save_moments
from evaluation.store.files import make_folder
from sde_lib.checks import refusal, require

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "reference"

UNKNOWN = "unknown"
ROWS = 2048  # published feature vectors in memory at a time

Pieces = Iterable[UInt8[np.ndarray, "_ h w c"]]


def default_path(network: FeatureNetwork, *, data: str, split: str) -> Path:
    """The file for the statistics of the network's features of this part of this data."""
    words = re.sub("[^a-z0-9]+", "_", f"{data} {split} {network.name}".lower())
    return FOLDER / f"{words}_{network.sha256[:8]}.npz"


def compute(pieces: Pieces, network: FeatureNetwork, *, data: str, split: str) -> Moments:
    """Statistics of the network's features of a data set that comes in pieces.

    Raises:
        ValueError: for images that the network does not take, or features that are not finite.
    """
    source = Source.of(network, data=data, split=split)
    return reduce(Moments.merge, (Moments.of(network(images)[0], source) for images in pieces))


def first_features(pieces: Pieces, network: FeatureNetwork, *, count: int) -> Float32[np.ndarray, "count d"]:
    """The network's features of the first ``count`` images of a data set, for ``Measurement.compared``.

    Raises:
        ValueError: for a data set of fewer images, or images that the network does not take.
    """
    features = np.empty((count, network.num_features), np.float32)
    filled = 0
    for images in pieces:
        part = network(images[: count - filled])[0]
        features[filled : filled + len(part)] = part
        filled += len(part)
        if filled == count:
            break
    fix = f"set compared to {filled} or less, or to 0"
    require(filled == count, "compared", count, f"at most {filled}, the number of images in the data", fix)
    return features


def find(
    network: FeatureNetwork, *, given: str | None, data: str, split: str, pieces: Callable[[], Pieces]
) -> Moments:
    """The reference statistics: from the given file, or else from the stored one, or else computed.

    Args:
        network: the statistics are of its features.
        given: the path of a file of statistics, or None.
        data, split: name and part of the data set, as in ``Source``.
        pieces: opens the images.

    Raises:
        ValueError: for a file of other features or preprocessing, or without statistics.
        FileNotFoundError: if there are neither statistics nor images, saying how to get either.
    """
    if given is not None:
        return load(Path(given), network)
    stored = default_path(network, data=data, split=split)
    if stored.exists():
        return load(stored, network)
    try:
        images = pieces()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}. FID needs these images or their statistics: set reference to a file of statistics, or "
            "sample without measuring FID"
        ) from None
    return compute(images, network, data=data, split=split)


def store(
    network: FeatureNetwork, *, given: str | None, data: str, split: str, pieces: Callable[[], Pieces]
) -> tuple[Path, Moments]:
    """Computes the statistics of a data set and stores them, unless they are stored already.

    Args:
        network: the statistics are of its features.
        given: the path of the file to write; None for the default one.
        data, split: name and part of the data set, as in ``Source``.
        pieces: opens the images.

    Returns:
        The file and its content.

    Raises:
        ValueError: for a file that holds something else.
        FileNotFoundError: if the images are absent.
        OSError: if the file cannot be written, which is checked before the features are computed.
    """
    path = default_path(network, data=data, split=split) if given is None else Path(given)
    if path.exists():
        moments = load(path, network)
        theirs = moments.source.data, moments.source.split
        allowed = f"a new file, or one with the statistics of {(data, split)}"
        fix = f"choose another file, or remove this one, which holds the statistics of {theirs}"
        require(theirs == (data, split), "reference", str(path), allowed, fix)
        return path, moments
    images = pieces()
    with _another_file_suggested(path):
        make_folder(path.parent)
        tempfile.TemporaryFile(dir=path.parent).close()  # better now than after an hour of features
    moments = compute(images, network, data=data, split=split)
    with _another_file_suggested(path):
        save_moments(path, moments)
    return path, moments


@contextlib.contextmanager
def _another_file_suggested(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise OSError(
            error.errno,
            f"cannot write {path}: {reason.strerror or reason}; free some space there or make it writable, "
            "or set reference to another file",
        ) from error


def load(path: Path, network: FeatureNetwork) -> Moments:
    """Statistics of the network's features from a file, of this project or in a published layout.

    Raises:
        ValueError: for a file that is absent or holds no statistics, and for statistics that are not finite
            or of other features or preprocessing than the network's (saying which).
    """
    path = path.expanduser()
    fix = "choose a file that exists, or set reference to None for the statistics of the data"
    require(path.is_file(), "reference", str(path), "a file of statistics", fix)
    try:
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files) if isinstance(file, np.lib.npyio.NpzFile) else set()
            if "source" in names:
                moments = load_moments(path)
            elif {"mu", "sigma"} <= names:
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


def _unknown(path: Path, network: FeatureNetwork) -> Source:
    warnings.warn(
        f"{path} does not say what its statistics are of: it is taken on trust that they are of features of "
        f"{network.name!r}, and of images prepared as here ({network.preprocessing})",
        stacklevel=2,
    )
    return Source.of(network, data=path.name, split=UNKNOWN)


def _of_features(path: Path, network: FeatureNetwork) -> Moments:
    """Statistics of published features, read in parts: 50,000 vectors of 2048 features have 410 MB."""
    with zipfile.ZipFile(path) as archive, archive.open("pool_3.npy") as file:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, by_columns, dtype = header[version](file)
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
    finite = np.isfinite(mean).all() and np.isfinite(scatter).all()
    require_fit(finite, "finite statistics", "compute them again")
    asymmetry = np.abs(scatter - scatter.T).max()
    symmetric = asymmetry <= 1e-5 * np.abs(scatter).max()  # some files hold float32
    require_fit(symmetric, "statistics with a symmetric covariance", "compute them again")
    require_comparable(Source.of(network, data="samples", split="all"), moments.source)
