"""Reads the published PyTorch checkpoints, a training state: see models/torch_files.py.

In the published checkpoints, layers are numbered in order of use; ours are numbered by kind, in that order.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.torch_files import LEGACY, ZIP, Foreign, Read, Tensor, load_state, refuse_foreign
from models.weights import Weights, listed
from sde_lib.checks import refusal

KIND = "the published PyTorch format"
FIRST_BYTES = (ZIP, LEGACY)


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
