"""From shards of samples to figures, one shard in memory at a time and in the order of the sample ids.

The same samples in the same shards give the same figures to the last bit, however often their making was
interrupted: features are computed in the same batches, and sums are taken in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8

from evaluation.metrics import bootstrap
from evaluation.metrics.features import FeatureNetwork, Features
from evaluation.metrics.fid import (
    Extrapolation,
    Moments,
    Source,
    fid,
    require_comparable,
    require_enough_for_line,
    warn_if_few,
)
from evaluation.metrics.inception_score import InceptionScore
from evaluation.metrics.kid import BLOCK_SIZE, kid
from evaluation.metrics.neighbours import NEIGHBOURS, precision_recall
from evaluation.store.samples import Samples
from sde_lib.checks import require
from solvers import Status


def check_options(
    *,
    num_samples: int,
    num_features: int,
    fid_infinity: bool = False,
    compared: int = 0,
    num_images: int | None = None,
) -> None:
    """Raises ValueError for options that ``evaluate`` would refuse: to call before anything is sampled.

    Args:
        num_samples: ``config.eval.num_samples``.
        num_features: of the feature network.
        fid_infinity: ``config.eval.fid_infinity``.
        compared: ``config.eval.compared``.
        num_images: in the data that samples are compared with, where it is known.
    """
    if fid_infinity:
        require_enough_for_line(num_samples, num_features)
    if compared != 0:
        largest = num_samples if num_images is None else min(num_samples, num_images)
        there = f"the {num_samples} samples" + ("" if num_images is None else f" and {num_images} images")
        require(
            NEIGHBOURS < compared <= largest,
            "config.eval.compared",
            compared,
            f"0 for none, or {NEIGHBOURS + 1} (one more than neighbours) to {largest}, of {there}",
            f"set it to {largest}, or to 0",
        )


def evaluate(
    shards: Iterable[Samples],
    *,
    num_samples: int,
    batch_size: int,
    evaluations_per_step: int,
    network: FeatureNetwork | None = None,
    features_of: Callable[[Samples], Features] | None = None,
    reference: Moments | None = None,
    splits: int = 10,
    replicates: int = 0,
    fid_infinity: bool = False,
    compared: Callable[[], Float[np.ndarray, "m d"]] | None = None,
) -> dict[str, Any]:
    """The figures of ``num_samples`` samples, under the keys of ``evaluation.runs.results.Result``.

    Args:
        shards: in the order of their ids, as ``SampleStore.shards`` gives them.
        num_samples: in all shards together.
        batch_size: that ``nfe_lockstep`` supposes; the samples do not depend on it.
        evaluations_per_step: the solver's; of the score, by an attempted step.
        network: for fid, is_mean and is_std; these are None without it.
        features_of: gives the network's features [n, d] and logits [n, k] of a shard, as
            ``evaluation.runs.feature_store.FeatureStore.of`` does; by default the network is called.
        reference: moments of the network's features of the data; fid is None without it.
        splits: of the Inception Score.
        replicates: of a bootstrap, such as ``bootstrap.REPLICATES``, for the 95 % intervals fid_interval,
            is_interval and nfe_interval: [low, high], or None where samples are too few, or features too many
            (evaluation/metrics/bootstrap.py). The keys are there if it is not 0.
        fid_infinity: whether to add fid_infinity, None without a reference.
        compared: gives the network's features of m images of the data, which as many samples are compared
            with, for the figures compared (m itself), kid, kid_std, precision, recall, density and coverage.

    Raises:
        ValueError: for fewer samples than splits, or than the options need, moments of other features than
            the network's, or features that are not finite.
    """
    figures: dict[str, Any] = {"num_samples": num_samples, **dict.fromkeys(("fid", "is_mean", "is_std"))}
    if replicates:
        figures |= dict.fromkeys(("fid_interval", "is_interval", "nfe_interval"))
    if fid_infinity:
        figures["fid_infinity"] = None
    of_features: list[_OfFeatures] = []
    if network is not None:
        of_features.append(_Score(num_samples, network, splits, replicates))
        if reference is not None:
            source = Source.of(network, data="samples", split="all")
            require_comparable(source, reference.source)  # better now than after an hour of features
            warn_if_few(num_samples, network)
            of_features.append(_Distance(num_samples, source, reference, replicates, fid_infinity))
        if compared is not None:
            of_features.append(_Comparison(num_samples, compared()))
    counts = _Counts(num_samples, batch_size, evaluations_per_step, replicates)
    for samples in shards:
        weights = bootstrap.weights(samples.sample_ids, replicates)
        counts.add(samples, weights)
        if network is not None:
            features, logits = features_of(samples) if features_of else network(samples.images)
            for measure in of_features:
                measure.add(features, logits, weights)
        del samples  # before the next shard is read
    for measure in (counts, *of_features):
        figures |= measure.figures()
    return figures


class _OfFeatures(Protocol):
    """What some figures need of the samples' features and logits, kept from shard to shard."""

    def add(
        self,
        features: Float[np.ndarray, "n d"],
        logits: Float[np.ndarray, "n k"],
        weights: UInt8[np.ndarray, "n r"],
    ) -> None: ...

    def figures(self) -> dict[str, Any]: ...


