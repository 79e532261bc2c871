"""Networks that diffusers saved: their numbers, their names, their sampler, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

import models
import sde_lib
from configs.base import get_config
from configs.vp.ddpm_cifar10 import get_config as ddpm_config
from models import checkpoints, diffusers_folder, layers
from sde_lib.pytrees import register_dataclass
from solvers import DDIM, AncestralSampling
from solvers.noise import standard_normal
from tests.models import tiny

CASES = ["linear_epsilon", "cosine_v"]  # a nested folder and a flat one
WEIGHTS = "diffusion_pytorch_model"


def config_of(path: Path) -> Any:
    """The base config with what a folder says of itself."""
    config = get_config()
    for group, settings in checkpoints.stated(path).items():
        config[group].update(settings)
    return config


def relative(a: Any, b: Any) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@dataclasses.dataclass(repr=False)
class Case:
    """A reference folder, its config, its weights, its process, and its arrays."""

    path: Path
    config: Any
    params: Any
    sde: Any
    golden: Any

    @functools.cached_property
    def call(self) -> Any:
        """From images and times to the network's output and the score, five of each."""
        network = models.build(self.config)

        @jax.jit
        def both(score_fn: Any, params: Any, x: Any, t: Any) -> Any:
            label = jax.vmap(self.sde.network_time)(t)
            return network.module.apply({"params": params}, x, label), score_fn(x, t)

        score_fn = models.load_score_fn(self.config, self.path)
        return lambda x, t: both(score_fn, self.params, x, t)


@pytest.fixture(scope="module", params=CASES)
def case(request, golden) -> Case:
    path = models.find(golden("diffusers", request.param))
    config = config_of(path)
    params, _ = models.restore_params(path, models.build(config), config)
    return Case(path, config, params, sde_lib.from_config(config.sde), np.load(path / "golden.npz"))


def test_output_and_score_are_those_of_diffusers(case):
    golden = case.golden
    t = ((golden["timestep"] + 1) / len(golden["alphas_cumprod"])).astype(np.float32)
    output, score = case.call(golden["x"], t)
    for ours, theirs in ((output, golden["output"]), (score, golden["score"])):
        for one, other in zip(ours, theirs, strict=True):  # level by level
            assert relative(one, other) < 1e-5  # single precision through some twenty layers
    levels = np.exp(2 * case.sde.log_alphas)
    np.testing.assert_array_equal(levels.astype(np.float32), golden["alphas_cumprod"])


def test_convert_keeps_the_weights_and_what_the_folder_says(case, tmp_path):
    path, config, params = case.path, case.config, case.params
    converted = models.convert(path, tmp_path / "own", config)
    restored, metadata = models.restore_params(converted, models.build(config), config)
    jax.tree.map(np.testing.assert_array_equal, restored, params)
    for group, settings in json.loads(json.dumps(checkpoints.stated(path))).items():
        assert settings.items() <= metadata[group].items()
    source = checkpoints.provenance(path)
    assert checkpoints.provenance(converted)["source_sha256"] == source["checkpoint_sha256"]
    config.sde.beta_end = 0.03
    for checkpoint in (path, converted):
        with pytest.raises(ValueError, match=r"which had {'config.sde.beta_end': 0.02} \(got .*0.03}\)"):
            checkpoints.require_trained_like(checkpoint, config)
    config.sde.beta_end = 0.02


# The samplers of diffusers, from their formulas


