"""Results with the identity of the run that made them: what the numbers are of, and what made them.

A workdir holds one config's samples. ``config_identity`` names everything that determines a sample, and
nothing that does not (how many, how batched, where to), so that a folder knows its own config from others.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from evaluation.store.files import atomic_file, explained, is_local, make_folder, read_file
from sde_lib import SDE, require
from solvers import Solver

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy")

# Of the model's settings: where its weights are (their hash counts instead), and what only training uses
NOT_OF_THE_SAMPLES = ("checkpoint", "dropout", "init_scale")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One line of results.jsonl.

    Attributes:
        config_hash, checkpoint_sha256: of what determines the samples; the latter is None for a score without
            a checkpoint.
        git_commit: of the code, "+changes" added where files differ from it; None outside a repository.
        features: the feature network of fid, is_mean and is_std, as name:sha256; None if none was used.
        reference: what FID is to, as data:split:number.
        num_samples: that all figures are over.
        fid: to ``reference``.
        is_mean, is_std: the Inception Score over its splits.
        fid_interval, is_interval, nfe_interval: 95 % intervals [low, high] of fid, is_mean and nfe_mean, None
            where a bootstrap cannot give them (evaluation/metrics/bootstrap.py).
        nfe_mean, nfe_max: evaluations of the score a sample, all of them counted.
        nfe_lockstep: by the published convention, see evaluation/metrics/figures.py.
        rejected: mean number of rejected steps a sample.
        failed: number of samples that did not complete. It and the four above are None for images that were
            made elsewhere.
        lane_utilization: share of the network's rows that advanced a sample; None if nothing was sampled.
        samples_per_second: of the sampling in this run, without compilation; None if nothing was sampled.
        seconds_compile: None if nothing was sampled. It and the two above are of the process that measured.
        devices: kind and number, as "cpu x 1".
        versions: of the packages that compute.
        extra: further figures, by name; they stand beside the others in the file.
    """

    config_hash: str
    checkpoint_sha256: str | None
    git_commit: str | None
    features: str | None
    reference: str | None
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
        """From the figures of ``evaluation.metrics.figures``; those without a field here go into ``extra``."""
        own = {field.name for field in dataclasses.fields(cls)}
        further = {name: value for name, value in figures.items() if name not in own}
        fields = {name: value for name, value in figures.items() if name in own}
        return cls(**fields, **others, extra=extra | further)

    def line(self) -> str:
        """JSON with every key, null for what is None or not finite."""
        values = dataclasses.asdict(self)
        values.update(values.pop("extra"))
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        return json.dumps(values, allow_nan=False)


def append(workdir: epath.PathLike, result: Result) -> None:
    """Adds a line to workdir/results.jsonl, after cutting off a line that an earlier run left torn.

    Raises:
        OSError: with the path, the reason and the fix.
    """
    path, line = epath.Path(workdir) / "results.jsonl", result.line().encode() + b"\n"
    make_folder(workdir)
    if not is_local(path):  # where files cannot be added to
        before = read_file(path) or b""
        with atomic_file(path) as file:
            file.write(before[: _end_of_whole_lines(before)] + line)
        return
    with explained("write", path), open(path, "a+b") as file:
        file.seek(0)
        before = file.read()
        if (end := _end_of_whole_lines(before)) < len(before):
            file.truncate(end)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The results in workdir/results.jsonl, oldest first; a torn last line is passed over.

    Raises:
        ValueError: naming a line before the last one that is not JSON.
    """
    path = epath.Path(workdir) / "results.jsonl"
    content = read_file(path) or b""
    results = []
    for number, line in enumerate(content[: _end_of_whole_lines(content)].splitlines(), start=1):
        try:
            results.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}); delete that line") from None
    return results


def find(
    workdir: epath.PathLike,
    *,
    config_hash: str,
    num_samples: int,
    features: str | None,
    reference: str | None,
    compared: int,
    fid_infinity: bool,
) -> dict[str, Any] | None:
    """The newest result of this config of so many samples with these features and reference, or None.

    Args:
        compared, fid_infinity: figures that it has to have, as ``config.eval`` names them.
    """
    wanted = {"config_hash": config_hash, "num_samples": num_samples}
    wanted |= {"features": features, "reference": reference}
    if compared:
        wanted["compared"] = compared
    for result in reversed(read(workdir)):
        if wanted.items() <= result.items() and (not fid_infinity or "fid_infinity" in result):
            return result
    return None


def _end_of_whole_lines(content: bytes) -> int:
    return content.rfind(b"\n") + 1


def config_identity(
    config: Any, *, sde: SDE, solver: Solver, checkpoint_sha256: str | None
) -> tuple[dict[str, Any], str]:
    """Everything that determines the samples, and its hash.

    Args:
        config: the whole config. Not part of the identity: number and batching of samples, paths, training.
        sde, solver: made from ``config.sde`` and ``config.solver``. They hold the settings that this SDE and
            this solver use, so that those of others do not count.
        checkpoint_sha256: of the weights, None if there are none.

    Returns:
        identity: config key, dotted -> value, and checkpoint_sha256; JSON types only.
        hash: 16 hexadecimal digits.
    """
    model = {name: value for name, value in config.model.items() if name not in NOT_OF_THE_SAMPLES}
    data = {name: config.data[name] for name in ("name", "image_size", "num_channels", "centered")}
    identity = {
        "checkpoint_sha256": checkpoint_sha256,
        "seed": config.seed,
        **_keys("sde", {"name": config.sde.name, **vars(sde)}),
        **_keys("solver", {"name": config.solver.name, "denoise": config.solver.denoise, **vars(solver)}),
        **_keys("model", model),
        **_keys("data", data),
        "eval.max_evaluations": config.eval.max_evaluations,
    }
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


def _keys(group: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{group}.{name}": value for name, value in values.items()}


def claim_workdir(workdir: epath.PathLike, identity: dict[str, Any]) -> None:
    """Makes the folder this config's: writes identity.json, or finds it there.

    Raises:
        ValueError: if the folder holds another config's samples, with the keys that differ and both values.
        OSError: if it cannot be written, with the path, the reason and the fix.
    """
    path = epath.Path(workdir) / "identity.json"
    if read_file(path) is None:
        make_folder(workdir)
        with atomic_file(path) as file:
            file.write(json.dumps(identity, indent=1, sort_keys=True).encode())
    try:  # also after writing it: another process may have done so too
        owner = json.loads(read_file(path) or b"")
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON ({error}), so nobody knows whose samples these are; take another --workdir"
        ) from None
    differing = [
        f"{key if key == 'checkpoint_sha256' else f'config.{key}'} = {_shown(identity, key)} "
        f"(there {_shown(owner, key)})"
        for key in sorted(identity.keys() | owner.keys())
        if _shown(identity, key) != _shown(owner, key)
    ]
    require(
        not differing,
        "workdir",
        str(workdir),
        "a folder that is new or holds samples of this config, and this one's differs in "
        + ", ".join(differing),
        "give another --workdir, or set these back",
    )


def _shown(identity: dict[str, Any], key: str) -> str:
    return json.dumps(identity[key]) if key in identity else "absent"


def git_commit() -> str | None:
    """The commit of this code, with "+changes" where files differ from it; None outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def devices() -> str:
    """Kind and number of the devices of all processes, such as "cpu x 1"."""
    kinds = collections.Counter(device.device_kind for device in jax.devices())
    return ", ".join(f"{kind} x {number}" for kind, number in kinds.items())


def versions() -> dict[str, str]:
    """Of the packages that compute."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}
