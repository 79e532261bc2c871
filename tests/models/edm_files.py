"""Files as the code of EDM writes them, with any weights, written without that code and without PyTorch."""

from __future__ import annotations

import collections
import contextlib
import io
import itertools
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

# What the pickles name, which exists only while they are written
_CALLED = {
    "torch": ("FloatStorage", "HalfStorage"),
    "torch.storage": ("_load_from_bytes",),
    "torch._utils": ("_rebuild_tensor_v2", "_rebuild_parameter"),
    "torch.nn.modules.container": ("ModuleDict",),
    "torch_utils.persistence": ("_reconstruct_persistent_obj",),
    "dnnlib.util": ("EasyDict",),
}


class Module:
    """What they pickle as an object of one of their classes, or of PyTorch's ModuleDict without a class."""

    def __init__(
        self,
        class_name: str | None,
        children: dict[str, Any] | None = None,
        parameters: dict[str, np.ndarray] | None = None,
        buffers: dict[str, np.ndarray] | None = None,
        **attributes: Any,
    ) -> None:
        own = {name: Tensor(array) for name, array in (parameters or {}).items()}
        others = {name: Tensor(array, buffer=True) for name, array in (buffers or {}).items()}
        self.class_name = class_name
        self.attributes = {"training": False, "_parameters": own, "_buffers": others}
        self.attributes |= {"_non_persistent_buffers_set": set(), "_hooks": collections.OrderedDict()}
        self.attributes |= {"_modules": children or {}, "_init_args": (), "_init_kwargs": {}, **attributes}


class Tensor:
    """A parameter or a buffer; ``strides`` are those that the file states, if not the true ones."""

    def __init__(
        self, array: np.ndarray, strides: tuple[int, ...] | None = None, buffer: bool = False
    ) -> None:
        self.array, self.buffer = array, buffer
        self.strides = strides or tuple(stride // array.itemsize for stride in array.strides)


class Settings(dict[str, Any]):
    """Their EasyDict."""


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.id if isinstance(obj, _StorageId) else None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Module):
            if obj.class_name is None:
                return _named("torch.nn.modules.container.ModuleDict"), (), obj.attributes
            meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "state": obj.attributes}
            meta["class_name"] = obj.class_name
            return _named("torch_utils.persistence._reconstruct_persistent_obj"), (meta,)
        if isinstance(obj, Settings):
            return _named("dnnlib.util.EasyDict"), (), None, None, iter(obj.items())
        if isinstance(obj, Tensor):
            hooks = collections.OrderedDict()
            described = (_Storage(obj.array), 0, obj.array.shape, obj.strides, False, hooks)
            tensor = _Call("torch._utils._rebuild_tensor_v2", described)
            return (
                tensor.call()
                if obj.buffer
                else (_named("torch._utils._rebuild_parameter"), (tensor, True, hooks))
            )
        if isinstance(obj, _Storage):
            return _named("torch.storage._load_from_bytes"), (_legacy(obj.array),)
        return obj.call() if isinstance(obj, _Call) else NotImplemented


class _Call:
    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.name, self.arguments = name, arguments

    def call(self) -> Any:
        return _named(self.name), self.arguments


class _Storage:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array


class _StorageId:
    def __init__(self, *parts: Any) -> None:
        self.id = parts


def _legacy(array: np.ndarray) -> bytes:
    """A storage as a file of PyTorch's before 1.6; its key is an address, which another may have, too."""
    kind = {"float32": "FloatStorage", "float16": "HalfStorage"}[str(array.dtype)]
    file = io.BytesIO()
    for head in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(head, file, 2)
    _Pickler(file, 2).dump(_StorageId("storage", _named(f"torch.{kind}"), "94", "cpu", array.size, None))
    pickle.dump(["94"], file, 2)
    return file.getvalue() + array.size.to_bytes(8, "little") + array.tobytes()


def _named(name: str) -> Any:
    module, _, own = name.rpartition(".")
    return getattr(sys.modules[module], own)


@contextlib.contextmanager
def _their_modules() -> Iterator[None]:
    modules: dict[str, Any] = {}
    for place, names in _CALLED.items():
        for parent in itertools.accumulate(place.split("."), "{}.{}".format):
            modules.setdefault(parent, types.ModuleType(parent))
        for name in names:
            setattr(modules[place], name, type(name, (), {"__module__": place}))
    with mock.patch.dict(sys.modules, modules):
        yield


def write(path: Path, state: Any, protocol: int = 4) -> Path:
    """A pickle of a state such as {"ema": network}."""
    with _their_modules():
        content = io.BytesIO()
        _Pickler(content, protocol).dump(state)
    path.write_bytes(content.getvalue())
    return path


def network(config: Any, params: dict[str, Any], kind: str = "EDMPrecond", **attributes: Any) -> Module:
    """A preconditioned network with our weights.

    Args:
        config: the whole config of an NCSN++ or DDPM++ with blocks of BigGAN.
        params: its weights.
        kind: the preconditioning.
        attributes: further ones of the preconditioning; ``unet`` holds those of SongUNet.
    """
    own = {
        "EDMPrecond": {"sigma_min": 0, "sigma_max": float("inf"), "sigma_data": 0.5},
        "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5},
        "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100.0},
    }.get(kind, {})
    model = song_unet(config, params, **attributes.pop("unet", {}))
    return Module(kind, {"model": model}, **{"use_fp16": False, **own, **attributes})


