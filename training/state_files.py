"""The newest checkpoints of a training, in the format of ``models.checkpoints``."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from tqdm import tqdm

from evaluation.store.files import FIXES
from models import checkpoints
from sde_lib.checks import require
from training.step import TrainState

KEEP = 3  # the newest, and two in reserve

_NAME = "step_" + "[0-9]" * 8


def save(folder: Path, state: TrainState, metadata: dict[str, Any]) -> Path:
    """Writes ``folder/step_N`` atomically and removes all but the ``KEEP`` newest; returns the path.

    Args:
        folder: holds the checkpoints of one training.
        state: what to write.
        metadata: see ``models.checkpoints.describe``.

    Raises:
        OSError: as ``writing``; the earlier checkpoints stay.
    """
    resumable = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    path = folder / f"step_{int(state.step):08d}"
    # A checkpoint of this step exists only if it could not be read: force replaces it.
    with writing(path):
        checkpoints.save(path, state.params_ema, metadata, resumable, force=True)
    for old in _newest_first(folder)[KEEP:]:
        shutil.rmtree(old)
    return path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns any error while a checkpoint is written into an OSError with the path, the reason and the fix.

    Orbax and the libraries below it have no common class of errors for a disk that is full or read-only.
    """
    logging.getLogger("absl").addFilter(_is_no_traceback_of_orbax)
    _remove_unfinished(path)
    try:
        yield
    except Exception as error:
        _remove_unfinished(path)  # its space may be what the other files lack
        said = re.search(r"os_error_code='(\d+)'", str(error))  # by tensorstore
        code = int(said[1]) if said else getattr(error, "errno", None)
        reason = os.strerror(code) if code else str(error).strip().split("\n")[0][:300]
        text = f"cannot write checkpoint {path}: {reason}; {FIXES['write']}"
        raise OSError(code or errno.EIO, text) from error


def _is_no_traceback_of_orbax(record: logging.LogRecord) -> bool:
    """Each of orbax's threads logs the traceback of an error that ``save`` raises too, some of them later."""
    return not (record.exc_info and "orbax" in record.pathname)


def _remove_unfinished(path: Path) -> None:
    for unfinished in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"):
        shutil.rmtree(unfinished, ignore_errors=True)


def restore_newest(folder: Path, blank: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
    """The (state, metadata) of the newest readable checkpoint, or None if there is no checkpoint.

    A damaged checkpoint is skipped with a message. Half-written ones, left by a kill, are removed.

    Args:
        folder: holds the checkpoints of one training.
        blank: a state of the same shapes.

    Raises:
        ValueError: if there are checkpoints but none can be read. Starting over would remove them, although
            they may be intact, as after a change to the network's code.
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
            tqdm.write(f"skipping checkpoint {path}, which cannot be read: {reason}")
            continue
        return TrainState(params_ema=restored.params_ema, **restored.training_state), restored.metadata
    require(
        not finished,
        "workdir",
        str(folder.parent),
        "a folder with a training that can be resumed",
        f"choose another workdir, or remove {folder} to start over, since none of the {len(finished)} "
        "checkpoints there can be read",
    )
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(_NAME), reverse=True)
