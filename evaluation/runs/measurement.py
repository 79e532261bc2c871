"""From a config to what it measures: feature network, reference and options, checked in one place."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
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

    described = datasets.describe(config.data)
    with _keys_named(config):
        network = _network(config)
    measurement = Measurement(
        network=network,
        compared=compared if settings.compared else None,
        num_compared=settings.compared or None,
        compared_content=described["content"] if settings.compared else None,
        fid_infinity=settings.fid_infinity,
    )
    num_images = datasets.open_images(config.data).count if settings.compared else None
    with _keys_named(
        config, num_samples="config.eval.num_samples" if num_samples is None else "number of images"
    ):
        count = settings.num_samples if num_samples is None else num_samples
        measurement.check(count, configs.image_shape(config.data), num_images)
    with _keys_named(config):
        statistics = reference.find(
            network, given=settings.reference, opened=lambda: _opened(config), **described
        )
    return dataclasses.replace(measurement, reference=statistics)


def store_statistics(config: Any) -> tuple[Path, Moments, FeatureNetwork]:
    """Computes a config's reference statistics unless they are stored; returns their file and content."""
    settings = config.eval
    described = datasets.describe(config.data)
    with _keys_named(config, hints={}):
        network = _network(config)
        path, statistics = reference.store(
            network, given=settings.reference, opened=lambda: _opened(config), **described
        )
    return path, statistics, network


def _network(config: Any) -> FeatureNetwork:
    settings, shape = config.eval, configs.image_shape(config.data)
    return load_features(settings.features, settings.inception_weights, image_shape=shape)


def _opened(config: Any) -> tuple[Iterator[np.ndarray], int]:
    images = datasets.open_images(config.data)
    return datasets.pieces(images), images.count


# What the command line offers where a key is refused
HINTS = {
    "config.eval.num_samples": "--mode=sample measures nothing",
    "config.eval.reference": "--mode=stats computes a file of the statistics of config.data",
    "config.data.name": "--mode=stats computes such a file where the images are; --mode=sample needs none",
}


@contextlib.contextmanager
def _keys_named(
    config: Any, *, hints: Mapping[str, str] = HINTS, num_samples: str = "config.eval.num_samples"
) -> Iterator[None]:
    """Gives a refused parameter the name of its config key, and adds what the command line offers.

    Args:
        config: the groups of keys.
        hints: config key -> what to do about it at the command line.
        num_samples: what the number of samples is called.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        parameter, _, rest = text.partition(" ")
        if parameter == "num_samples":
            text = f"{num_samples} {rest}"
        elif parameter in config.eval:
            text = f"config.eval.{text}"
        more = [hint for key, hint in hints.items() if text.startswith(f"{key} ")]
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind("; ".join([text, *more])) from None
