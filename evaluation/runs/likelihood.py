"""Bits per dimension of a config's network on held-out images, kept image by image.

Images are dequantized, with noise that depends on the seed and the image alone. A finished image is a line of
likelihoods.jsonl at once, so that an interruption loses nothing that is finished, and more images add only
what is missing.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from configs import keys
from data import datasets, sources
from evaluation.metrics.bootstrap import FEWEST, Z
from evaluation.runs import results
from evaluation.runs.plots import DPI, FAINT, INK
from evaluation.runs.run import Run
from evaluation.store import workdir as workdirs
from evaluation.store.files import add_lines, atomic_file, is_local, read_file, require_writable
from sde_lib.checks import require
from solvers import Likelihood, Status
from solvers.likelihood import PROBES, bits_per_dim, check_accuracy, stream_log_likelihoods
from solvers.queues import lanes_for

LIKELIHOODS = "likelihoods.jsonl"
WRITES = (LIKELIHOODS, "likelihood.png")  # names in a workdir, beside results.jsonl
BEGINNING = b'{"image": '  # of every line of LIKELIHOODS
STORE_SECONDS = 30.0  # between two writes to an object store, which writes a file anew for each

# Keeps the dequantization apart from other random numbers of the same seed.
_STREAM = 0x6465_7175


def open_held_out(config: Any, path: str | None) -> tuple[datasets.Images, str | None]:
    """The images to measure, ``shuffled``, and a fingerprint of all of them.

    Args:
        config: of the groups ``data`` and ``model``. The split is "test", unless ``data.split`` is set.
        path: of ``--images``, which take the place of the data set: a folder, a .zip or an .npz file.

    Raises:
        ValueError, FileNotFoundError: for a data set without held-out images, images without the classes that
            the network needs, and as ``data.datasets``.
    """
    num_classes = config.model.num_classes
    if path is None:
        data = datasets.held_out(config.data)
        images = datasets.open_images(data, num_classes)
        return datasets.shuffled(images), datasets.fingerprint(data, images.labels)
    allowed = f"absent with config.model.num_classes = {num_classes}, since the classes are not known"
    require(num_classes == 0, "--images", path, allowed, "set config.data.path and config.data.split instead")
    return datasets.open_samples(path, config.data), sources.at_path(path, "--images").fingerprint()


def check(config: Any) -> None:
    """Raises ValueError for a setting of ``config.likelihood`` out of range, or guidance."""
    settings = config.likelihood
    try:
        check_accuracy(**settings)
    except ValueError as error:
        raise ValueError(f"config.likelihood.{error}") from None
    scale, allowed = config.guidance.scale, "1.0, since scores with guidance belong to no density"
    require(scale == 1.0, "config.guidance.scale", scale, allowed, "leave it out")


def measure(
    run: Run, workdir: epath.PathLike, *, images: datasets.Images, content: str | None
) -> dict[str, Any]:
    """The bits per dimension of the first ``config.eval.num_samples`` images, or of all if there are fewer.

    After an interruption, the same call continues with the images that are missing.

    Args:
        run: from ``prepare``.
        workdir: gets likelihood.json, likelihoods.jsonl, likelihood.png and results.jsonl.
        images, content: from ``open_held_out``.

    Returns:
        The result, as in results.jsonl.

    Raises:
        ValueError: for a workdir that holds other likelihoods, or a damaged image.
        OSError: for a disk that refuses a file; what was written before stays whole.
    """
    workdir = epath.Path(workdir)
    check(run.config)
    identity, config_hash = identity_of(
        run.config,
        checkpoint_sha256=run.weights["checkpoint_sha256"],
        images=f"{images.name}:{images.split}:{images.count}",
        images_sha256=content,
    )
    results.read(workdir)  # refuses somebody else's file of this name
    workdirs.claim(workdir, identity, file="likelihood.json", holds="likelihoods", writes=WRITES)
    count = min(run.config.eval.num_samples, images.count)
    known = results.find(workdir, {"config_hash": config_hash, "num_images": count})
    if known is not None:
        return known
    _measure_missing(run, workdir / LIKELIHOODS, images, count)
    stored = read(workdir / LIKELIHOODS)
    entries, dims = [stored[i] for i in range(count)], math.prod(run.image_shape)
    bits = _bits(entries, dims, _bin_width(run.config))
    result = {
        "config_hash": config_hash,
        "checkpoint_sha256": run.weights["checkpoint_sha256"],
        "git_commit": results.git_commit(),
        "images": identity["images"],
        "images_sha256": content,
        "num_images": count,
        **_figures(entries, bits, dims),
        "devices": results.devices(),
        "versions": results.versions(),
        "config": run.name,
        **results.compared_with(run.config),
        **{key: value for key, value in identity.items() if key.startswith("likelihood.")},
        **run.weights,
    }
    _save_histogram(workdir / "likelihood.png", bits, title=run.name, caption=summary(result))
    add_lines(workdir / "results.jsonl", json.dumps(result, allow_nan=False).encode() + b"\n")
    return results.read(workdir)[-1]


def identity_of(
    config: Any, *, checkpoint_sha256: str | None, images: str | None, images_sha256: str | None
) -> tuple[dict[str, Any], str]:
    """Everything that decides the likelihoods, and its hash.

    Args:
        config: the whole config.
        checkpoint_sha256: of the weights.
        images, images_sha256: the images as name:split:number, and their fingerprint.
    """
    samples = keys.identity(config, keys.SAMPLES)
    decided = {key: value for key, value in samples.items() if not key.startswith(("solver.", "eval."))}
    accuracy = keys.identity(config, keys.LIKELIHOODS)
    if accuracy["likelihood.divergence"] == "hutchinson":
        accuracy["likelihood.num_probes"] = config.likelihood.num_probes or PROBES
    return results.hashed(
        {
            "checkpoint_sha256": checkpoint_sha256,
            **decided,
            **accuracy,
            "eval.max_evaluations": config.eval.max_evaluations,
            "images": images,
            "images_sha256": images_sha256,
        }
    )


def summary(result: dict[str, Any]) -> str:
    """A result in a line for people."""
    parts = [
        "no image measured" if result["bits_per_dim"] is None else f"{result['bits_per_dim']:.3f} bits/dim"
    ]
    if result["bits_per_dim_interval"] is not None:
        low, high = result["bits_per_dim_interval"]
        parts.append(f"95 % interval {low:.3f} to {high:.3f}")
    parts.append(f"{result['num_images']:,} images of {result['images']}")
    parts.append(f"NFE {result['nfe_mean']:.1f} mean, {result['nfe_max']} max")
    if result["failed"]:
        parts.append(f"{result['failed']} FAILED")
    return "   ".join(parts)


def read(path: epath.Path) -> dict[int, dict[str, Any]]:
    """The lines of likelihoods.jsonl by image; a torn last line is skipped.

    Raises:
        ValueError: naming a line that is not an image's.
    """
    entries = {}
    *lines, _ = (read_file(path) or b"").split(b"\n")
    for number, line in enumerate(lines, start=1):
        entry: Any = None
        if line.startswith(BEGINNING):
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
        fix = "delete that line, and its image is measured again"
        require(entry is not None, f"line {number} of {path}", line[:40], "the likelihood of an image", fix)
        entries[entry["image"]] = entry
    return entries


def dequantized(
    image: UInt8[np.ndarray, "h w c"], *, seed: int, number: int, centered: bool
) -> Float[np.ndarray, "h w c"]:
    """(k + u)/256 with u ~ U(0, 1) for each grey level k, in [0, 1], or in [−1, 1] if ``centered``."""
    noise = np.random.default_rng((seed, _STREAM, number)).random(image.shape, np.float32)
    x = (image + noise) / 256
    return 2 * x - 1 if centered else x


def _measure_missing(run: Run, path: epath.Path, images: datasets.Images, count: int) -> None:
    """Adds the images to likelihoods.jsonl that it lacks."""
    stored, settings = read(path), run.config.likelihood
    missing = np.array([i for i in range(count) if i not in stored], np.uint32)
    if len(missing) == 0:
        return
    require_writable(path.parent)
    labels = images.labels

    def x(ids: np.ndarray) -> np.ndarray:
        made = [
            dequantized(
                images.read(int(i)), seed=run.config.seed, number=int(i), centered=run.config.data.centered
            )
            for i in ids
        ]
        return np.array(made, np.float32).reshape(-1, *run.image_shape)

    parts = stream_log_likelihoods(
        run.load_score_fn(),
        run.sde,
        x,
        shape=run.image_shape,
        sample_ids=missing,
        lanes=lanes_for(count, run.config.eval.batch_size, jax.local_device_count()),
        conditions=None if labels is None else lambda ids: labels[ids],
        key=None if settings.divergence == "exact" else jax.random.key(run.config.seed),
        max_evaluations=run.config.eval.max_evaluations,
        progress=True,
        **settings,
    )
    lines, since = b"", time.monotonic()
    try:
        for part in parts:
            lines += _lines(part)
            if lines and (is_local(path) or time.monotonic() - since >= STORE_SECONDS):
                add_lines(path, lines)
                lines, since = b"", time.monotonic()
    finally:
        if lines:
            add_lines(path, lines)


def _lines(part: Likelihood) -> bytes:
    entries = [
        {
            "image": int(part.sample_ids[row]),
            "log_prob": float(part.log_prob[row]) if completed else None,
            "standard_error": float(part.standard_error[row]) if completed else None,
            "nfe": int(part.nfe[row]),
            "status": int(part.status[row]),
        }
        for row, completed in enumerate(part.status == Status.COMPLETED)
    ]
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


def _bin_width(config: Any) -> float:
    """Of a grey level, in data units."""
    return (2 if config.data.centered else 1) / 256


def _figures(entries: list[dict[str, Any]], bits: np.ndarray, dims: int) -> dict[str, Any]:
    """Mean and interval of the bits per dimension, and what they took."""
    mean = float(bits.mean()) if len(bits) else None
    interval = None
    if mean is not None and len(bits) >= FEWEST:
        reach = Z * float(bits.std(ddof=1)) / math.sqrt(len(bits))
        interval = [mean - reach, mean + reach]
    errors = [entry["standard_error"] for entry in entries if entry["standard_error"] is not None]
    nfe = [entry["nfe"] for entry in entries]
    return {
        "bits_per_dim": mean,
        "bits_per_dim_interval": interval,
        # of one image, by the spread of its probes
        "standard_error": math.sqrt(np.mean(np.square(errors))) / (dims * math.log(2)) if errors else None,
        "nfe_mean": float(np.mean(nfe)),
        "nfe_max": max(nfe),
        "failed": len(entries) - len(bits),
    }


def _bits(entries: list[dict[str, Any]], dims: int, bin_width: float) -> np.ndarray:
    """Bits per dimension of the images that completed."""
    log_probs = np.array([entry["log_prob"] for entry in entries if entry["log_prob"] is not None])
    return bits_per_dim(log_probs, dims, bin_width)


def _save_histogram(path: epath.Path, bits: np.ndarray, *, title: str, caption: str) -> None:
    """Writes a PNG of how many images have how many bits per dimension.

    Raises:
        OSError: with the path, the reason and the fix.
    """
    figure = Figure(figsize=(8, 4.2), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.hist(bits, bins=min(60, max(10, len(bits) // 10)), color="C0")
    if len(bits):
        axes.axvline(bits.mean(), color=INK, linewidth=1)
    axes.set(xlabel="bits per dimension", ylabel="images")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.suptitle(title, fontsize=11, color=INK)
    axes.set_title(caption, fontsize=8, color=FAINT)
    with atomic_file(path) as file:
        canvas.print_png(file)
