"""KID: the squared MMD of features under a cubic kernel (Bińkowski et al., arXiv 1801.01401).

Unlike the estimate of FID, that of KID is unbiased for any number of samples, and assumes no Gaussian.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64

from sde_lib.checks import require

BLOCK_SIZE = 1000


def kid(
    samples: Float[np.ndarray, "n d"],
    reference: Float[np.ndarray, "m d"],
    *,
    blocks: int = 100,
    block_size: int = BLOCK_SIZE,
    seed: int = 0,
) -> tuple[float, float]:
    """Mean and standard deviation of the squared MMD over random blocks of both sets.

    The kernel is (x·y/d + 1)^3. A block is drawn without replacement. The cost does not grow with the number
    of samples.

    Args:
        samples: features [n, d] of the samples.
        reference: features [m, d] of the data.
        blocks: number of blocks.
        block_size: number of vectors of each set in a block.
        seed: of the draw.

    Raises:
        ValueError: for a block size below 2 or above the number of samples in either set.
    """
    largest = min(len(samples), len(reference))
    require(
        2 <= block_size <= largest,
        "block_size",
        block_size,
        f"from 2 to {largest}, the size of the smaller set",
        "lower block_size, or use more samples",
    )
    random = np.random.default_rng(seed)

    def block(features: np.ndarray) -> Float64[np.ndarray, "b d"]:
        return features[random.choice(len(features), block_size, replace=False)].astype(np.float64)

    distances = [squared_mmd(block(samples), block(reference)) for _ in range(blocks)]
    return float(np.mean(distances)), float(np.std(distances))


def squared_mmd(x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "m d"]) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy; it can be negative."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        k = a @ b.T / a.shape[1] + 1
        return k * k * k  # many times faster than k**3

    def mean_of_pairs(a: np.ndarray) -> float:  # over pairs of different vectors
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return float(mean_of_pairs(x) + mean_of_pairs(y) - 2 * kernel(x, y).mean())
