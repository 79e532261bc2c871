"""Reads the networks that the code of EDM published and saves, network-snapshot-*.pkl, and runs none of it.

Such a file is a pickle of objects and of the source text of their classes, which unpickling would run (Karras
et al., arXiv 2206.00364). Here a class is a name, and an object is its attributes: see models/torch_files.py.
A file that names anything beyond the classes and functions of such a network is refused.

Their U-Net "SongUNet" is NCSN++ or DDPM++, and its layers map one to one to ours. The preconditioning around
it says which process the network was trained for, and how its output F is read:

    EDMPrecond   EDM's own: sde "edm", prediction "edm", label log(sigma)/4
    VPPrecond    D = y − sigma F(y/sqrt(sigma^2 + 1), 999 t): F predicts the noise of ``sde_lib.VPSDE``
    VEPrecond    D = y + sigma F(y, log(sigma/2)), for images y in [−1, 1]. In units of images x = (y + 1)/2
                 in [0, 1], with s = sigma/2, the score is F(2x − 1, log s)/s, that of the published VE
                 networks, and sigma from 0.02 to 100 is s from 0.01 to 50: sde "ve", not centered.

``map_augment`` is not read: it embeds the augmentation of a training image, of which a sample has none.
Snapshots for float16 (``use_fp16``) hold float32 weights, and compute here as ``config.model.dtype`` says.
"""

from __future__ import annotations

import collections
import dataclasses
import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.torch_files import Foreign, Object, Read, Tensor, load_pickle
from models.weights import Weights, listed
from sde_lib.checks import is_number, refusal, require

KIND = "EDM's format"
FIRST_BYTES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))  # of a pickle
# Where the published networks are
PAGE = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"

_FIX = "take another checkpoint; docs/checkpoints.md says which are read"
_PRECONDITIONINGS = ("EDMPrecond", "VPPrecond", "VEPrecond")

# The options of SongUNet in their order, and what each means where the file leaves it out
_OPTIONS: dict[str, Any] = {
    "img_resolution": None,
    "in_channels": None,
    "out_channels": None,
    "label_dim": 0,
    "augment_dim": 0,
    "model_channels": 128,
    "channel_mult": [1, 2, 2, 2],
    "channel_mult_emb": 4,
    "num_blocks": 4,
    "attn_resolutions": [16],
    "dropout": 0.1,
    "label_dropout": 0,
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
}
# The two that are known here
_COMMON = {"channel_mult_emb": 4, "decoder_type": "standard"}
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "DDPM++": {
        "embedding_type": "positional",
        "channel_mult_noise": 1,
        "encoder_type": "standard",
        "resample_filter": [1, 1],
        **_COMMON,
    },
    "NCSN++": {
        "embedding_type": "fourier",
        "channel_mult_noise": 2,
        "encoder_type": "residual",
        "resample_filter": [1, 3, 3, 1],
        **_COMMON,
    },
}

# The layers of a block and of the attention after it, and ours
_BLOCK = {
    "norm0": "GroupNorm_0",
    "conv0": "Conv_0",
    "affine": "Dense_0",
    "norm1": "GroupNorm_1",
    "conv1": "Conv_1",
    "skip": "Conv_2",
}
_ATTENTION = ("norm2", "qkv", "proj")
_IN_UNET = ("map_noise", "map_label", "map_augment", "map_layer0", "map_layer1", "enc", "dec")


def describe(path: Path) -> dict[str, dict[str, Any]]:
    """What a network snapshot holds, as settings of configs/base.py.

    Returns:
        The settings of the groups ``model``, ``data`` and ``sde`` that the file decides.

    Raises:
        ValueError: for a file that is damaged, that names something else than the parts of such a network, or
            whose network is another one than NCSN++ and DDPM++.
    """
    return _explained(path, lambda: _describe(_load(path)))


