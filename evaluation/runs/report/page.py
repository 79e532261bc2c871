"""One page of HTML for a run, a sweep or a table: what was made, how good it is, what it cost, what made it.

The page holds all that it shows, and asks the network for nothing. Making it only reads the workdir, so it
can be made at any time, also while a run goes on.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import math
import shlex
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from etils import epath
from jaxtyping import Int
from PIL import Image

from evaluation.runs import tables
from evaluation.runs.report import again, charts, contents
from evaluation.runs.report.charts import Element, element
from evaluation.runs.report.contents import IMAGES, LIKELIHOODS, SAMPLES, Cell, Contents, Row
from evaluation.runs.report.meanings import COST, QUALITY, Figure, counted, text
from evaluation.store.files import atomic_file, read_file
from sde_lib.checks import require

PAGE = "report.html"
TEMPLATE = Path(__file__).with_name("page.html")  # beside it are its style and its script
BEGINNING = TEMPLATE.read_bytes().partition(b"<meta http-equiv")[0]  # by which a report is known
PICTURED = 6  # cells whose samples are shown
NAMED = 8  # values of what made a sweep's cells; more are only counted

Child = Element | str | None


def write(workdir: epath.Path) -> epath.Path:
    """Writes workdir/report.html, and changes nothing else; returns its path.

    Raises:
        ValueError: for a folder that is no workdir of samples, a file of the workdir itself that is not what
            its name says, or somebody else's report.html.
        OSError: for a disk that refuses a file.
    """
    made = page(workdir, contents.read(workdir))
    path = workdir / PAGE
    before = read_file(path)
    is_ours = before is None or before.startswith(BEGINNING)
    require(is_ours, f"content of {path}", (before or b"")[:40], "an earlier report", "move it away")
    with atomic_file(path) as file:
        file.write(made.encode(errors="backslashreplace"))
    return path


def page(workdir: epath.Path, found: Contents) -> str:
    """The page of what a workdir holds."""
    rows = contents.rows_of([*found.own, *found.cells])
    is_run = not _has_cells(found)
    title, header = _header(workdir, found)
    sections = [
        _quality(workdir, found) if is_run else None,
        _cost(found) if is_run else None,
        _steps(workdir, found) if is_run else None,
        _fid_against_evaluations(rows, found),
        _all_results(rows),
        _pictures(workdir, rows),
        _without(found),
        _made_by(rows, found),
        _make_it_again(found),
        _in_full(rows),
    ]
    body = element("main", header, *sections, _footer(workdir))
    style, script = (TEMPLATE.with_suffix(ending).read_text(encoding="utf-8") for ending in (".css", ".js"))
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=_written(element("title", title)),
        style=style,
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        body=_written(charts.marks()) + "\n" + _written(body),
    )


def _written(made: Element) -> str:
    return ElementTree.tostring(made, encoding="unicode", method="html")


def _section(title: str, caption: str, *children: Child) -> Element:
    return element("section", element("h2", title), element("p", caption, class_="caption"), *children)


def _note(said: str) -> Element:
    return element("p", said, class_="note")


def _list(entries: Iterable[tuple[Child, Child]], **attributes: Any) -> Element:
    """Names and what they stand for."""
    parts = [element(tag, part) for entry in entries for tag, part in zip(("dt", "dd"), entry, strict=True)]
    return element("dl", *parts, **attributes)


# --- of any workdir ---


def _has_cells(found: Contents) -> bool:
    """Whether it is of a sweep or a table."""
    return bool(found.cells or found.without or found.tables)


def _header(workdir: epath.Path, found: Contents) -> tuple[str, Element]:
    """The page's title, and what stands above all."""
    headings = [table.heading for table in found.tables if table.heading]
    configs = dict.fromkeys(text(cell.result["config"]) for cell in found.own if "config" in cell.result)
    title = ", ".join(headings or configs) or workdir.name or str(workdir)
    if not _has_cells(found):
        kind, lead = "Report of a run", _run_in_words(found)
    else:
        of_paper = any(table.name != "sweep" for table in found.tables)
        kind = "Report of a table" if of_paper else "Report of a sweep"
        lead = f"{counted(len(found.cells), 'cell')} with a result" if found.cells else "No result yet"
        lead += f", {len(found.without):,} without one. " if found.without else ". "
        lead += "Each cell is a run of its own, with settings of its own."
    header = element(
        "header",
        element("p", kind, class_="kind"),
        element("h1", title),
        element("p", lead, class_="lead"),
        element("p", "Folder ", element("code", str(workdir)), class_="note"),
        *(element("p", note, class_="warning") for note in found.notes),
    )
    return f"{kind}: {title}", header


