"""Score networks (NCSN++, DDPM++ and DDPM in flax.linen) and their checkpoints."""

from __future__ import annotations

from models.build import (
    Params,
    ScoreFunction,
    abstract_params,
    build,
    init_params,
    score_fn,
    score_of_network,
)
from models.checkpoints import convert, load_score_fn, restore_params
from models.ddpm import DDPM
from models.ncsnpp import NCSNpp

__all__ = [
    "DDPM",
    "NCSNpp",
    "Params",
    "ScoreFunction",
    "abstract_params",
    "build",
    "convert",
    "init_params",
    "load_score_fn",
    "restore_params",
    "score_fn",
    "score_of_network",
]