def open_weights(path: Path, expected: Mapping[str, Any], *, raw: bool = False) -> Weights:
    """The averaged weights in a network snapshot.

    Args:
        path: the file.
        expected: not used; the file's own names say what every parameter is.
        raw: must be False, since a snapshot holds the averaged weights alone.

    Returns:
        The weights under our names.

    Raises:
        ValueError: as of ``describe``, for weights that are no tensors, or with ``raw``.
    """
    allowed = "one with weights as trained for raw weights, but a snapshot of EDM holds only averaged ones"
    require(not raw, "checkpoint", str(path), allowed, "take these, with raw=False")

    def load() -> tuple[dict[str, Tensor], Read]:
        snapshot = _load(path)
        return _parameters(snapshot.unet), snapshot.read

    parameters, read_tensors = _explained(path, load)

    def read(names: Iterable[str]) -> dict[str, np.ndarray]:
        arrays = read_tensors({name: parameters[name] for name in names})
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

    return Weights(KIND, {name: tensor.shape for name, tensor in parameters.items()}, read, {"step": None})


@dataclasses.dataclass(frozen=True)
class _Snapshot:
    """The network in a file: its preconditioning, the U-Net in that, and the U-Net's options."""

    path: Path
    preconditioning: Object
    unet: Object
    options: dict[str, Any]
    read: Read

    def require(self, name: str, value: Any, holds: Any, allowed: str) -> None:
        require(holds, f"{name} in {self.path}", _in_short(value), allowed, _FIX)

    def number(self, name: str) -> float:
        """A setting of the preconditioning."""
        attributes = self.preconditioning.attributes
        value = attributes.get(name, attributes["_init_kwargs"].get(name))
        self.require(name, value, is_number(value) and value > 0, "a number > 0")
        return float(value)


def _persistent(meta: Any) -> Object:
    """An object whose class's source text is in the file."""
    return Object(str(meta["class_name"]), dict(meta["state"]))


# What the pickle of a network names: what is made of it, or None for what has no effect
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")  # the second since NumPy 2
_NAMES: dict[str, Callable[..., Any] | None] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "torch.nn.modules.container.ModuleDict": lambda: Object("ModuleDict", {}),
    "torch.storage._load_from_bytes": None,  # this and the next three: of models/torch_files.py
    "torch._utils._rebuild_tensor_v2": None,
    "torch._utils._rebuild_parameter": None,
    "collections.OrderedDict": None,
    "dnnlib.util.EasyDict": dict,
    "builtins.set": None,
    "numpy.dtype": None,
    "numpy.ndarray": None,
    **{f"{module}.{name}": None for module in _NUMPY for name in ("scalar", "_reconstruct")},
}


def _load(path: Path) -> _Snapshot:
    known = {name: function for name, function in _NAMES.items() if function is not None}
    state, names, read = load_pickle(path, known)
    others = [repr(name[:80]) for name in names if name not in _NAMES]
    allowed = f"a pickle of a network alone, but it names {listed(others)}"
    fix = "nothing was imported or run; get the file from a source you trust"
    require(not others, "checkpoint", str(path), allowed, fix)
    network = state.get("ema") if isinstance(state, dict) else None
    if not isinstance(network, Object):
        held = listed([repr(key)[:60] for key in state]) if isinstance(state, dict) else type(state).__name__
        raise TypeError(f"it holds {held or 'nothing'}")
    unet = _modules(network).get("model", Object("nothing", {}))
    found = f"{network.name[:40]} around {unet.name[:40]}"
    supported = network.name in _PRECONDITIONINGS and unet.name == "SongUNet"
    allowed = f"{', '.join(_PRECONDITIONINGS[:-1])} or {_PRECONDITIONINGS[-1]} around SongUNet"
    require(supported, f"the network in checkpoint {path}", found, allowed, _FIX)
    by_place = zip(_OPTIONS, unet.attributes["_init_args"], strict=False)  # the others by name
    given = {**dict(by_place), **unet.attributes["_init_kwargs"]}
    snapshot = _Snapshot(path, network, unet, {**_OPTIONS, **given}, read)
    for name, value in given.items():
        snapshot.require(name, value, name in _OPTIONS, "absent, since SongUNet has no such option")
    return snapshot


def _explained(path: Path, load: Callable[[], Any]) -> Any:
    """What ``load`` returns; its errors about missing or odd parts of the file as a ValueError."""
    try:
        return load()
    except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        allowed = (
            "a network snapshot as EDM writes it, with a network under 'ema', but in this one that is not so "
            f"({type(error).__name__}: {str(error)[:100]})"
        )
        fix = "take a published network or a network-snapshot-*.pkl (docs/checkpoints.md)"
        raise ValueError(refusal("checkpoint", str(path), allowed, fix)) from error


