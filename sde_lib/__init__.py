"""Diffusion processes for score-based models, their time reversal, and the denoiser.

Start with a process: ``VESDE``, ``VPSDE`` or ``SubVPSDE`` of Song et al. (arXiv 2011.13456), ``EDMProcess``,
``RectifiedFlow``, ``CosineVP`` or ``DiscreteVP``. Each gives the drift and diffusion of its SDE, its Gaussian
marginals, its prior, and the score for a network's output. ``as_score`` turns the output of a network into a
score, whatever it predicts: noise, image, v, velocity or score. The package holds no sampler and no network;
the samplers are in ``solvers``.

Conventions:

- Time runs forward, from data to noise, with t in [eps, T]. Samplers go from T down to eps.
- Every function acts on one sample: ``x`` has no batch axis and ``t`` is a scalar. Use ``jax.vmap`` for a
  batch. Only a score function (``ScoreFn``) takes a batch.
- alpha(t) is the scale of the data and sigma(t) the standard deviation of the noise:
  x(t) | x(0) ~ N(alpha x(0), sigma^2 I). The log-SNR is lambda = log(alpha/sigma).
"""

from sde_lib.paths import CosineVP, DiscreteVP, EDMProcess, RectifiedFlow
from sde_lib.predictions import as_score
from sde_lib.presets import from_config
from sde_lib.processes import SDE, VESDE, VPSDE, ScoreFn, SubVPSDE
from sde_lib.reverse import denoise, probability_flow_drift, reverse_drift

__all__ = [
    "SDE",
    "VESDE",
    "VPSDE",
    "CosineVP",
    "DiscreteVP",
    "EDMProcess",
    "RectifiedFlow",
    "ScoreFn",
    "SubVPSDE",
    "as_score",
    "denoise",
    "from_config",
    "probability_flow_drift",
    "reverse_drift",
]
