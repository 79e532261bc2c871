"""Checkpoints: this project's own, written with orbax, and those of other projects, which are only read.

An own checkpoint is a folder with the items ``params_ema`` (the averaged weights, all that sampling needs)
and ``metadata`` (JSON: the model and the origin of the weights), and during a training also
``training_state`` (``params``, the weights as trained, among others). Orbax writes to a temporary folder
and renames it: a checkpoint is whole or absent. ``sizes.json`` beside the items reveals a truncated copy.
Nothing in it is pickled.

The content of a checkpoint decides its format, never its name. A path that a user gives is resolved once,
by ``find``; functions that take a ``Path`` expect it resolved.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.tree_util import Partial

from configs import keys
from models import diffusers_folder, published_edm, published_jax, published_torch
from models.build import Network, Params, build
from models.weights import Weights, listed, read_fitting
from sde_lib import from_config, presets
from sde_lib.checks import refusal, require, require_choice

KIND = "this project's format"
SIZES = "sizes.json"  # of a checkpoint's files, in bytes
ROOT = Path(__file__).resolve().parent.parent

# Where the published checkpoints are, of JAX and of PyTorch (with .pth)
JAX_PAGE = "https://drive.google.com/drive/folders/10pQygNzF7hOOLwP3q8GiNxSnFRpArUxQ"
TORCH_PAGE = "https://drive.google.com/drive/folders/1tFmF_uh57O6lx9ggtZT_5LdonVK2cV-e"

# Files of other kinds: what they begin with, what they are, and what to do instead
_NOT_READ = (
    (
        r".{8}\{\s*\"",
        "a safetensors file, which says nothing of its network",
        "give the folder of diffusers that it belongs to",
    ),
    (
        r"version https://git-lfs",
        "a pointer of Git LFS instead of the file itself",
        "run `git lfs pull` in its repository",
    ),
    (
        r"(?i)\s*<(!doctype|html)",
        "a web page instead of the file itself",
        "download it again in a browser, which can confirm a download without a virus scan",
    ),
)


def describe(config: Any, *, step: int | None, command: str, **more: Any) -> dict[str, Any]:
    """The metadata of a checkpoint: ``config``'s model, data and process, and the command that made it."""
    of_the_call = ("checkpoint", "mismatch_allowed")
    model = {name: value for name, value in config.model.to_dict().items() if name not in of_the_call}
    groups = {"model": model, "data": config.data.to_dict(), "sde": presets.settings(config.sde)}
    return {**groups, "step": step, "command": command, **more}


