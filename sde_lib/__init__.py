"""The diffusion processes, their reverse, and the score that a network's output stands for.

Knows no solver and no network. All functions act on ONE sample: ``x`` has no batch axis and ``t`` is a
scalar; ``jax.vmap`` makes a batch of them. Time runs forward, t in [eps, T], from data to noise.
"""

from sde_lib.checks import require
from sde_lib.processes import SDE, VESDE, VPSDE, ScoreFn, SubVPSDE, from_config
from sde_lib.reverse import denoise, probability_flow_drift, reverse_drift

__all__ = [
    "SDE",
    "VESDE",
    "VPSDE",
    "ScoreFn",
    "SubVPSDE",
    "denoise",
    "from_config",
    "probability_flow_drift",
    "require",
    "reverse_drift",
]