def _describe(snapshot: _Snapshot) -> dict[str, dict[str, Any]]:
    options = snapshot.options
    for name in ("img_resolution", "in_channels", "model_channels", "num_blocks"):
        snapshot.require(name, options[name], _is_whole(options[name], 1), "a whole number >= 1")
    snapshot.require("label_dim", options["label_dim"], _is_whole(options["label_dim"], 0), "a whole number")
    for name in ("channel_mult", "attn_resolutions"):
        value = options[name]
        listed_counts = isinstance(value, list | tuple) and all(_is_whole(number, 1) for number in value)
        snapshot.require(name, value, listed_counts, "a list of whole numbers >= 1")
    snapshot.require("dropout", options["dropout"], is_number(options["dropout"]), "a number")
    images, channels = options["in_channels"], options["out_channels"]
    snapshot.require("out_channels", channels, channels == images, f"{images}, the number of in_channels")
    architecture = _architecture(snapshot)
    sizes = [options["img_resolution"] >> level for level in range(len(options["channel_mult"]))]
    model = {
        "name": "ncsnpp",
        "nf": options["model_channels"],
        "ch_mult": tuple(options["channel_mult"]),
        "num_res_blocks": options["num_blocks"],
        "attn_resolutions": tuple(size for size in options["attn_resolutions"] if size in sizes),
        "dropout": float(options["dropout"]),
        "resamp_with_conv": True,
        "conditional": True,
        "fir": architecture == "NCSN++",
        "fir_kernel": (1, 3, 3, 1),
        "skip_rescale": True,
        "resblock_type": "biggan",
        "progressive": "none",
        "progressive_input": "residual" if architecture == "NCSN++" else "none",
        "fourier_scale": 16.0,
        "num_classes": options["label_dim"],
    }
    # Of the label itself, unless the network takes its logarithm
    embedding = "fourier_of_label" if architecture == "NCSN++" else "positional"
    reading: dict[str, Any] = {"prediction": None, "time": None, "sigma_data": None, "scale_by_sigma": False}
    centered = True
    if snapshot.preconditioning.name == "EDMPrecond":
        sde: dict[str, Any] = {"name": "edm"}
        reading |= {"prediction": "edm", "time": "log_sigma", "sigma_data": snapshot.number("sigma_data")}
    elif snapshot.preconditioning.name == "VPPrecond":
        levels, beta_min = snapshot.number("M"), snapshot.number("beta_min")
        snapshot.require("M", levels, levels == 1000, "1000, for labels of 999 t")
        sde = {"name": "vp", "beta_min": beta_min, "beta_max": beta_min + snapshot.number("beta_d")}
    else:
        allowed = "NCSN++ with VEPrecond, whose label is a logarithm"
        snapshot.require("SongUNet", architecture, architecture == "NCSN++", allowed)
        sde = {"name": "ve", **{name: snapshot.number(name) / 2 for name in ("sigma_min", "sigma_max")}}
        reading["scale_by_sigma"] = True
        embedding, centered = "fourier", False
    data = {"image_size": options["img_resolution"], "num_channels": images, "centered": centered}
    return {"model": {**model, "embedding_type": embedding, **reading}, "data": data, "sde": sde}


def _architecture(snapshot: _Snapshot) -> str:
    def differing(name: str) -> dict[str, Any]:
        given = snapshot.options
        return {key: given[key] for key, value in _ARCHITECTURES[name].items() if given[key] != value}

    nearest = min(_ARCHITECTURES, key=lambda name: len(differing(name)))
    others = differing(nearest)
    wanted = {key: _ARCHITECTURES[nearest][key] for key in others}
    snapshot.require("SongUNet", others, not others, f"DDPM++ or NCSN++, which is {nearest} with {wanted}")
    return nearest


def _is_whole(value: Any, least: int) -> bool:
    return is_number(value, whole=True) and least <= value < 2**31


def _in_short(value: Any) -> Any:
    """A value in a file for a message, however long or deep it is."""
    if isinstance(value, str):
        return value[:80]
    if isinstance(value, int) and not _is_whole(abs(value), 0):
        return "a huge number"
    return value if is_number(value) or value is None else reprlib.repr(value)


