"""Reads files that PyTorch wrote, without PyTorch, and without running anything that they contain.

Since PyTorch 1.6 such a file is a zip archive: one pickle that describes the objects, and the bytes of each
storage in a member of its own. Before, it was a row of pickles followed by the bytes of the storages. An
object that was pickled by itself holds each storage as a small file of that older kind.

A pickle is a program for a stack machine, which can name any function to be called on loading. The machine
here has no means to import or to call: what a pickle names stays a name, and only a few names, those that
describe tensors among them, mean something. Tensors are noted, and read on demand.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import mmap
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, cast

import jax.numpy as jnp
import numpy as np

from models.weights import listed
from sde_lib.checks import refusal

# What the two kinds of file begin with
ZIP, LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# Of a pickle, without the byte strings in it: the published ones have some 500 kB and 50,000 instructions
_MAX_BYTES, _MAX_INSTRUCTIONS = 1 << 24, 500_000
_MAX_INSTRUCTIONS_OF_STORAGE = 1000  # of a pickle that describes one storage: some 30
_MAX_AXES, _MAX_NUMBER = 32, 2**63  # of a tensor: its axes, and the numbers that describe it

_STORAGE_TYPES = {
    "torch.FloatStorage": "float32",
    "torch.DoubleStorage": "float64",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}


class Foreign(NamedTuple):
    """Stands for what a pickle names, and for all that it would make of it.

    Attributes:
        name: with its module, such as "numpy.dtype"; or a fault in words.
    """

    name: str


class Storage(NamedTuple):
    """A row of numbers in a file, to which tensors refer by its key."""

    dtype: str
    key: str


class Tensor(NamedTuple):
    """Where a tensor's numbers are: its storage, and its offset, shape and strides there, in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Bytes(NamedTuple):
    """Where a byte string of a pickle is in its file."""

    offset: int
    length: int


@dataclasses.dataclass
class Object:
    """An object of a class whose name a reader knows: its attributes are all that it has."""

    name: str
    attributes: dict[str, Any]


# Where pickles are read from: whatever length an instruction declares, these read no more than there is
_Content = io.BytesIO | mmap.mmap
Read = Callable[[Mapping[str, Tensor]], dict[str, np.ndarray]]


