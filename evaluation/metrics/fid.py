"""FID: Fréchet distance of the Gaussians fitted to two sets of features (Heusel et al., arXiv 1706.08500).

Moments are kept in float64, grow by merging (so that a set of any size passes through in pieces) and carry
what they are moments of: FID of different features or differently prepared images is not a number
anyone can use, and is refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from functools import reduce
from pathlib import Path

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64, UInt8

from evaluation.metrics.features import FeatureNetwork
from evaluation.store.files import atomic_file
from sde_lib.checks import require

# Below this many samples a feature, the published advice for Inception (10,000 for 2048) is missed
ADVISED_SAMPLES_PER_FEATURE = 5

ROWS = 2048  # of features in float64 at a time

# The smallest eigenvalue whose root is taken, of the largest one; the root is then off by 1e-16 / sqrt(1e-6)
NEGLIGIBLE = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What moments are moments of.

    Attributes:
        features: name of the feature network.
        features_sha256: of its weights.
        preprocessing: what it does to uint8 images first, in words.
        data: the data set, or the run, that the images are from.
        split: the part of it, such as "all" or "train".
    """

    features: str
    features_sha256: str
    preprocessing: str
    data: str
    split: str

    @classmethod
    def of(cls, network: FeatureNetwork, *, data: str, split: str) -> Source:
        """Moments of the features that ``network`` gives to this part of this data."""
        return cls(
            features=network.name,
            features_sha256=network.sha256,
            preprocessing=network.preprocessing,
            data=data,
            split=split,
        )


