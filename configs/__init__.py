"""Experiments as data.

``base.py`` lists every key once, ``keys.py`` says what each decides; the other configs are deltas on it.
"""

from __future__ import annotations

import importlib
from typing import Any


def load(name: str) -> Any:
    """The config that a name such as "ve/digits_adaptive" stands for."""
    return importlib.import_module(f"configs.{name.replace('/', '.')}").get_config()


def flat(config: Any) -> dict[str, Any]:
    """Every value of a config by its dotted key, such as "solver.eps_rel"."""
    values = {}
    for name, value in config.items():
        group = value.items() if hasattr(value, "items") else None
        values |= {name: value} if group is None else {f"{name}.{key}": entry for key, entry in group}
    return values


def image_shape(data: Any) -> tuple[int, int, int]:
    """(h, w, c) of the images that a config's group ``data`` describes."""
    width = data.image_size if data.image_width is None else data.image_width
    return data.image_size, width, data.num_channels