def save(
    path: str | Path,
    params_ema: Params,
    metadata: dict[str, Any],
    training_state: Any = None,
    *,
    force: bool = False,
) -> Path:
    """Writes a checkpoint folder and returns its path.

    Args:
        path: the folder, which must not exist unless ``force``.
        params_ema: the averaged weights.
        metadata: see ``describe``.
        training_state: what a training resumes from, a pytree of arrays with the key ``params``.
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
        "a path where nothing exists",
        "choose another path, or remove what is there",
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
    # Orbax notes there where it wrote to: of no use on a local file system, and untrue of a copy
    for note in path.rglob("commit_success.txt"):
        note.unlink()
    (path / SIZES).write_text(json.dumps(_sizes(path)))
    return path


def load_score_fn(config: Any, path: str | Path | None = None, raw: bool = False) -> Partial:
    """The score function of ``config``'s model with the weights of a checkpoint of any known format.

    Args:
        config: the whole config (see configs/base.py).
        path: the checkpoint, as for ``find``; by default ``config.model.checkpoint``.
        raw: whether to take the weights as trained instead of their moving average.

    Returns:
        score_fn(x [b, h, w, c], t [b]) -> [b, h, w, c], a pytree; see ``Network.score_fn``.

    Raises:
        ValueError: for a config or a checkpoint that is refused, as by ``build``, ``find`` and
            ``restore_params``.
    """
    path = path if path is not None else config.model.checkpoint
    fix = (
        "train one with --mode=train, or name one with --checkpoint=PATH (docs/checkpoints.md says where "
        "published ones are)"
    )
    if path is None:
        raise ValueError(refusal("config.model.checkpoint", path, "the path of a checkpoint", fix))
    network = build(config)  # refuses a wrong config before a byte is read
    params, _ = restore_params(find(path), network, config, raw=raw)
    return network.score_fn(from_config(config.sde), jax.device_put(params))


def restore_params(
    path: Path, network: Network, config: Any, raw: bool = False
) -> tuple[Params, dict[str, Any]]:
    """A network's weights from a checkpoint of any known format, as float32 NumPy arrays.

    Only these weights are read, and they stay on the host.

    Args:
        path: the checkpoint, as ``find`` returns it.
        network: ``build(config)``.
        config: must agree with what the checkpoint says of its training.
        raw: whether to take the weights as trained instead of their moving average.

    Returns:
        (params, metadata); the metadata has at least ``format`` and ``step``.

    Raises:
        ValueError: for a checkpoint that is damaged, is of another architecture, another process or other
            data, or holds weights that are not finite.
    """
    require_trained_like(path, config)
    expected = network.abstract_params()
    weights = _open(path, expected, raw=raw)
    return read_fitting(weights, expected, path), {**weights.metadata, "format": weights.kind}


def convert(
    source: str | Path, target: str | Path, config: Any, command: str = "", *, dtype: str = "float32"
) -> Path:
    """Writes the averaged weights of a checkpoint of any known format in this project's format.

    Args:
        source: the checkpoint to read, as for ``find``.
        target: the folder to write.
        config: the whole config that describes the checkpoint's model.
        command: kept in the metadata as what made the new checkpoint.
        dtype: of the weights in the new checkpoint, float32 or bfloat16, which takes half the space. They are
            float32 again when they are read.

    Returns:
        The path of the new checkpoint. Where the source says what it was trained with and by which command,
        the new one says the same.

    Raises:
        ValueError: as for ``load_score_fn``, or if something exists at ``target``.
        OSError: if it cannot be written.
    """
    fix = "write it to a local folder, and copy that to the store"
    require("://" not in str(target), "checkpoint to write", str(target), "a local folder", fix)
    target = Path(target)
    require_choice("dtype", dtype, ("float32", "bfloat16"))
    require(
        not target.exists() or (target.is_dir() and not any(target.iterdir())),
        "checkpoint to write",
        str(target),
        "a path where nothing exists, or an empty folder",
        "choose another path, or remove what is there",
    )
    above = next(path for path in target.absolute().parents if path.exists())
    allowed = f"a path in a folder, and {above} is a file"
    require(above.is_dir(), "checkpoint to write", str(target), allowed, "choose another path")
    network = build(config)
    path = find(source)
    params, metadata = restore_params(path, network, config)
    origin = {
        "source": path.name,
        "source_format": metadata["format"],
        "source_sha256": checkpoint_sha256(path),
    }
    if "command" in metadata:
        origin["source_command"] = metadata["command"]
    described = describe(config, step=metadata["step"], command=command, **origin)
    of_source = stated(path)
    groups = {group: {**described[group], **of_source.get(group, {})} for group in ("model", "data", "sde")}
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    return save(target, params, described | groups, force=target.exists())


def checkpoint_sha256(path: Path) -> str:
    """SHA-256 of a checkpoint file, or of the sorted names and contents of the files in a folder.

    These are the files that the checkpoint was written with, or, of a folder of diffusers, those that are
    read. Others may come later: a workdir, another checkpoint, or what a file manager leaves in a folder.
    """
    if path.is_file():
        return _sha256(path)
    digest = hashlib.sha256()
    files = _own_files(path) if _reader(path) is None else diffusers_folder.files(path)
    for file in sorted(file for file in files if file.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()} {_sha256(file)}\n".encode())
    return digest.hexdigest()


def _own_files(path: Path) -> list[Path]:
    if not (path / SIZES).is_file():
        return [*path.rglob("*")]  # the writer was killed just before it wrote the sizes
    try:
        return [path / name for name in (SIZES, *json.loads((path / SIZES).read_text()))]
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error


def provenance(path: Path) -> dict[str, Any]:
    """A checkpoint's name and SHA-256, and those of the file it was converted from, for results to state."""
    metadata = _read_metadata(path) if _reader(path) is None else {}
    source = {name: value for name, value in metadata.items() if name.startswith("source")}
    return {"checkpoint": path.name, "checkpoint_sha256": checkpoint_sha256(path), **source}


