"""Reads the published PyTorch checkpoints without PyTorch, and without running anything that they contain.

Such a file is a zip archive: one pickle that describes the objects, and the bytes of each tensor in a member
of its own. A pickle can name any function to be called on loading. Here it gets the few that such a file
needs, replaced by harmless ones of ours, and everything else is refused by name. Tensors are noted, and read
when asked for.

In these files layers are numbered in the order of their use; ours are numbered by kind in the same order.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import math
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from models.weights import Weights

KIND = "the published PyTorch format"
FIRST_BYTES = b"PK\x03\x04"

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


@dataclasses.dataclass(frozen=True)
class _StorageType:
    dtype: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor's numbers lie: in which member of the archive, from which one on, how many apart.

    Attributes:
        storage: where: its ``key`` names the member, its ``dtype`` the kind of numbers.
        offset: the first one, in numbers.
        shape: of the tensor.
        strides: in numbers.
    """

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


_ADMITTED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
} | {("torch", name): _StorageType(dtype) for name, dtype in _STORAGE_TYPES.items()}


class Refused(pickle.UnpicklingError):
    """The pickle names something that no checkpoint needs."""


class TensorUnpickler(pickle.Unpickler):
    """Reads a pickle of PyTorch's that holds containers, plain values and tensors, and runs none of it.

    A tensor becomes a ``Tensor``, which says where its numbers are.

    Raises:
        Refused: from ``load``, for a pickle that names anything else.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise Refused(f"{module}.{name}")
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, *_ = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError(f"unknown reference {kind!r}")
        return _Storage(storage_type.dtype, str(key))


def open_weights(path: Path, expected: Mapping[str, Any], *, raw: bool) -> Weights:
    """The averaged (``raw``: the last) weights in a published PyTorch checkpoint, under our names.

    Args:
        path: the file.
        expected: our parameters' tree, modules in the order of their use (``models.abstract_params``).
        raw: whether to take the weights as trained instead of their moving average.

    Raises:
        ValueError: for a file that is truncated, names something else than tensors (it is not run), or is no
            such training state, naming the file and what was found.
    """
    root, state = load_state(path)
    try:
        model = {name.removeprefix("module."): tensor for name, tensor in state["model"].items()}
        tensors = {name: tensor for name, tensor in model.items() if name.startswith("all_modules.")}
        if not raw:
            tensors = _averaged(tensors, state["ema"]["shadow_params"])
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
    except (KeyError, TypeError, AttributeError) as error:
        keys = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"checkpoint {path}: allowed is a training state with tensors under 'model' and "
            f"'ema'/'shadow_params', but it holds {keys}; take a file of the published training runs "
            "(docs/checkpoints.md)"
        ) from error
    theirs = _their_names(shapes, expected)

    def read(names: Iterable[str]) -> dict[str, np.ndarray]:
        with zipfile.ZipFile(path) as archive:
            return {
                name: _to_ours(theirs[name], read_tensor(archive, root, tensors[theirs[name]]))
                for name in names
            }

    ours = {name: _our_shape(their, shapes[their]) for name, their in theirs.items()}
    return Weights(KIND, ours, read, {"step": state.get("step")})


def load_state(path: Path) -> tuple[str, Any]:
    """The archive's root folder and the objects that its pickle describes, tensors as ``Tensor``.

    Raises:
        ValueError: for a file that is damaged, or names something else than tensors (it is not run).
    """
    damaged = f"checkpoint {path}: allowed is a whole file in {KIND}, but"
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
            if len(pickles) != 1:
                raise ValueError(
                    f"{damaged} it is a zip archive without a data.pkl; take the .pth file itself"
                )
            content = archive.read(pickles[0])
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{damaged} reading it fails ({error}); copy it again from its source") from error
    try:
        return pickles[0].removesuffix("/data.pkl"), TensorUnpickler(io.BytesIO(content)).load()
    except Refused as refused:
        raise ValueError(
            f"checkpoint {path}: its pickle wants to import {refused}; allowed are tensors and containers "
            "only, so nothing was run; do not open this file with torch.load either, and get it from a "
            "source you trust"
        ) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(
            f"{damaged} its pickle is damaged ({error}); copy it again from its source"
        ) from error


def _averaged(model: dict[str, Tensor], shadow: list[Tensor]) -> dict[str, Tensor]:
    """The moving averages by name: they are a list, in the order of those parameters that are trained."""
    fixed = {name for name in model if re.fullmatch(r"all_modules\.\d+\.W", name)}  # Fourier frequencies
    trained = [name for name in model if name not in fixed or len(shadow) == len(model)]
    if len(trained) != len(shadow):
        raise TypeError(f"{len(shadow)} averages for {len(trained)} trained parameters")
    return model | dict(zip(trained, shadow, strict=True))


def _their_names(shapes: dict[str, tuple[int, ...]], expected: Mapping[str, Any]) -> dict[str, str]:
    """From our names, "Conv_0/kernel", to theirs, "all_modules.3.weight"."""
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
    """Our name for a layer, told by the names and shapes of its parameters."""
    shape = max((shapes[f"all_modules.{number}.{name}"] for name in parameters), key=len)  # not a bias's
    if "GroupNorm_1.weight" in parameters:
        return _starting_with("ResnetBlock", expected)
    if "NIN_3.W" in parameters:
        return _starting_with("AttnBlock", expected)
    if parameters == ["W"]:
        return "GaussianFourierProjection"
    if "." in parameters[0]:  # a convolution within a layer: a 1x1 one combines, others resample, first down
        if shape[-2:] == (1, 1):
            return "Combine"
        return "Downsample" if seen["Downsample"] < expected["Downsample"] else "Upsample"
    return {1: "GroupNorm", 2: "Dense", 4: "Conv"}.get(len(shape), "Layer")


def _starting_with(prefix: str, kinds: Iterable[str]) -> str:
    return next((kind for kind in kinds if kind.startswith(prefix)), prefix)


def _axes(name: str, rank: int) -> tuple[int, ...]:
    """Their axes in our order: convolutions are (out, in, h, w), dense layers (out, in), NIN as ours."""
    if rank == 4:
        return 2, 3, 1, 0
    return (1, 0) if rank == 2 and name.endswith("weight") else tuple(range(rank))


def _our_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in _axes(name, len(shape)))


def _to_ours(name: str, array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(_axes(name, array.ndim)))


def read_tensor(archive: zipfile.ZipFile, root: str, tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor of an archive whose root folder ``load_state`` gave.

    Raises:
        ValueError: naming a tensor that is not there as a whole.
    """
    name = f"{root}/data/{tensor.storage.key}"
    try:
        content = archive.read(name)
        little = (
            f"{root}/byteorder" not in archive.namelist() or archive.read(f"{root}/byteorder") == b"little"
        )
    except (KeyError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(
            f"checkpoint {archive.filename}: its tensor {name} cannot be read ({error}); allowed is a "
            "whole file; copy it again from its source"
        ) from error
    dtype = jnp.dtype(tensor.storage.dtype).newbyteorder("<" if little else ">")
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    whole = len(content) % dtype.itemsize == 0 and min((tensor.offset, *tensor.strides, *tensor.shape)) >= 0
    if not whole or (math.prod(tensor.shape) and last >= len(content) // dtype.itemsize):
        raise ValueError(
            f"checkpoint {archive.filename}: a tensor goes beyond {name}; copy it again from its source"
        )
    numbers = np.frombuffer(content, dtype)[tensor.offset :]
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False)
