"""A training's checkpoints, in the format of ``models.checkpoints``: a few of the newest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from tqdm import tqdm

from models import checkpoints
from sde_lib.checks import require
from training.step import TrainState

KEEP = 3  # the newest, and two to fall back on

_NAME = "step_" + "[0-9]" * 8


def save(folder: Path, state: TrainState, metadata: dict[str, Any]) -> Path:
    """Writes ``folder/step_N``, whole or not at all, and removes all but the newest few; returns its path."""
    resumable = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    path = folder / f"step_{int(state.step):08d}"
    # force: over one of this step that was there and could not be read
    checkpoints.save(path, state.params_ema, metadata, resumable, force=True)
    for old in _newest_first(folder)[KEEP:]:
        shutil.rmtree(old)
    return path


def restore_newest(folder: Path, blank: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
    """The (state, metadata) of the newest checkpoint that can be read, or None if there is no checkpoint.

    One that cannot be read is skipped with a message; what a kill left half-written is removed.

    Args:
        blank: a state of the same shapes.

    Raises:
        ValueError: if there are checkpoints and none can be read: starting over would remove them, and the
            fault may not be theirs, as after a change to the network's code.
    """
    for unfinished in folder.glob(_NAME + ".*"):
        shutil.rmtree(unfinished)
    like = {"step": blank.step, "params": blank.params, "opt_state": blank.opt_state}
    items = {
        "params_ema": ocp.args.StandardRestore(blank.params_ema),  # pyright: ignore[reportCallIssue]
        "training_state": ocp.args.StandardRestore(like),  # pyright: ignore[reportCallIssue]
        "metadata": ocp.args.JsonRestore(),
    }
    finished = _newest_first(folder)
    for path in finished:
        try:
            checkpoints.require_whole(path)
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
                restored = checkpointer.restore(path, ocp.args.Composite(**items))
        except Exception as error:  # orbax has no class of its own for a damaged checkpoint
            reason = str(error).strip().split("\n")[0][:300]
            tqdm.write(f"checkpoint {path} cannot be read and is skipped: {reason}")
            continue
        return TrainState(params_ema=restored.params_ema, **restored.training_state), restored.metadata
    require(
        not finished,
        "workdir",
        str(folder.parent),
        f"one whose training can be gone on with, but none of its {len(finished)} checkpoints can be read",
        f"give another --workdir, or remove {folder} to start over",
    )
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(_NAME), reverse=True)
