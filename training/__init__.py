"""Data sets, denoising score matching, and the training loop."""

from training.datasets import describe, load, open_images, open_samples, pieces
from training.loop import train
from training.losses import EPS_TRAIN, loss_at, score_matching_loss
from training.step import TrainState, initial_state, make_step

__all__ = [
    "EPS_TRAIN",
    "TrainState",
    "describe",
    "initial_state",
    "load",
    "loss_at",
    "make_step",
    "open_images",
    "open_samples",
    "pieces",
    "score_matching_loss",
    "train",
]
