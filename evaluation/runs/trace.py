"""Pictures of what a solver does with a few samples: images on the way, steps and their errors."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image, ImageDraw

from evaluation.runs import conditional
from evaluation.runs.plots import DPI, FAINT, INK
from evaluation.runs.run import WRITES, Run
from evaluation.store import workdir as workdirs
from evaluation.store.files import atomic_file
from evaluation.store.samples import to_uint8
from sde_lib import SDE
from solvers import Status, Trace, trace

TRACED = 6  # samples, by default
COLUMNS = 12  # of images in trace.png
BETWEEN = 4  # frames of trace.gif for each of them
WIDTH, LINE = 900, 32  # of trace.gif, about, and the height of its line of text; pixels
SECONDS, LAST_SECONDS = 0.12, 2.5  # that a frame is shown


def trace_run(run: Run, workdir: epath.PathLike, *, num_samples: int = TRACED) -> Trace:
    """Traces the first samples of a run, and draws trace.png and trace.gif in ``workdir``.

    Raises:
        ValueError: as ``solvers.trace``, and for a workdir that holds another config's samples.
        OSError: for a disk that refuses a file.
    """
    workdirs.claim(workdir, run.identity, writes=WRITES)
    log_snrs, ids = levels(run.sde), np.arange(num_samples, dtype=np.uint32)
    classes_of = conditional.classes_of(run.config)
    traced = trace(
        run.load_score_fn(),
        run.sde,
        run.solver,
        key=jax.random.key(run.config.seed),
        shape=run.image_shape,
        sample_ids=ids,
        conditions=None if classes_of is None else classes_of(ids),
        log_snrs=log_snrs,
        denoise=run.config.solver.denoise,
        max_evaluations=run.config.eval.max_evaluations,
    )
    centered = run.config.data.centered
    save_picture(epath.Path(workdir) / "trace.png", traced, log_snrs, title=run.title, centered=centered)
    save_animation(epath.Path(workdir) / "trace.gif", traced, run.sde, log_snrs, centered=centered)
    return traced


def levels(sde: SDE) -> np.ndarray:
    """The log-SNRs of the pictures, in equal steps from T to eps."""
    begin, end = float(sde.log_snr(sde.T)), float(sde.log_snr(sde.eps))
    return np.linspace(begin, end, (COLUMNS - 1) * BETWEEN + 1)


def summary(traced: Trace) -> str:
    """The samples' cost in a line for people."""
    failed = int(np.sum(traced.status != Status.COMPLETED))
    parts = [f"{len(traced.nfe)} samples", f"NFE {traced.nfe.min()} to {traced.nfe.max()}"]
    parts.append(f"{traced.accepted.sum()} steps taken, {traced.rejected.sum()} rejected")
    return "   ".join(parts + ([f"{failed} FAILED"] if failed else []))


