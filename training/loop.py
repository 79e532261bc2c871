"""The training loop: steps, progress, metrics, checkpoints, snapshots; and going on where it was killed."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorboardX
from jaxtyping import Array, Float
from tqdm import tqdm

import models
from data import batches, datasets
from models import checkpoints
from sde_lib import ScoreFn, from_config
from sde_lib.checks import require
from training import settings, state_files
from training.step import initial_state, keys, make_step, over_devices

OnSnapshot = Callable[[int, ScoreFn], None]


def train(
    config: Any,
    workdir: str | Path,
    *,
    on_snapshot: OnSnapshot | None = None,
    command: str | None = None,
    progress: bool = True,
) -> Path:
    """Trains ``config``'s model to ``config.training.num_steps`` and returns its checkpoint's path.

    Batches are shared out to all devices.

    Killed at any moment and called again, it goes on from the newest whole checkpoint in ``workdir`` and ends
    with the same weights as an uninterrupted run (bitwise on one CPU device); a finished training is not run
    again.

    Args:
        config: see ``configs/base.py``; the groups ``sde``, ``model``, ``data`` and ``training`` are used.
        workdir: gets ``checkpoint/`` (in the end: the averaged weights, for sampling), ``checkpoints/`` (the
            newest few, to go on from), ``tensorboard/`` and ``training.json`` (the config).
        on_snapshot: called as (step, score_fn) every ``snapshot_every`` steps and after the last, with the
            averaged weights' score (x [b, h, w, c], t [b]) -> [b, h, w, c], valid until the call returns.
        command: kept with the checkpoint as what made it; by default this process's own command line.
        progress: whether to show a bar with the loss, images/s and the time left.

    Raises:
        ValueError: for a setting out of range, or a workdir that holds another config's training.
        FloatingPointError: when the loss is no longer finite; the last checkpoint is from before that.
        OSError: when a file cannot be written; what was saved before stays whole.
    """
    # All that can be wrong with the config is found before the workdir is touched.
    settings.check(config, devices=jax.device_count())
    remote = "://" in str(workdir)
    fix = "train in a local one, and copy the checkpoint to the store"
    require(not remote, "workdir", str(workdir), "a local folder to train in", fix)
    sde = from_config(config.sde)
    images = datasets.held(datasets.open_images(config.data))
    step_fn = make_step(config, models.build(config), sde)
    workdir = Path(workdir).absolute()
    require(
        not workdir.is_file(),
        "workdir",
        str(workdir),
        "a folder, new or not",
        "name a folder, or remove the file",
    )
    workdir.mkdir(parents=True, exist_ok=True)
    settings.claim(workdir, config)

    training = config.training
    # Compiled as one, the initialisation takes a third of the time.
    init = jax.jit(lambda key: models.init_params(config, key))
    state, loss = initial_state(training, init(keys(config.seed)[0])), math.nan
    if restored := state_files.restore_newest(workdir / "checkpoints", state):
        state, loss = restored[0], restored[1]["loss"]
    state = jax.device_put(state, over_devices())
    first, final = int(state.step), workdir / "checkpoint"
    require(
        first <= training.num_steps,
        "config.training.num_steps",
        training.num_steps,
        f"{first} or more, the step that the training in {workdir} has come to",
        "raise it, or give another --workdir",
    )
    if first == training.num_steps and final.exists():
        return final

    on_snapshot = on_snapshot or (lambda step, score_fn: None)
    command = command or shlex.join([Path(sys.executable).name, *sys.argv])
    window = _Window(training.batch_size)
    with (
        # Events after the checkpoint that this goes on from would otherwise be shown twice.
        tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=first + 1) as metrics,
        tqdm(total=training.num_steps, initial=first, unit="step", disable=not progress) as bar,
    ):
        data = batches.batches(
            images,
            seed=config.seed,
            batch_size=training.batch_size,
            first_step=first + 1,
            last_step=training.num_steps,
        )
        for step, batch in enumerate(data, start=first + 1):
            state, step_loss = step_fn(state, batch)
            window.add(step_loss)
            bar.update()
            last = step == training.num_steps
            snapshot_due = last or step % training.snapshot_every == 0
            checkpoint_due = last or step % training.checkpoint_every == 0

            # A window ends at every checkpoint too, so that a resumed run reports the same losses; and at
            # every snapshot, whose time is not the steps'.
            report_due = snapshot_due or checkpoint_due or step % training.log_every == 0
            if report_due:
                loss, rate = window.read()
                _require_finite(loss, step)
                metrics.add_scalar("loss", loss, step)
                metrics.add_scalar("images_per_second", rate, step)
                bar.set_postfix_str(f"loss {loss:.4f}, {rate:.0f} images/s")
            # The snapshot comes first: killed during it, the training goes on from before and makes it again.
            if snapshot_due:
                on_snapshot(step, models.score_fn(config, sde, state.params_ema))
            if checkpoint_due:
                metadata = checkpoints.describe(config, step=step, command=command, loss=loss)
                state_files.save(workdir / "checkpoints", state, metadata)
            if report_due:
                window.restart()

    metadata = checkpoints.describe(config, step=training.num_steps, command=command, loss=loss)
    return checkpoints.save(final, state.params_ema, metadata, force=True)


def _require_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} at step {step}: it has to be finite; lower config.training.learning_rate or "
            "config.training.gradient_clip, and train in another workdir"
        )


class _Window:
    """The steps since the last report: their mean loss and their images a second."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        self._losses: list[Float[Array, ""]] = []
        self._start = time.perf_counter()

    def add(self, loss: Float[Array, ""]) -> None:
        self._losses.append(loss)  # not read yet: the device works on while the host hands it more

    def read(self) -> tuple[float, float]:
        """(mean loss, images/s)."""
        loss = float(np.mean(jax.device_get(self._losses)))
        rate = self._batch_size * len(self._losses) / (time.perf_counter() - self._start)
        return loss, rate
