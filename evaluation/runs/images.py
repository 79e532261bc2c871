"""The figures of images from another source, by the same code as those of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from evaluation.metrics import figures
from evaluation.metrics.measurement import Measurement
from evaluation.runs import results
from evaluation.store.samples import Samples
from solvers import Status, progress

# Figures of the sampling, which nobody knows of such images
OF_THE_SAMPLING = ("nfe_mean", "nfe_interval", "nfe_max", "nfe_lockstep", "rejected", "failed")


def evaluate_images(
    pieces: Iterable[UInt8[np.ndarray, "_ h w c"]],
    *,
    path: str,
    count: int,
    measurement: Measurement,
    workdir: epath.PathLike,
) -> dict[str, Any]:
    """The figures of images, which are also added to results.jsonl in ``workdir``.

    If the pieces are the shards of a run with the same samples, the figures equal the run's to the last bit.
    ``config_hash`` is the beginning of the images' own SHA-256.

    Args:
        pieces: the images in their order.
        path: where they are from, for the record.
        count: number of images.
        measurement: what to measure. Images that are sorted (by class, for example) must be shuffled first,
            as by ``data.datasets.open_samples``: each split of the Inception Score takes a run of them.
        workdir: made if it is not there.

    Raises:
        ValueError: for images that are broken or that the network does not take, or for a results.jsonl in
            ``workdir`` that is not this project's.
        OSError: for a disk that refuses the file.
    """
    results.read(workdir)  # refuses somebody else's file of this name before the features are computed
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

    with progress.bar(total=count, unit="image", desc="features") as bar:
        measured = figures.evaluate(
            shards(),
            num_samples=count,
            batch_size=1,
            evaluations_per_step=1,
            measurement=measurement,
            features_of=lambda samples: measurement.network(samples.images, after_batch=bar.update),
        )
    measured.update(dict.fromkeys(OF_THE_SAMPLING))
    result = results.Result.of(
        measured,
        config_hash=pixels.hexdigest()[:16],
        checkpoint_sha256=None,
        features=measurement.features_name,
        reference=measurement.reference_name,
        reference_content=measurement.reference_content,
        lane_utilization=None,
        samples_per_second=None,
        seconds_compile=None,
        extra={"images": path, "images_sha256": pixels.hexdigest()},
    )
    results.append(workdir, result)
    return results.read(workdir)[-1]
