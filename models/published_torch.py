"""Reads PyTorch files without PyTorch, and without running anything that they contain.

Since PyTorch 1.6 such a file is a zip archive: one pickle that describes the objects, and the bytes of each
storage in a member of its own. Before, it was a row of pickles followed by the bytes of the storages. A
pickle is a program for a stack machine, which can name any function to be called on loading. The machine
here has no means to import or to call: what a pickle names stays a name, and only the three names that
describe a tensor mean something. Tensors are noted, and read on demand.

In the published checkpoints, layers are numbered in order of use; ours are numbered by kind, in that order.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np

from models.weights import Weights, listed
from sde_lib.checks import refusal

KIND = "the published PyTorch format"
ZIP, LEGACY = (
    b"PK\x03\x04",
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
)  # what the two kinds of file begin with
FIRST_BYTES = (ZIP, LEGACY)

# Of a pickle: the published ones have some 500 kB and 50,000 instructions
_MAX_BYTES, _MAX_INSTRUCTIONS = 1 << 24, 500_000
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


Read = Callable[[Mapping[str, Tensor]], dict[str, np.ndarray]]


class _Machine:
    """Reads pickles of PyTorch's that hold containers, plain values and tensors.

    Everything else is a ``Foreign``, and what the pickle does to it has no effect.

    Attributes:
        storages: those that the pickles refer to, by key.
    """

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}

    def load(self, file: io.BufferedIOBase) -> Any:
        """The value of the next pickle in a file, which is left at the pickle's end."""
        start = file.tell()
        content = io.BytesIO(file.read(_MAX_BYTES))  # bounds the lengths that instructions declare, too
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        for number, (instruction, argument, _) in enumerate(pickletools.genops(content)):
            if number >= _MAX_INSTRUCTIONS:
                raise pickle.UnpicklingError(f"it has more than {_MAX_INSTRUCTIONS:,} instructions")
            self._step(instruction, argument)
        file.seek(start + content.tell())
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
                push(Foreign(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                push(Foreign(".".join(self._pop(2))))
            case "INST":
                self._pop_mark()
                push(Foreign(argument.replace(" ", ".", 1)))
            case "OBJ":
                push(self._pop_mark()[0])
            case "REDUCE" | "NEWOBJ":
                push(_call(*self._pop(2)))
            case "NEWOBJ_EX":
                push(self._pop(3)[0])
            case "BUILD":
                pop()  # attributes, which nothing here has
            case "BINPERSID":
                push(self._storage(*pop()))
            case "PERSID" | "EXT1" | "EXT2" | "EXT4" | "NEXT_BUFFER" | "READONLY_BUFFER":
                raise pickle.UnpicklingError(f"it has the instruction {instruction.name}")
            case _:
                push(argument)  # a number, a string or bytes

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

    def _storage(self, kind: Any, storage_type: Any, key: Any, *_: Any) -> Storage | Foreign:
        if kind != "storage" or not isinstance(storage_type, Foreign) or not isinstance(key, str | int):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        if storage_type.name not in _STORAGE_TYPES:
            return storage_type
        storage = Storage(_STORAGE_TYPES[storage_type.name], str(key))
        self.storages.setdefault(storage.key, storage)
        return storage


def _call(function: Any, arguments: Any) -> Any:
    """What calling a name would make: a tensor, an empty dictionary, or nothing that is of use."""
    if not isinstance(function, Foreign) or not isinstance(arguments, tuple):
        raise pickle.UnpicklingError("it calls something that has no name")
    match function.name:
        case "collections.OrderedDict" if not arguments:
            return {}
        case "torch._utils._rebuild_tensor_v2":
            return _tensor(*arguments)
        case "torch._utils._rebuild_parameter":
            return arguments[0]
    return function


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
    try:
        state, read_storages = (_load_zip if is_zip else _load_legacy)(path)
    except _NotPyTorch as error:
        fix = "take a file that PyTorch wrote"
        allowed = f"a PyTorch file, but it is a zip archive that holds {error}"
        raise ValueError(refusal("checkpoint", str(path), allowed, fix)) from None
    except Exception as error:  # a damaged file can raise nearly anything
        raise _damaged(path, error) from error

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
            raise _damaged(path, error) from error
        return {name: arrays[name] for name in tensors}

    return state, read


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


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = f"{type(error).__name__} {error}".partition("\n")[0][:200]
    allowed = f"a whole PyTorch file, but reading it fails ({reason})"
    return ValueError(refusal("checkpoint", str(path), allowed, "copy it again from its source"))


_ReadStorages = Callable[[Iterable[str]], Iterator[tuple[bytes, Literal["<", ">"]]]]  # bytes and their order


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
    """PyTorch's format before 1.6: five pickles one after the other, then the bytes of each storage.

    The pickles: a magic number, the format's version, facts about the machine, the objects, and the keys of
    the storages in the order of their bytes. Each storage starts with its number of elements, 8 bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(LEGACY)) != LEGACY:
            raise pickle.UnpicklingError("it begins like no PyTorch file")
        machine = _Machine()
        if machine.load(file) != 1001:
            raise pickle.UnpicklingError("its version is unknown")
        machine.load(file)
        state = machine.load(file)
        places: dict[str, tuple[int, int]] = {}  # key -> offset in the file, length in bytes
        for key in map(str, machine.load(file)):
            count = int.from_bytes(file.read(8), "little")
            places[key] = file.tell(), count * jnp.dtype(machine.storages[key].dtype).itemsize
            if sum(places[key]) > size:
                raise EOFError("it ends inside its tensors")
            file.seek(sum(places[key]))

    def read(keys: Iterable[str]) -> Iterator[tuple[bytes, Literal["<", ">"]]]:
        with path.open("rb") as file:
            for key in keys:
                offset, length = places[key]
                file.seek(offset)
                yield file.read(length), "<"

    return state, read


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


def open_weights(path: Path, expected: Mapping[str, Any], *, raw: bool) -> Weights:
    """The averaged weights in a published PyTorch checkpoint, or with ``raw`` the weights as trained.

    Args:
        path: the file.
        expected: our parameters' tree, layers in order of use (``Network.abstract_params``).
        raw: whether to take the weights as trained instead of their moving average.

    Returns:
        The weights under our names.

    Raises:
        ValueError: for a file that is truncated, whose weights are something else than tensors (nothing is
            run), or that is not such a training state.
    """
    state, read_tensors = load_state(path)
    try:
        tensors = _layers(_part(path, state, "model"))
        if not raw:
            tensors = _averaged(tensors, _part(path, state, "ema", "shadow_params"))
        for name, tensor in tensors.items():
            if isinstance(tensor, Foreign):
                refuse_foreign(path, name, tensor)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        theirs = _their_names(shapes, expected)
    except (KeyError, TypeError, AttributeError) as error:
        held = listed([repr(key)[:60] for key in state]) if isinstance(state, dict) else type(state).__name__
        fix = "take a file of the published training runs (docs/checkpoints.md)"
        if isinstance(state, dict) and any("all_modules." in str(name) for name in state):
            fix = (
                "save {'model': model.state_dict(), 'ema': ema.state_dict(), 'step': step}, not bare weights"
            )
        allowed = (
            f"a training state with tensors under 'model' and 'ema'/'shadow_params', but it holds {held} "
            f"({type(error).__name__} {str(error)[:60]})"
        )
        raise ValueError(refusal("checkpoint", str(path), allowed, fix)) from error

    def read(names: Iterable[str]) -> dict[str, np.ndarray]:
        arrays = read_tensors({name: tensors[theirs[name]] for name in names})
        return {name: _to_ours(theirs[name], array) for name, array in arrays.items()}

    ours = {name: _our_shape(their, shapes[their]) for name, their in theirs.items()}
    return Weights(KIND, ours, read, {"step": _step(state.get("step"), read_tensors)})


def _part(path: Path, state: Any, *names: str) -> Any:
    """The object under nested names; raises KeyError or TypeError where there is none."""
    for name in ("the file", *names):
        state = state if name == "the file" else state[name]
        if isinstance(state, Foreign):
            refuse_foreign(path, name, state)
    return state


def _layers(model: dict[str, Any]) -> dict[str, Any]:
    """The parameters without what DataParallel ("module.") and torch.compile ("_orig_mod.") add to names."""
    plain = {re.sub(r"^(module\.)+", "", name.replace("_orig_mod.", "")): name for name in model}
    layers = [name for name in plain if re.match(r"all_modules\.\d{1,6}\.\w", name, re.ASCII)]
    numbers = [int(name.split(".")[1]) for name in layers]
    if len(plain) != len(model) or numbers != sorted(numbers):
        raise KeyError("layers in another order than that of their use")
    return {name: model[plain[name]] for name in layers}


def _step(step: Any, read: Read) -> int | None:
    """The number of training steps, of which some versions make a tensor; None where nothing says it."""
    if isinstance(step, Tensor):
        array = read({"step": step})["step"]
        step = array.item() if array.size == 1 else None
    return int(step) if isinstance(step, int) or (isinstance(step, float) and step.is_integer()) else None


def _averaged(model: dict[str, Any], shadow: Any) -> dict[str, Any]:
    """The moving averages by name; the file lists them in the order of the trained parameters."""
    fixed = {name for name in model if re.fullmatch(r"all_modules\.\d+\.W", name)}  # Fourier frequencies
    trained = [name for name in model if name not in fixed or len(shadow) == len(model)]
    if len(trained) != len(shadow):
        raise TypeError(f"{len(shadow)} averages for {len(trained)} trained parameters")
    return model | dict(zip(trained, shadow, strict=True))


def _their_names(shapes: dict[str, tuple[int, ...]], expected: Mapping[str, Any]) -> dict[str, str]:
    """From our names, such as "Conv_0/kernel", to theirs, such as "all_modules.3.weight"."""
    layers: dict[str, list[str]] = {}
    for name in shapes:
        _, number, parameter = name.split(".", 2)
        layers.setdefault(number, []).append(parameter)
    kinds = collections.Counter(name.rpartition("_")[0] for name in expected)
    count = collections.Counter()
    theirs = {}
    for number, parameters in layers.items():
        kind = _kind(number, parameters, shapes, kinds, count)
        layer = f"{kind}_{count[kind]}"
        count[kind] += 1
        for parameter in parameters:
            *inner, last = parameter.split(".")
            within = inner[-1].rpartition("_")[0] if inner else kind
            own_name = {"GroupNorm": "scale", "Conv": "kernel", "Dense": "kernel"}.get(within, last)
            path = [layer, *inner, own_name if last == "weight" else last]
            theirs["/".join(path)] = f"all_modules.{number}.{parameter}"
    return theirs


def _kind(
    number: str,
    parameters: list[str],
    shapes: dict[str, tuple[int, ...]],
    expected: collections.Counter[str],
    seen: collections.Counter[str],
) -> str:
    """Our name for a layer, inferred from the names and shapes of its parameters."""
    shape = max(
        (shapes[f"all_modules.{number}.{name}"] for name in parameters), key=len
    )  # not that of a bias
    if "GroupNorm_1.weight" in parameters:
        return _starting_with("ResnetBlock", expected)
    if "NIN_3.W" in parameters:
        return _starting_with("AttnBlock", expected)
    if parameters == ["W"]:
        return "GaussianFourierProjection"
    if "." in parameters[0]:  # a convolution within a layer: 1x1 ones combine, others resample, down first
        if shape[-2:] == (1, 1):
            return "Combine"
        return "Downsample" if seen["Downsample"] < expected["Downsample"] else "Upsample"
    return {1: "GroupNorm", 2: "Dense", 4: "Conv"}.get(len(shape), "Layer")


def _starting_with(prefix: str, kinds: Iterable[str]) -> str:
    return next((kind for kind in kinds if kind.startswith(prefix)), prefix)


def _axes(name: str, rank: int) -> tuple[int, ...]:
    """Their axes in our order: theirs are (out, in, h, w) and (out, in) for dense layers; NIN is as ours."""
    if rank == 4:
        return 2, 3, 1, 0
    return (1, 0) if rank == 2 and name.endswith("weight") else tuple(range(rank))


def _our_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in _axes(name, len(shape)))


def _to_ours(name: str, array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(_axes(name, array.ndim)))
