"""Pictures of samples that say what they are pictures of."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from evaluation.files import atomic_file

# In pixels; twice what a README shows, so that the lettering is sharp on any screen
WIDTH = 1760  # of the picture, about
SIDE = 240  # of an image, at most
SHORTEST = 1200  # width that the lettering needs
MARGIN, GAP, LINE = 32, 12, 52
DPI = 200
INK, FAINT = "#1a1a1a", "#6b6b6b"


def save_grid(
    path: Path,
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