def predicted(kind: str, output: np.ndarray, x: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The denoised image and the noise."""
    alpha, sigma = np.sqrt(level), np.sqrt(1 - level)
    if kind == "v":
        return alpha * x - sigma * output, alpha * output + sigma * x
    return (x - sigma * output) / alpha, output


def their_step(
    kind: str, output: Any, x: Any, level: float, after: float, eta: float | None, z: Any
) -> np.ndarray:
    """From alpha^2 = level to alpha^2 = after, without clipping.

    DDIMScheduler.step (arXiv 2010.02502, eq. 12 and 16), or without eta DDPMScheduler.step with the variance
    "fixed_small" (arXiv 2006.11239, eq. 7).
    """
    denoised, noise = predicted(kind, output, x, level)
    variance = (1 - after) / (1 - level) * (1 - level / after)
    if eta is None:
        of_denoised, of_x = np.sqrt(after) * (1 - level / after), np.sqrt(level / after) * (1 - after)
        return (of_denoised * denoised + of_x * x) / (1 - level) + np.sqrt(variance) * z
    variance *= eta**2
    return np.sqrt(after) * denoised + np.sqrt(1 - after - variance) * noise + np.sqrt(variance) * z


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Trailing:
    """The spacing "trailing" of n steps, from index 999 by 1000/n each; the last step ends at index 0."""

    def time(self, sde: Any, fraction: Any) -> Any:
        return sde.T * (1 - fraction)


# Our solver, its noise as diffusers' eta, and the indices at which its steps begin. The steps of 37 indices
# end at index 0, from where diffusers takes one more, our denoising; those of 20 with set_alpha_to_one=False.
SAMPLERS: dict[str, tuple[Any, float | None, range]] = {
    "ddim": (DDIM(num_steps=27), 0.0, range(999, 0, -37)),
    "ddim trailing": (DDIM(num_steps=50, grid=Trailing()), 0.0, range(999, 0, -20)),
    "ddim with noise": (DDIM(num_steps=27, eta=1.0), 1.0, range(999, 0, -37)),
    "ddpm": (AncestralSampling(num_steps=27), None, range(999, 0, -37)),
}


@pytest.mark.parametrize(
    "sampler",
    [pytest.param(name, marks=pytest.mark.slow if name == "ddim trailing" else ()) for name in SAMPLERS],
)
def test_every_step_is_that_of_diffusers(case, sampler):
    """Steps from the same x, and the whole trajectory of both from the same beginning and noise."""
    solver, eta, indices = SAMPLERS[sampler]
    sde, kind, shape = case.sde, case.config.model.prediction, case.golden["x"].shape[1:]
    levels = case.golden["alphas_cumprod"].astype(np.float64)
    tell = jax.jit(lambda state, score: solver.tell(sde, state, score))
    state = solver.init(sde, jax.random.key(0), shape, jnp.float32)
    x = np.asarray(state.x, np.float64)  # of their trajectory
    for number, (index, after) in enumerate(itertools.pairwise([*indices, 0]), start=1):
        z = np.asarray(standard_normal(state.key, jnp.int32(number), shape, jnp.float32), np.float64)
        ours, t = solver.ask(state)
        assert float(sde.network_time(t)) == pytest.approx(index, abs=1e-3)
        both = np.stack([np.asarray(ours, np.float64), x])
        outputs, scores = case.call(np.resize(both, (5, *shape)).astype(np.float32), np.full(5, t))
        expected, x = (
            their_step(kind, np.asarray(output, np.float64), begin, levels[index], levels[after], eta, z)
            for output, begin in zip(outputs[:2], both, strict=True)
        )
        state = tell(state, scores[0])
        # a denoised image carries the rounding of the score, 2^-24 of it over alpha
        assert relative(state.x, expected) < 1e-6 + 2**-24 * np.sqrt(levels[after] / levels[index])
    assert int(state.status) == 0
    assert float(sde.network_time(state.t)) == pytest.approx(0, abs=1e-6)
    assert relative(state.x, x) < 1e-4
    # The last step, to alpha = 1, is the denoised image
    outputs, scores = case.call(np.resize(state.x, (5, *shape)), np.full(5, state.t))
    denoised, _ = predicted(kind, np.asarray(outputs[0], np.float64), np.asarray(state.x), levels[0])
    assert relative(sde_lib.denoise(sde, state.x, state.t, scores[0]), denoised) < 1e-5


# Small folders of our own


def their_layers(sizes: int, blocks: int, attention: Callable[[int], bool]) -> Iterator[str]:
    """The layers of UNet2DModel in the order of their use."""
    yield from ("time_embedding.linear_1", "time_embedding.linear_2", "conv_in")

    def block(place: str, number: int, size: int) -> Iterator[str]:
        yield f"{place}.resnets.{number}"
        if attention(size):
            yield f"{place}.attentions.{number}"

    for size in range(sizes):
        for number in range(blocks):
            yield from block(f"down_blocks.{size}", number, size)
        if size < sizes - 1:
            yield f"down_blocks.{size}.downsamplers.0"
    yield from ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")
    for size in reversed(range(sizes)):
        place = f"up_blocks.{sizes - 1 - size}"
        for number in range(blocks + 1):
            yield from block(place, number, size)
        if size > 0:
            yield f"{place}.upsamplers.0"
    yield from ("conv_norm_out", "conv_out")


RESNET = {
    "GroupNorm_0": "norm1",
    "Conv_0": "conv1",
    "Dense_0": "time_emb_proj",
    "GroupNorm_1": "norm2",
    "Conv_1": "conv2",
    "NIN_0": "conv_shortcut",
}
ATTENTION = {
    "GroupNorm_0": "group_norm",
    "NIN_0": "to_q",
    "NIN_1": "to_k",
    "NIN_2": "to_v",
    "NIN_3": "to_out.0",
}
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def their_tensors(params: Any, order: list[str], *, old: bool = False) -> dict[str, np.ndarray]:
    """Weights with the names and axes of diffusers."""
    tensors = {}
    layers = their_layers(2, 1, lambda size: size == 1)
    for ours, theirs in zip(order, layers, strict=True):
        for name, leaf in flatten_dict(params[ours], sep="/").items():
            inner, _, last = name.rpartition("/")
            kind = theirs.rsplit(".", 2)[-2] if "block" in theirs else ""
            module = {"resnets": RESNET, "attentions": ATTENTION}.get(kind, {"Conv_0": "conv"}).get(inner, "")
            module = OLD.get(module, module) if old else module
            array = np.asarray(leaf)
            array = array.transpose((3, 2, 0, 1)) if array.ndim == 4 else array.T
            array = array[..., None, None] if module == "conv_shortcut" and array.ndim == 2 else array
            parameter = "bias" if last in ("b", "bias") else "weight"
            tensors[".".join(filter(None, (theirs, module, parameter)))] = np.ascontiguousarray(array)
    return tensors


UNET = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [32, 64],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 8,
    "time_embedding_type": "positional",
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_large",
}


@pytest.fixture(scope="module")
def flat(tmp_path_factory) -> tuple[Path, Any]:
    """A flat folder as those of the first versions, and its weights."""
    path = tmp_path_factory.mktemp("flat")
    (path / "config.json").write_text(json.dumps(UNET))
    (path / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (path / "README.md").write_text("of no interest")
    config = tiny.config(name="ddpm", attn_every_up_block=True)
    params, order = tiny.params(config), list(models.build(config).abstract_params())
    save_file(their_tensors(params, order, old=True), path / f"{WEIGHTS}.safetensors")
    return path, params


@pytest.fixture
def folder(flat, tmp_path) -> Path:
    return shutil.copytree(flat[0], tmp_path / "folder")


def restored(path: Path, config: Any | None = None) -> Any:
    config = config_of(path) if config is None else config
    return models.restore_params(models.find(path), models.build(config), config)[0]


def rewrite(file: Path, **options: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | options))


def test_old_and_new_names_nested_and_flat_safetensors_and_pytorch_hold_the_same(flat, folder, tmp_path):
    params = flat[1]
    jax.tree.map(np.testing.assert_array_equal, restored(folder), params)
    assert models.find(folder.parent) == folder
    # as later versions save it, with a sampler's scheduler
    nested = tmp_path / "nested"
    for place, names in {"unet": ("config.json",), "scheduler": ("scheduler_config.json",)}.items():
        (nested / place).mkdir(parents=True)
        for name in names:
            shutil.copy(folder / name, nested / place)
    sampler = {
        "set_alpha_to_one": True,
        "steps_offset": 1,
        "thresholding": True,
        "timestep_spacing": "leading",
    }
    rewrite(nested / "scheduler" / "scheduler_config.json", _class_name="PNDMScheduler", **sampler)
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "vae": [None, None]}
    (nested / "model_index.json").write_text(json.dumps(index))
    order = list(models.build(config_of(folder)).abstract_params())
    tensors = their_tensors(params, order)
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    save_file(half, nested / "unet" / f"{WEIGHTS}.safetensors")
    as_half = jax.tree.map(lambda a: a.astype(np.float16).astype(np.float32), params)
    jax.tree.map(np.testing.assert_array_equal, restored(nested), as_half)
    # and as PyTorch's file
    (nested / "unet" / f"{WEIGHTS}.safetensors").unlink()
    state = {name: tiny.Tensor(tensor) for name, tensor in tensors.items()}
    empty = {name: {} for name in order}
    tiny.write_torch(nested / "unet" / f"{WEIGHTS}.bin", order, empty, empty, change=lambda _: state)
    jax.tree.map(np.testing.assert_array_equal, restored(nested), params)


def test_what_a_folder_says_becomes_settings(folder):
    rewrite(folder / "config.json", attention_head_dim=8, downsample_padding=1, act_fn="swish", dropout=0.1)
    rewrite(
        folder / "scheduler_config.json",
        prediction_type="sample",
        beta_schedule="scaled_linear",
        num_train_timesteps=2000,
    )
    stated = diffusers_folder.describe(folder)
    image = {"num_channels": 3, "centered": True}
    assert stated["data"] == {"image_size": 8, "image_width": None, **image}
    rewrite(folder / "config.json", sample_size=[8, 16])
    assert diffusers_folder.describe(folder)["data"] == {"image_size": 8, "image_width": 16, **image}
    assert stated["sde"]["schedule"] == "scaled_linear"
    assert stated["sde"]["num_levels"] == 2000
    model = stated["model"]
    assert (model["prediction"], model["time"]) == ("denoised", "index")
    assert (model["attn_resolutions"], model["ch_mult"]) == ((4,), (1, 2))
    assert (model["attn_head_dim"], model["downsample_padding"], model["dropout"]) == (8, 1, 0.1)
    network = models.build(config_of(folder))
    assert network.module.attn_every_up_block
    sde: Any = sde_lib.from_config(config_of(folder).sde)
    betas = np.linspace(1e-4**0.5, 0.02**0.5, 2000) ** 2
    # each factor is rounded to float32, by up to 2^-25; random signs leave the root of their number
    np.testing.assert_allclose(
        2 * sde.log_alphas, np.cumsum(np.log1p(-betas)), rtol=0, atol=2000**0.5 * 2**-25
    )


def test_the_hash_is_that_of_the_files_that_are_read(folder):
    before = checkpoints.provenance(folder)["checkpoint_sha256"]
    (folder / "README.md").write_text("something else")
    assert checkpoints.provenance(folder)["checkpoint_sha256"] == before
    rewrite(folder / "scheduler_config.json", beta_end=0.03)
    assert checkpoints.provenance(folder)["checkpoint_sha256"] != before


UNET_REFUSED = {
    "_class_name": ("UNet2DConditionModel", "'UNet2DModel'"),
    "act_fn": ("gelu", "'silu' or 'swish'"),
    "add_attention": (False, "True"),
    "attention_head_dim": (0, "None or a whole number >= 1"),
    "attn_norm_num_groups": (4, "None or 32"),
    "block_out_channels": ([32, 48], "multiples of the first, 32"),
    "center_input_sample": (True, "False"),
    "class_embed_type": ("timestep", "None"),
    "down_block_types": (["DownBlock2D", "ResnetDownsampleBlock2D"], "a list of 2 names"),
    "downsample_padding": (2, "0 or 1"),
    "downsample_type": ("resnet", "'conv'"),
    "dropout": (None, "a number"),
    "flip_sin_to_cos": ("yes", "False or True"),
    "freq_shift": (2, "0 or 1"),
    "in_channels": ("three", "a whole number >= 1"),
    "layers_per_block": ([1, 2], "a whole number >= 1"),
    "mid_block_scale_factor": (1.414, "1"),
    "mid_block_type": (None, "'UNetMidBlock2D'"),
    "norm_eps": ("small", "a number"),
    "norm_num_groups": (None, "a whole number >= 1"),
    "num_class_embeds": (10, "None"),
    "num_train_timesteps": (1000, "None"),
    "out_channels": (6, "3, the number of in_channels"),
    "resnet_time_scale_shift": ("scale_shift", "'default'"),
    "sample_size": ([32, 0], r"a whole number >= 1, or \[height, width\]"),
    "time_embedding_dim": (256, "None or 128"),
    "time_embedding_type": ("fourier", "'positional'"),
    "up_block_types": (
        ["UpBlock2D", "AttnUpBlock2D"],
        r"\['AttnUpBlock2D', 'UpBlock2D'\], with attention at",
    ),
    "upsample_type": ("resnet", "'conv'"),
    "something_new": (None, "absent, since no such option is known here"),
}
SCHEDULER_REFUSED = {
    "_class_name": ("EulerDiscreteScheduler", "'DDPMScheduler' or 'DDIMScheduler' or 'PNDMScheduler'"),
    "beta_end": (None, "a number"),
    "beta_schedule": ("sigmoid", "'linear' or 'scaled_linear' or 'squaredcos_cap_v2'"),
    "beta_start": ("0.1", "a number"),
    "num_train_timesteps": (1000.5, "a whole number >= 1"),
    "prediction_type": ("velocity", "'epsilon' or 'v_prediction' or 'sample'"),
    "rescale_betas_zero_snr": (True, "False"),
    "trained_betas": ([0.1, 0.2, 0.3], "None"),
    "use_karras_sigmas": (False, "absent, since no such option is known here"),
}
REFUSED = [("config.json", *item) for item in UNET_REFUSED.items()]
REFUSED += [("scheduler_config.json", *item) for item in SCHEDULER_REFUSED.items()]


@pytest.mark.parametrize(
    ("file", "name", "case"), REFUSED, ids=lambda part: part if type(part) is str else ""
)
def test_an_option_that_means_another_network_or_process_is_refused(folder, file, name, case):
    value, allowed = case
    rewrite(folder / file, **{name: value})
    with pytest.raises(ValueError, match=rf"^{name} in .*/{file} must be {allowed}.*\(got ") as caught:
        restored(folder)
    assert f"(got {value!r}): take another checkpoint" in str(caught.value)


def test_every_option_of_diffusers_is_known():
    """What is refused, what has a setting here, and what is a sampler's, together."""
    known = {"_class_name", "something_new", *diffusers_folder._UNET}
    assert set(UNET_REFUSED) | set(UNET) - {"_diffusers_version"} == known
    assert set(SCHEDULER_REFUSED) - {"_class_name", "use_karras_sigmas"} == set(diffusers_folder._SCHEDULER)


def test_what_a_file_leaves_out_is_as_in_diffusers(folder):
    options = {name: value for name, value in UNET.items() if name not in ("freq_shift", "norm_eps")}
    (folder / "config.json").write_text(json.dumps(options))
    model = diffusers_folder.describe(folder)["model"]
    assert (model["freq_shift"], model["norm_epsilon"]) == (0, 1e-5)


def test_the_time_embedding_of_diffusers_own_defaults(folder, flat):
    """cos before sin, at frequencies 10^(−4 i/half), times their weights."""
    rewrite(folder / "config.json", freq_shift=0, flip_sin_to_cos=True)
    theirs = flat[1]["Dense_0"]["kernel"]  # as the file has it, transposed
    ours = restored(folder)["Dense_0"]["kernel"]
    label, half = np.array([0.0, 1.0, 321.5, 999.0], np.float32), len(theirs) // 2
    angles = label[:, None] * 1e-4 ** (np.arange(half) / half)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) @ theirs
    embedding = layers.positional_embedding(jnp.asarray(label), 2 * half, freq_shift=0)
    np.testing.assert_allclose(embedding @ ours, expected, atol=2e-4)
    assert np.abs(embedding @ theirs - expected).max() > 0.1


