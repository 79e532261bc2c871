"""Training of score networks by denoising score matching: losses, step, loop, and ``fit`` for any array."""

from training.fit import fit
from training.loop import train
from training.losses import EPS_TRAIN, loss_at, score_matching_loss
from training.step import TrainState, initial_state, make_step

__all__ = [
    "EPS_TRAIN",
    "TrainState",
    "fit",
    "initial_state",
    "loss_at",
    "make_step",
    "score_matching_loss",
    "train",
]
