"""Confidence intervals of FID and of means, by a bootstrap in one pass over the samples.

A replicate counts each sample as often as a Poisson variable of mean 1 says. So it needs only its own sums,
and no number of samples in advance (Hanley & MacGibbon 2006; Chamandy et al. 2012). The variables depend on
the sample's id alone: shards, processes and interruptions change nothing.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Float64, Int, UInt8

from evaluation.metrics.fid import ADVISED_SAMPLES_PER_FEATURE, Moments, frechet_distance

REPLICATES = 200
Z = 1.959964  # 95 % of a normal distribution lie within this many standard deviations of its mean

FEWEST = 30  # with fewer samples a bootstrap says little, and a replicate can be without any

FRECHET_BYTES = 100e6  # for the sums of all replicates together

_KEY = 2105_14080
_WORDS = 16  # words of 16 bits from each count of the generator's counter

# For each word u, the value at which the distribution function of a Poisson variable of mean 1 passes
# (u + 1/2)/2^16; mean and variance of these values are 1 to 4e-5
_POISSON = np.searchsorted(
    np.cumsum([math.exp(-1) / math.factorial(k) for k in range(12)]), (np.arange(2**16) + 0.5) / 2**16
).astype(np.uint8)


def weights(sample_ids: Int[np.ndarray, " n"], replicates: int = REPLICATES) -> UInt8[np.ndarray, "n r"]:
    """How often each replicate counts each sample, from a Philox generator whose counter is set by the id."""
    steps = -(-replicates // _WORDS)  # counts of the generator for a sample
    drawn = np.empty((len(sample_ids), replicates), np.uint8)
    start = 0
    for run in np.split(sample_ids, np.flatnonzero(np.diff(sample_ids) != 1) + 1):  # of ids without a gap
        if len(run) and replicates:
            generator = np.random.Philox(key=_KEY, counter=int(run[0]) * steps)
            words = generator.random_raw(len(run) * steps * _WORDS // 4).view(np.uint16)
            drawn[start : start + len(run)] = _POISSON[words.reshape(len(run), -1)[:, :replicates]]
        start += len(run)
    return drawn


def interval(estimate: float, replicates: Float64[np.ndarray, " r"], *, lowest: float) -> list[float]:
    """95 % interval [low, high] for the figure of infinitely many samples.

    It is the figure less its bias, ± 1.96 standard deviations, with bias and deviation estimated from the
    replicates (Davison & Hinkley, Bootstrap Methods and their Application, 1997, section 5.2.1). Quantiles of
    the replicates would not do, because a replicate has twice the figure's bias; their ends would also be
    noisier.

    Where the figure less its bias is far below the lowest possible value, the interval is [lowest, lowest]:
    the figure is then smaller than that of any such samples is likely to be, as FID is of samples that are
    the reference's own images.

    Args:
        estimate: the figure of all samples.
        replicates: the same figure of each replicate.
        lowest: the lowest possible value of the figure.

    Example:
        >>> low, high = interval(5.0, np.array([5.0, 6.0, 7.0]), lowest=0.0)  # bias 1, standard deviation 1
        >>> f"{low:.2f} to {high:.2f}"
        '2.04 to 5.96'
    """
    middle = 2 * estimate - replicates.mean()
    reach = Z * replicates.std(ddof=1)
    return [float(max(middle - reach, lowest)), float(max(middle + reach, lowest))]


class MeanReplicates:
    """The mean of a per-sample number, by each replicate."""

    def __init__(self, replicates: int = REPLICATES):
        self._sums = np.zeros((2, replicates))  # of the numbers and of ones

    def add(
        self, values: Int[np.ndarray, " n"] | Float[np.ndarray, " n"], weights: UInt8[np.ndarray, "n r"]
    ) -> None:
        """Adds the next samples' numbers."""
        self._sums += np.stack([values, np.ones(len(values))]).astype(np.float64) @ weights

    def result(self) -> Float64[np.ndarray, " r"]:
        """The mean by each replicate."""
        return self._sums[0] / self._sums[1]


class FrechetReplicates:
    """FID between the samples and a reference, by each replicate.

    A replicate keeps the sum of v v^T over its samples, where v is 1 followed by the vector of features less
    the reference's mean (so that no large sums are subtracted).
    """

    @staticmethod
    def fit(num_samples: int, num_features: int, replicates: int = REPLICATES) -> bool:
        """Whether the sums fit in memory, and the samples are enough for a replicate's covariance."""
        size = 8 * replicates * (num_features + 1) * (num_features + 2) / 2
        return size <= FRECHET_BYTES and num_samples >= ADVISED_SAMPLES_PER_FEATURE * num_features

    def __init__(self, reference: Moments, replicates: int = REPLICATES):
        self._reference = reference
        self._rows, self._columns = np.triu_indices(len(reference.mean) + 1)
        self._sums = np.zeros((replicates, len(self._rows)))

    def add(self, features: Float[np.ndarray, "n d"], weights: UInt8[np.ndarray, "n r"]) -> None:
        """Adds the next samples' features."""
        block = max(int(16e6) // (8 * len(self._rows)), 1)  # 16 MB of products at a time
        for start in range(0, len(features), block):
            some = slice(start, start + block)
            vectors = np.insert(features[some] - self._reference.mean, 0, 1, axis=1)
            products = vectors[:, self._rows] * vectors[:, self._columns]
            self._sums += weights[some].T.astype(np.float64) @ products

    def result(self) -> Float64[np.ndarray, " r"]:
        """FID by each replicate."""
        return np.array([self._distance(sums) for sums in self._sums])

    def _distance(self, sums: Float64[np.ndarray, " p"]) -> float:
        size = len(self._reference.mean) + 1
        matrix = np.empty((size, size))
        matrix[self._rows, self._columns] = matrix[self._columns, self._rows] = sums
        count, step = matrix[0, 0], matrix[0, 1:] / matrix[0, 0]
        covariance = (matrix[1:, 1:] - count * np.outer(step, step)) / (count - 1)
        reference = self._reference
        return frechet_distance(reference.mean + step, covariance, reference.mean, reference.covariance)