def song_unet(config: Any, params: dict[str, Any], **attributes: Any) -> Module:
    """Their U-Net with our weights; ``options`` in ``attributes`` replaces some of its options."""
    model, count = config.model, collections.Counter()

    def take(kind: str) -> Any:
        count[kind] += 1
        return params[f"{kind}_{count[kind] - 1}"]

    def block(attention: bool) -> Module:
        ours, skip_scale = take("ResnetBlockBigGANpp"), np.sqrt(0.5)
        names = {"norm0": "GroupNorm_0", "conv0": "Conv_0", "affine": "Dense_0", "norm1": "GroupNorm_1"}
        names |= {"conv1": "Conv_1", "skip": "Conv_2"}
        children = {name: _layer(ours[own]) for name, own in names.items() if own in ours}
        if attention:
            children |= _attention(take("AttnBlockpp"))
        return Module("UNetBlock", children, skip_scale=skip_scale, num_heads=int(attention), skip=None)

    plus_plus = model.progressive_input == "residual"
    map_noise = Module("PositionalEmbedding")
    if plus_plus:
        map_noise = Module("FourierEmbedding", buffers={"freqs": take("GaussianFourierProjection")["W"]})
    outside = {"map_noise": map_noise, "map_label": None}
    if model.num_classes:
        outside["map_label"] = _layer(take("ClassEmbedding")["Dense_0"])
    width = (2 if plus_plus else 1) * model.nf
    outside["map_augment"] = Module("Linear", None, {"weight": np.ones((width, 9), np.float32)}, bias=None)
    outside |= {name: _layer(take("Dense")) for name in ("map_layer0", "map_layer1")}
    sides = [config.data.image_size >> level for level in range(len(model.ch_mult))]
    enc = {f"{sides[0]}x{sides[0]}_conv": _layer(take("Conv"))}
    for side in sides:
        size = f"{side}x{side}"
        if side < sides[0]:
            enc[f"{size}_down"] = block(False)
            if plus_plus:
                enc[f"{size}_aux_residual"] = _layer(take("Downsample")["Conv2d_0"])
        for number in range(model.num_res_blocks):
            enc[f"{size}_block{number}"] = block(side in model.attn_resolutions)
    dec = {f"{sides[-1]}x{sides[-1]}_in{number}": block(number == 0) for number in range(2)}
    for side in reversed(sides):
        size = f"{side}x{side}"
        if side > sides[-1]:
            dec[f"{size}_up"] = block(False)
        for number in range(model.num_res_blocks + 1):
            last = number == model.num_res_blocks
            dec[f"{size}_block{number}"] = block(last and side in model.attn_resolutions)
    for name, kind in (("norm", "GroupNorm"), ("conv", "Conv")):
        dec[f"{sides[0]}x{sides[0]}_aux_{name}"] = _layer(take(kind))
    options = {
        "img_resolution": config.data.image_size,
        "in_channels": config.data.num_channels,
        "out_channels": config.data.num_channels,
        "label_dim": model.num_classes,
        "augment_dim": 9,
        "model_channels": model.nf,
        "channel_mult": list(model.ch_mult),
        "num_blocks": model.num_res_blocks,
        "attn_resolutions": list(model.attn_resolutions),
        "dropout": 0.13,
    }
    if plus_plus:
        options |= {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual"}
        options |= {"resample_filter": [1, 3, 3, 1]}
    options |= attributes.pop("options", {})
    children = {**outside, "enc": Module(None, enc), "dec": Module(None, dec)}
    return Module("SongUNet", children, _init_kwargs=options, **attributes)


def _layer(ours: dict[str, Any]) -> Module:
    """Their names and order of axes."""
    weight, bias = (
        np.asarray(ours[name]) for name in (next(name for name in ours if name != "bias"), "bias")
    )
    weight = weight.transpose(3, 2, 0, 1) if weight.ndim == 4 else weight.transpose()
    return Module("Layer", None, {"weight": np.ascontiguousarray(weight), "bias": bias})


def _attention(ours: dict[str, Any]) -> dict[str, Module]:
    def convolution(W: np.ndarray, b: np.ndarray) -> Module:
        return Module(
            "Conv2d", None, {"weight": np.ascontiguousarray(W.transpose()[..., None, None]), "bias": b}
        )

    three = [ours[f"NIN_{number}"] for number in range(3)]  # next to each other for every channel
    weight, bias = (np.stack([layer[name] for layer in three], -1) for name in ("W", "b"))
    return {
        "norm2": _layer(ours["GroupNorm_0"]),
        "qkv": convolution(weight.reshape(len(weight), -1), bias.reshape(-1)),
        "proj": convolution(ours["NIN_3"]["W"], ours["NIN_3"]["b"]),
    }