def save_picture(
    path: epath.Path, traced: Trace, log_snrs: np.ndarray, *, title: str, centered: bool
) -> None:
    """Writes a PNG: the denoised images on the way, a row for each sample; below, steps and errors by time.

    Args:
        path: of the PNG; written whole or not at all.
        traced: with images at ``log_snrs``, grey (c = 1) or RGB (c = 3).
        log_snrs: as from ``levels``.
        title: the first line.
        centered: whether the images lie in [−1, 1].

    Raises:
        OSError: with the path, the reason and the fix.
    """
    shown = slice(None, None, BETWEEN)
    rows, columns = len(traced.nfe), len(log_snrs[shown])
    panels: dict[Any, float] = {_draw_steps: 3.2}
    if np.isfinite(traced.error).any():
        panels[_draw_errors] = 1.8
    heights = [9.2 * rows / columns + 0.5, *panels.values()]
    figure = Figure(figsize=(10.4, sum(heights) + 0.6), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(f"{title}\n{summary(traced)}", fontsize=10, color=INK)
    of_images, *others = figure.subplots(len(heights), height_ratios=heights)
    _draw_images(of_images, traced, shown, log_snrs, centered)
    for draw, axes in zip(panels, others, strict=True):
        draw(axes, traced)
        first, last = np.nanmin(traced.t), np.nanmax(traced.t)
        # EDM's time is the noise level
        axes.set(yscale="log", xscale="log" if last > 2 else "linear", xlim=(first, last))
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
    others[-1].set_xlabel("time t: sampling goes from the right, noise, to the left, data")
    with atomic_file(path) as file:
        canvas.print_png(file)


def _draw_images(axes: Axes, traced: Trace, shown: slice, log_snrs: np.ndarray, centered: bool) -> None:
    """The denoised images, a row for each sample and a column for each log-SNR."""
    images = np.stack([to_uint8(sample[shown], centered=centered) for sample in traced.denoised])
    paper = tiled(images, gap=max(1, images.shape[2] // 16))
    height, width = paper.shape[0] / images.shape[0], paper.shape[1] / images.shape[1]
    axes.imshow(paper, interpolation="nearest")
    centers = [
        (np.arange(count) + 0.5) * side - 0.5
        for count, side in zip(images.shape[1::-1], (width, height), strict=True)
    ]
    axes.set_xticks(centers[0], [f"{level:.1f}" for level in log_snrs[shown]])
    names = [f"sample {i}\nNFE {nfe}" for i, nfe in zip(traced.sample_ids, traced.nfe, strict=True)]
    axes.set_yticks(centers[1], names)
    for number, label in enumerate(axes.get_yticklabels()):
        label.set_color(f"C{number % 10}")
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.set_title("denoised image, E[x(0) | x(t)], at log-SNR", fontsize=9, color=INK)


def _draw_steps(axes: Axes, traced: Trace) -> None:
    for number, (begin, h) in enumerate(zip(traced.begin, traced.h, strict=True)):
        taken, rejected = traced.accepted[number], traced.rejected[number]
        colour = f"C{number % 10}"
        axes.plot(begin[taken], h[taken], color=colour, linewidth=0.8, marker=".", markersize=2.5)
        axes.plot(begin[rejected], h[rejected], color=colour, linestyle="", marker="x", markersize=5)
    axes.set_ylabel("step h")
    legend = [Line2D([], [], color=FAINT, marker=".", label="taken")]
    if traced.rejected.any():
        legend.append(Line2D([], [], color=FAINT, linestyle="", marker="x", label="rejected"))
    axes.legend(handles=legend, fontsize=8, frameon=False, loc="lower center", ncols=2)


def _draw_errors(axes: Axes, traced: Trace) -> None:
    for number, (t, error) in enumerate(zip(traced.t, traced.error, strict=True)):
        rejected = traced.rejected[number]
        colour = f"C{number % 10}"
        axes.plot(t[~rejected], error[~rejected], color=colour, linestyle="", marker=".", markersize=2.5)
        axes.plot(t[rejected], error[rejected], color=colour, linestyle="", marker="x", markersize=5)
    axes.axhline(1, color=FAINT, linewidth=0.8)
    axes.set_ylabel("error/tolerance")


def save_animation(
    path: epath.Path, traced: Trace, sde: SDE, log_snrs: np.ndarray, *, centered: bool
) -> None:
    """Writes a GIF: above, the samples x on their way from noise to data; below, the same ones denoised.

    x is shown on a scale from the least grey level, less two deviations of the noise, to the largest, plus
    two.

    Args:
        path: of the GIF; written whole or not at all.
        traced, log_snrs, centered: as for ``save_picture``.
        sde: the process.

    Raises:
        OSError: with the path, the reason and the fix.
    """
    low, high = (-1.0, 1.0) if centered else (0.0, 1.0)
    frames = []
    for number, log_snr in enumerate(log_snrs):
        alpha, sigma = (float(value) for value in sde.marginal(sde.inverse_log_snr(log_snr)))
        least, most = alpha * low - 2 * sigma, alpha * high + 2 * sigma
        noisy = to_uint8((traced.points[:, number] - least) / (most - least), centered=False)
        clean = to_uint8(traced.denoised[:, number], centered=centered)
        paper = tiled(np.stack([noisy, clean]), gap=max(1, noisy.shape[1] // 16))
        frames.append(_frame(paper, f"log-SNR {log_snr:.1f}     noise/signal {sigma / alpha:.3g}"))
    seconds = [SECONDS] * (len(frames) - 1) + [LAST_SECONDS]
    with atomic_file(path) as file:
        frames[0].save(
            file,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=[round(1000 * each) for each in seconds],
            loop=0,
        )


def tiled(images: UInt8[np.ndarray, "rows columns h w c"], *, gap: int) -> UInt8[np.ndarray, "H W 3"]:
    """The images in rows and columns on white paper, ``gap`` pixels apart; grey ones become RGB."""
    rows, columns, height, width, _ = images.shape
    paper = np.full((rows, columns, height + gap, width + gap, 3), 255, np.uint8)
    top, left = gap // 2, gap // 2
    paper[:, :, top : top + height, left : left + width] = images
    return paper.swapaxes(1, 2).reshape(rows * (height + gap), columns * (width + gap), 3)


def _frame(paper: np.ndarray, text: str) -> Image.Image:
    """A frame of the animation: the paper at whole multiples of its pixels, below a line of text."""
    scale = max(1, round(WIDTH / paper.shape[1]))
    paper = paper.repeat(scale, axis=0).repeat(scale, axis=1)
    frame = Image.new("RGB", (paper.shape[1], paper.shape[0] + LINE), "white")
    frame.paste(Image.fromarray(paper), (0, LINE))
    ImageDraw.Draw(frame).text((LINE // 4, LINE // 4), text, fill=INK, font_size=LINE // 2)
    # the greys and colours of all frames, without the speckle of dithering
    return frame.quantize(dither=Image.Dither.NONE)