class _Counts:
    """What the samples took."""

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
        announced = self._num_samples
        require(len(nfe) == announced, "samples", len(nfe), f"{announced}, as announced", "sample the rest")
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


class _Score:
    """The Inception Score."""

    def __init__(self, num_samples: int, network: FeatureNetwork, splits: int, replicates: int):
        self._intervals = replicates > 0 and num_samples >= bootstrap.FEWEST * splits
        self._score = InceptionScore(
            num_samples=num_samples,
            num_classes=network.num_classes,
            splits=splits,
            replicates=replicates if self._intervals else 0,
        )

    def add(self, features: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> None:
        self._score.add(logits, weights if self._intervals else None)

    def figures(self) -> dict[str, Any]:
        mean, std = self._score.result()
        figures: dict[str, Any] = {"is_mean": mean, "is_std": std}
        if self._intervals:
            figures["is_interval"] = bootstrap.interval(mean, self._score.replicates(), lowest=1.0)
        return figures


class _Distance:
    """FID, its interval and what it tends to."""

    def __init__(
        self, num_samples: int, source: Source, reference: Moments, replicates: int, fid_infinity: bool
    ):
        self._source = source
        self._reference = reference
        self._moments: Moments | None = None
        self._line = Extrapolation(num_samples=num_samples, reference=reference) if fid_infinity else None
        fit = bootstrap.FrechetReplicates.fit(num_samples, len(reference.mean), replicates)
        self._replicates = bootstrap.FrechetReplicates(reference, replicates) if replicates and fit else None

    def add(self, features: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> None:
        if self._line is not None:
            self._line.add(self._moments, features, self._source)
        if self._replicates is not None:
            self._replicates.add(features, weights)
        piece = Moments.of(features, self._source)
        self._moments = piece if self._moments is None else self._moments.merge(piece)

    def figures(self) -> dict[str, Any]:
        assert self._moments is not None  # no samples at all have been refused with their counts
        distance = fid(self._moments, self._reference)
        figures: dict[str, Any] = {"fid": distance}
        if self._replicates is not None:
            figures["fid_interval"] = bootstrap.interval(distance, self._replicates.result(), lowest=0.0)
        if self._line is not None:
            figures["fid_infinity"] = self._line.result(distance)
        return figures


class _Comparison:
    """Sample by sample with the data: KID, precision and recall, density and coverage."""

    def __init__(self, num_samples: int, data: Float[np.ndarray, "m d"]):
        count = len(data)
        check_options(num_samples=num_samples, num_features=data.shape[1], compared=count)
        self._data = data
        self._features = np.empty_like(data)
        self._kept = 0

    def add(self, features: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> None:
        kept = features[: len(self._data) - self._kept]
        self._features[self._kept : self._kept + len(kept)] = kept
        self._kept += len(kept)

    def figures(self) -> dict[str, Any]:
        count = len(self._data)
        # blocks of half at most: those of all would be one block again and again
        mean, std = kid(self._features, self._data, block_size=min(BLOCK_SIZE, count // 2))
        neighbours = precision_recall(self._features, self._data)
        return {"compared": count, "kid": mean, "kid_std": std, **neighbours}


def nfe_lockstep(steps: Int[np.ndarray, " n"], batch_size: int, evaluations_per_step: int) -> float:
    """Evaluations a sample by the published convention, for comparison with published tables.

    There a batch runs until its slowest sample is done, and a rejected step costs as much as an accepted one:
    evaluations a step, times the steps of the slowest of ``batch_size`` consecutive samples, averaged over
    the batches. The final denoising is not counted. Unlike ``nfe_mean``, it depends on the batch size.

    Args:
        steps: [n] attempted steps of each sample, accepted or not, in the order of their ids.
    """
    slowest = np.maximum.reduceat(steps, np.arange(0, len(steps), batch_size))
    return float(evaluations_per_step * slowest.mean())
