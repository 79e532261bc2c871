"""Solvers and time grids from a config's ``solver`` group."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from sde_lib.checks import require, require_choice
from solvers.adaptive import Adaptive
from solvers.adaptive_exponential import AdaptiveExponential
from solvers.ddim import DDIM
from solvers.deis import DEIS
from solvers.dpm_solver import DPMSolverPP, SDEDPMSolverPP
from solvers.edm import EDM, Heun
from solvers.er_sde import ERSDE
from solvers.euler_maruyama import EulerMaruyama
from solvers.grids import Grid, Rho, UniformLogSNR, UniformTime
from solvers.interface import Solver
from solvers.langevin import AnnealedLangevin
from solvers.predictor_corrector import AncestralSampling, PredictorCorrector, ReverseDiffusion
from solvers.rk45 import RK45
from solvers.sa_solver import SASolver
from solvers.unipc import UniPC

SOLVERS: dict[str, type] = {
    "adaptive": Adaptive,
    "adaptive_exponential": AdaptiveExponential,
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "ancestral": AncestralSampling,
    "predictor_corrector": PredictorCorrector,
    "annealed_langevin": AnnealedLangevin,
    "rk45": RK45,
    "heun": Heun,
    "edm": EDM,
    "ddim": DDIM,
    "dpm_solver_pp": DPMSolverPP,
    "sde_dpm_solver_pp": SDEDPMSolverPP,
    "unipc": UniPC,
    "deis": DEIS,
    "er_sde": ERSDE,
    "sa_solver": SASolver,
}
PREDICTORS = ("euler_maruyama", "reverse_diffusion", "ancestral")
GRIDS: dict[str, Callable[..., Grid]] = {
    "uniform_t": UniformTime,
    "uniform_log_snr": UniformLogSNR,
    "edm": Rho,
}
_DRIVER = {"name", "denoise"}  # keys of the group that are not a solver's


def from_config(config: Any, defaults: Any = None) -> Solver:
    """The solver that ``config.name`` names, with the settings of the same names in ``config``.

    Args:
        config: the ``solver`` group of a config. A setting that is None keeps the solver's default.
        defaults: the ``solver_defaults`` group: defaults of the experiment, taken where the solver has the
            setting and ``config`` leaves it None.

    Raises:
        ValueError: for an unknown solver, a value out of range, or a setting that this solver does not have.
    """
    require_choice("config.solver.name", config.name, SOLVERS)
    given = {key: value for key, value in config.items() if key not in _DRIVER and value is not None}
    own = settings_of(config.name)
    for key, value in given.items():
        owners = [name for name in SOLVERS if key in settings_of(name)]
        require(
            key in own,
            f"config.solver.{key}",
            value,
            f"None with config.solver.name = {config.name!r}, which has no such setting",
            f"leave it out, or choose a solver that has it: {', '.join(owners)}",
        )
    suited = {} if defaults is None else {key: value for key, value in defaults.items() if value is not None}
    settings = {key: value for key, value in suited.items() if key in own} | given
    try:
        return _build(config.name, settings)
    except ValueError as error:
        raise ValueError(f"config.solver.{error}") from None


def settings_of(name: str) -> set[str]:
    """The keys of a config's ``solver`` group that the solver with this name accepts."""
    settings = {field.name for field in dataclasses.fields(SOLVERS[name])}
    if "predictor" in settings:
        settings |= settings_of(PREDICTORS[0])
    return settings | {"rho"} if "grid" in settings else settings


def _build(name: str, settings: dict[str, Any]) -> Solver:
    fields = {field.name for field in dataclasses.fields(SOLVERS[name])}
    own = {key: value for key, value in settings.items() if key in fields - {"grid", "predictor"}}
    if "grid" in fields and {"grid", "rho"} & settings.keys():
        own["grid"] = _grid(settings)
    if "predictor" in fields:
        predictor = settings.get("predictor", "reverse_diffusion")
        require_choice("predictor", predictor, PREDICTORS)
        own["predictor"] = _build(predictor, settings)
    return SOLVERS[name](**own)


def _grid(settings: dict[str, Any]) -> Grid:
    name = settings.get("grid", "edm")
    require_choice("grid", name, GRIDS)
    if "rho" not in settings:
        return GRIDS[name]()
    require(
        name == "edm", "rho", settings["rho"], f"None with grid = {name!r}", "leave it out, or set grid=edm"
    )
    return Rho(rho=settings["rho"])
