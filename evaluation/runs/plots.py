"""Pictures that say what they are of: samples, and FID against evaluations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

from evaluation.store.files import atomic_file

# In pixels; twice what a README shows, so that the lettering is sharp on any screen
WIDTH = 1760  # of the picture, about
SIDE = 240  # of an image, at most
SHORTEST = 1200  # width that the lettering needs
MARGIN, GAP, LINE = 32, 12, 52
DPI = 200
INK, FAINT = "#1a1a1a", "#6b6b6b"
MARKERS = "osD^vP*Xph"


def save_grid(
    path: PurePath,
    images: UInt8[np.ndarray, "n h w c"],
    *,
    title: str,
    caption: str = "",
    columns: int | None = None,
) -> None:
    """Writes a PNG of the images in rows, each of their pixels a square of whole screen pixels.

    Args:
        path: of the PNG; written whole or not at all.
        images: grey (c = 1) or RGB (c = 3).
        title: the first line, such as the config and its solver.
        caption: the second line, such as FID and evaluations.
        columns: images a row; by default, as many as make the picture twice as wide as high.

    Raises:
        OSError: with the path, the reason and the fix.
    """
    n, height, width, _ = images.shape
    columns = columns or max(1, round(math.sqrt(2 * n)))
    rows = -(-n // columns)
    scale = max(1, min((WIDTH - 2 * MARGIN) // columns - GAP, SIDE) // width)
    tiles = images.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = height * scale + GAP, width * scale + GAP

    head = MARGIN + LINE * (2 if caption else 1)
    paper_height = head + rows * height - GAP + MARGIN
    paper_width = max(columns * width - GAP + 2 * MARGIN, SHORTEST)
    paper = np.full((paper_height, paper_width, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = head + (i // columns) * height, MARGIN + (i % columns) * width
        paper[top : top + height - GAP, left : left + width - GAP] = tile  # grey broadcasts to RGB

    figure = Figure(figsize=(paper_width / DPI, paper_height / DPI), dpi=DPI)
    canvas = FigureCanvasAgg(figure)  # no window, whatever the user's backend
    figure.figimage(paper)
    for line, (text, size, colour) in enumerate([(title, 11, INK), (caption, 9, FAINT)]):
        x, y = MARGIN / paper_width, 1 - (MARGIN + LINE * line) / paper_height
        figure.text(x, y, text, size=size, color=colour, va="top")
    with atomic_file(path) as file:
        canvas.print_png(file)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """Several measurements at the same place.

    Attributes:
        x: evaluations a sample, above zero.
        ys: FID of each seed, above zero.
    """

    x: float
    ys: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """A line of a plot.

    Attributes:
        label: in the legend.
        points: ours, in any order.
        published, unconfirmed: what stands beside them.
    """

    label: str
    points: tuple[Point, ...] = ()
    published: tuple[Point, ...] = ()
    unconfirmed: tuple[Point, ...] = ()


def save_curves(path: PurePath, panels: Mapping[str, Sequence[Curve]], *, title: str) -> None:
    """Writes a PNG of FID against evaluations, both logarithmic, a panel each, at most two beside each other.

    Our points are filled and joined, with a bar from the least to the largest of the seeds; published ones
    are hollow, and pale where unconfirmed. A label has the same colour and marker in all panels.

    Raises:
        OSError: with the path, the reason and the fix.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns + 2.6, 3.9 * rows + 0.6), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    labels = list(dict.fromkeys(curve.label for curves in panels.values() for curve in curves))
    looks: dict[str, dict[str, Any]] = {
        label: {"color": f"C{i % 10}", "marker": MARKERS[i % len(MARKERS)], "label": label}
        for i, label in enumerate(labels)
    }
    for number, (panel, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        for curve in curves:
            look = looks[curve.label]
            points = sorted(curve.points, key=lambda point: point.x)
            x = [point.x for point in points]
            axes.plot(x, [sum(point.ys) / len(point.ys) for point in points], **look, markersize=4)
            lowest, highest = ([end(point.ys) for point in points] for end in (min, max))
            axes.vlines(x, lowest, highest, color=look["color"], linewidth=1)
            for theirs, alpha in ((curve.published, 1.0), (curve.unconfirmed, 0.4)):
                x, y = [point.x for point in theirs], [point.ys[0] for point in theirs]
                axes.plot(x, y, **look, linestyle="", markersize=6, markerfacecolor="none", alpha=alpha)
        axes.set(xscale="log", yscale="log", xlabel="evaluations a sample", ylabel="FID")
        axes.set_title(panel, fontsize=10, color=INK)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axes.grid(which="both", color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
    figure.suptitle(title, fontsize=11, color=INK)
    theirs = any(curve.published or curve.unconfirmed for curves in panels.values() for curve in curves)
    figure.legend(
        [Line2D([], [], **looks[label]) for label in labels],
        labels,
        loc="outside right upper",
        frameon=False,
        fontsize=8,
        title="filled: ours\nhollow: published\npale: unconfirmed" if theirs else None,
        title_fontsize=8,
    )
    with atomic_file(path) as file:
        canvas.print_png(file)
