"""A network's weights as a file offers them: names and shapes at once, arrays on demand; do they fit?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Shapes = dict[str, tuple[int, ...]]  # "ResnetBlockBigGANpp_0/Conv_0/kernel" -> (3, 3, 128, 128)


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a checkpoint holds.

    Attributes:
        kind: the format, in words.
        shapes: of every parameter, by its path in the tree.
        read: from parameter names to their arrays, in file precision; called once.
        metadata: what else the checkpoint says of itself; ``step`` in every format.
    """

    kind: str
    shapes: Shapes
    read: Callable[[Iterable[str]], dict[str, np.ndarray]]
    metadata: dict[str, Any]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary as one with keys "a/b/c", in the same order."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}/{name}" if prefix else str(name)
        flat |= flatten(value, path) if isinstance(value, Mapping) else {path: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``flatten``."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = value
    return tree


def read_fitting(weights: Weights, expected: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The weights as float32 NumPy arrays in the tree ``expected`` (leaves with a shape).

    Raises:
        ValueError: for weights of another architecture, listing up to ten names of each kind of difference,
            or for weights that are not finite.
    """
    wanted: Shapes = {name: tuple(leaf.shape) for name, leaf in flatten(expected).items()}
    _require_same(weights, wanted, path)
    arrays = weights.read(wanted)
    broken = [name for name in wanted if not np.isfinite(arrays[name]).all()]
    if broken:
        raise ValueError(
            f"checkpoint {path}: {len(broken)} of {len(wanted)} weights hold NaN or infinite values: "
            f"{_some(broken)}; allowed are finite numbers; take an earlier checkpoint of that training"
        )
    return unflatten({name: arrays[name].astype(np.float32, copy=False) for name in wanted})


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
    lines = [
        f"checkpoint {path} ({weights.kind}) is of another architecture than config.model and config.data "
        "say:"
    ]
    for title, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)):
        if names:
            lines.append(f"  {title} ({len(names)}): {_some(names)}")
    fourier = "GaussianFourierProjection_0/W"
    if fourier in missing or fourier in unexpected:
        has, lacks = ("config", "checkpoint") if fourier in missing else ("checkpoint", "config")
        lines.append(
            f"  the {has} has a Fourier embedding of the noise level, as VE networks do, the {lacks} none"
        )
    lines.append("  take the config that this checkpoint was trained with (docs/checkpoints.md lists them)")
    raise ValueError("\n".join(lines))


def _some(names: list[str], limit: int = 10) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
