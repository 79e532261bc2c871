"""A table of the paper, run again: our numbers beside the published ones, absent where a cell cannot run."""

from __future__ import annotations

import contextlib
from pathlib import PurePath
from typing import Any

import numpy as np

import configs
from configs.tables import METHODS, MODELS, TABLES, Table
from evaluation.metrics.measurement import Measurement
from evaluation.runs import measurement, tables
from evaluation.runs.run import Run, prepare
from evaluation.runs.sweep import cells_bar, measured, with_settings
from models import checkpoints

Key = tuple[str, str, float | None]  # model, method and eps_rel of a cell


def reproduce(
    name: str,
    workdir: PurePath,
    *,
    command: str,
    num_samples: int | None = None,
    seeds: int | None = None,
    batch_size: int | None = None,
) -> str:
    """Runs the cells of a table whose checkpoint and features are there; writes table_NAME.md, .csv and .png.

    Every cell that can be run is checked before the first is sampled. Each is a run of its own below
    workdir/cells, so that a table that was interrupted continues where it was.

    Args:
        name: a key of ``configs.tables.TABLES``.
        workdir: gets the table, the plot and cells/.
        command: the command that makes this table.
        num_samples, seeds, batch_size: of every cell, instead of the table's (batch_size: the config's).

    Returns:
        The table in Markdown.

    Raises:
        ValueError: for a setting that a solver does not take, before anything is sampled.
        OSError: for a disk that refuses a file; what was finished is kept.
    """
    table = TABLES[name]
    found, absent = _find(table)
    own = {"eval.num_samples": num_samples or table.num_samples}
    if batch_size is not None:
        own["eval.batch_size"] = batch_size

    def run(cell: Any, seed: int, **steps: int) -> Run:
        config, checkpoint, _ = found[cell.model]
        settings = {**own, **cell.settings, "seed": seed}
        settings |= {f"solver.{key}": value for key, value in steps.items()}
        return prepare(with_settings(config, settings), name=MODELS[cell.model].config, checkpoint=checkpoint)

    runs = {
        i: [run(cell, seed) for seed in range(seeds or cell.seeds)]
        for i, cell in enumerate(table.cells)
        if cell.model in found
    }
    costs = {i: table.cells[i].expected_nfe * own["eval.num_samples"] for i in runs}
    adaptive: dict[Key, float] = {}  # mean evaluations
    rows = []
    with cells_bar(sum(costs[i] * len(runs[i]) for i in runs), " evaluations") as bar:
        for i, cell in enumerate(table.cells):
            results = []
            for seed, prepared in enumerate(runs.get(i, [])):
                if cell.steps_of_adaptive:
                    nfe = adaptive[cell.model, "adaptive", cell.eps_rel]
                    prepared = run(cell, seed, num_steps=max(1, round(nfe) - 1))  # one is the denoising
                results.append(
                    measured(prepared, workdir, bar=bar, cost=costs[i], measurement=found[cell.model][2])
                )
            if results:
                nfe = float(np.mean([result["nfe_mean"] for result in results]))
                adaptive.setdefault((cell.model, cell.method, cell.eps_rel), nfe)
            model, method = MODELS[cell.model].title, METHODS[cell.method]
            rows.append(
                tables.Row(
                    labels={"model": model, "method": method, "setting": cell.variant},
                    panel=model,
                    line=cell.variant if cell.own_line else method,
                    results=results,
                    published=cell.published,
                    absent=absent.get(cell.model, ""),
                )
            )
    return tables.write(workdir, f"table_{name}", rows, title=table.title, command=command, notes=table.notes)


Found = tuple[Any, str, Measurement]  # config, checkpoint and measurement of a model


def _find(table: Table) -> tuple[dict[str, Found], dict[str, str]]:
    """The table's models that can be sampled and measured, and why the others cannot."""
    found: dict[str, Found] = {}
    absent: dict[str, str] = {}
    measures: dict[tuple[str, str], Measurement] = {}  # of models of the same data, once
    for key in dict.fromkeys(cell.model for cell in table.cells):
        config = configs.load(MODELS[key].config)
        checkpoint = find_checkpoint(MODELS[key].checkpoint)
        if checkpoint is None:
            absent[key] = (
                f"there is no checkpoint at {MODELS[key].checkpoint}, with or without .pth; "
                "docs/checkpoints.md says where to get it"
            )
            continue
        features = config.eval.features, config.data.name
        try:
            if features not in measures:
                measures[features] = measurement.from_config(config)
        except (ValueError, OSError) as error:
            absent[key] = f"the features or the reference are absent: {error}"
            continue
        found[key] = config, checkpoint, measures[features]
    return found, absent


def find_checkpoint(path: str) -> str | None:
    """The path itself, or with the ending of a published PyTorch file; None if there is no checkpoint."""
    for candidate in (path, f"{path}.pth"):
        with contextlib.suppress(ValueError):
            checkpoints.find(candidate)
            return candidate
    return None
