"""Inception Score: how surely each sample has a class, and how evenly the samples fill the classes.

It is exp E_x KL(p(y|x) || p(y)), as mean and standard deviation over splits (Salimans et al., arXiv
1606.03498, section 4). A split needs only the sums of p(y|x) and of sum_y p log p, so the samples can come in
pieces of any size.
"""

from __future__ import annotations

import itertools

import numpy as np
import scipy.special
from jaxtyping import Float, Float64, UInt8

from sde_lib.checks import require


class InceptionScore:
    """The Inception Score of a known number of samples, whose logits come in order and in pieces.

    Split i holds the samples i·n/splits to (i + 1)·n/splits, in the order of their ids, as published.

    Args:
        num_samples: number n of samples.
        num_classes: number k of classes.
        splits: number of splits.
        replicates: number r of bootstrap replicates, which weight the samples each in its own way.

    Raises:
        ValueError: for fewer samples than splits.
    """

    def __init__(self, *, num_samples: int, num_classes: int, splits: int = 10, replicates: int = 0):
        require_enough(num_samples, splits)
        self._bounds = np.arange(splits + 1) * num_samples // splits
        # the first row counts every sample once, the others are the replicates'
        self._sizes = np.zeros((1 + replicates, splits))
        self._classes = np.zeros((1 + replicates, splits, num_classes))  # sums of p(y|x)
        self._certainty = np.zeros((1 + replicates, splits))  # sums of sum_y p(y|x) log p(y|x)
        self._seen = 0

    def add(self, logits: Float[np.ndarray, "n k"], weights: UInt8[np.ndarray, "n r"] | None = None) -> None:
        """Adds the next samples' logits, with how often each replicate counts them."""
        log_p = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
        p = np.exp(log_p)
        certainty = -scipy.special.entr(p).sum(axis=1)  # entr(p) = −p log p, 0 at p = 0
        rows = np.ones((len(self._sizes), len(logits)))
        if weights is not None:
            rows[1:] = weights.T
        ends = np.clip(self._bounds - self._seen, 0, len(logits)).tolist()
        for split, (start, end) in enumerate(itertools.pairwise(ends)):
            if start < end:
                self._sizes[:, split] += rows[:, start:end].sum(axis=1)
                self._classes[:, split] += rows[:, start:end] @ p[start:end]
                self._certainty[:, split] += rows[:, start:end] @ certainty[start:end]
        self._seen += len(logits)

    def result(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits.

        Raises:
            ValueError: if the number of samples added is not the one announced.
        """
        expected = int(self._bounds[-1])
        fix = "add every sample once"
        require(self._seen == expected, "number of logits", self._seen, f"{expected}, as announced", fix)
        scores = self._scores()[0]
        return float(scores.mean()), float(scores.std())

    def replicates(self) -> Float64[np.ndarray, " r"]:
        """The mean over the splits by each replicate."""
        return self._scores()[1:].mean(axis=1)

    def _scores(self) -> Float64[np.ndarray, "_ splits"]:
        marginal = self._classes / self._sizes[:, :, None]
        return np.exp(self._certainty / self._sizes + scipy.special.entr(marginal).sum(axis=2))


def require_enough(num_samples: int, splits: int = 10) -> None:
    """Raises ValueError for fewer samples than splits; to be called before anything is sampled."""
    require(
        num_samples >= max(splits, 2),
        "num_samples",
        num_samples,
        f"at least {max(splits, 2)}: 2 for a covariance, and one for each of {splits} splits of the score",
        "raise num_samples, or sample without measuring FID and the Inception Score",
    )


def inception_score(logits: Float[np.ndarray, "n k"], *, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation of the Inception Score over splits, for logits that fit in memory.

    Example:
        >>> logits = np.where(np.eye(4) > 0, 0.0, -np.inf)  # four samples, each surely of a class of its own
        >>> inception_score(logits, splits=1)
        (4.0, 0.0)
    """
    score = InceptionScore(num_samples=len(logits), num_classes=logits.shape[1], splits=splits)
    score.add(logits)
    return score.result()
