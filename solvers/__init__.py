"""Samplers for score-based models: one module per family of solvers, and one driver that runs them all.

Start with ``sample``: it takes a score function, a process of ``sde_lib``, a solver and a random key, and
returns a ``Solution`` with the samples, the number of network evaluations of each, and a ``Status`` for each.
``stream`` does the same for more samples than fit in memory. ``Adaptive``, ``AdaptiveExponential`` and
``RK45`` choose their step sizes from a tolerance; the other solvers take a fixed number of steps on a time
``Grid``.

``trace`` draws a few samples and records every evaluation of each. ``log_likelihood`` gives the density of
samples, ``encode`` their latents, and ``decode`` leads back, all by the probability-flow ODE.

Conventions:

- Time runs forward, from data to noise. A sampler starts at t = T with a sample of the prior and ends at
  t = eps, near the data.
- A solver is written for one sample, without a batch axis, as three pure functions, ``init``, ``ask`` and
  ``tell`` (see ``Solver``). The driver gives every lane of a batch its own solver state. A lane whose sample
  is finished starts the next sample at once.
- A sample depends on the key and its id alone, not on the batch size, the devices or the other samples.
- The log-SNR is log(alpha/sigma) for x(t) | x(0) ~ N(alpha x(0), sigma^2 I).
"""

from solvers.adaptive import Adaptive
from solvers.adaptive_exponential import AdaptiveExponential
from solvers.ddim import DDIM
from solvers.deis import DEIS
from solvers.dpm_solver import DPMSolverPP, SDEDPMSolverPP
from solvers.driver import Solution, sample, stream
from solvers.edm import EDM, Heun
from solvers.er_sde import ERSDE
from solvers.euler_maruyama import EulerMaruyama
from solvers.grids import Grid, Rho, UniformLogSNR, UniformTime
from solvers.interface import Solver, Status
from solvers.langevin import AnnealedLangevin
from solvers.likelihood import Likelihood, decode, encode, log_likelihood
from solvers.predictor_corrector import AncestralSampling, PredictorCorrector, ReverseDiffusion
from solvers.presets import from_config
from solvers.rk45 import RK45
from solvers.rows import Start
from solvers.sa_solver import SASolver
from solvers.trace import Trace, trace
from solvers.unipc import UniPC

__all__ = [
    "DDIM",
    "DEIS",
    "EDM",
    "ERSDE",
    "RK45",
    "Adaptive",
    "AdaptiveExponential",
    "AncestralSampling",
    "AnnealedLangevin",
    "DPMSolverPP",
    "EulerMaruyama",
    "Grid",
    "Heun",
    "Likelihood",
    "PredictorCorrector",
    "ReverseDiffusion",
    "Rho",
    "SASolver",
    "SDEDPMSolverPP",
    "Solution",
    "Solver",
    "Start",
    "Status",
    "Trace",
    "UniPC",
    "UniformLogSNR",
    "UniformTime",
    "decode",
    "encode",
    "from_config",
    "log_likelihood",
    "sample",
    "stream",
    "trace",
]
