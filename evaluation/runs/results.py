"""Results with what made them: the config's identity, the checkpoint, the code and the machine.

A workdir holds one config's samples. ``config_identity`` names everything that decides a sample, and nothing
else (not how many, how batched, where to), so that a folder can tell its own config from others.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

import configs
from configs import keys
from evaluation.store.files import add_lines, read_file
from sde_lib.checks import require
from solvers import Solver

BEGINNING = b'{"config_hash": "'  # of every line of results.jsonl
FIX = "delete that line if an interruption tore it, or move the file away if it is not this project's"

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy")

# Of what the figures are made besides the samples: a result states those that its config sets
COMPARED = ("data.path", "data.split", "data.crop", "data.resize", "eval.reference", "eval.inception_weights")

# Keys of the group solver that are not settings of the solver made from it
_NAMES = ("solver.name", "solver.denoise")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One line of results.jsonl.

    Attributes:
        config_hash, checkpoint_sha256: of what decides the samples; the latter is None for a score without a
            checkpoint.
        git_commit: of the code, with "+changes" where files differ from it; None outside the repository.
        features: the feature network of fid, is_mean and is_std, as name:sha256; None if none was used.
        reference: the reference of FID, as data:split:number.
        reference_content: fingerprint of the reference's images, or the SHA-256 of a published file of
            statistics.
        num_samples: number of samples behind all figures.
        fid: Fréchet distance to ``reference``.
        is_mean, is_std: Inception Score, mean and deviation over its splits.
        fid_interval, nfe_interval: 95 % intervals [low, high] for fid and nfe_mean of infinitely many
            samples; None where a bootstrap cannot give them (evaluation/metrics/bootstrap.py).
        is_interval: 95 % interval [low, high] for the expected is_mean of num_samples samples; None for few
            samples (evaluation/metrics/inception_score.py).
        nfe_mean, nfe_max: evaluations of the score a sample, all of them counted.
        nfe_lockstep: evaluations by the published convention, see evaluation/metrics/figures.py.
        rejected: mean number of rejected steps a sample.
        failed: number of samples that did not complete. It and the four above are None for images from
            another source.
        lane_utilization: share of the network's rows that advanced a sample; None if nothing was sampled.
        samples_per_second: of the sampling in this run, without compilation; None if nothing was sampled.
        seconds_compile: None if nothing was sampled. It and the two above are of the process that measured.
        devices: kind and number, as "cpu x 1".
        versions: versions of the packages that compute, and of this one where it is installed.
        extra: further figures by name; they stand beside the others in the file.
    """

    config_hash: str
    checkpoint_sha256: str | None
    git_commit: str | None
    features: str | None
    reference: str | None
    reference_content: str | None
    num_samples: int
    fid: float | None
    is_mean: float | None
    is_std: float | None
    fid_interval: list[float] | None
    is_interval: list[float] | None
    nfe_interval: list[float] | None
    nfe_mean: float | None
    nfe_max: int | None
    nfe_lockstep: float | None
    rejected: float | None
    failed: int | None
    lane_utilization: float | None
    samples_per_second: float | None
    seconds_compile: float | None
    devices: str
    versions: dict[str, str]
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, figures: dict[str, Any], *, extra: dict[str, Any], **others: Any) -> Result:
        """From the figures of ``evaluation.metrics.figures.evaluate``, adding what made them.

        Figures without a field here go into ``extra``.
        """
        own = {field.name for field in dataclasses.fields(cls)}
        further = {name: value for name, value in figures.items() if name not in own}
        fields = {name: value for name, value in figures.items() if name in own}
        made_by = {"git_commit": git_commit(), "devices": devices(), "versions": versions()}
        return cls(**fields, **others, **made_by, extra=extra | further)

    def line(self) -> str:
        """JSON with every key, null for what is None or not finite."""
        values = dataclasses.asdict(self)
        values.update(values.pop("extra"))
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        return json.dumps(values, allow_nan=False)


