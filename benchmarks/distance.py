"""A distance of samples to a known law that sees the weights, the places and the widths of its modes.

For a function f of a sample, let F be the distribution function of f under the law, and F_n that of f of the
n samples. Cramér and von Mises's ω²(f) = ∫ (F_n − F)² dF is the mean square of their difference. It does not
change with the units of f. The distance is

    D² = ½ Σ_j s_j ω²(v_j·x) + ½ ω²(log p(x))

with the leading principal directions v_j of the law, at most ``DIRECTIONS``, and their shares s_j of the
variance. Projections see weights and places of modes. The log-density sees widths, in all directions at once.
D is a root mean square difference of distribution functions: where all of them are off by 0.01 of the
samples, D is 0.01. For n samples of the law itself, the mean of D² is 1/(6n).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

DIRECTIONS = 8
LogDensity = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distance:
    """D² to a law, which is given by its log-density and by many samples in the place of F.

    Attributes:
        log_density: samples [n, d] -> log p [n], up to a constant.
        directions: v_j, [k, d].
        shares: the weight of each ω² in D², [k + 1]; the last is that of the log-density.
        reference: of the m samples of the law, the sorted values of each f, [k + 1, m].
    """

    log_density: LogDensity
    directions: Float[np.ndarray, "k d"]
    shares: Float[np.ndarray, " k_1"]
    reference: Float[np.ndarray, "k_1 m"]

    @classmethod
    def to(cls, log_density: LogDensity, samples: Float[np.ndarray, "m d"]) -> Distance:
        """The distance to the law of these samples."""
        variances, vectors = np.linalg.eigh(np.atleast_2d(np.cov(samples, rowvar=False)))
        variances, vectors = variances[::-1][:DIRECTIONS], vectors[:, ::-1][:, :DIRECTIONS]
        found = cls(
            log_density=log_density,
            directions=vectors.T,
            shares=np.append(variances / variances.sum(), 1.0) / 2,
            reference=np.empty((0, 0)),
        )
        return dataclasses.replace(found, reference=np.sort(found._values(samples), axis=1))

    def _values(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "k_1 n"]:
        return np.concatenate([self.directions @ x.T, self.log_density(x)[None]])

    def floor(self, n: int) -> float:
        """The mean of D² for n samples of the law."""
        return (1 / n + 1 / self.reference.shape[1]) / 6

    def __call__(self, x: Float[np.ndarray, "n d"]) -> tuple[float, float]:
        """D² and its standard error, of the samples [n, d].

        The error is that of the infinitesimal jackknife: the variance of each sample's influence on D², over
        n. It is too large, by up to a factor √2, for samples of the law itself.
        """
        square, influence = 0.0, np.zeros(len(x))
        for share, values, reference in zip(self.shares, self._values(x), self.reference, strict=True):
            one, of_each = cramer_von_mises(np.searchsorted(reference, values) / len(reference))
            square += share * one
            influence += share * of_each
        return float(square), float(np.std(influence) / np.sqrt(len(x)))


def cramer_von_mises(u: Float[np.ndarray, " n"]) -> tuple[float, Float[np.ndarray, " n"]]:
    """∫ (F_n(t) − t)² dt over [0, 1] for the distribution function F_n of u, and each sample's influence.

    The influence of u_i is the derivative by its weight, 2 ∫ (F_n(t) − t) (1{u_i ≤ t} − F_n(t)) dt.
    """
    order, n = np.argsort(u), len(u)
    knots = np.concatenate([[0.0], u[order], [1.0]])
    level = np.arange(n + 1) / n  # F_n between the knots
    begin, end = knots[:-1], knots[1:]
    square = np.sum((level - begin) ** 3 - (level - end) ** 3) / 3
    pieces = level * (end - begin) - (end**2 - begin**2) / 2
    rest = np.cumsum(pieces[::-1])[::-1]  # ∫ (F_n − t) from each knot to 1
    influence = np.empty(n)
    influence[order] = 2 * (rest[1:] - np.sum(pieces * level))
    return float(square), influence
