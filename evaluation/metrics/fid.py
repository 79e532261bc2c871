"""FID: Fréchet distance of the Gaussians fitted to two sets of features (Heusel et al., arXiv 1706.08500).

The statistics of a set of features (their moments) are kept in float64 and merge, so that a set of any size
can be processed in pieces. They carry their source, because FID between different features or differently
prepared images means nothing, and is refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64

from evaluation.metrics.features import FeatureNetwork
from evaluation.store.files import atomic_file
from sde_lib.checks import refusal, require

# The published advice for Inception is at least 10,000 samples for 2048 features
ADVISED_SAMPLES_PER_FEATURE = 5

ROWS = 2048  # feature vectors in float64 at a time

# The smallest eigenvalue whose root is taken, relative to the largest: the root is off by 1e-16 / sqrt(1e-6)
NEGLIGIBLE = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The source of feature statistics: which features of which images.

    Attributes:
        features: name of the feature network.
        features_sha256: SHA-256 of its weights.
        preprocessing: what it does to uint8 images first, in words.
        data: name of the data set with its crop and resize, or "samples".
        split: the part of it, such as "all" or "train".
        image_size, num_channels: of the images; None where they do not matter. Of images that are no squares
            the size is [height, width].
        content: fingerprint of the images, as by ``data.datasets.fingerprint``; None if it is not known.
    """

    features: str
    features_sha256: str
    preprocessing: str
    data: str
    split: str
    image_size: int | list[int] | None = None
    num_channels: int | None = None
    content: str | None = None

    @classmethod
    def of(cls, network: FeatureNetwork, **described: Any) -> Source:
        """The network's features of the data that ``described`` identifies (``data.datasets.describe``)."""
        return cls(
            features=network.name,
            features_sha256=network.sha256,
            preprocessing=network.preprocessing,
            **described,
        )

    @classmethod
    def read(cls, text: str) -> Source:
        """Reads the JSON that a file of statistics holds.

        Raises:
            ValueError: for JSON without some of the attributes, as in files of earlier versions.
        """
        said = json.loads(text)
        names = [field.name for field in dataclasses.fields(cls)]
        absent = [name for name in names if name not in said]
        if absent:
            raise ValueError(
                f"it is from an earlier version: it does not give the {', '.join(absent)} of its data"
            )
        return cls(**said)


