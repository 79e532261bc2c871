"""What a workdir holds, as a report needs it: results with their identities, alone and pooled over seeds."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from evaluation.runs import results
from evaluation.runs.report import again
from evaluation.runs.report.meanings import text
from evaluation.runs.sweep import most_varied
from evaluation.store.archives import unpack
from evaluation.store.files import read_file
from evaluation.store.samples import HASH
from sde_lib.checks import is_number, refusal, require

SAMPLES, IMAGES, LIKELIHOODS = "samples", "images", "likelihoods"  # what a result is of
IDENTITIES = {SAMPLES: "identity.json", LIKELIHOODS: "likelihood.json"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A result, and what it is of.

    Attributes:
        folder: that it is from, below the workdir; empty for the workdir itself.
        identity: every setting that decides it; empty for images from another source.
        result: the line of results.jsonl.
    """

    folder: str
    identity: dict[str, Any]
    result: dict[str, Any]

    @property
    def kind(self) -> str:
        """SAMPLES, IMAGES (from another source) or LIKELIHOODS."""
        return kind_of(self.result)

    @property
    def count(self) -> Any:
        """Number of samples or images, as the result has it."""
        return self.result.get("num_images" if self.kind == LIKELIHOODS else "num_samples")

    def figure(self, key: str) -> float | None:
        """A number of the result; None if it is absent or not a finite number."""
        return finite(self.result.get(key))

    def interval(self, key: str) -> tuple[float, float] | None:
        """The ends of an interval of the result; None if it is absent or not two finite numbers."""
        ends = self.result.get(key)
        found = (
            [number for end in ends if (number := finite(end)) is not None] if isinstance(ends, list) else []
        )
        return (found[0], found[1]) if len(found) == 2 else None

    @property
    def settings(self) -> dict[str, Any]:
        """What it is of, its seed aside: settings of the config, and what it was measured by."""
        found = {key: value for key, value in again.settings_of(self.identity) if key != "seed"}
        made_by = ("config", "checkpoint", "images", "features", "reference", "compared")
        # a name stays when the files behind it change
        made_by += ("images_sha256", "reference_content", "compared_content")
        return {**found, **{key: self.result.get(key) for key in made_by}, "samples": self.count}

    @property
    def solver(self) -> str:
        """The solver's name and the setting that matters most; empty where no solver made it."""
        return results.solver_label(self.identity)

    @property
    def has_place(self) -> bool:
        """Whether a logarithmic plot of FID against evaluations has a place for it."""
        return (self.figure("fid") or 0) > 0 and (self.figure("nfe_mean") or 0) > 0


def finite(value: Any) -> float | None:
    """A value as a number; None if it is not a finite number, or too large for one."""
    largest = sys.float_info.max
    return float(value) if is_number(value) and -largest <= value <= largest else None


