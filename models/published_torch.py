"""Reads PyTorch files without PyTorch, and without running anything that they contain.

Since PyTorch 1.6 such a file is a zip archive: one pickle that describes the objects, and the bytes of each
storage in a member of its own. Before, it was a row of pickles followed by the bytes of the storages. A
pickle can name any function to be called on loading. Here it gets harmless ones of ours for the few that a
file of tensors needs, and everything else is refused by name. Tensors are noted, and read on demand.

In the published checkpoints, layers are numbered in order of use; ours are numbered by kind, in that order.
"""

from __future__ import annotations

import collections
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

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

_STORAGE_TYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


# Tuples, since a pickle's instruction BUILD could change the attributes of other objects


class _StorageType(NamedTuple):
    dtype: str


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


def admitted() -> dict[tuple[str, str], Any]:
    """What a pickle may name, (module, name) -> our stand-in.

    The stand-ins are new at each call: a pickle that changed one would change no later load.
    """

    def rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, Storage) or not all(type(number) is int for number in numbers):
            raise pickle.UnpicklingError("a tensor is none")
        return Tensor(storage, offset, tuple(shape), tuple(strides))

    def rebuild_parameter(data: Any, *_: Any) -> Any:
        return data

    return {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    } | {("torch", name): _StorageType(dtype) for name, dtype in _STORAGE_TYPES.items()}


class _Refused(pickle.UnpicklingError):
    """The pickle names something that no checkpoint needs."""


class _Unpickler(pickle.Unpickler):
    """Reads a pickle of PyTorch's that holds containers, plain values and tensors, and runs none of it.

    Attributes:
        storages: those that the pickle refers to, by key.
    """

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.storages: dict[str, Storage] = {}
        self._admitted = admitted()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._admitted:
            raise _Refused(f"{module}.{name}")
        return self._admitted[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage_type, key, *_ = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError(f"unknown reference {kind!r}")
        return self.storages.setdefault(str(key), Storage(storage_type.dtype, str(key)))


def load_state(path: Path) -> tuple[Any, Read]:
    """The objects in a PyTorch file, with a ``Tensor`` for each tensor, and the function that reads tensors.

    Returns:
        state: as ``torch.load`` would return it, but for the tensors.
        read: from tensors to their arrays, under the same names; raises ValueError, too.

    Raises:
        ValueError: for a file that is damaged, or that names something else than tensors (it is not run).
    """
    with path.open("rb") as file:
        load = _load_zip if file.read(len(ZIP)) == ZIP else _load_legacy
    try:
        return load(path)
    except _Refused as refused:
        allowed = f"a file of tensors and containers only, but its pickle wants to import {refused}"
        fix = "nothing was run; do not open it with torch.load either, and get it from a source you trust"
        raise ValueError(refusal("checkpoint", str(path), allowed, fix)) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = f"{type(error).__name__} {error}".partition("\n")[0][:200]
    allowed = f"a whole PyTorch file, but reading it fails ({reason})"
    return ValueError(refusal("checkpoint", str(path), allowed, "copy it again from its source"))


def _load_zip(path: Path) -> tuple[Any, Read]:
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise pickle.UnpicklingError("it is a zip archive without a data.pkl")
        root = pickles[0].removesuffix("/data.pkl")
        with archive.open(pickles[0]) as file:
            state = _Unpickler(file).load()
        byteorder = f"{root}/byteorder"
        order = ">" if byteorder in archive.namelist() and archive.read(byteorder) != b"little" else "<"

    def read(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        try:
            with zipfile.ZipFile(path) as archive:
                return {
                    name: _view(archive.read(f"{root}/data/{tensor.storage.key}"), order, tensor)
                    for name, tensor in tensors.items()
                }
        except (KeyError, ValueError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise _damaged(path, error) from error

    return state, read


def _load_legacy(path: Path) -> tuple[Any, Read]:
    """PyTorch's format before 1.6: five pickles one after the other, then the bytes of each storage.

    The pickles: a magic number, the format's version, facts about the machine, the objects, and the keys of
    the storages in the order of their bytes. Each storage starts with its number of elements, 8 bytes.
    """
    with path.open("rb") as file:
        if file.read(len(LEGACY)) != LEGACY:
            raise pickle.UnpicklingError("it begins like no PyTorch file")
        if _Unpickler(file).load() != 1001:
            raise pickle.UnpicklingError("its version is unknown")
        _Unpickler(file).load()
        unpickler = _Unpickler(file)
        state = unpickler.load()
        places: dict[str, tuple[int, int]] = {}  # key -> offset in the file, length in bytes
        for key in map(str, _Unpickler(file).load()):
            count = int.from_bytes(file.read(8), "little")
            places[key] = file.tell(), count * jnp.dtype(unpickler.storages[key].dtype).itemsize
            file.seek(sum(places[key]))
        if file.tell() > path.stat().st_size:
            raise EOFError("it ends inside its tensors")

    def read(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        arrays = {}
        try:
            with path.open("rb") as file:
                for name, tensor in tensors.items():
                    offset, length = places[tensor.storage.key]
                    file.seek(offset)
                    arrays[name] = _view(file.read(length), "<", tensor)
        except (KeyError, ValueError, OSError) as error:
            raise _damaged(path, error) from error
        return arrays

    return state, read


def _view(content: bytes, order: Literal["<", ">"], tensor: Tensor) -> np.ndarray:
    """A tensor's numbers, in the bytes of its storage."""
    dtype = jnp.dtype(tensor.storage.dtype).newbyteorder(order)
    numbers = np.frombuffer(content, dtype)
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    inside = min((tensor.offset, *tensor.strides, *tensor.shape)) >= 0 and last < len(numbers)
    if math.prod(tensor.shape) and not inside:
        raise ValueError(f"a tensor goes beyond storage {tensor.storage.key}")
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)


def open_weights(path: Path, expected: Mapping[str, Any], *, raw: bool) -> Weights:
    """The averaged weights in a published PyTorch checkpoint, or with ``raw`` the weights as trained.

    Args:
        path: the file.
        expected: our parameters' tree, layers in order of use (``Network.abstract_params``).
        raw: whether to take the weights as trained instead of their moving average.

    Returns:
        The weights under our names.

    Raises:
        ValueError: for a file that is truncated, that names something else than tensors (it is not run), or
            that is not such a training state.
    """
    state, read_tensors = load_state(path)
    try:
        model = {name.removeprefix("module."): tensor for name, tensor in state["model"].items()}
        tensors = {name: tensor for name, tensor in model.items() if name.startswith("all_modules.")}
        if not raw:
            tensors = _averaged(tensors, state["ema"]["shadow_params"])
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        theirs = _their_names(shapes, expected)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        keys = listed([*map(repr, state)]) if isinstance(state, dict) else f"a {type(state).__name__}"
        allowed = (
            f"a training state with tensors under 'model' and 'ema'/'shadow_params', but it holds {keys}"
        )
        fix = "take a file of the published training runs (docs/checkpoints.md)"
        raise ValueError(refusal("checkpoint", str(path), allowed, fix)) from error

    def read(names: Iterable[str]) -> dict[str, np.ndarray]:
        arrays = read_tensors({name: tensors[theirs[name]] for name in names})
        return {name: _to_ours(theirs[name], array) for name, array in arrays.items()}

    ours = {name: _our_shape(their, shapes[their]) for name, their in theirs.items()}
    return Weights(KIND, ours, read, {"step": state.get("step")})


def _averaged(model: dict[str, Tensor], shadow: list[Tensor]) -> dict[str, Tensor]:
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