def damaged(folder: Path, how: str) -> None:
    weights = folder / f"{WEIGHTS}.safetensors"
    match how:
        case "no scheduler":
            (folder / "scheduler_config.json").unlink()
        case "no network":
            (folder / "config.json").unlink()
        case "half a config":
            (folder / "config.json").write_text('{"_class_name": "UNe')
        case "a list":
            (folder / "scheduler_config.json").write_text("[]")
        case "no weights":
            weights.rename(folder / f"{WEIGHTS}.fp16.safetensors")
        case "truncated" | "empty":
            weights.write_bytes(weights.read_bytes()[: -5 if how == "truncated" else 0])
        case "pointer":
            weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 143\n")
        case "shards":
            weights.rename(folder / f"{WEIGHTS}-00001-of-00002.safetensors")
        case "latents":
            index = {"_class_name": "LDMPipeline", "unet": ["diffusers", "UNet2DModel"], "vqvae": ["a", "b"]}
            (folder / "model_index.json").write_text(json.dumps(index))
        case "pickle":
            weights.unlink()
            state = {"conv_in.weight": np.float64(1)}
            tiny.write_torch(folder / f"{WEIGHTS}.bin", [], {}, {}, change=lambda _: state)
        case "other names":
            tensors = load_file(weights)
            tensors["conv_out.bias2"] = tensors.pop("conv_out.bias")
            tensors["down_blocks.1.attentions.0.to_q.weight"] = np.zeros((64, 64), np.float32)
            tensors["down_blocks.0.resnets.0.conv1.weight"] = np.zeros((32, 32, 1, 1), np.float32)
            save_file(tensors, weights)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "no scheduler",
            r"checkpoint must be a folder .*but it has no scheduler_config.json \(got .*: give the",
        ),
        ("no network", r"checkpoint must be a folder of diffusers .*but it has no config.json \(got"),
        (
            "half a config",
            r"checkpoint must be a whole file of .*JSONDecodeError.*config.json'\): copy it again",
        ),
        (
            "a list",
            r"checkpoint must be a whole file of .*it is no dictionary.*scheduler_config.json'\): copy",
        ),
        (
            "no weights",
            rf"weights in one file, but it has {WEIGHTS}.fp16.safetensors \(got .*: copy {WEIGHTS}",
        ),
        ("truncated", r"checkpoint must be a whole file of .*SafetensorError.*safetensors'\): copy it again"),
        ("empty", r"checkpoint must be a whole file of .*SafetensorError.*safetensors'\): copy it again"),
        ("pointer", r"checkpoint must be a whole folder, .* pointer of Git LFS .*: run `git lfs pull`"),
        ("shards", r"weights in one file, but it has .*-00001-of-00002.safetensors .* larger max_shard_size"),
        (
            "latents",
            r"a network of pixels, but this folder has more parts than a unet and a scheduler: vqvae",
        ),
        ("pickle", r"one of plain tensors, but something else is at conv_in.weight .*nothing was imported"),
        (
            "other names",
            r"(?s)of the architecture.*missing \(1\): Conv_1/bias\n.*unexpected \(2\): .*conv_out.bias2.*"
            r"misshapen \(1\): ResnetBlockDDPM_0/Conv_0/kernel \(1, 1, 32, 32\) instead of \(3, 3, 32, 32\)",
        ),
    ],
)
def test_a_folder_that_is_not_whole(folder, how, message):
    config = config_of(folder)
    damaged(folder, how)
    with pytest.raises(ValueError, match=message):
        restored(folder, config)


def test_there_are_no_weights_as_trained(folder):
    config = config_of(folder)
    with pytest.raises(
        ValueError, match=r"with weights as trained for raw weights.*: take these, with raw=F"
    ):
        models.load_score_fn(config, folder, raw=True)


def test_the_config_of_ddpm_is_that_of_its_checkpoint(folder):
    """The options in google/ddpm-cifar10-32's config.json, and its number of parameters."""
    rewrite(
        folder / "config.json",
        block_out_channels=[128, 256, 256, 256],
        down_block_types=["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        layers_per_block=2,
        sample_size=32,
        up_block_types=["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    )
    with pytest.raises(ValueError, match=rf"download the files of {diffusers_folder.PAGE} into it"):
        models.find("checkpoints/ddpm-cifar10-32")
    config: Any = ddpm_config()
    checkpoints.require_trained_like(folder, config)
    leaves = jax.tree.leaves(models.build(config).abstract_params())
    assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == 35_746_307
