"""What the modes of ``main.py`` do with a config: each function is one mode, and prints what it made."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import jax
from etils import epath

import models
import training
from configs import base, keys, tables
from data import datasets
from evaluation.runs import images, measurement, profile, run
from evaluation.runs import likelihood as likelihoods
from evaluation.runs import reproduce as tables_again
from evaluation.runs import sweep as cells
from evaluation.runs import trace as traces
from evaluation.runs.report import page
from evaluation.store.files import work_folder
from evaluation.store.processes import ALONE, Processes
from sde_lib.checks import require, require_choice, require_count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """What was given at the command line.

    Attributes:
        config: the config with its overrides; None for a mode without one.
        config_path: its file.
        workdir, checkpoint: as given; None for the default.
        command: the command line, for the record.
    """

    config: Any
    config_path: str | None
    workdir: str | None
    checkpoint: str | None
    command: str

    @property
    def name(self) -> str:
        """The config's name: its folder and its file, or the file alone where its path has no folder.

        Example:
            >>> Given(config=None, config_path="mine.py", workdir=None, checkpoint=None, command="").name
            'mine'
        """
        return "/".join(Path(self.config_path or "").with_suffix("").parts[-2:])

    def folder(self, last: str) -> epath.Path:
        """The workdir, by default runs/CONFIG-``last``; refused before any work if it cannot be a folder."""
        return work_folder(self.workdir or f"runs/{self.name.replace('/', '_')}-{last}")


def keep_compiled_programs(given: Given) -> None:
    """Keeps compiled programs on disk, so that a second run and the cells of a sweep start at once."""
    config = base.get_config() if given.config is None else given.config
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(Path(config.compilation_cache).expanduser()))


def sample(given: Given, *, measured: bool, profiled: bool, processes: Processes | None) -> None:
    """Samples a config and, if ``measured``, computes the figures; by one process or several."""
    processes = processes or ALONE
    prepared = run.prepare(given.config, name=given.name, checkpoint=given.checkpoint)
    folder = given.folder(prepared.config_hash[:8])
    with processes.at(folder) as processes:
        measure = measurement.from_config(given.config) if measured else None
        if profiled and processes.is_first:
            print(profile.record_sampling(prepared, folder))
        result = run.sample_and_evaluate(prepared, folder, measurement=measure, processes=processes)
    if not processes.is_first:
        return print(f"{processes.name} is done; process 0 wrote {folder}/results.jsonl")
    files = f"{folder}/results.jsonl  {folder}/samples.png"
    print(f"{prepared.title}\n{run.summary(result)}\n{run.cost(result)}\n{files}")


def likelihood(given: Given, path: str | None) -> None:
    """Computes the bits per dimension of images that a config's network was not trained on."""
    prepared = run.prepare(given.config, name=given.name, checkpoint=given.checkpoint)
    likelihoods.check(given.config)
    opened, content = likelihoods.open_held_out(given.config, path)
    folder = given.folder("likelihood")
    result = likelihoods.measure(prepared, folder, images=opened, content=content)
    files = f"{folder}/results.jsonl  {folder}/{likelihoods.LIKELIHOODS}  {folder}/likelihood.png"
    print(f"{given.name}\n{likelihoods.summary(result)}\n{files}")


def trace(given: Given, *, num_samples: int | None) -> None:
    """Draws a few samples of a config, and pictures of what the solver does with each."""
    num_samples = traces.TRACED if num_samples is None else num_samples
    require_count(**{"--num_samples": num_samples})
    prepared = run.prepare(given.config, name=given.name, checkpoint=given.checkpoint)
    folder = given.folder(prepared.config_hash[:8])
    traced = traces.trace_run(prepared, folder, num_samples=num_samples)
    print(f"{prepared.title}\n{traces.summary(traced)}\n{folder}/trace.png  {folder}/trace.gif")


