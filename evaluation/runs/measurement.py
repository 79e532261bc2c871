"""From a config to what it measures: feature network, reference and options, checked in one place."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import configs
from data import datasets
from evaluation.metrics import reference
from evaluation.metrics.features import FeatureNetwork, load_features
from evaluation.metrics.fid import Moments
from evaluation.metrics.measurement import Measurement


def from_config(config: Any, *, num_samples: int | None = None) -> Measurement:
    """What a config measures of its samples.

    Everything that can be refused is refused before the reference statistics are computed.

    Args:
        config: the groups ``eval`` and ``data`` are used.
        num_samples: number of samples to measure, if it is not ``config.eval.num_samples``.

    Raises:
        ValueError: for options that do not go together or that the samples or the data are too few for.
        FileNotFoundError: for absent data or weights, saying how to get them.
    """
    settings = config.eval

    @functools.cache  # a sweep asks once for each cell
    def compared() -> np.ndarray:
        pieces = datasets.pieces(datasets.shuffled(datasets.open_images(config.data)))
        return reference.first_features(pieces, network, count=settings.compared)

    with _keys_named("config.eval."):
        network = load_features(settings.features, settings.inception_weights)
    measurement = Measurement(
        network=network,
        compared=compared if settings.compared else None,
        num_compared=settings.compared or None,
        fid_infinity=settings.fid_infinity,
    )
    num_images = datasets.open_images(config.data).count if settings.compared else None
    with _keys_named("config.eval."):
        measurement.check(num_samples or settings.num_samples, configs.image_shape(config), num_images)
    with _keys_named("config.eval."):
        statistics = reference.find(network, **_data(config))
    return dataclasses.replace(measurement, reference=statistics)


def store_statistics(config: Any) -> tuple[Path, Moments, FeatureNetwork]:
    """Computes a config's reference statistics unless they are stored; returns their file and content."""
    with _keys_named("config.eval."):
        network = load_features(config.eval.features, config.eval.inception_weights)
        path, statistics = reference.store(network, **_data(config))
    return path, statistics, network


def _data(config: Any) -> dict[str, Any]:
    """What evaluation/metrics/reference.py needs to know of a config."""
    described = datasets.describe(config.data)
    return {
        "given": config.eval.reference,
        "data": described["data"],
        "split": described["split"],
        "pieces": lambda: datasets.pieces(datasets.open_images(config.data)),
    }


@contextlib.contextmanager
def _keys_named(group: str) -> Iterator[None]:
    """Puts the config's group before a refused parameter, whose key has the same name."""
    try:
        yield
    except ValueError as error:
        known = ("config.", "checkpoint")  # messages that name their key in full
        text = str(error)
        raise ValueError(text if text.startswith(known) else group + text) from None