def _run_in_words(found: Contents) -> str:
    if not found.own:
        kept = f"{counted(len(found.nfe), 'sample')} are kept" if len(found.nfe) else "no sample is kept yet"
        return f"There is no result yet; {kept}. The same command goes on where it was."
    cell = found.own[-1]
    said = {
        SAMPLES: f"{text(cell.count)} images that a network drew, with the solver {cell.solver}: "
        "how good they are, and what they cost.",
        IMAGES: f"{text(cell.count)} images of {text(cell.result.get('images'))}, measured like samples.",
        LIKELIHOODS: f"{text(cell.count)} images of {text(cell.result.get('images'))}: how likely the model "
        "finds them.",
    }
    others = f" This is the newest of {len(found.own):,} results." if len(found.own) > 1 else ""
    return said[cell.kind] + others


def _picture(folder: epath.Path, name: str, caption: str) -> Element | None:
    """A PNG of a folder, held by the page; None if there is none."""
    content = read_file(folder / name)
    if content is None:
        return None
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as opened:
            width, height = opened.size
    except OSError:
        return element("p", f"{name} cannot be read as a picture.", class_="warning")
    source = "data:image/png;base64," + base64.b64encode(content).decode()
    image = element("img", src=source, alt=caption, width=width, height=height)
    return element("figure", image, element("figcaption", caption))


def _command(line: str) -> Element:
    """A command to copy, which is broken between its arguments alone where it does not fit."""
    try:
        words = [shlex.quote(word) for word in shlex.split(line)]
    except ValueError:  # a table that somebody edited
        words = [line]
    spans = [part for word in words for part in (element("span", word), " ")]
    return element("div", element("pre", element("code", *spans[:-1])), class_="command")


def _footer(workdir: epath.Path) -> Element:
    line = shlex.join(["python", "main.py", "--mode=report", f"--workdir={workdir}"])
    said = "This page is whole: it loads nothing, and can be sent as a file. This makes it again: "
    return element("footer", element("p", said, element("code", line)))


# --- of a run ---


def _quality(workdir: epath.Path, found: Contents) -> Element:
    pictures = [
        _picture(workdir, "samples.png", "The first samples, in the order of their numbers."),
        _picture(workdir, "likelihood.png", "How many images take how many bits per dimension."),
    ]
    if not any(picture is not None for picture in pictures):
        pictures.append(_note("There is no picture here: a run writes samples.png with its first result."))
    cards = _cards(QUALITY, found)
    if not cards:
        cards.append(_note("No distance to data was measured: --mode=eval measures FID and Inception Score."))
    both = element("div", element("div", *pictures), element("div", *cards, class_="cards"), class_="side")
    return _section("Samples, and how good they are", "What was made, and how near it is to the data.", both)


def _cards(figures: Sequence[Figure], found: Contents) -> list[Element]:
    cards = [_card(figure, cell) for cell in _newest(found.own) for figure in figures]
    return [card for card in cards if card is not None]


def _newest(own: Sequence[Cell]) -> list[Cell]:
    """The newest result of each kind."""
    return list({cell.kind: cell for cell in own}.values())


def _card(figure: Figure, cell: Cell) -> Element | None:
    """A figure with its interval and its meaning; None if it was not measured."""
    value = cell.figure(figure.key)
    if value is None:
        return None
    shown = format(value, figure.form)
    if figure.key == "is_mean" and (deviation := cell.figure("is_std")) is not None:
        shown += f" ± {deviation:.2f}"
    interval, said = _interval(figure, cell), None
    if interval:
        said = element("p", f"95 % interval {interval}, {figure.interval_of}", class_="interval")
    return element(
        "div",
        element("h3", figure.name),
        element("p", shown, class_="value warning" if figure.key == "failed" and value else "value"),
        said,
        _note(figure.meaning),
        class_="card",
    )


def _interval(figure: Figure, cell: Cell) -> str:
    ends = cell.interval(figure.interval) or ()
    return " to ".join(format(end, figure.form) for end in ends)