def evaluate_images(given: Given, path: str) -> None:
    """Computes the figures of images from another source."""
    opened = datasets.open_samples(path, given.config.data)
    folder = given.folder("images")
    result = images.evaluate_images(
        datasets.pieces(opened, limit=given.config.eval.shard_size),
        path=path,
        count=opened.count,
        measurement=measurement.from_config(given.config, num_samples=opened.count),
        workdir=folder,
    )
    print(f"{path}\n{run.summary(result)}\n{folder}/results.jsonl")


def sweep(given: Given, products: list[str]) -> None:
    """Runs every cell of some products of settings."""
    folder = given.folder("sweep")
    table = cells.sweep(
        given.config,
        products,
        folder,
        name=given.name,
        command=given.command,
        checkpoint=given.checkpoint,
        measurement=measurement.from_config(given.config),
    )
    print(f"{table}\nwritten to {folder}/sweep.*")


def reproduce(
    given: Given, table: str, *, num_samples: int | None, seeds: int | None, batch_size: int | None
) -> None:
    """Runs a table of the paper."""
    require_choice("--table", table, tables.TABLES)
    counts = {"num_samples": num_samples, "seeds": seeds, "batch_size": batch_size}
    require_count(**{f"--{flag}": value for flag, value in counts.items() if value is not None})
    folder = work_folder(given.workdir or f"runs/table_{table}")
    text = tables_again.reproduce(table, folder, command=given.command, **counts)
    print(f"{text}\nwritten to {folder}/table_{table}.*")


def write_report(given: Given) -> None:
    """Writes one page of HTML of what a workdir holds."""
    allowed = "the folder of a run, a sweep or a table"
    require(given.workdir, "--workdir", given.workdir, allowed, "add --workdir=DIR, as main.py printed it")
    print(page.write(work_folder(given.workdir or "")))


def store_statistics(given: Given) -> None:
    """Computes and stores the reference statistics of a config's data."""
    path, statistics, network = measurement.store_statistics(given.config)
    print(
        f"{statistics.name}, features {network.name} {network.sha256[:8]} ({network.preprocessing})\n{path}"
    )


def train(given: Given) -> None:
    """Trains a config's model, from a checkpoint if one is given, with pictures of its samples on the way."""
    folder = given.folder("train")
    picture = run.snapshot(given.config, name=given.name, folder=folder / "snapshots")
    path = training.train(
        given.config, str(folder), checkpoint=given.checkpoint, on_snapshot=picture, command=given.command
    )
    print(f"{path}\nsample from it: {sampling_command(given.command, path)}")


def sampling_command(training_command: str, checkpoint: Path) -> str:
    """The command that samples from a trained checkpoint, with the config and overrides of its training.

    Example:
        >>> text = "python main.py --mode train --config.training.ema_warmup --config=a.py --config.seed=1"
        >>> sampling_command(text, Path("/w/new"))
        'python main.py --config=a.py --config.seed=1 --checkpoint=/w/new'
    """
    unused = tuple(f"config.{beginning}" for beginning in keys.UNUSED["eval"])
    kept, value_follows = [], False  # of a flag that is left out
    for word in shlex.split(training_command):
        if value_follows and not word.startswith("--"):  # true and false may be given by the flag alone
            value_follows = False
            continue
        flag, equals, _ = word.partition("=")
        name = flag.removeprefix("-").removeprefix("-")
        left_out = name in ("mode", "workdir", "checkpoint") or name.startswith(unused)
        value_follows = left_out and not equals
        if not left_out:
            kept.append(word)
    return shlex.join([*kept, f"--checkpoint={checkpoint}"])


def convert(given: Given, target: str, *, dtype: str) -> None:
    """Writes a checkpoint in this project's format."""
    source = given.checkpoint or ""
    require(source != "", "--checkpoint", source, "the checkpoint to convert", "add --checkpoint=PATH")
    require(target != "", "--out", target, "a folder that does not exist yet", "add --out=DIR")
    print(models.convert(source, target, given.config, command=given.command, dtype=dtype))