class _Machine:
    """Reads pickles of PyTorch's that hold containers, plain values and tensors.

    Everything else is a ``Foreign``, and what the pickle does to it has no effect.

    Args:
        known: what a reader makes of other names when they are called, by name.
        max_instructions: of a pickle.

    Attributes:
        storages: those that the pickles refer to, by key.
        names: all that the pickles name, without repetition.
    """

    def __init__(
        self,
        known: Mapping[str, Callable[..., Any]] | None = None,
        max_instructions: int = _MAX_INSTRUCTIONS,
    ) -> None:
        self._known = {**_KNOWN, **(known or {})}
        self._max_instructions = max_instructions
        self.storages: dict[str, Storage] = {}
        self.names: dict[str, None] = {}

    def load(self, content: _Content) -> Any:
        """The value of the next pickle in a file, which is left at the pickle's end."""
        others = content.tell()  # where the pickle would have begun without the byte strings read so far
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        instructions = pickletools.genops(cast(Any, content))
        for number, (instruction, argument, position) in enumerate(instructions):
            if number >= self._max_instructions:
                raise pickle.UnpicklingError(f"it has more than {self._max_instructions:,} instructions")
            if position is not None and position - others > _MAX_BYTES:
                raise pickle.UnpicklingError(f"it has more than {_MAX_BYTES:,} bytes beside byte strings")
            if isinstance(argument, bytes | bytearray):
                others += len(argument)
                argument = Bytes(content.tell() - len(argument), len(argument))
            self._step(instruction, argument)
        return self._stack.pop()

    def _step(self, instruction: pickletools.OpcodeInfo, argument: Any) -> None:
        stack, pop, push = self._stack, self._stack.pop, self._stack.append
        match instruction.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case "POP":
                pop()
            case "POP_MARK":
                self._pop_mark()
            case "DUP":
                push(stack[-1])
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(instruction.name == "NEWTRUE")
            case "EMPTY_TUPLE":
                push(())
            case "TUPLE":
                push(tuple(self._pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(self._pop(int(instruction.name[-1]))))
            case "EMPTY_LIST":
                push([])
            case "LIST":
                push(self._pop_mark())
            case "EMPTY_DICT":
                push({})
            case "DICT":
                items = self._pop_mark()
                push({})
                self._set_items(items)
            case "EMPTY_SET":
                push(Foreign("a set"))
            case "FROZENSET":
                self._pop_mark()
                push(Foreign("a set"))
            case "APPEND" | "APPENDS":
                items = self._pop(1) if instruction.name == "APPEND" else self._pop_mark()
                if isinstance(stack[-1], list):
                    stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                self._set_items(self._pop(2) if instruction.name == "SETITEM" else self._pop_mark())
            case "ADDITEMS":
                self._pop_mark()
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                push(self._memo[argument])
            case "GLOBAL":
                push(self._named(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                push(self._named(".".join(self._pop(2))))
            case "INST":
                self._pop_mark()
                push(self._named(argument.replace(" ", ".", 1)))
            case "OBJ":
                push(self._pop_mark()[0])
            case "REDUCE" | "NEWOBJ":
                push(self._call(*self._pop(2)))
            case "NEWOBJ_EX":
                push(self._pop(3)[0])
            case "BUILD":
                attributes = pop()
                if isinstance(stack[-1], Object) and isinstance(attributes, dict):
                    stack[-1].attributes.update(attributes)
            case "BINPERSID":
                push(self._storage(*pop()))
            case "PERSID" | "EXT1" | "EXT2" | "EXT4" | "NEXT_BUFFER" | "READONLY_BUFFER":
                raise pickle.UnpicklingError(f"it has the instruction {instruction.name}")
            case _:
                push(argument)  # a number, a string, or where bytes are

    def _pop(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _pop_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _set_items(self, items: list[Any]) -> None:
        """Adds keys and values to the dictionary on top; other keys than checkpoints have are left out.

        To hash a nested tuple, or many chosen numbers, can take forever.
        """
        if isinstance(target := self._stack[-1], dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                if isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**32):
                    target[key] = value

    def _named(self, name: str) -> Foreign:
        self.names[name] = None
        return Foreign(name)

    def _call(self, function: Any, arguments: Any) -> Any:
        """What calling a name would make, if that is of use, and the name otherwise."""
        if not isinstance(function, Foreign) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it calls something that has no name")
        return self._known[function.name](*arguments) if function.name in self._known else function

    def _storage(self, kind: Any, storage_type: Any, key: Any, *_: Any) -> Storage | Foreign:
        if kind != "storage" or not isinstance(storage_type, Foreign) or not isinstance(key, str | int):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        if storage_type.name not in _STORAGE_TYPES:
            return storage_type
        storage = Storage(_STORAGE_TYPES[storage_type.name], str(key))
        self.storages.setdefault(storage.key, storage)
        return storage


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor | Foreign:
    if isinstance(storage, Foreign):
        return storage
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor has no storage")
    described = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)
    if described and len(shape) <= _MAX_AXES:
        numbers = (offset, *shape, *strides)
        if all(type(number) is int and 0 <= number < _MAX_NUMBER for number in numbers):
            return Tensor(storage, offset, shape, strides)
    return Foreign("a shape, strides or an offset that PyTorch does not write")


def _ordered(*items: Any) -> dict[str, Any] | Foreign:
    return Foreign("an OrderedDict that is made with its items") if items else {}


_KNOWN: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
}


def load_state(path: Path) -> tuple[Any, Read]:
    """The objects in a PyTorch file, with a ``Tensor`` for each tensor, and the function that reads tensors.

    Returns:
        state: as ``torch.load`` would return it, but for the tensors and for what is ``Foreign``.
        read: from tensors to their arrays, under the same names; raises ValueError, too.

    Raises:
        ValueError: for a file that is damaged or is no PyTorch file.
    """
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP)) == ZIP
    what = "PyTorch file"
    try:
        state, read_storages = (_load_zip if is_zip else _load_legacy)(path)
    except _NotPyTorch as error:
        fix = "take a file that PyTorch wrote"
        allowed = f"a {what}, but it is a zip archive that holds {error}"
        raise ValueError(refusal("checkpoint", str(path), allowed, fix)) from None
    except Exception as error:  # a damaged file can raise nearly anything
        raise _damaged(path, what, error) from error
    return state, _reading(path, what, read_storages)


def load_pickle(path: Path, known: Mapping[str, Callable[..., Any]]) -> tuple[Any, list[str], Read]:
    """The objects in a file that is one pickle, whose tensors hold their storages as files of their own.

    Args:
        path: the file.
        known: what to make of other names than those of tensors and containers, by name, when the pickle
            calls them; an ``Object`` gets the attributes that the pickle sets.

    Returns:
        state: as ``pickle.load`` would return it, but for the tensors and for what is ``Foreign``.
        names: all that the pickle names, with the modules.
        read: as of ``load_state``.

    Raises:
        ValueError: for a file that is damaged or is no pickle.
    """
    what = "pickle"
    storages: dict[str, Storage] = {}
    places: dict[str, Bytes] = {}
    try:
        with _mapped(path) as file:

            def storage_in(content: Bytes) -> Storage:
                key = str(content.offset)
                if key not in storages:
                    after = file.tell()
                    file.seek(content.offset)
                    storage, inside = _legacy(file, sum(content), _MAX_INSTRUCTIONS_OF_STORAGE)
                    storages[key], places[key] = Storage(storage.dtype, key), inside[storage.key]
                    file.seek(after)
                return storages[key]

            machine = _Machine({"torch.storage._load_from_bytes": storage_in, **known})
            state = machine.load(file)
    except Exception as error:  # as above
        raise _damaged(path, what, error) from error
    return state, list(machine.names), _reading(path, what, _at(path, places))


