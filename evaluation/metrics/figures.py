"""The figures of samples that stream through in shards, with one shard in memory at a time.

The same samples in the same shards give the same figures to the last bit, however often the run was
interrupted: features are computed in the same batches, and sums are taken in the order of the sample ids.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8

from evaluation.metrics import bootstrap, neighbours, sliced_wasserstein
from evaluation.metrics.features import Features
from evaluation.metrics.fid import Extrapolation, Moments, fid, require_comparable, warn_if_few
from evaluation.metrics.inception_score import FEWEST, InceptionScore
from evaluation.metrics.kid import BLOCK_SIZE, kid
from evaluation.metrics.measurement import Measurement
from evaluation.store.samples import Samples
from sde_lib.checks import require
from solvers import Status


def evaluate(
    shards: Iterable[Samples],
    *,
    num_samples: int,
    batch_size: int,
    evaluations_per_step: int,
    measurement: Measurement | None,
    features_of: Callable[[Samples], Features] | None = None,
    num_classes: int = 0,
) -> dict[str, Any]:
    """The figures of ``num_samples`` samples, under the keys of ``evaluation.runs.results.Result``.

    The keys fid, is_mean and is_std are always there, with None for what is not measured. Others are there if
    the measurement asks for them: the 95 % intervals fid_interval and nfe_interval, for infinitely many
    samples (evaluation/metrics/bootstrap.py), and is_interval, for the expected score of ``num_samples``
    samples (evaluation/metrics/inception_score.py), each [low, high] or None if the samples are too few or
    the features too many; fid_infinity, None without a reference; and compared (the number of samples and
    images compared), compared_content (the fingerprint of these images), kid, kid_std, sliced_wasserstein and
    sliced_wasserstein_interval (for infinitely many samples and images), precision, recall, density and
    coverage; and, of samples with classes that the network knows, accuracy (the share whose class
    the network finds) and accuracy_interval.

    Args:
        shards: in the order of their ids, as from ``SampleStore.shards``.
        num_samples: number of samples in all shards together.
        batch_size: the batch size that ``nfe_lockstep`` assumes; the samples do not depend on it.
        evaluations_per_step: evaluations of the score in an attempted step of the solver.
        measurement: what to measure besides the cost; without it, only the cost and its interval.
        features_of: gives the network's features [n, d] and logits [n, k] of a shard, as
            ``evaluation.runs.feature_store.FeatureStore.of`` does; by default the network computes them.
        num_classes: classes that the samples may have; 0 without classes.

    Raises:
        ValueError: for fewer samples than the measurement needs, a reference of other features, another
            number of samples than announced, or features that are not finite.
    """
    replicates = bootstrap.REPLICATES if measurement is None else measurement.replicates
    figures: dict[str, Any] = {"num_samples": num_samples, **dict.fromkeys(("fid", "is_mean", "is_std"))}
    if replicates:
        figures |= dict.fromkeys(("fid_interval", "is_interval", "nfe_interval"))
    counts = _Counts(num_samples, batch_size, evaluations_per_step, replicates)
    of_features: list[_OfFeatures] = []
    if measurement is not None:
        if measurement.fid_infinity:
            figures["fid_infinity"] = None
        if measurement.network.num_classes:
            of_features.append(_Score(num_samples, measurement))
        if measurement.reference is not None:
            of_features.append(_Distance(num_samples, measurement, measurement.reference))
        if measurement.compared is not None:
            of_features.append(_Comparison(num_samples, measurement, measurement.compared()))
        if 0 < num_classes == measurement.network.num_classes:
            of_features.append(_Accuracy(replicates))
    for samples in shards:
        weights = bootstrap.weights(samples.sample_ids, replicates)
        counts.add(samples, weights)
        if measurement is not None:
            features, logits = features_of(samples) if features_of else measurement.network(samples.images)
            for part in of_features:
                part.add(samples, features, logits, weights)
        del samples  # before the next shard is read
    for part in (counts, *of_features):
        figures |= part.figures()
    return figures


class _OfFeatures(Protocol):
    """Some of the figures: accumulates what they need of samples, features and logits, shard by shard."""

    def add(
        self,
        samples: Samples,
        features: Float[np.ndarray, "n d"],
        logits: Float[np.ndarray, "n k"],
        weights: UInt8[np.ndarray, "n r"],
    ) -> None: ...

    def figures(self) -> dict[str, Any]: ...


class _Counts:
    """The cost of the samples."""

    def __init__(self, num_samples: int, batch_size: int, evaluations_per_step: int, replicates: int):
        self._num_samples = num_samples
        self._batch_size = batch_size
        self._evaluations_per_step = evaluations_per_step
        enough = num_samples >= bootstrap.FEWEST
        self._replicates = bootstrap.MeanReplicates(replicates) if replicates and enough else None
        self._parts: list[Int[np.ndarray, "4 n"]] = []

    def add(self, samples: Samples, weights: UInt8[np.ndarray, "n r"]) -> None:
        self._parts.append(np.stack([samples.nfe, samples.accepted, samples.rejected, samples.status]))
        if self._replicates is not None:
            self._replicates.add(samples.nfe, weights)

    def figures(self) -> dict[str, Any]:
        nfe, accepted, rejected, status = np.concatenate(self._parts, axis=1)
        fix = f"pass shards with {self._num_samples} samples together"
        holds = len(nfe) == self._num_samples
        require(holds, "num_samples", self._num_samples, f"{len(nfe)}, the number of samples in shards", fix)
        figures = {
            "nfe_mean": float(nfe.mean()),
            "nfe_max": int(nfe.max()),
            "nfe_lockstep": nfe_lockstep(accepted + rejected, self._batch_size, self._evaluations_per_step),
            "rejected": float(rejected.mean()),
            "failed": int((status != Status.COMPLETED).sum()),
        }
        if self._replicates is not None:
            replicates = self._replicates.result()
            figures["nfe_interval"] = bootstrap.interval(figures["nfe_mean"], replicates, lowest=0.0)
        return figures


class _Accuracy:
    """The share of the samples whose class the network finds."""

    def __init__(self, replicates: int):
        self._replicates = bootstrap.MeanReplicates(replicates) if replicates else None
        self._found: list[np.ndarray] = []

    def add(self, samples: Samples, features: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> None:
        assert samples.classes is not None
        found = logits.argmax(axis=1) == samples.classes
        self._found.append(found)
        if self._replicates is not None:
            self._replicates.add(found.astype(np.float64), weights)

    def figures(self) -> dict[str, Any]:
        found = np.concatenate(self._found)
        figures: dict[str, Any] = {"accuracy": float(found.mean())}
        if self._replicates is not None and len(found) >= bootstrap.FEWEST:
            interval = bootstrap.interval(figures["accuracy"], self._replicates.result(), lowest=0.0)
            figures["accuracy_interval"] = interval
        return figures


class _Score:
    """The Inception Score and its interval; neither where the logits are equal for all classes.

    Such logits are those of weights without their last layer, and would give a score of 1 to any samples.
    """

    def __init__(self, num_samples: int, measurement: Measurement):
        self._network = measurement.network.name
        self._says_a_class = False
        splits = measurement.splits
        self._has_interval = measurement.replicates > 0 and splits > 1 and num_samples >= FEWEST * splits
        self._score = InceptionScore(
            num_samples=num_samples, num_classes=measurement.network.num_classes, splits=splits
        )

    def add(self, samples: Samples, features: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> None:
        self._says_a_class |= bool((logits.max(axis=1) > logits.min(axis=1)).any())
        self._score.add(logits)

    def figures(self) -> dict[str, Any]:
        if not self._says_a_class:
            reason = "its logits are equal for all classes; are its weights complete?"
            warnings.warn(f"no Inception Score by {self._network!r}: {reason}", stacklevel=2)
            return {}
        mean, std = self._score.result()
        figures: dict[str, Any] = {"is_mean": mean, "is_std": std}
        if self._has_interval:
            figures["is_interval"] = self._score.interval()
        return figures


class _Distance:
    """FID, its interval and its extrapolation."""

    def __init__(self, num_samples: int, measurement: Measurement, reference: Moments):
        require_comparable(measurement.source, reference.source)  # better now than after an hour of features
        warn_if_few(num_samples, measurement.network)
        self._source = measurement.source
        self._reference = reference
        self._moments: Moments | None = None
        self._line = None
        if measurement.fid_infinity:
            self._line = Extrapolation(num_samples=num_samples, reference=reference)
        count = measurement.replicates
        fit = bootstrap.FrechetReplicates.fit(num_samples, len(reference.mean), count)
        self._replicates = bootstrap.FrechetReplicates(reference, count) if count and fit else None

    def add(self, samples: Samples, features: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> None:
        if self._line is not None:
            self._line.add(self._moments, features, self._source)
        if self._replicates is not None:
            self._replicates.add(features, weights)
        piece = Moments.of(features, self._source)
        self._moments = piece if self._moments is None else self._moments.merge(piece)

    def figures(self) -> dict[str, Any]:
        assert self._moments is not None  # _Counts has refused shards without any sample
        distance = fid(self._moments, self._reference)
        figures: dict[str, Any] = {"fid": distance}
        if self._replicates is not None:
            figures["fid_interval"] = bootstrap.interval(distance, self._replicates.result(), lowest=0.0)
        if self._line is not None:
            figures["fid_infinity"] = self._line.result(distance)
        return figures


class _Comparison:
    """KID and the figures beside it, of as many samples as there are images of the data."""

    def __init__(self, num_samples: int, measurement: Measurement, data: Float[np.ndarray, "m d"]):
        neighbours.require_enough(len(data), num_samples)
        self._data = data
        self._content = measurement.compared_content
        self._replicates = measurement.replicates
        self._features = np.empty_like(data)
        self._kept = 0

    def add(self, samples: Samples, features: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> None:
        kept = features[: len(self._data) - self._kept]
        self._features[self._kept : self._kept + len(kept)] = kept
        self._kept += len(kept)

    def figures(self) -> dict[str, Any]:
        count = len(self._data)
        # blocks of at most half the set: blocks of the whole set would all be the same
        mean, std = kid(self._features, self._data, block_size=min(BLOCK_SIZE, count // 2))
        figures = {"compared": count, "compared_content": self._content, "kid": mean, "kid_std": std}
        sets = self._features, self._data
        distance = sliced_wasserstein.sliced_wasserstein(*sets)
        figures["sliced_wasserstein"] = distance
        if self._replicates:
            figures["sliced_wasserstein_interval"] = None
            if count >= bootstrap.FEWEST:
                replicates = sliced_wasserstein.replicates(*sets, self._replicates)
                figures["sliced_wasserstein_interval"] = bootstrap.interval(distance, replicates, lowest=0.0)
        return figures | neighbours.precision_recall(*sets)


def nfe_lockstep(steps: Int[np.ndarray, " n"], batch_size: int, evaluations_per_step: int) -> float:
    """Evaluations per sample by the published convention, for comparison with published tables.

    There a batch runs until its slowest sample is done, and a rejected step costs as much as an accepted one:
    evaluations per step, times the steps of the slowest of ``batch_size`` consecutive samples, averaged over
    the batches. The final denoising is not counted. Unlike ``nfe_mean``, this depends on the batch size.

    Args:
        steps: [n] attempted steps of each sample, accepted or not, in the order of the ids.
        batch_size: number of samples in a batch.
        evaluations_per_step: evaluations of the score in an attempted step.

    Example:
        >>> nfe_lockstep(np.array([1, 5, 2, 3]), batch_size=2, evaluations_per_step=2)
        8.0
    """
    slowest = np.maximum.reduceat(steps, np.arange(0, len(steps), batch_size))
    return float(evaluations_per_step * slowest.mean())
