"""Processes from a config's ``sde`` group."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from sde_lib.checks import require, require_choice
from sde_lib.paths import SCHEDULE, CosineVP, DiscreteVP, EDMProcess, RectifiedFlow
from sde_lib.processes import SDE, VESDE, VPSDE, SubVPSDE

PROCESSES: dict[str, Callable[..., SDE]] = {
    "ve": VESDE,
    "vp": VPSDE,
    "subvp": SubVPSDE,
    "edm": EDMProcess,
    "rectified_flow": RectifiedFlow,
    "cosine_vp": CosineVP,
    "discrete_vp": DiscreteVP.from_schedule,
}


def from_config(config: Any) -> SDE:
    """The process that ``config.name`` names, with the settings of the same names in ``config``.

    Args:
        config: the ``sde`` group of a config. A setting that is None keeps the process's own default.

    Raises:
        ValueError: for an unknown name, a number out of range, or a setting that this process does not have;
            the message names the config's key.
    """
    require_choice("config.sde.name", config.name, PROCESSES)
    given = {key: value for key, value in config.items() if key != "name" and value is not None}
    for key, value in given.items():
        owners = [name for name in PROCESSES if key in settings_of(name)]
        require(
            key in settings_of(config.name),
            f"config.sde.{key}",
            value,
            f"None with config.sde.name = {config.name!r}, which has no such setting",
            f"leave it out, or choose a process that has it: {', '.join(owners)}",
        )
    try:
        return PROCESSES[config.name](**given)
    except ValueError as error:
        raise ValueError(f"config.sde.{error}") from None


def settings_of(name: str) -> dict[str, Any]:
    """The keys of a config's ``sde`` group that the process with this name accepts, with their defaults."""
    process = PROCESSES[name]
    if not isinstance(process, type):
        return SCHEDULE
    return {field.name: field.default for field in dataclasses.fields(process)}


def settings(config: Any) -> dict[str, Any]:
    """The ``sde`` group of a config with the defaults of its process filled in, of its own settings alone.

    Example:
        >>> from ml_collections import ConfigDict
        >>> settings(ConfigDict({"name": "edm", "T": 40.0}))
        {'name': 'edm', 'eps': 0.002, 'T': 40.0}
    """
    require_choice("config.sde.name", config.name, PROCESSES)
    given = {key: value for key, value in config.items() if value is not None}
    return {"name": config.name} | {
        key: given.get(key, default) for key, default in settings_of(config.name).items()
    }
