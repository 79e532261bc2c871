"""Score networks (NCSN++, DDPM++ and DDPM in flax.linen) and their checkpoints.

A config (see configs/base.py) describes a network. From a config to samples there are two ways:

- ``load_score_fn(config, path)`` gives the score function of a trained network, ready for ``solvers.sample``.
- ``build(config)`` gives the ``Network`` without weights. Its methods make the rest: ``init`` draws random
  parameters, ``score_fn`` makes a score function of parameters, ``score`` is the score itself, with dropout
  for training, and ``abstract_params`` tells the parameters' shapes.

``NCSNpp`` and ``DDPM`` are the flax modules themselves. ``convert`` rewrites a published checkpoint in this
project's format. ``find`` resolves a checkpoint's path, and ``restore_params`` reads the weights from there.
"""

from __future__ import annotations

from models.build import Network, Params, build
from models.checkpoints import convert, find, load_score_fn, restore_params
from models.ddpm import DDPM
from models.ncsnpp import NCSNpp

__all__ = [
    "DDPM",
    "NCSNpp",
    "Network",
    "Params",
    "build",
    "convert",
    "find",
    "load_score_fn",
    "restore_params",
]
