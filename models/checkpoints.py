"""Checkpoints: this project's own, written with orbax, and the two published formats, read only.

An own checkpoint is a folder with the items ``params_ema`` (the averaged weights, all that sampling needs)
and ``metadata`` (JSON: what the weights are of and where they come from), and in a training also
``training_state`` (``params``, the weights as trained, among others). Orbax writes to a temporary folder
and renames it: a checkpoint is whole or not there. ``sizes.json`` beside the items tells a copy that was
cut short. Nothing in it is pickled.

The format of a checkpoint is told by looking inside, never by its name.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from models import published_jax, published_torch
from models.build import Params, ScoreFunction, abstract_params, score_fn
from models.weights import Weights, flatten, read_fitting, unflatten
from sde_lib import from_config
from sde_lib.checks import require

KIND = "this project's format"
SIZES = "sizes.json"  # of a checkpoint's files, in bytes
ROOT = Path(__file__).resolve().parent.parent

# Settings of a network that may differ between its training and its use
_FREE = {"checkpoint", "dtype", "dropout", "init_scale", "fourier_scale"}


def describe(config: Any, *, step: int | None, command: str, **more: Any) -> dict[str, Any]:
    """The metadata of a checkpoint of ``config``'s model: what it is of, and the command that made it."""
    model = {name: value for name, value in config.model.to_dict().items() if name != "checkpoint"}
    groups = {"model": model, "data": config.data.to_dict(), "sde": config.sde.to_dict()}
    return {**groups, "step": step, "command": command, **more}


def save(
    path: str | Path,
    params_ema: Params,
    metadata: dict[str, Any],
    training_state: Any = None,
    *,
    force: bool = False,
) -> Path:
    """Writes a checkpoint folder; returns its path.

    Args:
        path: the folder, which must not exist unless ``force``.
        params_ema: the averaged weights.
        metadata: see ``describe``.
        training_state: what a training goes on from: a pytree of arrays with the key ``params``.
        force: whether to replace what is there.

    Raises:
        ValueError: if the folder exists and ``force`` is False.
        OSError: if it cannot be written; nothing half-written is left under its name.
    """
    path = Path(path).absolute()
    require(
        force or not path.exists(),
        "checkpoint to write",
        str(path),
        "a path at which nothing is yet",
        "name another, or remove it",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    items: dict[str, Any] = {
        "params_ema": ocp.args.StandardSave(params_ema),  # pyright: ignore[reportCallIssue]
        "metadata": ocp.args.JsonSave(metadata),  # pyright: ignore[reportCallIssue]
    }
    if training_state is not None:
        items["training_state"] = ocp.args.StandardSave(training_state)  # pyright: ignore[reportCallIssue]
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, ocp.args.Composite(**items), force=force)
    # Notes of where this was written to, which serve no local file system and would be untrue of a copy
    for note in path.rglob("commit_success.txt"):
        note.unlink()
    (path / SIZES).write_text(json.dumps(_sizes(path)))
    return path


def load_score_fn(config: Any, path: str | Path | None = None, raw: bool = False) -> ScoreFunction:
    """The score function of ``config``'s model with the weights of a checkpoint of any known format.

    Args:
        config: the whole config (see configs/base.py).
        path: the checkpoint; None stands for ``config.model.checkpoint``. A relative path is looked for in
            the working directory and then in the project's root.
        raw: whether to take the weights as trained instead of their moving average.

    Returns:
        score_fn(x [b, h, w, c], t [b]) -> [b, h, w, c]; a pytree, see ``models.score_fn``.

    Raises:
        ValueError: naming what is wrong with the config or the checkpoint, and the fix.
    """
    path = path if path is not None else config.model.checkpoint
    if path is None:
        raise ValueError(
            "config.model.checkpoint = None: allowed is the path of a checkpoint; train one with "
            "--mode=train, or name one with --checkpoint=PATH (docs/checkpoints.md says where published "
            "ones are)"
        )
    params, _ = restore_params(path, config, raw=raw)
    return score_fn(config, from_config(config.sde), jax.device_put(params))


