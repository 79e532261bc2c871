"""Reads networks that the library diffusers saved: a folder with a UNet2DModel and its scheduler.

The folder is nested (unet/config.json with the weights beside it, and scheduler/scheduler_config.json) or
flat (all of them in one place). The network is that of Ho et al. (arXiv 2006.11239), models/ddpm.py, and the
scheduler's betas are the table of ``sde_lib.DiscreteVP``. An option of either file that means another network
or another process is refused.

Most of a scheduler's options concern its sampler, ``SAMPLER_OPTIONS`` below. They are not read: the solvers
here replace the sampler. None of them clips the denoised image, as diffusers does with ``clip_sample``.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from models import torch_files
from models.weights import Shapes, Weights, listed
from sde_lib.checks import is_number, refusal, require

KIND = "diffusers' format"
WEIGHTS = "diffusion_pytorch_model"
PAGE = "https://huggingface.co/google/ddpm-cifar10-32"  # the network of DDPM on CIFAR-10

# The options of UNet2DModel, and what each means where config.json leaves it out (diffusers 0.42)
_UNET: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
# Those for which the network here has no choice, or this one
_UNET_ALLOWED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "freq_shift": (0, 1),
    "flip_sin_to_cos": (False, True),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),  # two names of one function
    "resnet_time_scale_shift": ("default",),
    "add_attention": (True,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "num_train_timesteps": (None,),
}

# The same of a scheduler, whatever its class among these
_SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
_SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "denoised"}
_SCHEDULER_ALLOWED: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "trained_betas": (None,),
    "prediction_type": tuple(_PREDICTIONS),
    "rescale_betas_zero_snr": (False,),
}
SAMPLER_OPTIONS = (
    "variance_type",
    "clip_sample",
    "clip_sample_range",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "timestep_spacing",
    "timestep_values",
    "steps_offset",
    "set_alpha_to_one",
    "skip_prk_steps",
    "tensor_format",
)

# The kinds of layers in their blocks and in ours, those of one number in order of use
_LAYERS = {
    "resnets": "ResnetBlockDDPM",
    "attentions": "AttnBlock",
    "downsamplers": "Downsample",
    "upsamplers": "Upsample",
}
_STAGES = ("down_blocks", "mid_block", "up_blocks")
_LAYER = re.compile(rf"({'|'.join(_STAGES)})\.(?:(\d+)\.)?({'|'.join(_LAYERS)})\.(\d+)\.(.+)", re.ASCII)
_OUTSIDE = {  # of the blocks
    "time_embedding.linear_1": "Dense_0",
    "time_embedding.linear_2": "Dense_1",
    "conv_in": "Conv_0",
    "conv_norm_out": "GroupNorm_0",
    "conv_out": "Conv_1",
}
EMBEDDED = "Dense_0/kernel"  # the weights that meet the time embedding
_INSIDE = {  # of a layer
    "norm1": "GroupNorm_0",
    "conv1": "Conv_0",
    "time_emb_proj": "Dense_0",
    "norm2": "GroupNorm_1",
    "conv2": "Conv_1",
    "conv_shortcut": "NIN_0",
    "conv": "Conv_0",
    "group_norm": "GroupNorm_0",
    **dict.fromkeys(("to_q", "query"), "NIN_0"),  # the second is the name in the first versions of diffusers
    **dict.fromkeys(("to_k", "key"), "NIN_1"),
    **dict.fromkeys(("to_v", "value"), "NIN_2"),
    **dict.fromkeys(("to_out.0", "proj_attn"), "NIN_3"),
}
_PARAMETERS = {
    "GroupNorm": {"weight": "scale", "bias": "bias"},
    "NIN": {"weight": "W", "bias": "b"},
    "Conv": {"weight": "kernel", "bias": "bias"},
    "Dense": {"weight": "kernel", "bias": "bias"},
}

_Read = Callable[[Mapping[str, str]], dict[str, np.ndarray]]  # from {ours: theirs} to {ours: array}


def is_folder(path: Path) -> bool:
    """Whether a folder is one of diffusers, or a part of one."""
    names = ("model_index.json", "scheduler_config.json", "scheduler/scheduler_config.json")
    return any((path / name).is_file() for name in names) or any(
        any(path.glob(f"{place}{WEIGHTS}*")) for place in ("", "unet/")
    )


def files(path: Path) -> list[Path]:
    """The files of a folder that say all of the network: two configs and the weights.

    Raises:
        ValueError: if one of them is missing, or the weights are in several files.
    """
    return [*_config_files(path), _weights_file(path)]


def describe(path: Path) -> dict[str, dict[str, Any]]:
    """What a folder of diffusers holds, as settings of configs/base.py; the weights are not read.

    Returns:
        The settings of the groups ``model``, ``data`` and ``sde`` that the folder decides.

    Raises:
        ValueError: for a missing or damaged file, or an option that means another network or process, with
            its name, its value and what is allowed.
    """
    _require_only_pixels(path)
    unet_file, scheduler_file = _config_files(path)
    unet = _Options.read(unet_file, ("UNet2DModel",), _UNET, _UNET_ALLOWED)
    scheduler = _Options.read(scheduler_file, _SCHEDULERS, _SCHEDULER, _SCHEDULER_ALLOWED, SAMPLER_OPTIONS)
    allowed = "a whole number >= 1, or [height, width]"
    unet.require("sample_size", all(map(_is_count, _sides(unet["sample_size"]))), allowed)
    for name in ("in_channels", "layers_per_block", "norm_num_groups"):
        unet.require(name, _is_count(unet[name]), "a whole number >= 1")
    head, channels = unet["attention_head_dim"], _channels(unet)
    unet.require("attention_head_dim", head is None or _is_count(head), "None or a whole number >= 1")
    for name in ("norm_eps", "dropout"):
        unet.require(name, is_number(unet[name]), "a number")
    scheduler.require(
        "num_train_timesteps", _is_count(scheduler["num_train_timesteps"]), "a whole number >= 1"
    )
    for name in ("beta_start", "beta_end"):
        scheduler.require(name, is_number(scheduler[name]), "a number")
    model = {
        "name": "ddpm",
        "nf": channels[0],
        "ch_mult": tuple(count // channels[0] for count in channels),
        "num_res_blocks": unet["layers_per_block"],
        "attn_resolutions": _attention_sizes(unet, len(channels)),
        "dropout": float(unet["dropout"]),
        "resamp_with_conv": True,
        "conditional": True,
        "norm_groups": unet["norm_num_groups"],
        "norm_epsilon": float(unet["norm_eps"]),
        "attn_every_up_block": True,
        "attn_head_dim": head,
        "downsample_padding": unet["downsample_padding"],
        "freq_shift": unet["freq_shift"],
        "num_classes": 0,
        "prediction": _PREDICTIONS[scheduler["prediction_type"]],
        "time": "index",
        "sigma_data": None,
    }
    height, width = _sides(unet["sample_size"])
    data = {
        "image_size": height,
        "image_width": None if width == height else width,
        "num_channels": unet["in_channels"],
        "centered": True,
    }
    sde = {
        "name": "discrete_vp",
        "schedule": scheduler["beta_schedule"],
        "beta_start": float(scheduler["beta_start"]),
        "beta_end": float(scheduler["beta_end"]),
        "num_levels": scheduler["num_train_timesteps"],
    }
    return {"model": model, "data": data, "sde": sde}


def open_weights(path: Path, expected: Mapping[str, Any], *, raw: bool = False) -> Weights:
    """The weights in a folder of diffusers.

    Args:
        path: the folder.
        expected: not used; names say what every parameter is.
        raw: must be False, since such a folder holds one set of weights.

    Returns:
        The weights under our names; those that have none keep theirs.

    Raises:
        ValueError: for weights that are missing, damaged, in several files, or something else than tensors,
            or with ``raw``.
    """
    allowed = (
        "one with weights as trained for raw weights, but a folder of diffusers holds one set of weights"
    )
    require(not raw, "checkpoint", str(path), allowed, "take these, with raw=False")
    file = _weights_file(path)
    unet = _Options.read(_config_files(path)[0], ("UNet2DModel",), _UNET, _UNET_ALLOWED)
    flipped = unet["flip_sin_to_cos"]  # cosines come first there, and here last
    shapes, read = _of_safetensors(file) if file.suffix == ".safetensors" else _of_torch(file)
    theirs = _their_names(shapes)
    ours = {name: _our_shape(name, shapes[their]) for name, their in theirs.items()}

    def read_ours(names: Iterable[str]) -> dict[str, np.ndarray]:
        arrays = read({name: theirs[name] for name in names})
        # theirs are (out, in, h, w) and (out, in)
        orders = {name: {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim) for name, array in arrays.items()}
        found = {name: array.transpose(orders[name]).reshape(ours[name]) for name, array in arrays.items()}
        if flipped and EMBEDDED in found:
            found[EMBEDDED] = np.roll(found[EMBEDDED], len(found[EMBEDDED]) // 2, axis=0)
        return found

    return Weights(KIND, ours, read_ours, {"step": None})


@dataclasses.dataclass(frozen=True)
class _Options:
    """The options in a JSON file of diffusers."""

    file: Path
    values: dict[str, Any]

    @classmethod
    def read(
        cls,
        file: Path,
        classes: tuple[str, ...],
        defaults: dict[str, Any],
        allowed: dict[str, tuple[Any, ...]],
        ignored: tuple[str, ...] = (),
    ) -> _Options:
        """The options, by default those of ``defaults``; refuses other classes, names and values."""
        given = _read_json(file)
        options = cls(file, {**defaults, **given})
        options.require("_class_name", given.get("_class_name") in classes, _any_of(classes))
        for name in given:
            known = name in defaults or name in ignored or name.startswith("_")
            options.require(name, known, "absent, since no such option is known here")
        for name, choices in allowed.items():
            options.require(name, options[name] in choices, _any_of(choices))
        return options

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)

    def require(self, name: str, holds: Any, allowed: str) -> None:
        fix = "take another checkpoint, or use diffusers' own network as a function (docs/models.md)"
        require(holds, f"{name} in {self.file}", self[name], allowed, fix)


def _any_of(values: tuple[Any, ...]) -> str:
    return " or ".join(map(repr, values))


def _is_count(value: Any) -> bool:
    return is_number(value, whole=True) and value >= 1


def _channels(unet: _Options) -> list[int]:
    """The channels at every size, multiples of the first, and what depends on them."""
    name = "block_out_channels"
    channels, groups, images = unet[name], unet["norm_num_groups"], unet["in_channels"]
    listed_counts = isinstance(channels, list) and channels and all(map(_is_count, channels))
    unet.require(name, listed_counts, "a list of whole numbers >= 1")
    multiples = all(count % channels[0] == 0 for count in channels)
    unet.require(name, multiples, f"multiples of the first, {channels[0]}")
    unet.require("out_channels", unet["out_channels"] == images, f"{images}, the number of in_channels")
    as_elsewhere = unet["attn_norm_num_groups"] in (None, groups)
    unet.require("attn_norm_num_groups", as_elsewhere, f"None or {groups}, that of norm_num_groups")
    embedding = 4 * channels[0]
    four_times = unet["time_embedding_dim"] in (None, embedding)
    unet.require("time_embedding_dim", four_times, f"None or {embedding}, four times the first channels")
    return channels


def _sides(sample_size: Any) -> tuple[Any, Any]:
    """(height, width) of what a file says of the images' size."""
    pair = isinstance(sample_size, list) and len(sample_size) == 2
    return tuple(sample_size) if pair else (sample_size, sample_size)


