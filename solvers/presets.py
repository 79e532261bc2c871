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
from solvers.euler_maruyama import EulerMaruyama
from solvers.grids import Grid, Rho, UniformLogSNR, UniformTime
from solvers.interface import Solver
from solvers.langevin import AnnealedLangevin
from solvers.predictor_corrector import AncestralSampling, PredictorCorrector, ReverseDiffusion
from solvers.rk45 import RK45
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
}
PREDICTORS = ("euler_maruyama", "reverse_diffusion", "ancestral")
GRIDS: dict[str, Callable[..., Grid]] = {
    "uniform_t": UniformTime,
    "uniform_log_snr": UniformLogSNR,
    "edm": Rho,
}
_DRIVER = {"name", "denoise"}  # keys of the group that are not a solver's


def from_config(config: Any) -> Solver:
    """The solver that ``config.name`` names, with the settings of the same names in ``config``.

    A setting that is None is left to the solver's own default.

    Raises:
        ValueError: naming the key, its value, what was allowed and the fix; also for a setting that this
            solver does not have.
    """
    require_choice("config.solver.name", config.name, SOLVERS)
    settings = {key: value for key, value in config.items() if key not in _DRIVER and value is not None}
    try:
        solver, unused = _build(config.name, settings)
    except ValueError as error:
        raise ValueError(f"config.solver.{error}") from None
    # Adaptive's settings have values in every config; one of another solver was asked for by somebody
    for key in unused - {field.name for field in dataclasses.fields(Adaptive)}:
        owners = [name for name in SOLVERS if key in _settings_of(name)]
        require(
            False,
            f"config.solver.{key}",
            settings[key],
            f"nothing (None) with config.solver.name = {config.name!r}",
            f"it is a setting of {', '.join(owners)}; leave it out, or take one of these",
        )
    return solver


def _build(name: str, settings: dict[str, Any]) -> tuple[Solver, set[str]]:
    """The solver, and the names of the settings that it has no use for."""
    fields = {field.name for field in dataclasses.fields(SOLVERS[name])}
    own = {key: value for key, value in settings.items() if key in fields - {"grid", "predictor"}}
    unused = set(settings) - set(own)
    if "grid" in fields and {"grid", "rho"} & set(settings):
        own["grid"] = _grid(settings)
        unused -= {"grid", "rho"}
    if "predictor" in fields:
        predictor = settings.get("predictor", "reverse_diffusion")
        require_choice("predictor", predictor, PREDICTORS)
        own["predictor"], unused = _build(predictor, {key: settings[key] for key in unused})
        unused -= {"predictor"}
    return SOLVERS[name](**own), unused


def _grid(settings: dict[str, Any]) -> Grid:
    name = settings.get("grid", "edm")
    require_choice("grid", name, GRIDS)
    if "rho" not in settings:
        return GRIDS[name]()
    require(
        name == "edm", "rho", settings["rho"], "nothing (None) with another grid than edm", "leave it out"
    )
    return Rho(rho=settings["rho"])


def _settings_of(name: str) -> set[str]:
    settings = {field.name for field in dataclasses.fields(SOLVERS[name])}
    if "predictor" in settings:
        settings |= _settings_of(PREDICTORS[0])
    return settings | {"rho"} if "grid" in settings else settings