def refuse_foreign(path: Path, what: str, foreign: Foreign) -> NoReturn:
    """Raises ValueError for a wanted part of a file that is neither a tensor nor a container."""
    allowed = f"one of plain tensors, but {what} needs {foreign.name[:80]}"
    fix = (
        "nothing was imported or run; get the file from a source you trust, with its weights saved as "
        "tensors, by state_dict()"
    )
    raise ValueError(refusal("checkpoint", str(path), allowed, fix))


class _NotPyTorch(Exception):
    """A zip archive of another kind."""


def _damaged(path: Path, what: str, error: Exception) -> ValueError:
    reason = f"{type(error).__name__} {error}".partition("\n")[0][:200]
    allowed = f"a whole {what}, but reading it fails ({reason})"
    return ValueError(refusal("checkpoint", str(path), allowed, "copy it again from its source"))


_ReadStorages = Callable[[Iterable[str]], Iterator[tuple[bytes, Literal["<", ">"]]]]  # bytes and their order


def _reading(path: Path, what: str, read_storages: _ReadStorages) -> Read:
    def read(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        by_storage: dict[str, list[str]] = {}
        for name, tensor in tensors.items():
            by_storage.setdefault(tensor.storage.key, []).append(name)
        arrays = {}
        try:
            # each storage once, however many tensors share it
            for names, (content, order) in zip(by_storage.values(), read_storages(by_storage), strict=True):
                arrays |= {name: _view(content, order, tensors[name]) for name in names}
        except Exception as error:
            raise _damaged(path, what, error) from error
        return {name: arrays[name] for name in tensors}

    return read


def _load_zip(path: Path) -> tuple[Any, _ReadStorages]:
    size = path.stat().st_size

    def member(archive: zipfile.ZipFile, name: str, limit: int = size) -> bytes:
        info = archive.getinfo(name)
        # PyTorch does not compress; what is compressed could fill the memory
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise pickle.UnpicklingError(f"{name} is compressed")
        if info.file_size > limit:
            raise pickle.UnpicklingError(f"{name} has {info.file_size:,} bytes, more than {limit:,}")
        return archive.read(info)

    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise _NotPyTorch(listed([name[:40] for name in names], limit=3) or "nothing")
        root = pickles[0].removesuffix("/data.pkl")
        state = _Machine().load(io.BytesIO(member(archive, pickles[0], _MAX_BYTES)))
        byteorder = f"{root}/byteorder"
        order = ">" if byteorder in names and member(archive, byteorder, 16) != b"little" else "<"

    def read(keys: Iterable[str]) -> Iterator[tuple[bytes, Literal["<", ">"]]]:
        with zipfile.ZipFile(path) as archive:
            for key in keys:
                yield member(archive, f"{root}/data/{key}"), order

    return state, read


def _load_legacy(path: Path) -> tuple[Any, _ReadStorages]:
    with _mapped(path) as file:
        state, places = _legacy(file, len(file))
    return state, _at(path, places)


def _legacy(
    file: _Content, end: int, max_instructions: int = _MAX_INSTRUCTIONS
) -> tuple[Any, dict[str, Bytes]]:
    """PyTorch's format before 1.6: five pickles one after the other, then the bytes of each storage.

    The pickles: a magic number, the format's version, facts about the machine, the objects, and the keys of
    the storages in the order of their bytes. Each storage starts with its number of elements, 8 bytes.

    Args:
        file: is read from its present position.
        end: of the part of the file that may be read.
        max_instructions: of each pickle.

    Returns:
        The objects, and where the bytes of each storage are, by its key.
    """
    if file.read(len(LEGACY)) != LEGACY:
        raise pickle.UnpicklingError("it begins like no PyTorch file")
    machine = _Machine(max_instructions=max_instructions)
    if machine.load(file) != 1001:
        raise pickle.UnpicklingError("its version is unknown")
    machine.load(file)
    state = machine.load(file)
    places = {}
    for key in map(str, machine.load(file)):
        count = int.from_bytes(file.read(8), "little")
        place = Bytes(file.tell(), count * jnp.dtype(machine.storages[key].dtype).itemsize)
        if sum(place) > end:
            raise EOFError("it ends inside its tensors")
        places[key] = place
        file.seek(sum(place))
    return state, places


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """A file's content, of which only what is read gets into memory."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def _at(path: Path, places: Mapping[str, Bytes]) -> _ReadStorages:
    def read(keys: Iterable[str]) -> Iterator[tuple[bytes, Literal["<", ">"]]]:
        with path.open("rb") as file:
            for key in keys:
                file.seek(places[key].offset)
                yield file.read(places[key].length), "<"

    return read


def _view(content: bytes, order: Literal["<", ">"], tensor: Tensor) -> np.ndarray:
    """A tensor's numbers, in the bytes of its storage."""
    dtype = jnp.dtype(tensor.storage.dtype).newbyteorder(order)
    numbers = np.frombuffer(content, dtype)
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if not math.prod(tensor.shape):
        return np.zeros(tensor.shape, dtype)
    if last >= len(numbers):
        raise ValueError(f"a tensor goes beyond storage {tensor.storage.key}")
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)
    # A copy lets go of a storage that holds more; a tensor that repeats its numbers stays as small as these
    return view.copy() if view.nbytes < len(content) else view
