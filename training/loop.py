"""The training loop: steps, reports, checkpoints and snapshots; a killed training resumes where it was."""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

import models
from data import batches, datasets
from evaluation.store.files import explained, is_local, make_folder, require_writable
from models import checkpoints
from sde_lib import ScoreFn, from_config
from sde_lib.checks import refusal, require
from solvers.progress import bar as progress_bar
from training import settings, state_files
from training.step import Params, Step, TrainState, initial_state, keys, make_step, over_devices

OnSnapshot = Callable[[int, ScoreFn], None]


def train(
    config: Any,
    workdir: str | Path,
    *,
    checkpoint: str | Path | None = None,
    on_snapshot: OnSnapshot | None = None,
    command: str | None = None,
    progress: bool = True,
) -> Path:
    """Trains ``config``'s model for ``config.training.num_steps`` steps and returns its checkpoint's path.

    All devices share every batch.

    After a kill at any moment, the same call resumes from the newest intact checkpoint in ``workdir`` and
    ends with the weights of an uninterrupted run (bitwise on one CPU device). A finished training is not
    repeated.

    Args:
        config: see ``configs/base.py``; the groups ``sde``, ``model``, ``data`` and ``training`` are used.
        workdir: a local folder, new or with a training of this config. It gets ``checkpoint/`` (at the end:
            the averaged weights, for sampling), ``checkpoints/`` (the newest few, to resume from),
            ``tensorboard/`` and ``training.json`` (the settings that decide the training).
        checkpoint: for fine-tuning, a checkpoint of any known format, whose averaged weights the training
            starts from instead of random ones. The optimizer and the steps start afresh. To resume, give the
            same again.
        on_snapshot: called as (step, score_fn) every ``snapshot_every`` steps and after the last, with the
            score of the averaged weights (x [b, h, w, c], t [b]) -> [b, h, w, c], or, of a class-conditional
            network, (x, t, classes [b]); valid until the call returns.
        command: the command line to record in the checkpoint; by default that of this process.
        progress: whether to show a bar with the loss, images/s and the time left.

    Raises:
        ValueError: for a setting out of range, a checkpoint that does not fit, or a workdir that holds
            another training, or one on other images or classes.
        FloatingPointError: when the loss is no longer finite; the last checkpoint is from before that.
        OSError: when a file cannot be written; what was saved before stays intact.
    """
    # Every error in the config is found before the workdir is touched.
    settings.check(config, devices=jax.device_count())
    workdir = _local_folder(workdir)
    sde = from_config(config.sde)
    images = datasets.held(datasets.open_images(config.data, config.model.num_classes))
    network = models.build(config)
    step_fn = make_step(config, network, sde)
    params, origin = _first_params(config, network, checkpoint)
    content = datasets.fingerprint(config.data, images.labels)
    settings.claim(workdir, config, checkpoint_sha256=origin.get("checkpoint_sha256"), images_sha256=content)

    state, loss = _newest_state(config, params, workdir)
    final, num_steps = workdir / "checkpoint", config.training.num_steps
    # what is there may be of fewer steps: a longer training that was killed before it replaced it
    if int(state.step) == num_steps and final.exists() and checkpoints.stated(final)["step"] == num_steps:
        return final
    require_writable(workdir, size=sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
    command = command or shlex.join([Path(sys.executable).name, *sys.argv])

    def metadata(step: int, loss: float) -> dict[str, Any]:
        more = {"fine_tuned_from": origin} if origin else {}
        return checkpoints.describe(config, step=step, command=command, loss=loss, **more)

    def save(step: int, state: TrainState, loss: float) -> None:
        state_files.save(workdir / "checkpoints", state, metadata(step, loss))

    def show(step: int, state: TrainState) -> None:
        if on_snapshot is not None:
            on_snapshot(step, network.score_fn(sde, state.params_ema))

    with _Reports(workdir, config.training, first=int(state.step), progress=progress) as reports:
        state, loss = _run(
            config, state, loss, step_fn=step_fn, images=images, reports=reports, save=save, show=show
        )
    with state_files.writing(final):
        return checkpoints.save(final, state.params_ema, metadata(num_steps, loss), force=True)


def _local_folder(workdir: str | Path) -> Path:
    fix = "train in a local one, and copy the checkpoint to the store"
    require(is_local(workdir), "workdir", str(workdir), "a local folder", fix)
    path = Path(workdir).absolute()
    fix = "choose another path, or remove the file"
    require(not path.is_file(), "workdir", str(path), "a folder, new or existing", fix)
    return path


def _first_params(
    config: Any, network: models.Network, checkpoint: str | Path | None
) -> tuple[Params, dict[str, Any]]:
    """The weights before the first step, and the provenance of the checkpoint they are from, if any."""
    if checkpoint is None:
        # Compiled as one program, the initialisation takes a third of the time.
        return jax.jit(network.init)(keys(config.seed)[0]), {}
    path = checkpoints.find(checkpoint)
    params, _ = models.restore_params(path, network, config)
    return jax.device_put(params), checkpoints.provenance(path)


def _newest_state(config: Any, params: Params, workdir: Path) -> tuple[TrainState, float]:
    """The state to train on from, on all devices, and its loss: the newest checkpoint's, or a new one."""
    state, loss = initial_state(config.training, params), math.nan
    if restored := state_files.restore_newest(workdir / "checkpoints", state):
        state, loss = restored[0], restored[1]["loss"]
    first, num_steps = int(state.step), config.training.num_steps
    require(
        first <= num_steps,
        "config.training.num_steps",
        num_steps,
        f"at least {first}, the number of steps taken by the training in {workdir}",
        "raise it, or choose another workdir",
    )
    return jax.device_put(state, over_devices()), loss


def _run(
    config: Any,
    state: TrainState,
    loss: float,
    *,
    step_fn: Step,
    images: datasets.Images,
    reports: _Reports,
    save: Callable[[int, TrainState, float], None],
    show: Callable[[int, TrainState], None],
) -> tuple[TrainState, float]:
    """Takes the steps from ``state`` to the last; returns the last state and the last reported loss."""
    training, first = config.training, int(state.step)
    data = batches.batches(
        images,
        seed=config.seed,
        batch_size=training.batch_size,
        first_step=first + 1,
        last_step=training.num_steps,
    )
    for step, batch in enumerate(data, start=first + 1):
        classes = batches.batch_labels(images, seed=config.seed, batch_size=training.batch_size, step=step)
        state, step_loss = step_fn(state, batch, *([] if classes is None else [classes]))
        reports.add(step_loss)
        last = step == training.num_steps
        snapshot_due = last or step % training.snapshot_every == 0
        checkpoint_due = last or step % training.checkpoint_every == 0
        # A report ends at every checkpoint too, so that a resumed run reports the same losses; and at every
        # snapshot, whose time does not count as the steps'.
        report_due = snapshot_due or checkpoint_due or step % training.log_every == 0
        if report_due:
            loss = reports.write(step)
        # The snapshot precedes the checkpoint: after a kill in between, the resumed training takes it again.
        if snapshot_due:
            show(step, state)
        if checkpoint_due:
            save(step, state, loss)
        if report_due:
            reports.restart()
    return state, loss


class _Reports:
    """Mean loss and speed of the steps since the last report, on a progress bar and for TensorBoard."""

    def __init__(self, workdir: Path, training: Any, *, first: int, progress: bool) -> None:
        self._bar = progress_bar(total=training.num_steps, initial=first, unit="step", disable=not progress)
        self._batch_size = training.batch_size
        folder = workdir / "tensorboard"
        make_folder(folder)
        # TensorBoard reads the files in the order of their names. tensorboardX's own SummaryWriter writes in
        # a thread; where the disk is full, that thread ends, and training would wait for it for ever.
        self._path = folder / f"events.out.tfevents.{time.time():.6f}"
        with explained("write", self._path):
            self._events = RecordWriter(str(self._path))
        # Events after the checkpoint that the training resumes from would be shown twice: this purges them.
        log = SessionLog(status=SessionLog.START)
        self._write(
            Event(step=first + 1, file_version="brain.Event:2"), Event(step=first + 1, session_log=log)
        )
        self.restart()

    def __enter__(self) -> _Reports:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        with contextlib.suppress(OSError):  # every report was flushed: this can only repeat its error
            self._events.close()

    def _write(self, *events: Event) -> None:
        with explained("write", self._path):
            for event in events:
                event.wall_time = time.time()
                self._events.write(event.SerializeToString())
            self._events.flush()

    def restart(self) -> None:
        self._losses: list[Float[Array, ""]] = []
        self._start = time.perf_counter()

    def add(self, loss: Float[Array, ""]) -> None:
        self._losses.append(loss)  # not read yet, so that the host can queue more steps for the device
        self._bar.update()

    def write(self, step: int) -> float:
        """Writes the report and returns the mean loss.

        Raises:
            FloatingPointError: if it is not finite.
            OSError: if the events cannot be written.
        """
        loss = float(np.mean(jax.device_get(self._losses)))
        if not math.isfinite(loss):
            fix = "lower config.training.learning_rate or config.training.gradient_clip in another workdir"
            raise FloatingPointError(refusal(f"loss at step {step}", loss, "finite", fix))
        rate = self._batch_size * len(self._losses) / (time.perf_counter() - self._start)
        figures = {"loss": loss, "images_per_second": rate}
        self._write(*(Event(step=step, summary=scalar(name, value)) for name, value in figures.items()))
        self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:.0f} images/s")
        return loss
