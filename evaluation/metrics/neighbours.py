"""Fidelity and diversity apart, from balls around feature vectors that reach to the k-th nearest neighbour.

Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991); density and coverage (Naeem et al.,
arXiv 2002.09797), which outliers disturb less.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float64

from sde_lib.checks import require

NEIGHBOURS = 3  # k, as published for precision and recall

ROWS = 256  # of a distance matrix in memory at a time: 20 MB for 10,000 columns


def precision_recall(
    samples: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m d"], *, neighbours: int = NEIGHBOURS
) -> dict[str, float]:
    """How the samples lie among the reference, and the reference among the samples.

    Returns:
        precision: share of samples inside the ball of some reference vector.
        recall: share of reference vectors inside the ball of some sample.
        density: mean number of reference balls that a sample is in, over ``neighbours``; can exceed 1.
        coverage: share of reference vectors whose ball holds a sample.

    Raises:
        ValueError: for sets that do not hold more than ``neighbours`` vectors.
    """
    smallest = min(len(samples), len(reference))
    require(
        1 <= neighbours < smallest,
        "neighbours",
        neighbours,
        f"1 to {smallest - 1}, below the smaller number of samples",
        "lower neighbours or take more samples",
    )
    reference_radii = _radii(reference, neighbours)
    sample_radii = _radii(samples, neighbours)
    balls_of_a_sample = []
    sample_of_a_ball = np.zeros(len(reference), bool)
    recalled = np.zeros(len(reference), bool)
    start = 0
    for squared in _squared_distances(samples, reference):
        inside = squared <= reference_radii
        balls_of_a_sample.append(inside.sum(axis=1))
        sample_of_a_ball |= inside.any(axis=0)
        recalled |= (squared <= sample_radii[start : start + len(squared), None]).any(axis=0)
        start += len(squared)
    hits = np.concatenate(balls_of_a_sample)
    return {
        "precision": float((hits > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(hits.mean() / neighbours),
        "coverage": float(sample_of_a_ball.mean()),
    }


def _radii(features: Float[np.ndarray, "n d"], neighbours: int) -> Float64[np.ndarray, " n"]:
    """Squared distance of each vector to its k-th nearest neighbour; the nearest of all is itself."""
    return np.concatenate(
        [
            np.partition(squared, neighbours, axis=1)[:, neighbours]
            for squared in _squared_distances(features, features)
        ]
    )


def _squared_distances(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]
) -> Iterator[Float64[np.ndarray, "r m"]]:
    """Rows of the matrix of squared distances, some at a time, in float64."""
    b = b.astype(np.float64)
    b_norms = np.einsum("ij,ij->i", b, b)  # without another matrix, of the squares
    for start in range(0, len(a), ROWS):
        rows = a[start : start + ROWS].astype(np.float64)
        squared = rows @ b.T
        squared *= -2
        squared += np.einsum("ij,ij->i", rows, rows)[:, None]
        squared += b_norms
        yield np.maximum(squared, 0, out=squared)  # rounding can leave a vector at −1e-13 from itself
