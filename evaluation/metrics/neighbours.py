"""Fidelity and diversity as separate figures, by balls around feature vectors up to their k-th neighbours.

These are improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991), and density and coverage
(Naeem et al., arXiv 2002.09797), which are less sensitive to outliers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float64

from sde_lib.checks import require

NEIGHBOURS = 3  # k, as published for precision and recall

ROWS = 256  # rows of a distance matrix in memory at a time: 20 MB for 10,000 columns


def require_enough(compared: int, num_samples: int, num_images: int | None = None) -> None:
    """Raises ValueError unless ``compared`` samples can be compared with as many images of the data.

    Args:
        compared: number of samples, and of images, to compare.
        num_samples: number of samples.
        num_images: number of images in the data, if it is known.
    """
    largest = num_samples if num_images is None else min(num_samples, num_images)
    sets = f"{num_samples} samples" + ("" if num_images is None else f" and {num_images} images")
    require(
        NEIGHBOURS < compared <= largest,
        "compared",
        compared,
        f"0 for none, or {NEIGHBOURS + 1} (one more than neighbours) to {largest}, as there are {sets}",
        f"set compared to {largest}, or to 0",
    )


def precision_recall(
    samples: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m d"], *, neighbours: int = NEIGHBOURS
) -> dict[str, float]:
    """How the samples lie among the reference, and the reference among the samples.

    Args:
        samples: features [n, d] of the samples.
        reference: features [m, d] of the data.
        neighbours: k; the ball around a vector reaches to its k-th nearest neighbour in the same set.

    Returns:
        precision: share of samples inside the ball of some reference vector.
        recall: share of reference vectors inside the ball of some sample.
        density: mean number of reference balls that hold a sample, divided by ``neighbours``; can exceed 1.
        coverage: share of reference vectors whose ball holds a sample.

    Raises:
        ValueError: for a set of ``neighbours`` vectors or fewer.
    """
    smallest = min(len(samples), len(reference))
    require(
        1 <= neighbours < smallest,
        "neighbours",
        neighbours,
        f"from 1 to {smallest - 1}, below the size of the smaller set",
        "lower neighbours, or use more samples",
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
    """Squared distance of each vector to its k-th nearest neighbour, not counting the vector itself."""
    return np.concatenate(
        [
            np.partition(squared, neighbours, axis=1)[:, neighbours]
            for squared in _squared_distances(features, features)
        ]
    )


def _squared_distances(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]
) -> Iterator[Float64[np.ndarray, "r m"]]:
    """The matrix of squared distances in float64, a few rows at a time."""
    b = b.astype(np.float64)
    b_norms = np.einsum("ij,ij->i", b, b)  # needs no matrix of the squares
    for start in range(0, len(a), ROWS):
        rows = a[start : start + ROWS].astype(np.float64)
        squared = rows @ b.T
        squared *= -2
        squared += np.einsum("ij,ij->i", rows, rows)[:, None]
        squared += b_norms
        yield np.maximum(squared, 0, out=squared)  # by rounding, a vector can be at −1e-13 from itself
