"""Score networks: NCSN++, DDPM++ and DDPM in flax.linen."""

from __future__ import annotations

from models.build import Params, ScoreFunction, abstract_params, build, init_params, score_fn
from models.ddpm import DDPM
from models.ncsnpp import NCSNpp

__all__ = [
    "DDPM",
    "NCSNpp",
    "Params",
    "ScoreFunction",
    "abstract_params",
    "build",
    "init_params",
    "score_fn",
]