def restore_params(path: str | Path, config: Any, *, raw: bool = False) -> tuple[Params, dict[str, Any]]:
    """The weights of ``config``'s model from a checkpoint of any known format, as float32 NumPy arrays.

    Only these weights are read, and they stay on the host. See ``load_score_fn`` for the arguments.

    Returns:
        (params, metadata); the metadata has at least ``format`` and ``step``.

    Raises:
        ValueError: if the checkpoint is missing, damaged, ambiguous, of another architecture or another
            SDE, or holds weights that are not finite.
    """
    expected = abstract_params(config)  # refuses a wrong config before a byte is read
    path = find(path)
    weights = _open(path, expected, raw=raw)
    _require_same_model(weights.metadata, config, path)
    params = read_fitting(weights, expected, path)
    return params, {**weights.metadata, "format": weights.kind}


def convert(source: str | Path, target: str | Path, config: Any, *, command: str = "") -> Path:
    """Writes the averaged weights of a checkpoint of any known format in this project's; returns its path.

    Raises:
        ValueError: as ``restore_params``, or if the target exists.
        OSError: if it cannot be written.
    """
    target = Path(target)
    require(
        not target.exists() or (target.is_dir() and not any(target.iterdir())),
        "checkpoint to write",
        str(target),
        "a path at which nothing is yet, or an empty folder",
        "name another, or remove it",
    )
    params, metadata = restore_params(source, config)
    source = find(source)
    origin = {
        "source": source.name,
        "source_format": metadata["format"],
        "source_sha256": checkpoint_sha256(source),
    }
    described = describe(config, step=metadata["step"], command=command, **origin)
    return save(target, params, described, force=target.exists())


def checkpoint_sha256(path: str | Path) -> str:
    """SHA-256 of a checkpoint file, or of the sorted names and contents of all files in a folder."""
    path = find(path)
    if path.is_file():
        return _sha256(path)
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()} {_sha256(file)}\n".encode())
    return digest.hexdigest()


def identity(path: str | Path) -> dict[str, Any]:
    """What a result says of its checkpoint: the SHA-256, and that of the source it was converted from."""
    path = find(path)
    metadata = _read_metadata(path) if path.is_dir() else {}
    source = {name: value for name, value in metadata.items() if name.startswith("source")}
    return {"checkpoint": path.name, "checkpoint_sha256": checkpoint_sha256(path), **source}


def find(path: str | Path) -> Path:
    """The checkpoint that a path means: itself, or the only one in that folder.

    Raises:
        ValueError: if there is none or more than one, listing what is there.
    """
    given, path = path, Path(path).expanduser()
    if not path.exists() and not path.is_absolute():
        path = ROOT / path
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=3)
        hint = (
            f"did you mean {' or '.join(near)}?" if near else "see docs/checkpoints.md for where to get one"
        )
        raise ValueError(f"checkpoint = {str(given)!r}: there is nothing at {path.absolute()}; {hint}")
    path = path.resolve()
    if path.is_file() or _is_own(path):
        return path
    inside = sorted(entry for entry in path.iterdir() if _is_checkpoint(entry))
    if len(inside) == 1:
        return inside[0]
    names = ", ".join(entry.name for entry in inside)
    require(
        not inside,
        "checkpoint",
        str(given),
        f"one checkpoint, but this folder holds {len(inside)}: {names}",
        f"name one, for example --checkpoint={Path(given) / inside[-1].name}" if inside else "",
    )
    found = "empty" if not any(path.iterdir()) else "without a checkpoint"
    raise ValueError(
        f"checkpoint = {str(given)!r}: allowed is a checkpoint or a folder with one, but this folder is "
        f"{found}; see docs/checkpoints.md for where to get one"
    )


def _is_own(path: Path) -> bool:
    return (path / "params_ema").is_dir() and (path / "metadata").is_dir()


def _is_checkpoint(path: Path) -> bool:
    if path.is_dir():
        return _is_own(path)
    head = _head(path)
    return head[:4] == published_torch.FIRST_BYTES or head[:1] in map(_byte, published_jax.FIRST_BYTES)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def _byte(value: int) -> bytes:
    return bytes([value])


def _open(path: Path, expected: Mapping[str, Any], *, raw: bool) -> Weights:
    if path.is_dir():
        return _open_own(path, raw=raw)
    head = _head(path)
    if head[:4] == published_torch.FIRST_BYTES:
        return published_torch.open_weights(path, expected, raw=raw)
    if head and head[0] in published_jax.FIRST_BYTES:
        return published_jax.open_weights(path, raw=raw)
    pickled = head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04")
    fix = (
        "it is a bare pickle, perhaps of PyTorch before 1.6: load it where you trust it, and torch.save "
        "it again"
        if pickled
        else "copy it again from its source, and see docs/checkpoints.md"
    )
    raise ValueError(
        f"checkpoint {path}: allowed is {KIND}, {published_jax.KIND} or {published_torch.KIND}, but a "
        f"file of {path.stat().st_size} bytes that begins with {head!r} is none of these; {fix}"
    )


