"""Reference moments: computed once for a data set, stored with what they are of, and found again by it.

Also read are the two layouts in which such moments are published: mean and covariance as ``mu`` and
``sigma``, and features as ``pool_3``. These do not say which images, prepared how, by which network, so that
nothing can be refused but what does not fit; they are marked as of unknown provenance.
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

import numpy as np
from jaxtyping import Float32, UInt8

from evaluation.metrics.features import FeatureNetwork
from evaluation.metrics.fid import Moments, Source, load_moments, require_comparable, save_moments
from evaluation.store.files import make_folder
from sde_lib.checks import require

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "reference"

UNKNOWN = "unknown"
ROWS = 2048  # of published features at a time

Pieces = Iterable[UInt8[np.ndarray, "_ h w c"]]


def default_path(network: FeatureNetwork, *, data: str, split: str) -> Path:
    """Where the moments of these features of this part of this data are stored."""
    words = re.sub("[^a-z0-9]+", "_", f"{data} {split} {network.name}".lower())
    return FOLDER / f"{words}_{network.sha256[:8]}.npz"


def compute(pieces: Pieces, network: FeatureNetwork, *, data: str, split: str) -> Moments:
    """Moments of the network's features of a data set that passes through in pieces.

    Raises:
        ValueError: for images that the network does not take, or features that are not finite.
    """
    source = Source.of(network, data=data, split=split)
    return reduce(Moments.merge, (Moments.of(network(images)[0], source) for images in pieces))


def first_features(pieces: Pieces, network: FeatureNetwork, *, count: int) -> Float32[np.ndarray, "count d"]:
    """The network's features of the first images of a data set: what ``config.eval.compared`` compares with.

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
    fix = f"set it to {filled} or less, or to 0"
    require(filled == count, "config.eval.compared", count, f"at most {filled}, the images in the data", fix)
    return features


def find(
    network: FeatureNetwork, *, given: str | None, data: str, split: str, pieces: Callable[[], Pieces]
) -> Moments:
    """The moments that FID is to: those of the given file, else those stored, else computed anew.

    Args:
        given: as ``config.eval.reference``.
        data, split: of the config's data, as in ``Source``.
        pieces: opens the images.

    Raises:
        ValueError: for a file of other features or preprocessing, or that is no file of moments.
        FileNotFoundError: where neither moments nor images are there, saying how to get either.
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
            f"{error}. FID needs these images, or moments of them: name a file by config.eval.reference; "
            "--mode=sample needs neither"
        ) from None
    return compute(images, network, data=data, split=split)


def store(
    network: FeatureNetwork, *, given: str | None, data: str, split: str, pieces: Callable[[], Pieces]
) -> tuple[Path, Moments]:
    """Computes the moments of a data set and stores them, unless they are there.

    Args: as of ``find``; ``given`` is the file to write.

    Returns:
        The file and what is in it.

    Raises:
        ValueError: for a file that holds something else.
        FileNotFoundError: where the images are not there.
        OSError: where the file cannot be written, found out before the features are computed.
    """
    path = default_path(network, data=data, split=split) if given is None else Path(given)
    if path.exists():
        moments = load(path, network)
        theirs = moments.source.data, moments.source.split
        allowed = f"a new file, or the moments of {(data, split)}; it holds those of {theirs}"
        fix = "name another file, or remove this one"
        require(theirs == (data, split), "config.eval.reference", str(path), allowed, fix)
        return path, moments
    images = pieces()
    with _told_where_else(path):
        make_folder(path.parent)
        tempfile.TemporaryFile(dir=path.parent).close()  # better now than after an hour of features
    moments = compute(images, network, data=data, split=split)
    with _told_where_else(path):
        save_moments(path, moments)
    return path, moments


@contextlib.contextmanager
def _told_where_else(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise OSError(
            error.errno,
            f"cannot write {path}: {reason.strerror or reason}; free some space there or make it writable, "
            "or name another file by config.eval.reference",
        ) from error


def load(path: Path, network: FeatureNetwork) -> Moments:
    """Moments from a file of this project or in a published layout, fit to be compared with the network's.

    Raises:
        ValueError: for a path that is not there, a file that holds no moments, moments that are not finite,
            or of other features or preprocessing than the network's (saying which).
    """
    path = path.expanduser()
    require(
        path.is_file(), "config.eval.reference", str(path), "a file of moments", "make it by --mode=stats"
    )
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
        raise ValueError(
            f"config.eval.reference = {str(path)!r}: allowed is a file of moments, by --mode=stats or with "
            f"the arrays mu and sigma, or pool_3; {error}: make it again, or name another"
        ) from None
    _check(moments, path, network)
    return moments


def _unknown(path: Path, network: FeatureNetwork) -> Source:
    warnings.warn(
        f"{path} does not say what its moments are of: that they are of features of {network.name!r}, of "
        f"images prepared as here ({network.preprocessing}), is taken on trust",
        stacklevel=2,
    )
    return Source.of(network, data=path.name, split=UNKNOWN)


def _of_features(path: Path, network: FeatureNetwork) -> Moments:
    """Read in parts: 50,000 vectors of 2048 features are 410 MB."""
    with zipfile.ZipFile(path) as archive, archive.open("pool_3.npy") as file:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, by_columns, dtype = header[version](file)
        fix = "store one vector an image"
        require(len(shape) == 2 and shape[0] > 0, "shape of pool_3", shape, "(n, d), n > 0", fix)
        require(not by_columns, "pool_3", "stored by columns", "rows", "save np.ascontiguousarray(pool_3)")
        require(dtype.kind == "f", "dtype of pool_3", str(dtype), "floats", "save pool_3.astype(np.float32)")
        source = _unknown(path, network)
        parts = _parts(file.read, shape[0], shape[1], dtype)
        return reduce(Moments.merge, (Moments.of(part, source) for part in parts))


def _parts(read: Callable[[int], bytes], count: int, size: int, dtype: np.dtype) -> Iterator[np.ndarray]:
    for start in range(0, count, ROWS):
        rows = min(ROWS, count - start)
        yield np.frombuffer(read(rows * size * dtype.itemsize), dtype).reshape(rows, size)


def _check(moments: Moments, path: Path, network: FeatureNetwork) -> None:
    size = network.num_features
    shapes = moments.mean.shape, moments.scatter.shape
    require(
        shapes == ((size,), (size, size)),
        f"shapes of mean and covariance in {path}",
        shapes,
        f"{((size,), (size, size))}, for the features {network.name!r}",
        "name moments of these features by config.eval.reference, or set config.eval.features",
    )
    require(
        bool(np.isfinite(moments.mean).all() and np.isfinite(moments.scatter).all()),
        f"moments in {path}",
        "not finite",
        "finite numbers only",
        "compute them again",
    )
    scale = np.abs(moments.scatter).max()
    require(
        bool(np.abs(moments.scatter - moments.scatter.T).max() <= 1e-5 * scale),  # some are kept in float32
        f"covariance in {path}",
        "not symmetric",
        "a covariance",
        "compute it again",
    )
    require_comparable(Source.of(network, data="samples", split="all"), moments.source)
