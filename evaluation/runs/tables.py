"""From the results of many runs to one table (Markdown and CSV) and one plot of FID against evaluations."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from evaluation.runs import plots
from evaluation.store.files import atomic_file, make_folder

NOTHING = "-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table.

    Attributes:
        labels: column -> text, what the row is of; the same columns in all rows.
        panel, line: where in the plot it is a point.
        results: of its seeds, as evaluation/runs/results.py reads them; none where the row could not be run.
        published: a published cell (see configs/tables.py), or None.
        absent: why there are no results.
    """

    labels: dict[str, str]
    panel: str
    line: str
    results: Sequence[dict[str, Any]]
    published: Any = None
    absent: str = ""


def pooled(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of the same run with several seeds: means, and the deviations over the seeds.

    A deviation of a single seed is None, and so is every figure without results or without features.
    """

    def values(key: str) -> list[Any]:
        found = [result[key] for result in results]
        return [] if None in found else found

    def mean(key: str) -> float | None:
        return float(np.mean(values(key))) if values(key) else None

    def deviation(key: str) -> float | None:
        return float(np.std(values(key), ddof=1)) if len(values(key)) > 1 else None

    return {
        "seeds": len(results),
        "num_samples": results[0]["num_samples"] if results else None,
        "nfe_mean": mean("nfe_mean"),
        "nfe_max": max(values("nfe_max"), default=None),
        "nfe_lockstep": mean("nfe_lockstep"),
        "fid": mean("fid"),
        "fid_deviation": deviation("fid"),
        "is_mean": mean("is_mean"),
        "is_deviation": deviation("is_mean"),
        "rejected": mean("rejected"),
        "failed": sum(values("failed")) if results else None,
        "config_hashes": " ".join(result["config_hash"] for result in results),
    }


def difference(row: Row) -> float | None:
    """Our FID less the published one; None unless there are both."""
    fid = pooled(row.results)["fid"]
    return None if fid is None or row.published is None else fid - row.published.fid


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        return "| " + " | ".join(padded) + " |"

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def as_markdown(rows: Sequence[Row]) -> str:
    """The table for people, and below it why what is absent is absent and what † means."""
    reasons = list(dict.fromkeys(row.absent for row in rows if row.absent))
    lines = [_cells(row, reasons) for row in rows]
    # a column that no row has anything in says nothing
    header = [column for column in lines[0] if any(line[column] for line in lines)]
    table = markdown(header, [[line[column] or NOTHING for column in header] for line in lines])
    below = [f"[{number}] {reason}" for number, reason in enumerate(reasons, start=1)]
    if any(row.published is not None and not row.published.confirmed for row in rows):
        below.append("† unconfirmed: recalled, not found in the authors' own material")
    return "\n\n".join([table, *below])


def _cells(row: Row, reasons: list[str]) -> dict[str, str]:
    """Column -> text of a row; empty where there is nothing to say."""
    ours, published = pooled(row.results), row.published
    cells = dict(row.labels)
    if published is not None:
        mark = "" if published.confirmed else "†"
        also = f" (also {published.fid_elsewhere:.2f})" if published.fid_elsewhere is not None else ""
        cells |= {"NFE paper": f"{published.nfe}{mark}", "FID paper": f"{published.fid:.2f}{mark}{also}"}
    else:
        cells |= {"NFE paper": "", "FID paper": ""}
    if row.absent:
        cells["FID"] = f"absent [{reasons.index(row.absent) + 1}]"
    else:
        cells["FID"] = _with_deviation(ours["fid"], ours["fid_deviation"], 3)
    cells |= {
        "FID - paper's": _text(difference(row), "+.2f"),
        "IS": _with_deviation(ours["is_mean"], ours["is_deviation"], 2),
        "NFE": _text(ours["nfe_mean"], ".1f"),
        "NFE max": _text(ours["nfe_max"], "d"),
        "NFE lockstep": _text(ours["nfe_lockstep"], ".1f"),
        "failed": _text(ours["failed"], "d"),
        "seeds": _text(ours["seeds"] or None, "d"),
    }
    return cells


def _text(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)


def _with_deviation(mean: float | None, deviation: float | None, digits: int) -> str:
    spread = "" if deviation is None else f" ± {deviation:.{digits}f}"
    return "" if mean is None else f"{mean:.{digits}f}{spread}"


def as_csv(rows: Sequence[Row]) -> str:
    """The table for programs: a row each, plain numbers, empty where there is nothing."""
    lines = []
    for row in rows:
        line: dict[str, Any] = {**row.labels, **pooled(row.results)}
        if any(other.published is not None for other in rows):
            published = row.published
            line["nfe_published"] = None if published is None else published.nfe
            line["fid_published"] = None if published is None else published.fid
            line["fid_published_elsewhere"] = None if published is None else published.fid_elsewhere
            line["published_confirmed"] = None if published is None else published.confirmed
            line["fid_difference"] = difference(row)
        line["absent"] = row.absent
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def made_of(rows: Sequence[Row]) -> str:
    """What the numbers are of and what made them, in a line; empty where nothing was run."""
    results = [result for row in rows for result in row.results]

    def values(key: str) -> str:
        return ", ".join(dict.fromkeys(str(result[key]) for result in results if result[key] is not None))

    names = {
        "samples a seed": "num_samples",
        "features": "features",
        "FID to": "reference",
        "devices": "devices",
        "commit": "git_commit",
    }
    return "   ".join(f"{name} {values(key)}" for name, key in names.items() if values(key))


def write(
    workdir: PurePath, name: str, rows: Sequence[Row], *, title: str, command: str, notes: Sequence[str] = ()
) -> str:
    """Writes workdir/NAME.md, NAME.csv and, where there is something to plot, NAME.png; returns the Markdown.

    Args:
        name: of the files, without ending.
        rows: at least one.
        title: the heading.
        command: that makes the table again.
        notes: paragraphs below the table.

    Raises:
        OSError: with the path, the reason and the fix.
    """
    parts = [f"# {title}", as_markdown(rows), *notes, made_of(rows), f"    {command}"]
    text = "\n\n".join(part for part in parts if part) + "\n"
    make_folder(workdir)
    for ending, content in (("md", text), ("csv", as_csv(rows))):
        with atomic_file(workdir / f"{name}.{ending}") as file:
            file.write(content.encode())
    panels = curves(rows)
    if panels:
        plots.save_curves(workdir / f"{name}.png", panels, title=title)
    return text


def curves(rows: Sequence[Row]) -> dict[str, list[plots.Curve]]:
    """Panel -> its lines of FID against evaluations, ours and the published."""
    panels: dict[str, list[plots.Curve]] = {}
    for panel in dict.fromkeys(row.panel for row in rows):
        for line in dict.fromkeys(row.line for row in rows if row.panel == panel):
            own = [row for row in rows if (row.panel, row.line) == (panel, line)]
            ours = [
                plots.Point(
                    x=float(np.mean([result["nfe_mean"] for result in row.results])),
                    ys=tuple(result["fid"] for result in row.results),
                )
                for row in own
                if row.results and pooled(row.results)["fid"] is not None
            ]
            published, unconfirmed = (
                tuple(
                    plots.Point(x=float(row.published.nfe), ys=(row.published.fid,))
                    for row in own
                    if row.published is not None and row.published.confirmed == is_confirmed
                )
                for is_confirmed in (True, False)
            )
            if ours or published or unconfirmed:
                curve = plots.Curve(
                    label=line, points=tuple(ours), published=published, unconfirmed=unconfirmed
                )
                panels.setdefault(panel, []).append(curve)
    return panels