def require_whole(path: Path) -> None:
    """Refuses a folder of which a file is missing or of another size than when it was written.

    Orbax would find out too, but at its own pace: what it had begun to read goes on failing for a while.
    """
    if not (path / SIZES).is_file():
        return  # killed just before it was written, or not ours to tell
    try:
        written = json.loads((path / SIZES).read_text())
        found = _sizes(path)
        for name, size in written.items():
            if found.get(name) != size:
                raise ValueError(f"{name} has {found.get(name, 'no')} of {size} bytes")
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _sizes(path: Path) -> dict[str, int]:
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != SIZES)
    return {file.relative_to(path).as_posix(): file.stat().st_size for file in files}


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads((path / "metadata" / "metadata").read_text())
        if not isinstance(metadata, dict):
            raise ValueError("it is not a dictionary")
        return metadata
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = str(error).strip().split("\n")[0][:300]
    return ValueError(
        f"checkpoint {path}: allowed is a whole folder in {KIND}, but reading it fails ({reason}); copy "
        "it again from its source, or take another checkpoint of that training"
    )


def _open_own(path: Path, *, raw: bool) -> Weights:
    item, prefix = ("training_state", "params/") if raw else ("params_ema", "")
    folder = path / item
    require(
        folder.is_dir(),
        "checkpoint",
        str(path),
        f"one with the item {item!r} for raw weights; this one was made for sampling",
        "take the averaged weights, or a checkpoint of the training itself",
    )
    require_whole(path)
    metadata = _read_metadata(path)
    try:
        tree: Any = ocp.StandardCheckpointHandler().metadata(_epath(folder))
        stored = flatten(_plain(tree.tree))
    except Exception as error:  # orbax has no class of its own for a damaged checkpoint
        raise _damaged(path, error) from error
    shapes = {
        name.removeprefix(prefix): tuple(array.shape)
        for name, array in stored.items()
        if name.startswith(prefix) and hasattr(array, "shape")
    }

    def read(names: Iterable[str]) -> dict[str, np.ndarray]:
        flat = {prefix + name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        restore_args = unflatten(flat)
        item = jax.tree.map(lambda _: 0, restore_args)
        try:
            # each of several processes reads for itself, and waits for no other
            this = jax.process_index()
            alone = ocp.options.MultiprocessingOptions(primary_host=this, active_processes={this})
            handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
            with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
                tree = checkpointer.restore(
                    folder,
                    args=ocp.args.PyTreeRestore(  # pyright: ignore[reportCallIssue]
                        item=item, restore_args=restore_args, partial_restore=True
                    ),
                )
        except Exception as error:
            raise _damaged(path, error) from error
        return {name.removeprefix(prefix): np.asarray(array) for name, array in flatten(tree).items()}

    return Weights(KIND, shapes, read, metadata)


def _epath(path: Path) -> Any:
    from etils import epath  # orbax's own type of path

    return epath.Path(path)


def _plain(tree: Any) -> Any:
    """Orbax's tree of metadata as dictionaries; lists get their indices as names."""
    if isinstance(tree, Mapping):
        return {str(name): _plain(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple) and not hasattr(tree, "shape"):
        return {str(i): _plain(value) for i, value in enumerate(tree)}
    return tree


def _require_same_model(metadata: Mapping[str, Any], config: Any, path: Path) -> None:
    """Refuses weights that would fit, but whose network or process was another one."""
    theirs = metadata.get("sde", {}).get("name", config.sde.name)
    require(
        theirs == config.sde.name,
        "config.sde.name",
        config.sde.name,
        f"{theirs!r} with checkpoint {path}, which was trained for it",
        "take the config of that training, or another checkpoint",
    )
    ours = {
        "model": json.loads(json.dumps(config.model.to_dict())),
        "data": {name: config.data[name] for name in ("image_size", "num_channels", "centered")},
    }
    differences = [
        f"config.{group}.{name} = {value!r} here, {metadata[group][name]!r} there"
        for group, settings in ours.items()
        for name, value in settings.items()
        if name not in _FREE and metadata.get(group, {}).get(name, value) != value
    ]
    if differences:
        raise ValueError(
            f"checkpoint {path} is of another architecture: {'; '.join(differences)}; take the config of "
            "that training, or another checkpoint"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
