"""Reads the published JAX checkpoints: a training state in Flax's msgpack, with an optimizer long gone.

Such a file is some 1 GB, of which the averaged weights are a quarter. It is walked without being loaded:
the walk notes where every array lies, and only the arrays asked for are read. (Format: msgpack.org, and
extension types 1 and 3 of flax.serialization: shape, dtype name and bytes of an array.)
"""

from __future__ import annotations

import dataclasses
import io
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from models.weights import Weights, flatten

KIND = "the published JAX format"
FIRST_BYTES = (*range(0x81, 0x90), 0xDE, 0xDF)  # a map that is not empty

_NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
_NUMBERS |= {0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_SIZES = {1: ">B", 2: ">H", 4: ">I"}
_ARRAY_EXTENSIONS = (1, 3)  # an array, a NumPy scalar


@dataclasses.dataclass(frozen=True)
class _Bytes:
    """Where a string of bytes lies in the file."""

    offset: int
    length: int


@dataclasses.dataclass(frozen=True)
class _Stored:
    """Where an array lies in the file."""

    shape: tuple[int, ...]
    dtype: str
    data: _Bytes


class _Walk:
    """Reads msgpack values from a file in order, except for the contents of arrays."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        self._file = file
        self._size = size

    def value(self) -> Any:
        code = self._read(1)[0]
        if code <= 0x7F:
            return code
        if code >= 0xE0:
            return code - 0x100
        if code <= 0x8F:
            return self._map(code & 0x0F)
        if code <= 0x9F:
            return self._list(code & 0x0F)
        if code <= 0xBF:
            return self._text(code & 0x1F)
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if code in (0xC4, 0xC5, 0xC6):
            return self._bytes(self._integer(1 << (code - 0xC4)))
        if code in (0xC7, 0xC8, 0xC9):
            return self._extension(self._integer(1 << (code - 0xC7)))
        if code in _NUMBERS:
            return self._number(_NUMBERS[code])
        if 0xD4 <= code <= 0xD8:
            return self._extension(1 << (code - 0xD4))
        if code in (0xD9, 0xDA, 0xDB):
            return self._text(self._integer(1 << (code - 0xD9)))
        if code in (0xDC, 0xDD):
            return self._list(self._integer(2 << (code - 0xDC)))
        if code in (0xDE, 0xDF):
            return self._map(self._integer(2 << (code - 0xDE)))
        raise ValueError(f"byte {code:#x} at {self._file.tell() - 1} begins no msgpack value")

    def _map(self, length: int) -> dict[Any, Any]:
        return {self.value(): self.value() for _ in range(length)}

    def _list(self, length: int) -> list[Any]:
        return [self.value() for _ in range(length)]

    def _text(self, length: int) -> str:
        return self._read(length).decode()

    def _bytes(self, length: int) -> _Bytes:
        place = _Bytes(self._file.tell(), length)
        self._skip_to(place.offset + length)
        return place

    def _extension(self, length: int) -> Any:
        code = self._number(">b")
        end = self._file.tell() + length
        if code in _ARRAY_EXTENSIONS:
            shape, dtype, data = self.value()
            value = _Stored(tuple(shape), dtype, data)
        else:
            value = None  # a complex number: nothing that a network has
        self._skip_to(end)
        return value

    def _integer(self, size: int) -> int:
        return self._number(_SIZES[size])

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._read(struct.calcsize(form)))[0]

    def _read(self, length: int) -> bytes:
        self._require(self._file.tell() + length)
        return self._file.read(length)

    def _skip_to(self, offset: int) -> None:
        self._require(offset)
        self._file.seek(offset)

    def _require(self, end: int) -> None:
        if end > self._size:
            raise ValueError(f"it has {self._size} bytes and ends inside a value that goes to byte {end}")


def open_weights(path: Path, *, raw: bool) -> Weights:
    """The averaged (``raw``: the last) weights in a published JAX checkpoint.

    Raises:
        ValueError: for a file that is truncated or no such training state, naming it and what was found.
    """
    try:
        with path.open("rb") as file:
            state = _Walk(file, path.stat().st_size).value()
    except (ValueError, TypeError, RecursionError) as error:  # TypeError: a map's key that is a map
        raise ValueError(
            f"checkpoint {path}: allowed is a whole file in {KIND}, but {error}; copy it again from its "
            "source"
        ) from error
    try:
        tree = state["optimizer"]["target"] if raw else state["params_ema"]
        tree = tree["params"] if set(tree) == {"params"} else tree
        stored = flatten(tree)
        shapes = {name: array.shape for name, array in stored.items()}
    except (KeyError, TypeError, AttributeError) as error:
        wanted = "optimizer/target" if raw else "params_ema"
        keys = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"checkpoint {path}: allowed is a training state with arrays under {wanted!r}, but it holds "
            f"{keys}; take a file of the published training runs (docs/checkpoints.md)"
        ) from error

    def read(names: Iterable[str]) -> dict[str, np.ndarray]:
        with path.open("rb") as file:
            return {name: _read_array(file, stored[name]) for name in names}

    step = state.get("step")
    if isinstance(step, _Stored):
        with path.open("rb") as file:
            step = int(_read_array(file, step))
    return Weights(KIND, shapes, read, {"step": step})


def _read_array(file: io.BufferedReader, stored: _Stored) -> np.ndarray:
    file.seek(stored.data.offset)
    array = np.empty(stored.shape, jnp.dtype(stored.dtype))
    if (
        array.nbytes != stored.data.length
        or file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes
    ):
        raise ValueError(
            f"an array of shape {stored.shape} and type {stored.dtype} lies in {stored.data.length} bytes"
        )
    return array
