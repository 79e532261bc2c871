"""Small networks with random weights, and files in the published formats that hold them."""

from __future__ import annotations

import io
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.serialization import msgpack_serialize
from flax.traverse_util import flatten_dict

import models
from configs.base import get_config


def config(name: str = "ncsnpp", sde: str = "vp", width: int | None = None, **options: Any) -> Any:
    """A whole config of a network of two resolutions on colour images of 8x8, or of another width."""
    config: Any = get_config()
    config.sde.name = sde
    config.data.image_size = 8
    config.data.image_width = width
    config.data.num_channels = 3
    config.data.centered = sde != "ve"
    base = {"name": name, "nf": 32 if name == "ddpm" else 4, "ch_mult": (1, 2), "num_res_blocks": 1}
    config.model.update(base | {"attn_resolutions": (4,), "fourier_scale": 2.0} | options)
    return config


def params(config: Any, seed: int = 0) -> dict[str, Any]:
    """Random weights that all matter: none is zero, none is large."""
    generator = np.random.default_rng(seed)

    def draw(leaf: Any) -> np.ndarray:
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 4
        return (generator.standard_normal(leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    return jax.tree.map(draw, models.build(config).abstract_params())


def write_jax(path: Path, ema: dict[str, Any], raw: dict[str, Any]) -> Path:
    """A training state as Flax's msgpack, with the fields of the published ones."""
    zeros = jax.tree.map(lambda a: {"grad_ema": np.zeros_like(a), "grad_sq_ema": np.zeros_like(a)}, raw)
    state = {
        "step": np.int32(7000),
        "optimizer": {"target": {"params": raw}, "state": {"step": np.int32(7000), "param_states": zeros}},
        "lr": 2e-4,
        "model_state": {},
        "ema_rate": 0.999,
        "params_ema": ema,
        "rng": np.zeros(2, np.uint32),
    }
    path.write_bytes(msgpack_serialize(state))
    return path


class _Storage:
    """Stands for a tensor's bytes, under their key in the file."""

    def __init__(self, key: str, type_: Any, size: int) -> None:
        self.key, self.type, self.size = key, type_, size


class Tensor:
    """What PyTorch writes as a tensor; ``strides`` are those that the file states, if not the true ones."""

    def __init__(self, array: np.ndarray, strides: tuple[int, ...] | None = None) -> None:
        self.array, self.strides = array, strides


class _Pickler(pickle.Pickler):
    """Describes tensors as PyTorch does, under its names, which exist only while it writes."""

    def __init__(self, file: Any, torch: Any, members: dict[str, bytes]) -> None:
        super().__init__(file, protocol=2)
        self._torch, self._members = torch, members

    def persistent_id(self, obj: Any) -> Any:
        return ("storage", obj.type, obj.key, "cuda:0", obj.size) if isinstance(obj, _Storage) else None

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        # stored transposed and after three other numbers, like a view into a larger storage
        stored = np.ascontiguousarray(obj.array.transpose())
        key = str(len(self._members))
        self._members[key] = np.full(3, 9, np.float32).tobytes() + stored.tobytes()
        storage = _Storage(key, self._torch.FloatStorage, stored.size + 3)
        strides = obj.strides or tuple(s // 4 for s in stored.transpose().strides)
        return self._torch._utils._rebuild_tensor_v2, (storage, 3, obj.array.shape, strides, False, {})


def write_torch(
    path: Path,
    order: list[str],
    ema: dict[str, Any],
    raw: dict[str, Any],
    *,
    legacy: bool = False,
    change: Callable[[dict[str, Any]], Any] = lambda state: state,
) -> Path:
    """A training state as PyTorch writes it, or as it did before 1.6, with NumPy's learning rate in it.

    Args:
        path: the file.
        order: the layers in the order in which the network uses them.
        ema, raw: the averaged weights, and those as trained.
        legacy: whether to write pickles followed by the tensors instead of a zip archive.
        change: what to do to the state before it is written.
    """
    model = {"module.sigmas": Tensor(np.linspace(50, 0.01, 10, dtype=np.float32))}
    model |= {f"module.{name}": Tensor(array) for name, array in _torch_names(order, raw)}
    averaged = _torch_names(order, ema)
    shadow = [Tensor(array) for name, array in averaged if name != "all_modules.0.W"]
    state = {
        "optimizer": {
            "state": {0: {"step": 7000, "exp_avg": Tensor(np.zeros(3, np.float32))}},
            "param_groups": [{"lr": np.float64(2e-4), "betas": (0.9, 0.999), "params": [0]}],
        },
        "model": model,
        "ema": {"decay": 0.999, "num_updates": 7000, "shadow_params": shadow},
        "step": 7000,
    }
    members: dict[str, bytes] = {}
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})  # pyright: ignore
    torch._utils = utils  # pyright: ignore
    exec("def _rebuild_tensor_v2(*a): ...", utils.__dict__)
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules |= {"torch": torch, "torch._utils": utils}
    try:
        content = io.BytesIO()
        _Pickler(content, torch, members).dump(change(state))
    finally:
        for name, module in before.items():
            sys.modules.pop(name) if module is None else sys.modules.update({name: module})
    if legacy:
        heads = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        parts = [*(pickle.dumps(head, 2) for head in heads), content.getvalue(), pickle.dumps([*members], 2)]
        parts += [(len(member) // 4).to_bytes(8, "little") + member for member in members.values()]
        path.write_bytes(b"".join(parts))
        return path
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content.getvalue())
        archive.writestr("archive/byteorder", "little")
        for key, member in members.items():
            archive.writestr(f"archive/data/{key}", member)
    return path


def _torch_names(order: list[str], params: dict[str, Any]) -> list[tuple[str, np.ndarray]]:
    """Parameters with PyTorch's numbers, names and order of axes."""
    named = []
    for number, layer in enumerate(order):
        for place, leaf in flatten_dict(params[layer], sep="/").items():
            array = np.asarray(leaf)
            *inner, name = place.split("/")
            if array.ndim == 4:
                array = array.transpose(3, 2, 0, 1)
            elif name == "kernel":
                array = array.transpose()
            name = {"kernel": "weight", "scale": "weight"}.get(name, name)
            # layers without parameters have numbers, too
            named.append((".".join(["all_modules", str(2 * number), *inner, name]), array))
    return named
