"""The weights that a checkpoint file offers, and whether they fit a network.

Parameters are named by their path in the tree, "ResnetBlockBigGANpp_0/Conv_0/kernel".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sde_lib.checks import refusal, require

Shapes = dict[str, tuple[int, ...]]  # name -> shape


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights in a checkpoint: their names and shapes at once, their arrays on demand.

    Attributes:
        kind: the format, in words.
        shapes: shape of every parameter.
        read: from parameter names to their arrays, in the file's precision; called once.
        metadata: what else the checkpoint says of itself; every format has ``step``.
    """

    kind: str
    shapes: Shapes
    read: Callable[[Iterable[str]], dict[str, np.ndarray]]
    metadata: dict[str, Any]


def read_fitting(weights: Weights, expected: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The weights as float32 NumPy arrays in a tree like ``expected``, whose leaves have a shape.

    Raises:
        ValueError: for weights of another architecture, with up to ten names of each kind of difference, or
            for weights that are not finite floating-point numbers.
    """
    leaves: dict[str, Any] = flatten_dict(expected, sep="/")
    wanted: Shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    _require_same(weights, wanted, path)
    arrays = weights.read(wanted)
    fix = "take an earlier checkpoint of that training"
    odd = [
        f"{name} {array.dtype}"
        for name, array in arrays.items()
        if not jnp.issubdtype(array.dtype, jnp.floating)
    ]
    allowed = f"one of floating-point weights, but {len(odd)} of {len(wanted)} are not: {listed(odd)}"
    require(not odd, "checkpoint", str(path), allowed, fix)
    broken = [name for name in wanted if not np.isfinite(arrays[name]).all()]
    allowed = (
        f"one of finite weights, but {len(broken)} of {len(wanted)} hold NaN or infinite values: "
        f"{listed(broken)}"
    )
    require(not broken, "checkpoint", str(path), allowed, fix)
    return unflatten_dict({name: arrays[name].astype(np.float32, copy=False) for name in wanted}, sep="/")


def _require_same(weights: Weights, wanted: Shapes, path: Path) -> None:
    missing = [name for name in wanted if name not in weights.shapes]
    unexpected = [name for name in weights.shapes if name not in wanted]
    misshapen = [
        f"{name} {weights.shapes[name]} instead of {shape}"
        for name, shape in wanted.items()
        if weights.shapes.get(name, shape) != shape
    ]
    if not (missing or unexpected or misshapen):
        return
    lines = ["take the config that this checkpoint was trained with (docs/checkpoints.md lists them)"]
    for title, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)):
        if names:
            lines.append(f"  {title} ({len(names)}): {listed(names)}")
    fourier = "GaussianFourierProjection_0/W"
    if fourier in missing or fourier in unexpected:
        has, lacks = ("config", "checkpoint") if fourier in missing else ("checkpoint", "config")
        lines.append(
            f"  the {has} has a Fourier embedding of the noise level, as VE networks do; the {lacks} has none"
        )
    allowed = f"of the architecture in config.model and config.data, but this one, in {weights.kind}, is not"
    raise ValueError(refusal("checkpoint", str(path), allowed, "\n".join(lines)))


def listed(names: Sequence[str], limit: int = 10) -> str:
    """Up to ``limit`` names, and the number of those left out."""
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