def _attention_sizes(unet: _Options, levels: int) -> tuple[int, ...]:
    """The image sizes with attention, which must be the same on the way down and up."""
    down, up = unet["down_block_types"], unet["up_block_types"]
    allowed = f"a list of {levels} names, each 'DownBlock2D' or 'AttnDownBlock2D'"
    known = isinstance(down, list) and {*map(str, down)} <= {"DownBlock2D", "AttnDownBlock2D"}
    unet.require("down_block_types", known and len(down) == levels, allowed)
    attends = ["Attn" in kind for kind in down]
    mirrored = ["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)]
    allowed = f"{mirrored}, with attention at the sizes at which down_block_types has it"
    unet.require("up_block_types", up == mirrored, allowed)
    height, _ = _sides(unet["sample_size"])
    return tuple(height // 2**level for level, attend in enumerate(attends) if attend)


def _require_only_pixels(path: Path) -> None:
    """Refuses a pipeline with more parts, such as a decoder from latents."""
    index = path / "model_index.json"
    if not index.is_file():
        return
    parts = {name: part for name, part in _read_json(index).items() if not name.startswith("_")}
    more = [
        name for name, part in parts.items() if name not in ("unet", "scheduler") and part != [None, None]
    ]
    allowed = (
        f"a network of pixels, but this folder has more parts than a unet and a scheduler: {listed(more)}"
    )
    fix = "take a checkpoint of a DDPMPipeline or a DDIMPipeline"
    require(not more, "checkpoint", str(path), allowed, fix)


def _config_files(path: Path) -> tuple[Path, Path]:
    nested = (path / "unet").is_dir()
    unet, scheduler = (path / "unet", path / "scheduler") if nested else (path, path)
    found = unet / "config.json", scheduler / "scheduler_config.json"
    for file in found:
        allowed = (
            f"a folder of diffusers with a network and its scheduler, but it has no {file.relative_to(path)}"
        )
        fix = "give the whole folder, as it was saved or downloaded"
        require(file.is_file(), "checkpoint", str(path), allowed, fix)
    return found


def _weights_file(path: Path) -> Path:
    folder = path / "unet" if (path / "unet").is_dir() else path
    names = sorted(file.name for file in folder.glob(f"{WEIGHTS}*"))
    shards = [name for name in names if "-of-" in name or name.endswith(".index.json")]
    held = f"it has {listed(names, limit=3)}" if names else "it has none"
    allowed = f"a folder of diffusers with the weights in one file, but {held}"
    fix = "save the network again with a larger max_shard_size"
    require(not shards, "checkpoint", str(path), allowed, fix)
    found = [name for name in (f"{WEIGHTS}.safetensors", f"{WEIGHTS}.bin") if name in names]
    fix = f"copy {WEIGHTS}.safetensors or {WEIGHTS}.bin from its source into {folder}"
    require(found, "checkpoint", str(path), allowed, fix)
    file = folder / found[0]
    with file.open("rb") as opened:
        pointer = opened.read(32).startswith(b"version https://git-lfs")
    allowed = f"a whole folder, but {file.name} is a pointer of Git LFS instead of the file itself"
    require(not pointer, "checkpoint", str(path), allowed, "run `git lfs pull` in its repository")
    return file


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
        if not isinstance(content, dict):
            raise ValueError("it is no dictionary")
        return content
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> ValueError:
    reason = f"{type(error).__name__} {error}".partition("\n")[0][:200]
    allowed = f"a whole file of diffusers, but reading it fails ({reason})"
    return ValueError(refusal("checkpoint", str(file), allowed, "copy it again from its source"))


def _of_safetensors(file: Path) -> tuple[Shapes, _Read]:
    def read(names: Mapping[str, str]) -> dict[str, np.ndarray]:
        try:
            with safe_open(file, "np") as tensors:
                return {ours: tensors.get_tensor(their) for ours, their in names.items()}
        except Exception as error:
            raise _damaged(file, error) from error

    try:
        with safe_open(file, "np") as tensors:
            names = tensors.keys()
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in names}, read
    except Exception as error:  # a damaged file can raise nearly anything
        raise _damaged(file, error) from error


def _of_torch(file: Path) -> tuple[Shapes, _Read]:
    state, read_tensors = torch_files.load_state(file)
    state = state if isinstance(state, dict) else {type(state).__name__: state}
    odd = [str(name) for name, tensor in state.items() if not isinstance(tensor, torch_files.Tensor)]
    allowed = f"one of plain tensors, but something else is at {listed(odd)}"
    fix = "nothing was imported or run; get a file that was saved by state_dict() from a source you trust"
    require(not odd, "checkpoint", str(file), allowed, fix)

    def read(names: Mapping[str, str]) -> dict[str, np.ndarray]:
        return read_tensors({ours: state[their] for ours, their in names.items()})

    return {str(name): tensor.shape for name, tensor in state.items()}, read


def _their_names(theirs: Iterable[str]) -> dict[str, str]:
    """From our names to theirs. Theirs tell the block of a layer; ours number each kind in order of use."""
    matches = {name: _LAYER.fullmatch(name) for name in theirs}
    numbers: dict[Any, int] = {}
    seen = collections.Counter()
    for place in sorted({_place(match) for match in matches.values() if match}):
        numbers[place] = seen[place[-1]]
        seen[place[-1]] += 1
    ours: dict[str, str] = {}
    for name, match in matches.items():
        module, _, parameter = (match[5] if match else name).rpartition(".")
        own = (_INSIDE if match else _OUTSIDE).get(module, "")
        own_parameter = _PARAMETERS.get(own.partition("_")[0], {}).get(parameter)
        layer = f"{_LAYERS[match[3]]}_{numbers[_place(match)]}/" if match else ""
        own_name = f"{layer}{own}/{own_parameter}" if own_parameter else name
        ours[name if own_name in ours else own_name] = name
    return ours


def _place(layer: re.Match[str]) -> tuple[int, int, bool, int, int]:
    """A layer's place in the order of use, which ends with its kind."""
    stage, block, kind, number, _ = layer.groups()
    resamples = kind in ("downsamplers", "upsamplers")
    return _STAGES.index(stage), int(block or 0), resamples, int(number), [*_LAYERS].index(kind)


def _our_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Their (out, in, h, w) and (out, in) in our order, (h, w, in, out) and (in, out)."""
    if len(shape) == 4:
        out, into, *size = shape
        return (into, out) if name.endswith("/W") and size == [1, 1] else (*size, into, out)
    return shape[::-1] if len(shape) == 2 else shape