def _cost(found: Contents) -> Element | None:
    cards = _cards(COST, found)
    parts: list[Element] = [element("div", *cards, class_="cards")] if cards else []
    if len(found.nfe):
        parts += [element("h3", "Evaluations of each sample"), _histogram(found.nfe)]
    caption = "Evaluations of the network take nearly all of the time."
    return _section("What a sample costs", caption, *parts) if parts else None


def _histogram(nfe: Int[np.ndarray, " n"]) -> Element:
    low, high = int(nfe.min()), int(nfe.max())
    if low == high:
        return element("p", f"Each of the {len(nfe):,} samples that are kept took {low:,} evaluations.")
    among = f"{len(nfe):,} samples took {low:,} to {high:,} evaluations, {nfe.mean():,.1f} on average"
    chart = charts.histogram(
        nfe, says=f"Histogram: {among}.", x_name="evaluations of the network (NFE)", unit="evaluations"
    )
    caption = f"{among}. Point at a bar, or use the arrow keys, for its numbers."
    return element("figure", chart, element("figcaption", caption), element("p", class_="readout"))


def _steps(workdir: epath.Path, found: Contents) -> Element | None:
    of_samples = [cell for cell in found.own if cell.kind == SAMPLES]
    if not of_samples and not found.identity:
        return None
    title = "Step sizes against time"
    picture = _picture(workdir, "trace.png", "Images on their way from noise to data; below, the steps.")
    if picture is not None:
        caption = "How long the solver's steps are, for a few samples. A cross is a step that was rejected."
        return _section(title, caption, picture)
    caption = (
        "The steps of these samples are not kept; --mode=trace draws a few of them again, and their steps."
    )
    with contextlib.suppress(ValueError):
        if of_samples:
            line, _ = again.command(of_samples[-1].result, of_samples[-1].identity)
            others = [word for word in shlex.split(line) if not word.startswith("--mode=")]
            return _section(
                title, caption, _command(shlex.join([*others, "--mode=trace", f"--workdir={workdir}"]))
            )
    return _section(title, caption)


# --- of many results ---


def _fid_against_evaluations(rows: list[Row], found: Contents) -> Element | None:
    numbers = _numbers(rows)
    series = []
    for label in dict.fromkeys(row.series for row in rows):
        own = [row for row in rows if row.series == label]
        points = [_point(row, cell, numbers) for row in own for cell in row.cells if cell.has_place]
        whole = [row for row in own if all(cell.has_place for cell in row.cells)]
        corners = [(row.mean("nfe_mean") or 0.0, row.mean("fid") or 0.0) for row in whole]
        if points:
            series.append(charts.Series(label=label, points=points, line=sorted(corners)))
    if published := _published(found):
        series.append(charts.Series(label="published", points=published, is_hollow=True))
    count = sum(len(one.points) for one in series)
    if count < 2:
        return None
    chart = charts.scatter(
        series,
        says=f"FID against evaluations of the network a sample: {count:,} points",
        x_name="evaluations of the network a sample (NFE)",
        y_name="FID",
    )
    caption = "Further down is better, further left is cheaper. "
    several = any(len(row.cells) > 1 for row in rows)
    caption += "A point is a seed; lines join the means." if several else "A point is a result."
    if published:
        caption += " Hollow points are published numbers."
    if without := len(numbers) - count + len(published):
        caption += f" Results without a FID and evaluations above zero have no place here: {without:,}."
    hint = "Point at a dot to see what it is; click to keep it here. By keyboard: Tab, then the arrow keys."
    parts = [element("div", chart, charts.legend(series)), element("div", _note(hint), class_="inspector")]
    return _section("FID against evaluations", caption, element("figure", *parts, class_="side"))


def _numbers(rows: Iterable[Row]) -> dict[int, int]:
    """The number of each cell in the page, by the object."""
    return {id(cell): number for number, cell in enumerate(cell for row in rows for cell in row.cells)}


def _point(row: Row, cell: Cell, numbers: dict[int, int]) -> charts.Point:
    x, y = float(cell.result["nfe_mean"]), float(cell.result["fid"])
    says = (
        f"{row.name_of(cell)}: FID {y:,.3f} at {x:,.1f} evaluations, hash {text(cell.result['config_hash'])}"
    )
    return charts.Point(x=x, y=y, says=says, target=f"cell-{numbers[id(cell)]}")


