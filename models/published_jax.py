"""Reads the published JAX checkpoints: a training state in Flax's msgpack, with an optimizer long gone.

Such a file is some 1 GB, of which the averaged weights are a quarter. It is read in two passes. The first
notes the shapes of the wanted arrays, the second decodes these arrays; both skip all else. (Format:
msgpack.org, and the extension types 1 and 3 of flax.serialization: shape, dtype name and bytes of an array.)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
from flax.traverse_util import flatten_dict

from models.weights import Weights, listed
from sde_lib.checks import refusal

KIND = "the published JAX format"
FIRST_BYTES = tuple(bytes([code]) for code in (*range(0x81, 0x90), 0xDE, 0xDF))  # a map that is not empty

_ARRAY, _SCALAR = 1, 3  # extension types of flax.serialization
_DTYPES = [f"{kind}{bits}" for kind in ("float", "int", "uint") for bits in (8, 16, 32, 64)][1:]
_DTYPES += ["bfloat16", "bool"]
_MAX_NAMES, _MAX_NAME = 4096, 256  # of a map's names, and of a name's bytes: networks have some 100 of 30
_LIMITS: dict[str, Any] = {
    "max_buffer_size": 1 << 30,  # Flax splits larger arrays
    "max_map_len": _MAX_NAMES,
    "max_str_len": _MAX_NAME,
    "max_bin_len": _MAX_NAME,
    "max_array_len": 0,  # Flax writes a list as a map
}


def open_weights(path: Path, *, raw: bool) -> Weights:
    """The averaged weights in a published JAX checkpoint, or with ``raw`` the weights as trained.

    Raises:
        ValueError: for a file that is truncated, or that is not such a training state.
    """
    place, wanted = ("params_ema",), {"params_ema": None}
    if raw:
        place, wanted = ("optimizer", "target"), {"optimizer": {"target": None}}

    def without_numbers(array: np.ndarray) -> Any:
        return array if array.ndim == 0 else jax.ShapeDtypeStruct(array.shape, array.dtype)

    try:
        state = _read(path, {**wanted, "step": None}, without_numbers)
        stored = _leaves(state, place)
        step = None if state.get("step") is None else int(state["step"])
    except (ValueError, TypeError, ArithmeticError, RecursionError, msgpack.UnpackException) as error:
        reason = "it ends inside a value" if isinstance(error, msgpack.OutOfData) else _in_short(error)
        allowed = f"a whole file in {KIND}, but {reason}"
        raise ValueError(
            refusal("checkpoint", str(path), allowed, "copy it again from its source")
        ) from error
    odd = [f"{name!r} {type(leaf).__name__}" for name, leaf in stored.items() if not hasattr(leaf, "shape")]
    if odd or not stored:
        held = (
            f"under that name there are {listed(odd)}" if odd else f"it holds {listed([*map(repr, state)])}"
        )
        allowed = f"a training state with arrays under {'/'.join(place)!r}, but {held}"
        fix = "take a file of the published training runs (docs/checkpoints.md)"
        raise ValueError(refusal("checkpoint", str(path), allowed, fix))

    def read(names: Iterable[str]) -> dict[str, np.ndarray]:
        arrays = _leaves(_read(path, wanted, lambda array: array), place)
        return {name: arrays[name] for name in names}

    return Weights(KIND, {name: leaf.shape for name, leaf in stored.items()}, read, {"step": step})


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__} {error}".partition("\n")[0][:200]


def _leaves(state: dict[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
    """The leaves of the tree at a place, by their paths in it; none if there is no tree."""
    tree: Any = state
    for name in place:
        tree = tree.get(name) if isinstance(tree, dict) else None
    if isinstance(tree, dict) and set(tree) == {"params"}:
        tree = tree["params"]
    return flatten_dict(tree, sep="/") if isinstance(tree, dict) else {}


def _read(path: Path, wanted: dict[str, Any], convert: Any) -> dict[str, Any]:
    """The file's map: its wanted entries, and of the others only the names.

    Args:
        path: the file.
        wanted: name -> None for a whole entry, or a dictionary of the wanted parts of a map.
        convert: what becomes of each array in the wanted entries.
    """

    def decode(code: int, data: bytes) -> Any:
        if code not in (_ARRAY, _SCALAR):
            return msgpack.ExtType(code, b"")
        shape, dtype, content = msgpack.unpackb(data)
        if dtype not in _DTYPES or not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError(f"an array has the type {dtype!r:.40} and the shape {shape!r:.40}")
        return convert(np.frombuffer(content, jnp.dtype(dtype)).reshape(shape))

    with path.open("rb") as file:
        return _read_map(msgpack.Unpacker(file, ext_hook=decode, **_LIMITS), wanted)


def _read_map(unpacker: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    entries = {}
    count = unpacker.read_map_header()
    if count > _MAX_NAMES:
        raise ValueError(f"a map has {count} names, more than {_MAX_NAMES}")
    for _ in range(count):
        name = unpacker.unpack()
        if not isinstance(name, str):
            raise ValueError(f"a map's name is a {type(name).__name__}, not a string")
        if name not in wanted:
            entries[name] = unpacker.skip()
        elif wanted[name] is None:
            entries[name] = unpacker.unpack()
        else:
            entries[name] = _read_map(unpacker, wanted[name])
    return entries
