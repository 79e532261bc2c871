"""Samplers for score-based models: one file a family, and one driver that runs them all.

A solver is written for ONE sample as three pure functions, ``init``, ``ask`` and ``tell`` (see
``solvers.interface``); the driver gives every lane of a batch its own solver state, so that a lane whose
sample is done starts the next one at once.
"""

from solvers.adaptive import Adaptive
from solvers.driver import ScoreFn, Solution, sample, stream
from solvers.euler_maruyama import EulerMaruyama
from solvers.interface import Solver, Status
from solvers.presets import from_config

__all__ = [
    "Adaptive",
    "EulerMaruyama",
    "ScoreFn",
    "Solution",
    "Solver",
    "Status",
    "from_config",
    "sample",
    "stream",
]