def _published(found: Contents) -> list[charts.Point]:
    """The published numbers beside which a table's own stand."""
    points = []
    for row in (row for table in found.tables for row in table.rows):
        with contextlib.suppress(KeyError, ValueError):
            x, y = float(row["nfe_published"]), float(row["fid_published"])
            mark = "" if row["published_confirmed"] == "True" else ", unconfirmed"
            if 0 < min(x, y) <= max(x, y) < math.inf:
                says = f"Published{mark}: {contents.labels(row)}: FID {y:,.2f} at {x:,.0f} evaluations"
                points.append(charts.Point(x=x, y=y, says=says, target=""))
    return points


COLUMNS = {  # key -> heading and digits
    "nfe_mean": ("NFE", 1),
    "fid": ("FID", 3),
    "is_mean": ("Inception Score", 2),
    "bits_per_dim": ("bits/dim", 3),
}


def _all_results(rows: list[Row]) -> Element | None:
    if len(rows) < 2:
        return None
    # the marks of the plot
    looks = list(dict.fromkeys(row.series for row in rows if any(cell.has_place for cell in row.cells)))
    columns = {name: [_pooled(row, key, digits) for row in rows] for key, (name, digits) in COLUMNS.items()}
    counts = [dict.fromkeys(text(cell.count) for cell in row.cells) for row in rows]
    columns["samples"] = [", ".join(each) for each in counts]
    columns["failed"] = [f"{sum(cell.figure('failed') or 0 for cell in row.cells):,.0f}" for row in rows]
    columns["seeds"] = [str(len(row.cells)) for row in rows]
    # a column that no row has anything in says nothing
    shown = {name: column for name, column in columns.items() if set(column) != {tables.NOTHING}}
    head = element("tr", *(element("th", name, scope="col") for name in ("settings", *shown)))
    body = []
    for number, row in enumerate(rows):
        mark = charts.mark(looks.index(row.series)) if row.series in looks else None
        cells = [element("td", column[number]) for column in shown.values()]
        body.append(element("tr", element("th", mark, row.name, scope="row"), *cells))
    table = element("table", element("thead", head), element("tbody", *body))
    region = element("div", table, class_="scroll", tabindex=0, role="region", aria_label="All results")
    caption = "Less is better for NFE, FID and bits per dimension, more for the Inception Score. "
    return _section("All results", caption + "± is the standard deviation over the seeds.", region)


def _pooled(row: Row, key: str, digits: int) -> str:
    values = row.values(key)
    if not values:
        return tables.NOTHING
    spread = f" ± {np.std(values, ddof=1):,.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):,.{digits}f}{spread}"


def _pictures(workdir: epath.Path, rows: list[Row]) -> Element | None:
    """The samples of a few cells, from the fewest evaluations to the most."""
    first = [(row, cell) for row in rows if (cell := row.cells[0]).folder]
    there = [(row, cell) for row, cell in first if (workdir / cell.folder / "samples.png").exists()]
    there.sort(key=lambda pair: pair[0].mean("nfe_mean") or 0)
    if not there:
        return None
    figures = []
    for place in np.unique(np.linspace(0, len(there) - 1, PICTURED).round().astype(int)):
        row, cell = there[place]
        said = [
            f"{name} {cell.figure(key):,.{digits}f}"
            for key, (name, digits) in COLUMNS.items()
            if cell.figure(key)
        ]
        figures.append(_picture(workdir / cell.folder, "samples.png", ", ".join([row.name_of(cell), *said])))
    caption = f"The first samples of {len(figures)} of {counted(len(there), 'setting')}, the cheapest first."
    return _section("Samples", caption, element("div", *figures, class_="pictures"))


def _without(found: Contents) -> Element | None:
    absent = [entry for table in found.tables for entry in table.absent.items()]
    entries = [*absent, *((element("code", place), why) for place, why in found.without.items())]
    if not entries:
        return None
    caption = "These are in no figure above, and why; the same command goes on with them."
    return _section("Cells without a result", caption, _list(entries, class_="many"))


# --- what made it ---


def _made_by(rows: list[Row], found: Contents) -> Element | None:
    cells = [cell for row in rows for cell in row.cells]
    made_by = {name: list(dict.fromkeys(filter(None, map(of, cells)))) for name, of in MADE_BY.items()}
    entries = [
        (name, "; ".join(values[:NAMED]) + (f"; and {len(values) - NAMED:,} more" if values[NAMED:] else ""))
        for name, values in made_by.items()
        if values
    ]
    settings = None
    if found.identity:
        every = _list((element("code", key), text(value)) for key, value in found.identity.items())
        settings = element("details", element("summary", "All settings that decide the samples"), every)
    caption = "What the figures are of. Two figures can be compared if their features and reference agree."
    return _section("What made it", caption, _list(entries), settings) if entries or settings else None


