"""Count how often the 95 % intervals of IS, FID and sliced Wasserstein distances hold what they claim.

python -m benchmarks.coverage [--repeats N] [--json FILE]

The interval of the Inception Score is for the expected score of as many samples in as many splits, which is
estimated here by the mean of all sets. The samples are of classes whose probabilities fall as 1/sqrt(rank).
Their logits are standard normal, with 6 (10 classes), 8 (unsure) or 14 (sure) added for the sample's class.

The interval of FID is for infinitely many samples. Samples and reference are normal here, so this FID is
known. Their deviations fall from 1 to 0.1 over the features. The samples are from the reference's
distribution, or from one with every mean shifted by 0.3 deviations and every deviation 1.2 times as large.

The interval of the sliced Wasserstein distance is for infinitely many samples and images. Both are drawn from
these distributions, so the distance is known for every direction.
"""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64

from benchmarks.report import machine, write_json
from evaluation.metrics.bootstrap import REPLICATES, FrechetReplicates, interval, weights
from evaluation.metrics.fid import Moments, Source, fid
from evaluation.metrics.inception_score import InceptionScore
from evaluation.metrics.sliced_wasserstein import SCALE, directions, sliced_wasserstein
from evaluation.metrics.sliced_wasserstein import replicates as of_replicates
from evaluation.runs.tables import markdown

SOURCE = Source(features="normal", features_sha256="", preprocessing="none", data="normal", split="all")
SCORES = (("10 classes", 10, 6.0), ("1,008 classes, unsure", 1008, 8.0), ("1,008 classes, sure", 1008, 14.0))
DISTANCES = (("48 features, same", 48, False), ("48 features, apart", 48, True))
SIZES = (300, 1000, 5000)  # of the sets; the last for the score only
FEW = (100, 300)  # of the sets of the sliced Wasserstein distance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """The figure and the interval of many independent sets of samples.

    Attributes:
        truth: what the interval claims to hold.
        figures: the figure of each set.
        intervals: the interval of each set, as (low, high).
    """

    truth: float
    figures: Float64[np.ndarray, " r"]
    intervals: Float64[np.ndarray, "r 2"]

    @property
    def coverage(self) -> float:
        """Share of the intervals that hold the truth."""
        low, high = self.intervals.T
        return float(((low <= self.truth) & (self.truth <= high)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=200, help="sets of samples for each row")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    arguments = parser.parse_args()
    repeats = arguments.repeats
    cases = {
        (f"IS, {title}", size): partial(of_score, classes, sharpness, size)
        for title, classes, sharpness in SCORES
        for size in SIZES
    }
    cases |= {
        (f"FID, {title}", size): partial(of_fid, features, apart, size)
        for title, features, apart in DISTANCES
        for size in SIZES[:2]
    }
    cases |= {
        (f"sliced Wasserstein, {title}", size): partial(of_sliced, features, apart, size)
        for title, features, apart in DISTANCES
        for size in FEW
    }
    rows, figures = [], {}
    for (title, size), measure in cases.items():
        found = measure(repeats=repeats)
        low, high = found.intervals.mean(axis=0)
        rows.append(
            [
                title,
                f"{size:,}",
                f"{found.truth:.2f}",
                f"{found.figures.mean():.2f}",
                f"{low:.2f} to {high:.2f}",
                f"{found.coverage:.1%}",
            ]
        )
        figures[f"{title}, {size} samples"] = found.coverage
    print(markdown(["figure", "samples", "claimed", "mean figure", "mean interval", "coverage"], rows))
    print(machine())
    if arguments.json:
        write_json(arguments.json, figures)


def of_score(
    num_classes: int, sharpness: float, num_samples: int, *, repeats: int, splits: int = 10, seed: int = 0
) -> Found:
    """Scores and intervals of independent sets of samples; the truth is the mean of the scores."""
    random = np.random.default_rng(seed)
    figures, intervals = [], []
    for _ in range(repeats):
        score = InceptionScore(num_samples=num_samples, num_classes=num_classes, splits=splits)
        score.add(_logits(random, num_classes, sharpness, num_samples))
        figures.append(score.result()[0])
        intervals.append(score.interval())
    return Found(truth=float(np.mean(figures)), figures=np.array(figures), intervals=np.array(intervals))


def _logits(
    random: np.random.Generator, num_classes: int, sharpness: float, num_samples: int
) -> Float[np.ndarray, "n k"]:
    shares = 1 / np.sqrt(np.arange(1, num_classes + 1))
    classes = random.choice(num_classes, num_samples, p=shares / shares.sum())
    logits = random.standard_normal((num_samples, num_classes), np.float32)
    logits[np.arange(num_samples), classes] += sharpness
    return logits


def of_fid(num_features: int, apart: bool, num_samples: int, *, repeats: int, seed: int = 0) -> Found:
    """FIDs and intervals of independent sets; the truth is the sum of (m1 − m2)^2 + (s1 − s2)^2."""
    random = np.random.default_rng(seed)
    deviations, mean, scaled = _normal(num_features, apart)
    reference = Moments(
        count=None, mean=np.zeros(num_features), scatter=np.diag(deviations**2), source=SOURCE
    )
    figures, intervals = [], []
    for repeat in range(repeats):
        features = mean + scaled * random.standard_normal((num_samples, num_features))
        replicates = FrechetReplicates(reference)
        replicates.add(features, weights(np.arange(num_samples) + num_samples * repeat))
        figures.append(fid(Moments.of(features, SOURCE), reference))
        intervals.append(interval(figures[-1], replicates.result(), lowest=0.0))
    truth = float((mean**2).sum() + ((scaled - deviations) ** 2).sum())
    return Found(truth=truth, figures=np.array(figures), intervals=np.array(intervals))


def of_sliced(
    num_features: int,
    apart: bool,
    num_samples: int,
    *,
    repeats: int,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Found:
    """Sliced Wasserstein distances and intervals of independent sets of samples and of images.

    The truth is the mean of (m·u)^2 + (s1 − s2)^2 over the directions u, where s1 and s2 are the deviations
    of the projections.
    """
    random = np.random.default_rng(seed)
    deviations, mean, scaled = _normal(num_features, apart)
    figures, intervals = [], []
    for _ in range(repeats):
        noise = random.standard_normal((2, num_samples, num_features))
        sets = mean + scaled * noise[0], deviations * noise[1]
        figures.append(sliced_wasserstein(*sets))
        intervals.append(interval(figures[-1], of_replicates(*sets, replicates), lowest=0.0))
    along = directions(num_features)
    squared = (along @ mean) ** 2
    squared += (np.sqrt(along**2 @ scaled**2) - np.sqrt(along**2 @ deviations**2)) ** 2
    truth = float(SCALE * num_features * squared.mean())
    return Found(truth=truth, figures=np.array(figures), intervals=np.array(intervals))


def _normal(
    num_features: int, apart: bool
) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, " d"], Float64[np.ndarray, " d"]]:
    """Deviations of the reference, whose mean is 0; and mean and deviations of the samples."""
    deviations = np.logspace(0, -1, num_features)
    if not apart:
        return deviations, 0 * deviations, deviations
    return deviations, 0.3 * deviations, 1.2 * deviations


if __name__ == "__main__":
    main()
