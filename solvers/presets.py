"""Solvers from a config's ``solver`` group."""

from __future__ import annotations

import dataclasses
from typing import Any

from sde_lib.checks import require_choice
from solvers.adaptive import Adaptive
from solvers.euler_maruyama import EulerMaruyama
from solvers.interface import Solver

SOLVERS: dict[str, type] = {
    "adaptive": Adaptive,
    "euler_maruyama": EulerMaruyama,
}


def from_config(config: Any) -> Solver:
    """The solver that ``config.name`` names, with the settings of the same names in ``config``.

    Raises:
        ValueError: naming the key, its value, what was allowed and the fix.
    """
    require_choice("config.solver.name", config.name, SOLVERS)
    solver = SOLVERS[config.name]
    try:
        return solver(**{field.name: config[field.name] for field in dataclasses.fields(solver)})
    except ValueError as error:
        raise ValueError(f"config.solver.{error}") from None
