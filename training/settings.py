"""What is checked before any work is spent: the training's settings, and whose training a workdir holds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sde_lib.checks import require, require_shared

_FILE = "training.json"

# What a training may go on with changed: how long it runs and how often it reports bear on no step's result,
# and sampling alone uses the others.
_FREE = (
    "model.checkpoint",
    "sde.eps",
    "training.num_steps",
    "training.checkpoint_every",
    "training.snapshot_every",
    "training.log_every",
)


def check(config: Any, *, devices: int) -> None:
    """Raises ValueError naming the first setting of ``config.training`` that cannot be trained with."""
    training = config.training
    for name in ("batch_size", "num_steps", "checkpoint_every", "snapshot_every", "log_every"):
        value = training[name]
        require(
            value >= 1, f"config.training.{name}", value, "a whole number >= 1", f"set {name} to 1 or more"
        )
    require_shared("config.training.batch_size", training.batch_size, devices, "devices")
    for name in ("learning_rate", "gradient_clip"):
        value = training[name]
        holds = 0 < value < float("inf")
        require(holds, f"config.training.{name}", value, "a number > 0", f"set {name} above zero")
    steps, rate = training.warmup_steps, training.ema_rate
    require(steps >= 0, "config.training.warmup_steps", steps, "a whole number >= 0", "set 0 for no warm-up")
    require(0 <= rate < 1, "config.training.ema_rate", rate, "a rate in [0, 1)", "set 0 for no averaging")


def _identity(config: Any) -> dict[str, Any]:
    """The settings that decide what a training does, one entry "group.key" each, as JSON keeps them."""
    identity = {"seed": config.seed}
    for group in ("sde", "model", "data", "training"):
        identity |= {f"{group}.{key}": value for key, value in config[group].to_dict().items()}
    return json.loads(json.dumps({key: value for key, value in identity.items() if key not in _FREE}))


def claim(workdir: Path, config: Any) -> None:
    """Marks a workdir as holding this config's training, or finds that it already does.

    Raises:
        ValueError: if it holds another config's, naming the keys that differ, both values and the fix.
    """
    ours, path = _identity(config), workdir / _FILE
    if path.exists():
        theirs = json.loads(path.read_text())
        differing = [
            f"config.{key} = {ours.get(key)!r} (there {theirs.get(key)!r})"
            for key in sorted(ours | theirs)
            if ours.get(key) != theirs.get(key)
        ]
        require(
            not differing,
            "workdir",
            str(workdir),
            "a folder that is new or holds a training of this config, and this one's differs in "
            + ", ".join(differing),
            "give another --workdir, or set these back",
        )
        return
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(ours, indent=2, sort_keys=True) + "\n")
    os.replace(unfinished, path)  # whole or not at all, wherever it is killed