def require_comparable(samples: Source, reference: Source) -> None:
    """Raises ValueError, saying what differs, unless features and preprocessing are the same."""
    differing = [
        f"{name} = {getattr(reference, name)!r} instead of {getattr(samples, name)!r}"
        for name in ("features", "features_sha256", "preprocessing")
        if getattr(samples, name) != getattr(reference, name)
    ]
    require(
        not differing,
        "reference",
        "; ".join(differing),
        f"of the same features and preprocessing as {samples.data!r}",
        f"compute the statistics of {reference.data!r} again with this feature network",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
    """The statistics of a set of feature vectors: their number, mean and scatter.

    Attributes:
        count: number n of vectors; None if a published file does not say.
        mean: [d].
        scatter: [d, d], the sum over the vectors of (v − mean)(v − mean)^T; without a count, the covariance.
        source: which features of which images.

    Example:
        >>> source = Source(features="f", features_sha256="", preprocessing="", data="example", split="all")
        >>> features = np.array([[0.0], [1.0], [2.0]])
        >>> moments = Moments.of(features[:1], source).merge(Moments.of(features[1:], source))
        >>> moments.name, moments.mean.tolist(), moments.covariance.tolist()
        ('example:all:3', [1.0], [[1.0]])
    """

    count: int | None
    mean: Float64[np.ndarray, " d"]
    scatter: Float64[np.ndarray, "d d"]
    source: Source

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"], source: Source) -> Moments:
        """Statistics of features [n, d], n >= 1, of which only a part is in float64 at a time.

        Raises:
            ValueError: for no vectors, or for features that are not finite.
        """
        require(len(features) > 0, "number of feature vectors", 0, "at least 1", "pass at least one image")
        parts = (features[start : start + ROWS] for start in range(0, len(features), ROWS))
        return reduce(Moments.merge, (Moments._of_part(part, source) for part in parts))

    @classmethod
    def _of_part(cls, features: Float[np.ndarray, "n d"], source: Source) -> Moments:
        unusable = int((~np.isfinite(features).all(axis=1)).sum())
        require(
            unusable == 0,
            f"features of {source.data!r}",
            f"NaN or infinity in {unusable} of {len(features)} vectors",
            "finite numbers",
            f"check the weights of the feature network {source.features!r}",
        )
        vectors = features.astype(np.float64)
        mean = vectors.mean(axis=0)
        vectors -= mean
        return cls(count=len(vectors), mean=mean, scatter=vectors.T @ vectors, source=source)

    def merge(self, other: Moments) -> Moments:
        """Statistics of both sets together (Chan, Golub & LeVeque 1979: no difference of large sums).

        Raises:
            ValueError: for sets of different sources, or without a count.
        """
        same, allowed = self.source == other.source, f"{self.source}, as of the other part"
        require(same, "source", other.source, allowed, "merge only the statistics of parts of one set")
        ours, theirs = _known_count(self), _known_count(other)
        count = ours + theirs
        step = other.mean - self.mean
        scatter = np.outer(step, step)  # in place from here on: a matrix of 2048 dimensions has 34 MB
        scatter *= ours * theirs / count
        scatter += self.scatter
        scatter += other.scatter
        mean = self.mean + step * (theirs / count)
        return Moments(count=count, mean=mean, scatter=scatter, source=self.source)

    @property
    def name(self) -> str:
        """The images, as data:split:number."""
        count = "unknown" if self.count is None else self.count
        return f"{self.source.data}:{self.source.split}:{count}"

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """The unbiased estimate of the covariance, as in the published FID.

        Raises:
            ValueError: for fewer than two vectors.
        """
        return self.scatter / self.degrees_of_freedom

    @property
    def degrees_of_freedom(self) -> int:
        """The divisor that makes the scatter the covariance: n − 1; 1 without a count.

        Raises:
            ValueError: for fewer than two vectors.
        """
        if self.count is None:
            return 1
        require(self.count >= 2, "count", self.count, "at least 2 for a covariance", "use more samples")
        return self.count - 1


def _known_count(moments: Moments) -> int:
    if moments.count is None:
        allowed = f"the number of vectors behind the statistics of {moments.source.data!r}"
        raise ValueError(refusal("count", None, allowed, "compute the statistics from the images"))
    return moments.count


def save_moments(path: Path, moments: Moments) -> None:
    """Writes statistics with their source to a file, whole or not at all."""
    with atomic_file(path) as file:
        np.savez(
            file,
            count=_known_count(moments),
            mean=moments.mean,
            scatter=moments.scatter,
            source=json.dumps(dataclasses.asdict(moments.source)),
        )


def load_moments(path: Path) -> Moments:
    """Reads what ``save_moments`` wrote.

    Raises:
        ValueError: for a file of an earlier version, which does not identify its data.
    """
    with np.load(path, allow_pickle=False) as file:
        return Moments(
            count=int(file["count"]),
            mean=file["mean"].astype(np.float64),
            scatter=file["scatter"].astype(np.float64),
            source=Source.read(str(file["source"])),
        )


def fid(samples: Moments, reference: Moments) -> float:
    """FID between samples and a reference.

    Raises:
        ValueError: for statistics of different features or preprocessing (saying which), of fewer than two
            vectors, or that are not finite.
    """
    require_comparable(samples.source, reference.source)
    for name, moments in (("samples", samples), ("reference", reference)):
        finite = np.isfinite(moments.mean).all() and np.isfinite(moments.scatter).all()
        fix = "compute the statistics again"
        require(finite, name, f"NaN or infinity for {moments.source.data!r}", "finite numbers", fix)
    # by the scatters, without copies of them that differ by a factor only
    degrees = samples.degrees_of_freedom, reference.degrees_of_freedom
    variances = np.trace(samples.scatter) / degrees[0] + np.trace(reference.scatter) / degrees[1]
    product = _factor(samples.scatter).T @ _factor(reference.scatter)
    product /= math.sqrt(degrees[0]) * math.sqrt(degrees[1])
    return _distance(samples.mean - reference.mean, float(variances), product)


def frechet_distance(
    mean_1: Float64[np.ndarray, " d"],
    covariance_1: Float64[np.ndarray, "d d"],
    mean_2: Float64[np.ndarray, " d"],
    covariance_2: Float64[np.ndarray, "d d"],
) -> float:
    """|m1 − m2|^2 + tr(C1 + C2 − 2 (C1 C2)^(1/2)), the squared 2-Wasserstein distance of two Gaussians.

    With factors C = A A^T, tr (C1 C2)^(1/2) is the sum of the singular values of A1^T A2. Unlike a square
    root of the product, this needs no invertible covariance, and no root is taken of an eigenvalue that is
    rounding noise around zero.
    """
    variances = np.trace(covariance_1) + np.trace(covariance_2)
    product = _factor(covariance_1).T @ _factor(covariance_2)
    return _distance(mean_1 - mean_2, float(variances), product)


def _distance(
    step: Float64[np.ndarray, " d"], variances: float, product: Float64[np.ndarray, "r s"]
) -> float:
    """The distance by the difference of the means, the sum of all variances, and A1^T A2."""
    distance = step @ step + variances - 2 * _nuclear_norm(product)
    return max(float(distance), 0.0)  # equal moments can come out at −1e-13


def _factor(covariance: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, "d r"]:
    """A with A A^T = covariance and as many columns as its rank, by Cholesky with pivots.

    It stops when the largest remaining variance is below d machine epsilons of the largest variance (LAPACK's
    default), which is rounding noise.
    """
    (pstrf,) = scipy.linalg.get_lapack_funcs(("pstrf",), (covariance,))
    factor, pivots, rank, _ = pstrf(covariance, lower=1)
    columns = np.zeros((len(covariance), rank))
    for row, pivot in enumerate(pivots - 1):  # the part above the diagonal does not belong to the factor
        columns[pivot, : row + 1] = factor[row, : min(row + 1, rank)]
    return columns


def _nuclear_norm(matrix: Float64[np.ndarray, "m n"]) -> float:
    """The sum of the singular values, each exact to rounding of the largest.

    They are the roots of the eigenvalues of M^T M, which are many times as fast to find as LAPACK's SVD with
    its matrix-vector products. But an eigenvalue is exact to rounding of the largest one only, so the root of
    a much smaller one is not. Those are computed again, free of the large ones, by restricting M to their
    eigenvectors.
    """
    total = 0.0
    while matrix.size:
        # in place: numpy's needs three more such matrices at a time
        eigenvalues, vectors = scipy.linalg.eigh((matrix.T @ matrix).T, overwrite_a=True, driver="evd")
        largest = eigenvalues[-1]
        if largest <= 0:
            break
        small = eigenvalues < NEGLIGIBLE * largest
        total += float(np.sqrt(eigenvalues[~small]).sum())
        matrix = matrix @ vectors[:, small]
    return total


class Extrapolation:
    """FID of growing numbers of samples, extrapolated to infinitely many (arXiv 1911.07023).

    The bias of FID falls as 1/N, so a line fitted to FID in 1/N gives the unbiased FID at 1/N = 0. The
    published method draws its sets of N samples at random from all samples. Here the first N serve: samples
    of consecutive ids are independent of their order, so the first N are as random a set as any.

    Args:
        num_samples: number of all samples. The sizes of the sets are evenly spaced, from a tenth of it (but
            at least two samples per feature: smaller sets do not lie on the line) to all.
        reference: statistics of the data.

    Raises:
        ValueError: for too few samples for a line.
    """

    SETS = 15  # as published

    def __init__(self, *, num_samples: int, reference: Moments):
        num_features = len(reference.mean)
        require_enough_for_line(num_samples, num_features)
        smallest = max(num_samples // 10, 2 * num_features)
        self._sizes = np.unique(np.linspace(smallest, num_samples, self.SETS).astype(int))
        self._reference = reference
        self._fids: list[float] = []

    def add(self, before: Moments | None, features: Float[np.ndarray, "n d"], source: Source) -> None:
        """Adds the next samples' features, given the statistics of all samples before them."""
        start = 0 if before is None else _known_count(before)
        for size in self._sizes[:-1]:  # FID of all samples is known anyway
            if start < size <= start + len(features):
                first = Moments.of(features[: size - start], source)
                first = first if before is None else before.merge(first)
                self._fids.append(fid(first, self._reference))

    def result(self, fid_of_all: float) -> float:
        """The line's value at 1/N = 0. As an unbiased estimate it can be below 0."""
        line = np.polynomial.Polynomial.fit(1 / self._sizes, [*self._fids, fid_of_all], 1)
        return float(line(0.0))


def require_enough_for_line(num_samples: int, num_features: int) -> None:
    """Raises ValueError for too few samples to extrapolate FID; to be called before anything is sampled."""
    fewest = ADVISED_SAMPLES_PER_FEATURE * num_features
    require(
        num_samples >= fewest,
        "fid_infinity",
        True,
        f"False for {num_samples} samples: a line needs {fewest}, {ADVISED_SAMPLES_PER_FEATURE} for each of "
        f"{num_features} features",
        f"raise num_samples to {fewest}, or set fid_infinity to False",
    )


def warn_if_few(num_samples: int, network: FeatureNetwork) -> None:
    """Warns, with the reason, if FID says more about the number of samples than about the samples."""
    advised = ADVISED_SAMPLES_PER_FEATURE * network.num_features
    if num_samples < advised:
        warnings.warn(
            f"FID of {num_samples} samples in the {network.num_features} dimensions of {network.name!r} is "
            "biased upwards: the covariance of so few is far from the distribution's"
            + (", and singular" if num_samples <= network.num_features else "")
            + f". Compare it only with FIDs of as many samples, or raise num_samples to {advised}",
            stacklevel=2,
        )