def _modules(parent: Object) -> dict[str, Object]:
    return {name: module for name, module in parent.attributes["_modules"].items() if module is not None}


def _tensors(module: Object, kind: str = "_parameters") -> dict[str, Tensor]:
    tensors = {name: tensor for name, tensor in module.attributes[kind].items() if tensor is not None}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{name} is {tensor.name if isinstance(tensor, Foreign) else type(tensor).__name__}"
            )
    return tensors


def _parameters(unet: Object) -> dict[str, Tensor]:
    """The tensors of a SongUNet as those of our parameters, in views that have our axes."""
    found: dict[str, Tensor] = {}
    count = collections.Counter()

    def add(kind: str, tensors: dict[str, Tensor]) -> None:
        found.update(_under(f"{kind}_{count[kind]}", tensors))
        count[kind] += 1

    modules = _modules(unet)
    if others := modules.keys() - set(_IN_UNET):
        raise KeyError(listed(sorted(others)))
    if frequencies := _tensors(modules["map_noise"], "_buffers"):
        add("GaussianFourierProjection", {"W": frequencies["freqs"]})
    if "map_label" in modules:
        add("ClassEmbedding", _layer("Dense_0", modules["map_label"]))
    for name in ("map_layer0", "map_layer1"):
        add("Dense", _weights(modules[name], "kernel"))
    for part in ("enc", "dec"):
        for name, module in _modules(modules[part]).items():
            match name.partition("_")[2]:  # what follows the image size
                case "conv" | "aux_conv":
                    add("Conv", _weights(module, "kernel"))
                case "aux_residual":
                    add("Downsample", _under("Conv2d_0", _weights(module, "weight")))
                case "aux_norm":
                    add("GroupNorm", _weights(module, "scale"))
                case _:
                    layers = _modules(module)
                    attention = {key: layers.pop(key) for key in _ATTENTION if key in layers}
                    block: dict[str, Tensor] = {}
                    for key, layer in layers.items():
                        block |= _layer(_BLOCK[key], layer)
                    add("ResnetBlockBigGANpp", block)
                    if attention:
                        add("AttnBlockpp", _attention(**attention))
    return found


def _under(place: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{place}/{name}": tensor for name, tensor in tensors.items()}


def _layer(ours: str, module: Object) -> dict[str, Tensor]:
    return _under(ours, _weights(module, "scale" if ours.startswith("GroupNorm") else "kernel"))


def _weights(module: Object, ours: str) -> dict[str, Tensor]:
    """A layer's weight under our name and with our axes, and its bias; theirs are (out, in, ...)."""
    found = {}
    for name, tensor in _tensors(module).items():
        axes = (2, 3, 1, 0) if len(tensor.shape) == 4 else tuple(range(len(tensor.shape)))[::-1]
        found[ours if name == "weight" else name] = _with_axes(tensor, axes)
    return found


def _with_axes(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    shape, strides = (tuple(numbers[axis] for axis in axes) for numbers in (tensor.shape, tensor.strides))
    return tensor._replace(shape=shape, strides=strides)


def _attention(norm2: Object, qkv: Object, proj: Object) -> dict[str, Tensor]:
    """Their 1x1 convolution makes the query, key and value of a channel in channels next to each other."""
    found = _layer("GroupNorm_0", norm2)
    for theirs, ours in (("weight", "W"), ("bias", "b")):
        whole = _tensors(qkv)[theirs]
        for number in range(3):
            found[f"NIN_{number}/{ours}"] = _matrix(_every_third(whole, number))
        found[f"NIN_3/{ours}"] = _matrix(_tensors(proj)[theirs])
    return found


def _every_third(tensor: Tensor, first: int) -> Tensor:
    length, stride = tensor.shape[0], tensor.strides[0]
    if length % 3:
        return tensor  # which is refused for its shape
    return tensor._replace(
        offset=tensor.offset + first * stride,
        shape=(length // 3, *tensor.shape[1:]),
        strides=(3 * stride, *tensor.strides[1:]),
    )


def _matrix(tensor: Tensor) -> Tensor:
    """The (out, in, 1, 1) of a 1x1 convolution as (in, out); a bias as it is."""
    return _with_axes(tensor, (1, 0)) if tensor.shape[2:] == (1, 1) else tensor
