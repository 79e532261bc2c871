"""Sweeps: products of settings, each cell of them a run of its own below one folder.

A cell's folder is named after its solver and the hash of everything that decides its samples. So a sweep
that was interrupted continues where it was, a larger one adds what is missing, and the order of cells is
irrelevant.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from tqdm import tqdm

import configs
from configs import keys
from evaluation.metrics.measurement import Measurement
from evaluation.runs import results, tables
from evaluation.runs.run import Run, prepare, sample_and_evaluate
from sde_lib.checks import refusal, require
from solvers import progress

EXAMPLE = '--sweep="solver.name=adaptive solver.eps_rel=0.02,0.05 seed=0,1,2"'
WORDS = {"true": True, "false": False}
# keys that act in a cell although they do not decide the samples by their value
ACTING = (
    *("solver_defaults.", "model.checkpoint", "model.mismatch_allowed"),
    *("eval.num_samples", "eval.batch_size", "eval.shard_size"),
)
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def sweep(
    config: Any,
    products: Sequence[str],
    workdir: PurePath,
    *,
    name: str,
    command: str,
    checkpoint: str | None = None,
    measurement: Measurement | None = None,
) -> str:
    """Runs every cell of some products of settings, and writes sweep.md, sweep.csv and sweep.png.

    Every cell is checked before the first is sampled. Cells that differ in nothing but the seed form a row of
    the table; rows of a solver that differ in one number form a line of the plot.

    Args:
        config: what all cells share.
        products: see ``cells_of``.
        workdir: gets the table, the plot and cells/.
        name: name of the config.
        command: the command that makes this table.
        checkpoint, measurement: as of ``evaluation.runs.run``.

    Returns:
        The table in Markdown.

    Raises:
        ValueError: for a product that cannot be read, a key or value that the config does not take, or two
            cells that would have the same samples.
        OSError: for a disk that refuses a file; what was finished is kept.
    """
    require(
        len(products) > 0, "--sweep", list(products), "at least one product", f"add one such as {EXAMPLE}"
    )
    cells = list(dict.fromkeys(cell for product in products for cell in cells_of(product, config)))
    runs = {
        cell: prepare(with_settings(config, dict(cell)), name=name, checkpoint=checkpoint) for cell in cells
    }
    _require_different(runs)
    rows: dict[Cell, list[dict[str, Any]]] = {}
    with cells_bar(len(runs), "cell") as bar:
        for cell, run in runs.items():
            result = measured(run, workdir, bar=bar, cost=1, measurement=measurement)
            rows.setdefault(_without(cell, "seed"), []).append(result)
    return tables.write(
        workdir,
        "sweep",
        _table_rows(rows, {cell: runs[cell].config.solver.name for cell in runs}),
        title=f"Sweep of {name}",
        command=command,
    )


Cell = tuple[tuple[str, Any], ...]  # pairs of config key and value, in the order of the product


def cells_of(product: str, config: Any) -> Iterator[Cell]:
    """All combinations of the values in a product such as "solver.eps_rel=0.02,0.05 seed=0,1,2".

    Raises:
        ValueError: naming the key and the value, what was allowed and the fix.
    """
    axes: dict[str, list[Any]] = {}
    for term in product.split():
        key, equals, values = term.partition("=")
        require(equals and values, "--sweep", term, "KEY=VALUE,VALUE,…", f"write, for example, {EXAMPLE}")
        require(
            key not in axes, f"--sweep {key}", values, "given once a product", "join its values with commas"
        )
        kind = _kind(key, config)
        axes[key] = [_value(key, text, kind) for text in values.split(",")]
        different = len(set(axes[key])) == len(axes[key])
        require(different, f"--sweep {key}", values, "different values", "drop the repetition")
    require(
        axes, "--sweep", product, "KEY=VALUE,VALUE,… for one or more keys", f"write, for example, {EXAMPLE}"
    )
    for values in itertools.product(*axes.values()):
        yield tuple(zip(axes, values, strict=True))


def _kind(key: str, config: Any) -> type:
    """The type of a config's field."""
    known = list(configs.flat(config))
    near = difflib.get_close_matches(key, known, n=1)
    fix = f"did you mean {near[0]!r}?" if near else "choose one of configs/base.py"
    require(key in keys.DECIDES, "--sweep key", key, "a field of the config", fix)
    # What all cells are compared with is measured once, and the rest decides nothing that a cell makes.
    acts = keys.SAMPLES in keys.DECIDES[key] and not key.startswith("data.")
    allowed = "a key that decides the samples of a cell, or how they are drawn"
    fix = f"set it for all cells with --config.{key}=VALUE"
    require(acts or key.startswith(ACTING), "--sweep key", key, allowed, fix)
    group, _, field = key.rpartition(".")
    kind = (config[group] if group else config).get_type(field)
    require(
        kind in KINDS,
        f"--sweep {key}",
        kind.__name__,
        "a field that holds a number or a word",
        "sweep another",
    )
    return kind