def find(path: str | Path) -> Path:
    """The checkpoint at a path: the path itself, or the only checkpoint in that folder.

    A relative path is looked for in the working directory and then in the project's root.

    Raises:
        ValueError: if there is no checkpoint, or more than one, or a file of another kind.
    """
    given, path = path, Path(path).expanduser()
    get_one = _where_to_get(path)
    if not path.exists() and not path.is_absolute():
        path = ROOT / path
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=3)
        allowed = f"an existing file or folder, but there is nothing at {path.absolute()}"
        fix = f"did you mean {' or '.join(near)}? Otherwise {get_one}" if near else get_one
        raise ValueError(refusal("checkpoint", str(given), allowed, fix))
    path = path.resolve()
    if path.is_file():
        _reader(path)
        return path
    if _is_folder(path):
        return path
    inside = sorted(entry for entry in path.iterdir() if _is_checkpoint(entry))
    if len(inside) == 1:
        return inside[0]
    if inside:
        found = f"holds {len(inside)}: {', '.join(entry.name for entry in inside)}"
        fix = f"choose one, for example --checkpoint={Path(given) / inside[-1].name}"
    elif any(path.iterdir()):
        others = sorted(entry.name for entry in path.iterdir())
        found, fix = f"holds none, only {listed(others, limit=3)}", get_one
    else:
        found, fix = "is empty", get_one
    allowed = f"a checkpoint or a folder with one, but this folder {found}"
    raise ValueError(refusal("checkpoint", str(given), allowed, fix))


def _where_to_get(path: Path) -> str:
    """What to do about an absent checkpoint, as an imperative."""
    if "assets" in path.parts:
        return "bring back the shipped ones with `git checkout assets`, or see docs/checkpoints.md"
    if re.fullmatch(r"(edm|baseline)-.*\.pkl", path.name):
        return f"download it from {published_edm.PAGE} and put it there, as docs/checkpoints.md says"
    if path.name == diffusers_folder.PAGE.rpartition("/")[2]:
        return f"download the files of {diffusers_folder.PAGE} into it, as docs/checkpoints.md says"
    page = TORCH_PAGE if path.suffix == ".pth" else JAX_PAGE
    published = re.search(r"[^/]+/[^/]+_continuous(?=/)", path.as_posix())
    if published is None:
        return "see docs/checkpoints.md for where to get one"
    return (
        f"download {path.name} of the folder {published[0]} from {page} and put it there, as "
        "docs/checkpoints.md says"
    )


def _is_own(path: Path) -> bool:
    return (path / "params_ema").is_dir() and (path / "metadata").is_dir()


def _is_folder(path: Path) -> bool:
    return _is_own(path) or diffusers_folder.is_folder(path)


def _is_checkpoint(path: Path) -> bool:
    if path.is_dir():
        return _is_folder(path)
    readers = (published_torch, published_edm, published_jax)
    return any(_head(path).startswith(reader.FIRST_BYTES) for reader in readers)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32)


def _open(path: Path, expected: Mapping[str, Any], *, raw: bool) -> Weights:
    reader = _reader(path)
    if reader is None:
        return _open_own(path, raw=raw)
    if reader is published_jax:
        return published_jax.open_weights(path, raw=raw)
    return reader.open_weights(path, expected, raw=raw)


def stated(path: Path) -> dict[str, Any]:
    """What a checkpoint says of the network in it, in the groups of a config; nothing in some formats.

    Args:
        path: the checkpoint, as ``find`` returns it.

    Returns:
        The metadata of a checkpoint in this project's format; what the reader of another format describes.

    Raises:
        ValueError: if it is damaged, or says that it holds a network that is not supported.
    """
    reader = _reader(path)
    if reader is None:
        return _read_metadata(path)
    return reader.describe(path) if hasattr(reader, "describe") else {}


def _reader(path: Path) -> ModuleType | None:
    """The module that reads a checkpoint of another project, or None for one in this project's format.

    Raises:
        ValueError: for a file of another kind.
    """
    if path.is_dir():
        return diffusers_folder if diffusers_folder.is_folder(path) else None
    head = _head(path)
    if head.startswith(published_torch.FIRST_BYTES):
        return published_torch
    if head.startswith(published_edm.FIRST_BYTES):
        return published_edm
    others = (published_jax, published_torch, published_edm)
    known = f"in {KIND}, {', '.join(other.KIND for other in others)} or {diffusers_folder.KIND}"
    for beginning, what, fix in _NOT_READ:
        if re.match(beginning.encode(), head, re.DOTALL):
            raise ValueError(refusal("checkpoint", str(path), f"{known}, but this is {what}", fix))
    if head.startswith(published_jax.FIRST_BYTES):
        return published_jax
    size = path.stat().st_size
    allowed = f"{known}, but a file of {size} bytes that begins with {head[:16]!r} is none of these"
    fix = "copy it again from its source, and see docs/checkpoints.md"
    raise ValueError(refusal("checkpoint", str(path), allowed, fix))


