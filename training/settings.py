"""Checks made before any work is spent: the training's settings, and whose training a workdir holds."""

from __future__ import annotations

import math
import numbers
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from configs import keys
from evaluation.store import workdir as workdirs
from evaluation.store.files import read_file
from sde_lib.checks import require, require_count, require_seed, require_shared

FILE = "training.json"  # of a workdir, whose training it identifies


def check(config: Any, *, devices: int) -> None:
    """Raises ValueError for the first setting of ``config.training`` that training cannot use.

    Args:
        config: the whole config.
        devices: number of devices that share a batch.
    """
    training = config.training
    require_seed("config.seed", config.seed)
    counts = ("batch_size", "num_steps", "checkpoint_every", "snapshot_every", "log_every", "accumulate")
    require_count(**{f"config.training.{name}": training[name] for name in counts})
    require_shared("config.training.batch_size", training.batch_size, devices, "devices")
    share = training.batch_size // devices
    allowed = f"a divisor of {share}, the images of a batch on a device"
    fix = "choose a divisor, or 1 to compute the gradient of a batch at once"
    parts = training.accumulate
    require(share % parts == 0, "config.training.accumulate", parts, allowed, fix)
    for name in ("learning_rate", "gradient_clip"):
        value = training[name]
        positive = _is_number(value) and 0 < value < math.inf
        require(positive, f"config.training.{name}", value, "a number > 0", "set it above zero")
    steps, rate = training.warmup_steps, training.ema_rate
    whole = _is_number(steps) and isinstance(steps, int | np.integer) and steps >= 0
    require(whole, "config.training.warmup_steps", steps, "a whole number >= 0", "set 0 for no warm-up")
    share = _is_number(rate) and 0 <= rate < 1
    require(share, "config.training.ema_rate", rate, "a rate in [0, 1)", "set 0 for no averaging")
    warmup, dropped = training.ema_warmup, training.label_dropout
    either = isinstance(warmup, bool | np.bool_)
    require(either, "config.training.ema_warmup", warmup, "True or False", "set False for no warm-up")
    share = _is_number(dropped) and 0 <= dropped <= 1
    fix = "set 0 for a class with every image"
    require(share, "config.training.label_dropout", dropped, "a share in [0, 1]", fix)


def _is_number(value: Any) -> bool:
    # NumPy's scalars are numbers too, and True is none that anybody means
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def claim(workdir: Path, config: Any, *, checkpoint_sha256: str | None, images_sha256: str | None) -> None:
    """Claims a workdir for this config's training, by the keys that decide what a training step does.

    Args:
        workdir: created if it does not exist.
        config: the whole config.
        checkpoint_sha256: of the weights that the training starts from, or None for random ones.
        images_sha256: fingerprint of the images, and of their classes if the network has any. A training of
            an earlier version does not state it, and goes on with any.

    Raises:
        ValueError: for a workdir that holds another training, naming the keys that differ.
        OSError: if the workdir cannot be read or written.
    """
    identity = keys.identity(config, keys.TRAINING)
    if checkpoint_sha256 is not None:
        identity["checkpoint_sha256"] = checkpoint_sha256
    stored = read_file(epath.Path(workdir) / FILE)
    if stored is None or b'"images_sha256"' in stored:
        identity["images_sha256"] = images_sha256
    writes = ("checkpoint", "checkpoints", "tensorboard", "snapshots")
    workdirs.claim(workdir, identity, file=FILE, holds="a training", writes=writes)