def require_comparable(first: Source, second: Source) -> None:
    """Raises ValueError, saying which differ, unless features and preprocessing are the same."""
    differing = [
        f"{name} = {getattr(first, name)!r} and {getattr(second, name)!r}"
        for name in ("features", "features_sha256", "preprocessing")
        if getattr(first, name) != getattr(second, name)
    ]
    require(
        not differing,
        "features",
        "; ".join(differing),
        f"the same features and preprocessing for {first.data!r} and {second.data!r}",
        "compute both moments again with one feature network",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
    """Number, mean and scatter of feature vectors.

    Attributes:
        count: number n of vectors; None where a published file does not say.
        mean: [d].
        scatter: [d, d], the sum over the vectors of (v − mean)(v − mean)^T; without a count, the covariance.
        source: what they are moments of.
    """

    count: int | None
    mean: Float64[np.ndarray, " d"]
    scatter: Float64[np.ndarray, "d d"]
    source: Source

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"], source: Source) -> Moments:
        """Moments of features [n, d], n >= 1, of which only some are in float64 at a time.

        Raises:
            ValueError: for no vectors, or for features that are not finite.
        """
        require(len(features) > 0, "number of features", 0, "at least 1", "hand in some images")
        parts = (features[start : start + ROWS] for start in range(0, len(features), ROWS))
        return reduce(Moments.merge, (Moments._of_part(part, source) for part in parts))

    @classmethod
    def _of_part(cls, features: Float[np.ndarray, "n d"], source: Source) -> Moments:
        unusable = int((~np.isfinite(features).all(axis=1)).sum())
        require(
            unusable == 0,
            "features that are not finite",
            f"{unusable} of {len(features)} in {source.data!r}",
            "finite numbers only",
            f"check the weights of the feature network {source.features!r}",
        )
        vectors = features.astype(np.float64)
        mean = vectors.mean(axis=0)
        vectors -= mean
        return cls(count=len(vectors), mean=mean, scatter=vectors.T @ vectors, source=source)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together (Chan, Golub & LeVeque 1979: no difference of large sums).

        Raises:
            ValueError: if the two differ in anything of their source.
        """
        require(
            self.source == other.source,
            "source",
            other.source,
            f"{self.source} to merge with",
            "merge moments of parts of one set only",
        )
        ours, theirs = _known_count(self), _known_count(other)
        count = ours + theirs
        step = other.mean - self.mean
        scatter = np.outer(step, step)  # in place from here: each matrix of 2048 dimensions is 34 MB
        scatter *= ours * theirs / count
        scatter += self.scatter
        scatter += other.scatter
        mean = self.mean + step * (theirs / count)
        return Moments(count=count, mean=mean, scatter=scatter, source=self.source)

    @property
    def name(self) -> str:
        """What they are of, as data:split:number."""
        count = "unknown" if self.count is None else self.count
        return f"{self.source.data}:{self.source.split}:{count}"

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """The unbiased estimate, as in the published FID.

        Raises:
            ValueError: for fewer than two vectors.
        """
        return self.scatter / self.degrees_of_freedom

    @property
    def degrees_of_freedom(self) -> int:
        """Of the scatter, that is divided by them for the covariance: n − 1; without a count 1.

        Raises:
            ValueError: for fewer than two vectors.
        """
        if self.count is None:
            return 1
        require(
            self.count >= 2,
            "number of samples",
            self.count,
            "at least 2 for a covariance",
            "raise config.eval.num_samples",
        )
        return self.count - 1


def moments_of_images(
    images: UInt8[np.ndarray, "n h w c"], network: FeatureNetwork, *, data: str, split: str
) -> Moments:
    """Moments of the network's features of images that fit in memory, such as a reference's."""
    return Moments.of(network(images)[0], Source.of(network, data=data, split=split))


def _known_count(moments: Moments) -> int:
    if moments.count is None:
        raise ValueError(
            f"count of the moments of {moments.source.data!r} = None: allowed is a number of vectors; "
            "compute them from the images"
        )
    return moments.count


def save_moments(path: Path, moments: Moments) -> None:
    """Writes moments with their source, whole or not at all."""
    with atomic_file(path) as file:
        np.savez(
            file,
            count=_known_count(moments),
            mean=moments.mean,
            scatter=moments.scatter,
            source=json.dumps(dataclasses.asdict(moments.source)),
        )


def load_moments(path: Path) -> Moments:
    """Reads what ``save_moments`` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return Moments(
            count=int(file["count"]),
            mean=file["mean"],
            scatter=file["scatter"],
            source=Source(**json.loads(str(file["source"]))),
        )


def fid(samples: Moments, reference: Moments) -> float:
    """FID of samples to a reference.

    Raises:
        ValueError: for moments of different features or preprocessing (saying which), of fewer than two
            samples, or not finite.
    """
    require_comparable(samples.source, reference.source)
    for moments in (samples, reference):
        require(
            bool(np.isfinite(moments.mean).all() and np.isfinite(moments.scatter).all()),
            "moments",
            f"not finite for {moments.source.data!r}",
            "finite numbers only",
            "compute them again",
        )
    # by the scatters: without copies of them that only differ by a factor
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
    """From the difference of the means, the sum of all variances, and A1^T A2."""
    distance = step @ step + variances - 2 * _nuclear_norm(product)
    return max(float(distance), 0.0)  # equal moments can come out at −1e-13


def _factor(covariance: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, "d r"]:
    """A with A A^T = covariance and as many columns as its rank: Cholesky with pivots.

    It stops where what is left is d machine epsilons of the largest variance (LAPACK's default): rounding.
    """
    (pstrf,) = scipy.linalg.get_lapack_funcs(("pstrf",), (covariance,))
    factor, pivots, rank, _ = pstrf(covariance, lower=1)
    columns = np.zeros((len(covariance), rank))
    for row, pivot in enumerate(pivots - 1):  # what is above the diagonal is not of the factor
        columns[pivot, : row + 1] = factor[row, : min(row + 1, rank)]
    return columns


def _nuclear_norm(matrix: Float64[np.ndarray, "m n"]) -> float:
    """The sum of the singular values, to rounding of the largest one for each.

    They are roots of eigenvalues of M^T M, found many times as fast as by LAPACK's SVD, which spends itself
    on matrix-vector products. But an eigenvalue is exact to rounding of the largest, so its root only where
    it is not much smaller. The others are found again, free of the large ones: M restricted to their
    eigenvectors.
    """
    total = 0.0
    while matrix.size:
        # in place: numpy's would have three such matrices more at a time
        eigenvalues, vectors = scipy.linalg.eigh((matrix.T @ matrix).T, overwrite_a=True, driver="evd")
        largest = eigenvalues[-1]
        if largest <= 0:
            break
        small = eigenvalues < NEGLIGIBLE * largest
        total += float(np.sqrt(eigenvalues[~small]).sum())
        matrix = matrix @ vectors[:, small]
    return total


class Extrapolation:
    """FID of growing numbers of samples while they stream, on to infinitely many (arXiv 1911.07023).

    The bias of FID falls as 1/N, so that a line in 1/N meets 0 at FID without it. The published method draws
    its sets of N samples at random from all. Samples that are independent of their order, as those of
    consecutive ids are, make this needless: the first N of them are as random a set as any.

    Args:
        num_samples: of all; the sets go from a tenth of them (but two a feature at least: fewer do not lie on
            the line) to all, evenly.
        reference: what FID is to.

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
        """Takes the next samples' features, and the moments of all that came before them."""
        start = 0 if before is None else _known_count(before)
        for size in self._sizes[:-1]:  # FID of the last one, of all, is known anyway
            if start < size <= start + len(features):
                first = Moments.of(features[: size - start], source)
                first = first if before is None else before.merge(first)
                self._fids.append(fid(first, self._reference))

    def result(self, fid_of_all: float) -> float:
        """The line's value at 1/N = 0. It is not biased, so that it can come out below 0."""
        line = np.polynomial.Polynomial.fit(1 / self._sizes, [*self._fids, fid_of_all], 1)
        return float(line(0.0))


def require_enough_for_line(num_samples: int, num_features: int) -> None:
    """Raises ValueError for samples too few to extrapolate FID: to call before anything is sampled."""
    fewest = ADVISED_SAMPLES_PER_FEATURE * num_features
    require(
        num_samples >= fewest,
        "config.eval.fid_infinity",
        True,
        f"from {fewest} samples ({ADVISED_SAMPLES_PER_FEATURE} for each of {num_features} features), and "
        f"config.eval.num_samples is {num_samples}",
        "raise it, or set config.eval.fid_infinity = False",
    )


def warn_if_few(num_samples: int, network: FeatureNetwork) -> None:
    """Warns, with the reason, where FID says more about the number of samples than about the samples."""
    advised = ADVISED_SAMPLES_PER_FEATURE * network.num_features
    if num_samples < advised:
        warnings.warn(
            f"FID of {num_samples} samples in the {network.num_features} dimensions of {network.name!r} is "
            "biased upwards: the covariance of so few is far from the distribution's"
            + (", and singular" if num_samples <= network.num_features else "")
            + f". Compare it with FIDs of as many samples only, or set config.eval.num_samples = {advised}",
            stacklevel=2,
        )
