"""From shards of samples to figures, one shard in memory at a time and in the order of the sample ids.

The same samples in the same shards give the same figures to the last bit, however often their making was
interrupted: features are computed in the same batches, and sums are taken in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Int

from evaluation.features import FeatureNetwork
from evaluation.fid import Moments, Source, fid, require_comparable, warn_if_few
from evaluation.inception_score import InceptionScore
from evaluation.samples import Samples
from sde_lib.checks import require
from solvers import Status


def evaluate(
    shards: Iterable[Samples],
    *,
    num_samples: int,
    batch_size: int,
    evaluations_per_step: int,
    network: FeatureNetwork | None = None,
    reference: Moments | None = None,
    splits: int = 10,
) -> dict[str, Any]:
    """The figures of ``num_samples`` samples, under the keys of ``evaluation.results.Result``.

    Args:
        shards: in the order of their ids, as ``SampleStore.shards`` gives them.
        num_samples: in all shards together.
        batch_size: that ``nfe_lockstep`` supposes; the samples do not depend on it.
        evaluations_per_step: the solver's; of the score, by an attempted step.
        network: for fid, is_mean and is_std; these are None without it.
        reference: moments of the network's features of the data; fid is None without it.
        splits: of the Inception Score.

    Raises:
        ValueError: for fewer samples than splits, moments of other features than the network's, or features
            that are not finite.
    """
    score = moments = None
    if network is not None:
        score = InceptionScore(num_samples=num_samples, num_classes=network.num_classes, splits=splits)
        if reference is not None:  # better now than after an hour of features
            require_comparable(Source.of(network, data="samples", split="all"), reference.source)
            warn_if_few(num_samples, network)
    counts = []
    for samples in shards:
        counts.append(np.stack([samples.nfe, samples.accepted, samples.rejected, samples.status]))
        if network is not None and score is not None:
            features, logits = network(samples.images)
            piece = Moments.of(features, Source.of(network, data="samples", split="all"))
            moments = piece if moments is None else moments.merge(piece)
            score.add(logits)
    nfe, accepted, rejected, status = np.concatenate(counts, axis=1)
    require(len(nfe) == num_samples, "samples", len(nfe), f"{num_samples}, as announced", "sample the rest")
    is_mean, is_std = (None, None) if score is None else score.result()
    return {
        "num_samples": num_samples,
        "fid": None if moments is None or reference is None else fid(moments, reference),
        "is_mean": is_mean,
        "is_std": is_std,
        "nfe_mean": float(nfe.mean()),
        "nfe_max": int(nfe.max()),
        "nfe_lockstep": nfe_lockstep(accepted + rejected, batch_size, evaluations_per_step),
        "rejected": float(rejected.mean()),
        "failed": int((status != Status.COMPLETED).sum()),
    }


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