def append(workdir: epath.PathLike, result: Result) -> None:
    """Adds a line to workdir/results.jsonl; a torn line that an interruption left is cut off first.

    Raises:
        OSError: with the path, the reason and the fix.
    """
    add_lines(epath.Path(workdir) / "results.jsonl", result.line().encode() + b"\n")


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The results in workdir/results.jsonl, oldest first; a torn last line is skipped.

    Raises:
        ValueError: naming a line that is not a result, as in a file of somebody else's of this name.
    """
    path = epath.Path(workdir) / "results.jsonl"
    content = read_file(path) or b""
    results: list[dict[str, Any]] = []
    *lines, last = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        result: Any = None
        with contextlib.suppress(ValueError):
            result = json.loads(line)
        is_result = isinstance(result, dict) and "config_hash" in result
        require(is_result, f"line {number} of {path}", _shortened(line), "a result of this project", FIX)
        results.append(result)
    is_torn = results or last.startswith(BEGINNING) or BEGINNING.startswith(last)
    require(is_torn, f"last line of {path}", _shortened(last), "a result of this project", FIX)
    return results


def _shortened(line: bytes) -> str:
    return line[:40].decode(errors="replace")


def find(
    workdir: epath.PathLike, wanted: Mapping[str, Any], *, having: Iterable[str] = ()
) -> dict[str, Any] | None:
    """The newest result with these values and with all keys of ``having``; None if there is none."""
    for result in reversed(read(workdir)):
        if wanted.items() <= result.items() and all(key in result for key in having):
            return result
    return None


def compared_with(config: Any) -> dict[str, Any]:
    """The keys of ``COMPARED`` that the config sets."""
    values = configs.flat(config)
    return {key: values[key] for key in COMPARED if values[key] is not None}


def main_setting(settings: Mapping[str, Any]) -> str | None:
    """The solver's setting that matters most; a number of evaluations stands in place of a tolerance.

    Example:
        >>> main_setting({"eps_rel": 0.02, "num_evaluations": 20}), main_setting({"eta": 1.0, "num_steps": 9})
        ('num_evaluations', 'num_steps')
    """
    names = ("num_evaluations", "eps_rel", "num_steps", "rtol")
    return next((name for name in names if settings.get(name) is not None), None)


def solver_label(settings: Mapping[str, Any]) -> str:
    """The solver's name and the setting that matters most; empty where no solver is named.

    Args:
        settings: keys of the config with their values, as an identity or a line of results.jsonl has them.

    Example:
        >>> solver_label({"solver.name": "adaptive", "solver.eps_rel": 0.02, "solver.denoise": True})
        'adaptive, eps_rel 0.02'
    """
    of_solver = {key.removeprefix("solver."): value for key, value in settings.items()}
    main = main_setting(of_solver)
    return ", ".join([str(of_solver.get("name", "")), *([f"{main} {of_solver[main]}"] if main else [])])


def config_identity(
    config: Any, *, solver: Solver, checkpoint_sha256: str | None
) -> tuple[dict[str, Any], str]:
    """Everything that decides the samples, and its hash.

    Args:
        config: the whole config; configs/keys.py says which of its keys decide the samples.
        solver: made from ``config.solver``. It holds the settings that this solver has, defaults included;
            the settings of others do not count.
        checkpoint_sha256: of the weights; None without a checkpoint.

    Returns:
        identity: dotted config key -> value, and checkpoint_sha256; JSON types only.
        hash: 16 hexadecimal digits.
    """
    settings = keys.saying_something({f"solver.{name}": value for name, value in vars(solver).items()})
    if (revision := getattr(solver, "revision", None)) is not None:  # a method that has changed since
        settings["solver.revision"] = revision
    others = {
        key: value
        for key, value in keys.identity(config, keys.SAMPLES).items()
        if key in _NAMES or not key.startswith("solver.")
    }
    return hashed({"checkpoint_sha256": checkpoint_sha256, **others, **settings})


def hashed(identity: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """An identity in JSON's types, and its hash of 16 hexadecimal digits."""
    text = json.dumps(_plain(identity), sort_keys=True)
    return json.loads(text), hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """In JSON's types; a dataclass, such as a time grid, as its name and its fields."""
    if dataclasses.is_dataclass(value):
        return {"name": type(value).__name__, **_plain(vars(value))}
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | jax.Array):
        return value.tolist()
    # JSON has no infinity, which is no bound at all for a setting
    return None if isinstance(value, float) and math.isinf(value) else value


def git_commit() -> str | None:
    """The commit of this code, "+changes" added where files differ; None outside its own repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != ROOT:
            return None  # installed in an environment that lies in somebody else's repository
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def devices() -> str:
    """Kind and number of the devices of all processes, such as "cpu x 1"."""
    kinds = collections.Counter(device.device_kind for device in jax.devices())
    return ", ".join(f"{kind} x {number}" for kind, number in kinds.items())


def versions() -> dict[str, str]:
    """Versions of the packages that compute, and of this one where it is installed."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["gotta-go-fast"] = importlib.metadata.version("gotta-go-fast")
    return found
