"""Experiments as data: ``base.py`` lists every key, ``keys.py`` says what each decides; the rest are deltas."""

from __future__ import annotations

import importlib
from typing import Any


def load(name: str) -> Any:
    """The config that a name such as "ve/digits_adaptive" stands for."""
    return importlib.import_module(f"configs.{name.replace('/', '.')}").get_config()