def require_whole(path: Path) -> None:
    """Refuses a folder in which a file is missing or has another size than when it was written.

    Orbax would notice too, but its other reads in the background go on failing for a while.

    Raises:
        ValueError: naming the file.
    """
    if not (path / SIZES).is_file():
        return  # the writer was killed just before it wrote the sizes
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
    allowed = f"a whole folder in {KIND}, but reading it fails ({reason})"
    fix = "copy it again from its source, or take another checkpoint of that training"
    return ValueError(refusal("checkpoint", str(path), allowed, fix))


def _open_own(path: Path, *, raw: bool) -> Weights:
    item, prefix = ("training_state", "params/") if raw else ("params_ema", "")
    folder = path / item
    require(
        folder.is_dir(),
        "checkpoint",
        str(path),
        f"one with the item {item!r} for raw weights, but this one was made for sampling",
        "take the averaged weights, or a checkpoint of the training itself",
    )
    require_whole(path)
    metadata = _read_metadata(path)
    try:
        tree: Any = ocp.StandardCheckpointHandler().metadata(epath.Path(folder))
        stored: dict[str, Any] = flatten_dict(_plain(tree.tree), sep="/")
    except Exception as error:  # orbax has no class of its own for a damaged checkpoint
        raise _damaged(path, error) from error
    shapes = {
        name.removeprefix(prefix): tuple(array.shape)
        for name, array in stored.items()
        if name.startswith(prefix) and hasattr(array, "shape")
    }

    def read(names: Iterable[str]) -> dict[str, np.ndarray]:
        flat = {prefix + name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        restore_args = unflatten_dict(flat, sep="/")
        item = jax.tree.map(lambda _: 0, restore_args)
        try:
            # each of several processes reads by itself, without waiting for the others
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
        return {
            name.removeprefix(prefix): np.asarray(array)
            for name, array in flatten_dict(tree, sep="/").items()
        }

    return Weights(KIND, shapes, read, metadata)


def _plain(tree: Any) -> Any:
    """Orbax's tree of metadata as dictionaries; lists get their indices as names."""
    if isinstance(tree, Mapping):
        return {str(name): _plain(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple) and not hasattr(tree, "shape"):
        return {str(i): _plain(value) for i, value in enumerate(tree)}
    return tree


def require_trained_like(path: Path, config: Any) -> None:
    """Refuses a config that differs from a checkpoint's in a key that decides whether weights fit.

    Settings that the config's process does not have are not compared, nor is what the checkpoint does not
    state; published ones state nothing. Differences in ``config.model.mismatch_allowed`` are wanted.

    Args:
        path: the checkpoint, as ``find`` returns it.
        config: the whole config.

    Raises:
        ValueError: with the keys and both values, and with the value of mismatch_allowed that lets them be.
    """
    allowed = tuple(config.model.mismatch_allowed)
    for key in allowed:
        require_choice("config.model.mismatch_allowed", key, keys.deciding(keys.WEIGHTS))
    theirs = flatten_dict(stated(path), sep=".")
    theirs = {**keys.ADDED, **json.loads(json.dumps(theirs))} if theirs else {}
    ours = json.loads(json.dumps(keys.values(config, keys.WEIGHTS)))  # with JSON's types, as theirs
    differing = [key for key in ours if key in theirs and theirs[key] != ours[key]]
    there, here = ({f"config.{key}": values[key] for key in differing} for values in (theirs, ours))
    permit = str((*allowed, *(key for key in differing if key not in allowed))).replace("'", '"')
    require(
        set(differing) <= set(allowed),
        "config",
        here,
        f"that of the training of checkpoint {path}, which had {there}",
        "take the config of that training, or another checkpoint; if the difference is wanted, add "
        f"--config.model.mismatch_allowed='{permit}'",
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