def _plainly(key: str) -> Any:
    return lambda cell: None if cell.result.get(key) is None else text(cell.result[key])


def _checkpoint(cell: Cell) -> str | None:
    sha256 = cell.result.get("checkpoint_sha256")
    return None if sha256 is None else f"{text(cell.result.get('checkpoint'))}, SHA-256 {text(sha256)}"


def _versions(cell: Cell) -> str | None:
    versions = cell.result.get("versions")
    pairs = versions.items() if isinstance(versions, dict) else ()
    return ", ".join(f"{name} {text(version)}" for name, version in pairs)


MADE_BY = {
    "Config": _plainly("config"),
    "Solver": lambda cell: text(cell.identity.get("solver.name", "")),
    "Config hash": _plainly("config_hash"),
    "Seed": lambda cell: text(cell.identity.get("seed", "")),
    "Checkpoint": _checkpoint,
    "Commit of the code": _plainly("git_commit"),
    "Devices": _plainly("devices"),
    "Versions": _versions,
    "Features of FID": _plainly("features"),
    "Reference of FID": _plainly("reference"),
    "Content of the reference": _plainly("reference_content"),
}


def _make_it_again(found: Contents) -> Element | None:
    blocks: list[Element] = []
    for table in found.tables:
        if table.command:
            blocks += [element("h3", table.heading or table.name), _command(table.command)]
    names = {SAMPLES: "Samples and figures", IMAGES: "Figures of the images", LIKELIHOODS: "Likelihoods"}
    for cell in _newest(found.own):
        blocks += [element("h3", names[cell.kind]), *_again(cell)]
    if found.cells:
        blocks.append(_note("Each result below has the command that makes it alone."))
    caption = (
        "The same command makes the same samples and figures again. Copy it, and run it where main.py is."
    )
    return _section("Make it again", caption, *blocks) if blocks else None


def _again(cell: Cell) -> list[Element]:
    try:
        line, fill_in = again.command(cell.result, cell.identity)
    except ValueError as error:
        return [_note(f"The command is not known: {error}")]
    return [_command(line), *([_note(f"Fill in {fill_in}.")] if fill_in else [])]


def _in_full(rows: list[Row]) -> Element | None:
    """All that is known of every result; page.js shows the first part of it beside the plot."""
    numbers = _numbers(rows)
    entries = []
    for row in rows:
        for cell in row.cells:
            lines = [(key, text(value)) for key, value in cell.result.items() if value is not None]
            every = element("details", element("summary", "The line of results.jsonl"), _list(lines))
            brief = element("div", *_brief(row, cell), class_="brief")
            summary = element("summary", row.name_of(cell))
            entries.append(element("details", summary, brief, every, id=f"cell-{numbers[id(cell)]}"))
    caption = (
        "What each result is of, the command that makes it again, and all that results.jsonl says of it."
    )
    return (
        _section("Every result in full", caption, element("div", *entries, class_="many"))
        if entries
        else None
    )


def _brief(row: Row, cell: Cell) -> list[Element]:
    """A result's figures and identity."""
    shown = [figure for figure in (*QUALITY, *COST) if figure.key in COLUMNS]
    identity = ("Config", "Config hash", "Checkpoint", "Commit of the code")
    lines = {
        "Settings": row.name_of(cell),
        **{COLUMNS[figure.key][0]: _value(figure, cell) for figure in shown},
        "Images" if cell.kind == LIKELIHOODS else "Samples": text(cell.count),
        "Failed": text(cell.result.get("failed", "")),
        **{name: MADE_BY[name](cell) for name in identity},
        "Folder": cell.folder,
    }
    return [_list((name, said) for name, said in lines.items() if said), *_again(cell)]


def _value(figure: Figure, cell: Cell) -> str:
    """A figure with its interval; empty if it was not measured."""
    value, interval = cell.figure(figure.key), _interval(figure, cell)
    said = "" if value is None else format(value, figure.form)
    return f"{said} (95 % interval {interval}, {figure.interval_of})" if interval else said