def _value(key: str, text: str, kind: type) -> Any:
    try:
        return WORDS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise ValueError(refusal(f"--sweep {key}", text, KINDS[kind], "correct it")) from None


def with_settings(config: Any, settings: Mapping[str, Any]) -> Any:
    """A copy of a config with some of its fields, named by dotted keys, set anew."""
    copy = config.copy_and_resolve_references()
    copy.update_from_flattened_dict(settings)
    return copy


def _require_different(runs: Mapping[Cell, Run]) -> None:
    owners: dict[str, Cell] = {}
    for cell, run in runs.items():
        owner = owners.setdefault(run.config_hash, cell)
        require(
            owner == cell,
            "--sweep cell",
            _words(cell),
            f"one with samples of its own; its samples are those of {_words(owner)!r}",
            f"sweep settings that decide the samples of {run.config.solver.name!r}",
        )


def _words(cell: Cell) -> str:
    return " ".join(f"{key}={value}" for key, value in cell)


def cells_bar(total: int, unit: str) -> tqdm:
    """A progress bar over the cost of all cells; without smoothing, because cells take seconds or hours."""
    return progress.bar(
        total=total, unit=unit, desc="cells", unit_scale=unit != "cell", smoothing=0, disable=total == 0
    )


def measured(
    run: Run,
    workdir: PurePath,
    *,
    bar: tqdm,
    cost: int,
    measurement: Measurement | None,
) -> dict[str, Any]:
    """The result of a cell: sampled and measured in its folder below workdir/cells, unless it is there.

    Args:
        bar: advances by ``cost``; cells that were there already do not count for its time left.
    """
    folder = workdir / "cells" / f"{run.config.solver.name}-{run.config_hash}"
    bar.set_postfix_str(run.title)
    before = len(results.read(folder))
    result = sample_and_evaluate(run, folder, measurement=measurement)
    if len(results.read(folder)) == before:
        bar.initial += cost
    bar.update(cost)
    return result


def _without(cell: Cell, *dropped: str) -> Cell:
    return tuple((key, value) for key, value in cell if key not in dropped)


def _table_rows(
    measured: Mapping[Cell, list[dict[str, Any]]], solvers: Mapping[Cell, str]
) -> list[tables.Row]:
    """A row for each group of seeds; a solver's lines run along the number with most values."""
    names = {_without(cell, "seed"): solver for cell, solver in solvers.items()}
    along = {
        solver: most_varied([cell for cell in measured if names[cell] == solver]) for solver in names.values()
    }
    keys = [key for cell in measured for key, _ in cell if key != "solver.name"]
    rows = []
    for cell, found in measured.items():
        settings = {key: _text(value) for key, value in cell}
        others = _without(cell, "solver.name", along[names[cell]])
        rows.append(
            tables.Row(
                labels={"solver": names[cell], **{key: settings.get(key, "") for key in keys}},
                panel="",
                line="  ".join(
                    [names[cell], *(f"{key.rpartition('.')[2]} {_text(value)}" for key, value in others)]
                ),
                results=found,
            )
        )
    return rows


def most_varied(cells: Iterable[Iterable[tuple[str, Any]]]) -> str:
    """The key with most different numbers, the first of several; empty without a number."""
    values: dict[str, set[Any]] = {}
    for key, value in (pair for cell in cells for pair in cell):
        if isinstance(value, int | float) and not isinstance(value, bool):
            values.setdefault(key, set()).add(value)
    return max(values, key=lambda key: len(values[key]), default="")


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
