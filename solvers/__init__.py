"""Samplers for score-based models: one file a family, and one driver that runs them all.

A solver is written for ONE sample as three pure functions, ``init``, ``ask`` and ``tell`` (see
``solvers.interface``); the driver gives every lane of a batch its own solver state, so that a lane whose
sample is done starts the next one at once.
"""

from solvers.adaptive import Adaptive
from solvers.adaptive_exponential import AdaptiveExponential
from solvers.ddim import DDIM
from solvers.deis import DEIS
from solvers.dpm_solver import DPMSolverPP, SDEDPMSolverPP
from solvers.driver import Solution, sample, stream
from solvers.edm import EDM, Heun
from solvers.euler_maruyama import EulerMaruyama
from solvers.grids import Grid, Rho, UniformLogSNR, UniformTime
from solvers.interface import Solver, Status
from solvers.langevin import AnnealedLangevin
from solvers.predictor_corrector import AncestralSampling, PredictorCorrector, ReverseDiffusion
from solvers.presets import from_config
from solvers.rk45 import RK45
from solvers.unipc import UniPC

__all__ = [
    "DDIM",
    "DEIS",
    "EDM",
    "RK45",
    "Adaptive",
    "AdaptiveExponential",
    "AncestralSampling",
    "AnnealedLangevin",
    "DPMSolverPP",
    "EulerMaruyama",
    "Grid",
    "Heun",
    "PredictorCorrector",
    "ReverseDiffusion",
    "Rho",
    "SDEDPMSolverPP",
    "Solution",
    "Solver",
    "Status",
    "UniPC",
    "UniformLogSNR",
    "UniformTime",
    "from_config",
    "sample",
    "stream",
]