def kind_of(result: Mapping[str, Any]) -> str:
    """What a line of results.jsonl is of."""
    if "num_images" in result:
        return LIKELIHOODS
    return IMAGES if "images" in result else SAMPLES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The cells that differ in nothing but the seed.

    Attributes:
        cells: ordered by their seeds.
        series: what rows along one number have in common.
        setting: that number, with its name; empty if there is none.
    """

    cells: list[Cell]
    series: str
    setting: str

    @property
    def name(self) -> str:
        """What it is of, in the fewest words that tell it from the others."""
        return ", ".join(filter(None, [self.series, self.setting]))

    def name_of(self, cell: Cell) -> str:
        """The same of one of its cells."""
        seed = cell.identity.get("seed")
        return self.name if len(self.cells) == 1 else f"{self.name}, seed {text(seed)}"

    def values(self, key: str) -> list[float]:
        """A figure of every cell; empty if one of them lacks it."""
        found = [cell.figure(key) for cell in self.cells]
        return [] if None in found else [value for value in found if value is not None]

    def mean(self, key: str) -> float | None:
        """The mean of ``values``; None if there are none."""
        return float(np.mean(self.values(key))) if self.values(key) else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """What a sweep or a table of the paper wrote beside its cells.

    Attributes:
        name: of its files, without ending.
        heading, command: of the Markdown; empty if it has none.
        rows: of the CSV.
    """

    name: str
    heading: str
    command: str
    rows: list[dict[str, str]]

    @property
    def absent(self) -> dict[str, str]:
        """What could not be run -> why."""
        return {labels(row): row["absent"] for row in self.rows if row.get("absent")}


def labels(row: Mapping[str, str]) -> str:
    """What a row of a table's CSV is of: its columns before the figures."""
    columns = itertools.takewhile(lambda column: column != "seeds", row)
    return ", ".join(filter(None, (row[column] for column in columns)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """What a workdir holds.

    Attributes:
        own: the workdir's own results, oldest first.
        cells: the newest result of each of its cells.
        without: folder of a cell -> why it has no result.
        tables: of its cells.
        identity: of the samples in the workdir itself.
        nfe: [n], evaluations of each sample in it.
        notes: what was passed over.
    """

    own: list[Cell]
    cells: list[Cell]
    without: dict[str, str]
    tables: list[Table]
    identity: dict[str, Any]
    nfe: Int[np.ndarray, " n"]
    notes: list[str]


def read(workdir: epath.Path) -> Contents:
    """What a workdir holds; a cell that cannot be read is one without a result.

    Raises:
        ValueError: for a folder that is no workdir of samples, or a file of the workdir itself that is not
            what its name says.
        OSError: if the workdir's own files cannot be read.
    """
    folders = sorted(path for path in (workdir / "cells").glob("*") if path.is_dir())
    tables = [_read_table(path) for path in sorted([*workdir.glob("sweep.md"), *workdir.glob("table_*.md")])]
    files = (*IDENTITIES.values(), "results.jsonl")
    require(
        folders or tables or any((workdir / name).exists() for name in files),
        "--workdir",
        str(workdir),
        "the folder of a run, a sweep or a table",
        "name one in which main.py left results.jsonl, identity.json or cells/",
    )
    own, notes = _read_results(workdir, "")
    cells: list[Cell] = []
    without: dict[str, str] = {}
    for folder in folders:
        place = f"cells/{folder.name}"
        try:
            lines, passed_over = _read_results(folder, place)
            kept, _ = (np.empty(0), 0) if lines else _kept(folder)
        except (ValueError, OSError) as error:
            without[place] = f"It cannot be read: {error}"
            continue
        notes += passed_over
        cells += lines[-1:]
        if not lines:
            without[place] = f"It is not finished: {len(kept):,} samples are kept."
    nfe, skipped = _kept(workdir)
    if skipped:
        notes.append(f"Files in samples/ that cannot be read or are of another config: {skipped}.")
    identity = _identity(workdir, IDENTITIES[SAMPLES])
    return Contents(
        own=own, cells=cells, without=without, tables=tables, identity=identity, nfe=nfe, notes=notes
    )


def _read_table(path: epath.Path) -> Table:
    text, lines = (_decoded(path.with_suffix(ending)) for ending in (".md", ".csv"))
    written = [line for line in text.splitlines() if line.strip()] or [""]
    is_heading, is_command = written[0].startswith("# "), written[-1].startswith("    ")
    return Table(
        name=path.stem,
        heading=written[0].removeprefix("# ") if is_heading else "",
        command=written[-1].strip() if is_command else "",
        rows=[row for row in csv.DictReader(io.StringIO(lines), restval="") if "seeds" in row],
    )


def _decoded(path: epath.Path) -> str:
    return (read_file(path) or b"").decode(errors="replace")


def _read_results(folder: epath.Path, place: str) -> tuple[list[Cell], list[str]]:
    """The results in a folder, and what was passed over."""
    identities = {kind: _identity(folder, name) for kind, name in IDENTITIES.items()}
    found = [
        Cell(folder=place, identity=identities.get(kind_of(result), {}), result=result)
        for result in results.read(folder)
    ]
    torn = not (read_file(folder / "results.jsonl") or b"\n").endswith(b"\n")
    file = f"{place}/results.jsonl".removeprefix("/")
    return found, [f"The last line of {file} is torn by an interruption, and is left out."] * torn


def _identity(folder: epath.Path, name: str) -> dict[str, Any]:
    """The settings in a file; none if there is no file."""
    content, found = read_file(folder / name), None
    if content is None:
        return {}
    with contextlib.suppress(ValueError):
        found = json.loads(content)
    if not isinstance(found, dict):
        fix = "move it away, or name another workdir"
        raise ValueError(refusal(f"content of {folder / name}", content[:40], "settings in JSON", fix))
    return found


def _kept(folder: epath.Path) -> tuple[Int[np.ndarray, " n"], int]:
    """The evaluations of every sample in a folder, and the number of its shards that were passed over."""
    found, skipped = [np.empty(0, np.int64)], 0
    _, config_hash = results.hashed(_identity(folder, IDENTITIES[SAMPLES]))
    for path in sorted((folder / "samples").glob("shard_*.npz")):
        try:
            arrays = unpack(read_file(path) or b"")
            require(str(arrays[HASH]) == config_hash, HASH, str(arrays[HASH]), config_hash, "pass it over")
            found.append(arrays["nfe"].astype(np.int64))
        except (ValueError, KeyError):
            skipped += 1
    return np.concatenate(found), skipped


def rows_of(cells: Iterable[Cell]) -> list[Row]:
    """Cells that differ in the seed alone together; the rows of a series differ in one number.

    Of results in one folder with the same seed too, which measured the same once more, the last is taken.
    """
    grouped: dict[str, dict[tuple[str, str], Cell]] = {}
    for cell in cells:
        key = str(cell.identity.get("seed")).zfill(10), cell.folder
        grouped.setdefault(json.dumps(cell.settings, sort_keys=True), {})[key] = cell
    families: dict[tuple[str, str], list[list[Cell]]] = {}
    for by_seed in grouped.values():
        group = [by_seed[key] for key in sorted(by_seed)]
        made_by = group[0].settings.get("solver.name") or group[0].kind
        families.setdefault((text(group[0].settings["config"] or ""), text(made_by)), []).append(group)
    several = len({config for config, _ in families}) > 1
    rows = []
    for (config, made_by), groups in families.items():
        differing = _differing([group[0].settings for group in groups])
        along = most_varied([list(each.items()) for each in differing])
        for group, each in zip(groups, differing, strict=True):
            others = [_named(key, value) for key, value in each.items() if key != along]
            series = ", ".join(filter(None, [config * several, made_by, *others]))
            setting = _named(along, each[along]) if along in each else ""
            rows.append(Row(cells=group, series=series, setting=setting))
    return sorted(rows, key=lambda row: (row.series, row.mean("nfe_mean") or 0))


def _differing(settings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The settings without those that are the same everywhere, and without those that are None."""
    keys = dict.fromkeys(key for each in settings for key in each)
    varied = [key for key in keys if len({json.dumps(each.get(key)) for each in settings}) > 1]
    return [{key: each[key] for key in varied if each.get(key) is not None} for each in settings]


def _named(key: str, value: Any) -> str:
    return f"{key.rpartition('.')[2]} {text(value)}"
