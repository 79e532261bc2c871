"""The figures of samples that were made elsewhere, by the same code as those of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from evaluation.metrics import figures as figures
from evaluation.metrics.bootstrap import REPLICATES
from evaluation.metrics.features import FeatureNetwork
from evaluation.metrics.fid import Moments
from evaluation.runs import results
from evaluation.store.samples import Samples
from sde_lib.checks import require
from solvers import Status

# What nobody knows of samples made elsewhere
OF_THE_SAMPLING = ("nfe_mean", "nfe_interval", "nfe_max", "nfe_lockstep", "rejected", "failed")


def evaluate_images(
    pieces: Iterable[UInt8[np.ndarray, "_ h w c"]],
    *,
    path: str,
    count: int,
    network: FeatureNetwork,
    reference: Moments,
    workdir: epath.PathLike,
    splits: int = 10,
    fid_infinity: bool = False,
    compared: Callable[[], np.ndarray] | None = None,
) -> dict[str, Any]:
    """The figures of images, which are also added to results.jsonl in ``workdir``.

    They are those of a run with the same samples to the last bit if the pieces are the run's shards. The
    place of ``config_hash`` is taken by the beginning of the images' own SHA-256.

    Args:
        pieces: the images in their order.
        path: where they are from, for the record.
        count: how many there are.
        network: whose features FID and the Inception Score are of.
        reference: moments of the data under that network.
        workdir: made if it is not there.
        splits: of the Inception Score.
        fid_infinity, compared: see ``evaluate``; images in an order of their own (by class, for example)
            make no growing random sets, and nothing can be extrapolated from them.

    Raises:
        ValueError: for fewer images than splits, or images that are broken or that the network does not take.
        OSError: for a disk that refuses the file.
    """
    require(
        count >= splits,
        f"number of images in {path}",
        count,
        f"at least {splits}, one for each split of the Inception Score",
        "name a place that holds more",
    )
    pixels = hashlib.sha256()

    def shards() -> Iterator[Samples]:
        start = 0
        for images in pieces:
            pixels.update(images.tobytes())
            zeros = np.zeros(len(images), np.int32)
            yield Samples(
                sample_ids=np.arange(start, start + len(images)),
                images=images,
                nfe=zeros,
                accepted=zeros,
                rejected=zeros,
                status=np.full(len(images), Status.COMPLETED, np.int32),
            )
            start += len(images)

    measured: dict[str, Any] = figures.evaluate(
        shards(),
        num_samples=count,
        batch_size=1,
        evaluations_per_step=1,
        network=network,
        reference=reference,
        splits=splits,
        replicates=REPLICATES,
        fid_infinity=fid_infinity,
        compared=compared,
    )
    measured.update(dict.fromkeys(OF_THE_SAMPLING))
    result = results.Result.of(
        measured,
        config_hash=pixels.hexdigest()[:16],
        checkpoint_sha256=None,
        git_commit=results.git_commit(),
        features=f"{network.name}:{network.sha256}",
        reference=reference.name,
        lane_utilization=None,
        samples_per_second=None,
        seconds_compile=None,
        devices=results.devices(),
        versions=results.versions(),
        extra={"images": path, "images_sha256": pixels.hexdigest()},
    )
    results.append(workdir, result)
    return results.read(workdir)[-1]
