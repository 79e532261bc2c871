"""Charts of a web page as SVG: places are shares of the width and height, letters and marks have their size.

So a chart fits any width without a script, and its letters are as large on a telephone as on a screen.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Int
from matplotlib.ticker import LogLocator, MaxNLocator

Element = ElementTree.Element

COLOURS = 8  # of series in page.css, which has a variable for each
# Paths around the origin, in pixels; series take them with the colours, so that colour is not all
MARKS = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "M-4 -4h8v8h-8z",
    "M0 -5.5L5.5 4h-11z",
    "M0 -6L6 0L0 6L-6 0z",
)
BINS = 40  # at most


def element(tag: str, *children: Element | str | None, **attributes: Any) -> Element:
    """An element of HTML or SVG; whatever is text in it is escaped when it is written.

    Args:
        tag: its name.
        children: elements and text; None is left out.
        attributes: ``class_`` stands for class and ``data_of`` for data-of; None is left out.
    """
    given = {name: value for name, value in attributes.items() if value is not None}
    made = Element(tag, {name.rstrip("_").replace("_", "-"): str(value) for name, value in given.items()})
    for child in children:
        if isinstance(child, Element):
            made.append(child)
        elif child is not None and len(made):
            made[-1].tail = (made[-1].tail or "") + child
        elif child is not None:
            made.text = (made.text or "") + child
    return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A measurement in a chart.

    Attributes:
        x, y: above zero.
        says: what it is, in words.
        target: id of the element of the page that has the details; empty without one.
    """

    x: float
    y: float
    says: str
    target: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one look, and a line.

    Attributes:
        label: in the legend.
        points: the measurements.
        line: (x, y) of its corners, in the order of x.
        is_hollow: whether the points are of others.
    """

    label: str
    points: Sequence[Point]
    line: Sequence[tuple[float, float]] = ()
    is_hollow: bool = False


def scatter(series: Sequence[Series], *, says: str, x_name: str, y_name: str) -> Element:
    """A chart with both axes logarithmic.

    Args:
        series: with a point at least.
        says: what the chart shows, for those who do not see it.
        x_name, y_name: of the axes, with their units.
    """
    points = [point for one in series for point in one.points]
    x = _Log([point.x for point in points])
    y = _Log([point.y for point in points])
    drawn = [*_grid(x, across=True), *_grid(y, across=False)]
    for number, one in enumerate(series):
        corners = [(x.share(a), 1 - y.share(b)) for a, b in one.line]
        for (x1, y1), (x2, y2) in itertools.pairwise(corners):
            ends = {"x1": _percent(x1), "y1": _percent(y1), "x2": _percent(x2), "y2": _percent(y2)}
            drawn.append(element("line", class_=f"line {_look(number)}", data_series=number, **ends))
    for number, one in enumerate(series):
        drawn += [_point(point, number, x.share(point.x), 1 - y.share(point.y), one) for point in one.points]
    return _framed(drawn, says=says, x_name=f"{x_name} (log scale)", y_name=f"{y_name} (log scale)")


def legend(series: Sequence[Series]) -> Element:
    """The names of the series with their marks; page.js shows a series alone while its name is pointed at."""
    items = [
        element(
            "li", element("button", mark(number, one.is_hollow), one.label, type="button", data_series=number)
        )
        for number, one in enumerate(series)
    ]
    return element("ul", *items, class_="legend")


def mark(number: int, hollow: bool = False) -> Element:
    """The mark of a series, to stand in text."""
    path = element("path", d=MARKS[number % len(MARKS)], class_=_look(number) + " hollow" * hollow)
    return element("svg", path, class_="mark", viewBox="-7 -7 14 14", aria_hidden="true")


def marks() -> Element:
    """What the points of all charts of a page refer to; it takes no room itself."""
    shapes = [element("path", id=f"mark-{number}", d=path) for number, path in enumerate(MARKS)]
    return element("svg", element("defs", *shapes), width=0, height=0, class_="marks", aria_hidden="true")


def histogram(counts: Int[np.ndarray, " n"], *, says: str, x_name: str, unit: str) -> Element:
    """How many of whole numbers lie where, with a line at their mean.

    Args:
        counts: at least one, not all the same.
        says: as of ``scatter``.
        x_name: of the axis that they lie along.
        unit: what the numbers count.
    """
    low, high = int(counts.min()), int(counts.max())
    width = max(1, math.ceil((high - low + 1) / min(BINS, max(8, round(2 * math.sqrt(len(counts)))))))
    edges = np.arange(low, high + 1 + width, width)
    heights, _ = np.histogram(counts, edges)
    x, y = _Linear(low - 0.5, float(edges[-1]) - 0.5), _Linear(0, 1.05 * float(heights.max()))
    drawn = [*_grid(y, across=False), *_grid(x, across=True, lines=False)]
    for edge, height in zip(edges[:-1].tolist(), heights.tolist(), strict=True):
        begin, top = x.share(edge - 0.5), y.share(float(height))
        rows = {"x": _percent(begin), "width": _percent(x.share(edge + width - 0.5) - begin)}
        bar = element("rect", **rows, y=_percent(1 - top), height=_percent(top), class_="bar")
        whole = element("rect", **rows, y="0", height="100%", class_="hit")
        among = f"{edge}" if width == 1 else f"{edge} to {min(edge + width - 1, high)}"
        title = element("title", f"{height:,} of {len(counts):,}: {among} {unit}")
        drawn.append(element("g", title, whole, bar, class_="spot", role="img", tabindex=-1))
    place = _percent(x.share(float(counts.mean())))
    drawn.append(element("line", x1=place, x2=place, y1="0", y2="100%", class_="mean"))
    said = f"mean {counts.mean():,.1f}"
    left = x.share(float(counts.mean())) > 0.5
    anchor = {"text_anchor": "end", "dx": -6} if left else {"text_anchor": "start", "dx": 6}
    drawn.append(element("text", said, x=place, y=0, dy=12, class_="strong", **anchor))
    return _framed(drawn, says=says, x_name=x_name, y_name="samples", class_="low")


class _Log:
    """A logarithmic axis around some numbers above zero."""

    def __init__(self, values: Sequence[float]):
        low, high = math.log(min(values)), math.log(max(values))
        room = max(0.06 * (high - low), 0.05)
        self.low, self.high = low - room, high + room

    def share(self, value: float) -> float:
        return (math.log(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        low, high = math.exp(self.low), math.exp(self.high)
        for subs in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
            found = [t for t in LogLocator(subs=subs, numticks=50).tick_values(low, high) if low < t < high]
            if len(found) >= 3:
                return found[:: math.ceil(len(found) / 8)]
        return [tick for tick in MaxNLocator(6).tick_values(low, high) if low < tick < high]


class _Linear:
    """A linear axis from one number to another."""

    def __init__(self, low: float, high: float):
        self.low, self.high = low, high

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        found = MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]).tick_values(self.low, self.high)
        return [tick for tick in found if self.low <= tick <= self.high]


def _grid(axis: _Log | _Linear, *, across: bool, lines: bool = True) -> list[Element]:
    """The lines of an axis and their numbers; ``across`` for the one that runs from left to right."""
    drawn = []
    for tick in axis.ticks():
        share = axis.share(tick) if across else 1 - axis.share(tick)
        place = _percent(share)
        ends = {"x1": place, "x2": place, "y1": "0", "y2": "100%"}
        if not across:
            ends = {"x1": "0", "x2": "100%", "y1": place, "y2": place}
        if lines:
            drawn.append(element("line", class_="grid", **ends))
        where = {"x": place, "y": "100%", "dy": 18, "text_anchor": "middle"}
        if not across:
            where = {"x": -8, "y": place, "dy": 4, "text_anchor": "end"}
        drawn.append(element("text", _number(tick), **where))
    return drawn


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.6g}"


def _point(point: Point, number: int, x: float, y: float, series: Series) -> Element:
    place = {"x": _percent(x), "y": _percent(y)}
    shape = element(
        "use",
        href=f"#mark-{number % len(MARKS)}",
        class_=_look(number) + " hollow" * series.is_hollow,
        **place,
    )
    near = element("circle", cx=place["x"], cy=place["y"], r=11, class_="hit")
    return element(
        "g",
        element("title", point.says),
        near,
        shape,
        class_="spot",
        role="img",
        tabindex=-1,
        data_series=number,
        data_target=point.target,
    )


def _framed(drawn: list[Element], *, says: str, x_name: str, y_name: str, class_: str = "") -> Element:
    plot = element("svg", *drawn, role="group", aria_label=says, class_="plot")
    return element(
        "div",
        element("div", y_name, class_="y-name"),
        plot,
        element("div", x_name, class_="x-name"),
        class_=f"chart {class_}".strip(),
    )


def _look(number: int) -> str:
    return f"series-{number % COLOURS}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
