"""Networks in the format of EDM: the reference's denoised images, and what else a file may hold."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs
import models
import sde_lib
from configs.base import get_config
from models import checkpoints, published_edm
from solvers import EDM
from tests.models import edm_files, tiny

CASES = ["edm_ddpmpp_uncond", "edm_ncsnpp_cond", "vp_ddpmpp_uncond"]
GOLDEN_TOLERANCE = 1e-4  # of the reference's float32
# Their sampler computes in float64 around a float32 network, ours in float32: 17 steps of two sums each
STEP_TOLERANCE = 1e-5

NCSNPP = {
    "fir": True,
    "progressive_input": "residual",
    "embedding_type": "fourier_of_label",
    "fourier_scale": 16.0,
    "dropout": 0.13,
}
DDPMPP = {"dropout": 0.13, "fourier_scale": 16.0}


def relative(a: Any, b: Any) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def config_of(path: Path) -> Any:
    """The config that a file describes."""
    config = get_config()
    for group, settings in published_edm.describe(path).items():
        config[group].update(settings)
    return config


def restore(path: Path, config: Any, **options: Any) -> Any:
    return models.restore_params(models.find(path), models.build(config), config, **options)[0]


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def classes_in(golden: Any) -> tuple[Any, ...]:
    """The classes of one-hot rows, −1 for a row of zeros; nothing for a network without."""
    if "class_labels" not in golden:
        return ()
    rows = golden["class_labels"]
    return (np.where(rows.any(1), rows.argmax(1), -1).astype(np.int32),)


@jax.jit
def call(score_fn: Any, *arguments: Any) -> Any:
    return score_fn(*arguments)


@pytest.mark.parametrize("case", CASES)
def test_a_golden_network_denoises_as_the_reference(golden, case, tmp_path):
    path = golden("edm", case, "network-snapshot.pkl")
    config, reference = config_of(path), np.load(path.parent / "golden.npz")
    score_fn, sde = models.load_score_fn(config, path), sde_lib.from_config(config.sde)
    y, sigma = reference["x"], reference["sigma"]
    t: Any = jax.vmap(sde.inverse_log_snr)(-jnp.log(sigma))
    marginal: Any = jax.vmap(sde.marginal)(t)
    alpha, level = marginal[0][:, None, None, None], sigma[:, None, None, None]
    score = call(score_fn, alpha * y, t, *classes_in(reference))
    denoised = y + level**2 * alpha * score  # of y = x/alpha
    for one, expected in zip(denoised, reference["denoised"], strict=True):
        assert relative(one, expected) < GOLDEN_TOLERANCE

    own = models.convert(path, tmp_path / "own", config)
    assert_same(restore(own, config), score_fn.args[-1])
    assert checkpoints.stated(own)["source_format"] == published_edm.KIND


def test_the_sampler_takes_the_steps_of_the_paper(golden):
    """Algorithm 1 of arXiv 2206.00364 with 18 levels, told with the denoiser; ours by ask and tell."""
    path = golden("edm", "edm_ncsnpp_cond", "network-snapshot.pkl")
    config, solver, classes = config_of(path), EDM(num_steps=17), np.arange(6, dtype=np.int32)
    score_fn, sde = models.load_score_fn(config, path), sde_lib.from_config(config.sde)
    ask, tell = jax.jit(jax.vmap(solver.ask)), jax.jit(jax.vmap(lambda s, score: solver.tell(sde, s, score)))
    begin = jax.vmap(lambda key: solver.init(sde, key, (16, 16, 3), jnp.float32))
    state = begin(jax.random.split(jax.random.key(0), 6))

    def slope(x: Any, sigma: float) -> Any:
        score = call(score_fn, np.float32(x), np.full(len(x), sigma, np.float32), classes)
        denoised = x + sigma**2 * np.float64(score)
        return (x - denoised) / sigma

    ramp = np.arange(18) / 17
    levels = [*(80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7]
    x, errors = np.float64(state.x), []
    for sigma, after in itertools.pairwise(levels):
        first = slope(x, sigma)
        second = slope(x + (after - sigma) * first, after)
        x = x + (after - sigma) * (first + second) / 2
        for _ in range(2):
            state = tell(state, call(score_fn, *ask(state), classes))
        np.testing.assert_allclose(state.t, after, rtol=1e-5)
        errors.append(relative(state.x, x))
    x = x - levels[-1] * slope(x, levels[-1])  # to sigma = 0, by Euler alone
    final = jax.vmap(lambda x, t, score: sde_lib.denoise(sde, x, t, score))
    score = call(score_fn, state.x, state.t, classes)
    errors.append(relative(final(state.x, state.t, score), x))
    print("after each step and at the end:", *(f"{error:.1e}" for error in errors))
    assert max(errors) < STEP_TOLERANCE


def edm_config(kind: str = "EDMPrecond", **options: Any) -> Any:
    """A small network as the preconditioning reads it."""
    if kind == "VPPrecond":
        return tiny.config(**DDPMPP, **options)
    config = tiny.config(sde="ve" if kind == "VEPrecond" else "edm", **{**NCSNPP, **options})
    if kind == "VEPrecond":
        config.model.update({"embedding_type": "fourier", "scale_by_sigma": True})
    else:
        config.model.update({"prediction": "edm", "time": "log_sigma", "sigma_data": 0.5})
    return config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A config with classes, its weights, and a file of EDM's with them and what else such files hold."""
    config = edm_config(num_classes=5, ch_mult=(1,), attn_resolutions=())
    params = tiny.params(config)
    beside = {"loss_fn": edm_files.Module("EDMLoss", P_mean=np.float64(-1.2)), "augment_pipe": None}
    beside |= {"dataset_kwargs": edm_files.Settings(path="cifar10.zip", use_labels=True)}
    path = tmp_path_factory.mktemp("edm") / "network-snapshot-001000.pkl"
    edm_files.write(path, {"ema": edm_files.network(config, params), **beside})
    return config, params, path, beside


def changed(made: Any, path: Path, kind: str = "EDMPrecond", **attributes: Any) -> Path:
    config, params, _, beside = made
    return edm_files.write(path, {"ema": edm_files.network(config, params, kind, **attributes), **beside})


PROCESSES = {
    "EDMPrecond": sde_lib.EDMProcess(),
    "VPPrecond": sde_lib.VPSDE(0.1, 20.0),
    "VEPrecond": sde_lib.VESDE(0.01, 50.0),
}


@pytest.mark.parametrize(("kind", "protocol"), [*zip(PROCESSES, (4, 3, 5), strict=True)])
def test_a_file_gives_its_weights_and_says_what_they_are(kind, protocol, tmp_path):
    config = edm_config(kind, num_classes=5)
    params = tiny.params(config)
    # the content decides, not the name; a folder with one file stands for it
    state = {"ema": edm_files.network(config, params, kind)}
    path = edm_files.write(tmp_path / "weights.bin", state, protocol)
    assert_same(restore(tmp_path, config), params)
    described = published_edm.describe(path)
    for group in ("model", "data"):
        assert described[group] == {name: config[group][name] for name in described[group]}
    assert {"prediction", "num_classes", "embedding_type"} < described["model"].keys()
    assert sde_lib.from_config(config_of(path).sde) == PROCESSES[kind]


@pytest.mark.parametrize(
    ("name", "parameters"), [("vp/cifar10_edm", 55_732_739), ("ve/cifar10_edm_cond", 56_398_467)]
)
def test_a_config_is_that_of_its_file(name, parameters, tmp_path):
    config = configs.load(name)
    shapes = jax.tree.leaves(models.build(config).abstract_params())
    assert sum(math.prod(leaf.shape) for leaf in shapes) == parameters
    config.model.nf = 4  # a file of its layers that is soon written
    params = tiny.params(config)
    path = edm_files.write(tmp_path / "x", {"ema": edm_files.network(config, params)})
    assert_same(restore(path, config), params)  # refused for another config


def test_the_score_of_a_ve_network_is_that_of_its_preconditioning_in_units_of_images(tmp_path):
    """D(y) = y + sigma F(y, log(sigma/2)) for images in [−1, 1], of which ours are half, plus 1/2."""
    config = edm_config("VEPrecond", ch_mult=(1,), attn_resolutions=())  # little to compile
    params = tiny.params(config)
    path = edm_files.write(tmp_path / "x", {"ema": edm_files.network(config, params, "VEPrecond")})
    score_fn, sde = models.load_score_fn(config_of(path), path), sde_lib.VESDE(0.01, 50.0)
    options: dict[str, Any] = {
        "embedding_type": "fourier_of_label",
        "scale_by_sigma": False,
        "centered": True,
    }
    raw = models.build(config).module.clone(**options)
    y = np.random.default_rng(1).standard_normal((3, 8, 8, 3)).astype(np.float32)
    t = jnp.asarray([0.1, 0.5, 0.9])
    marginal: Any = jax.vmap(sde.marginal)(t)
    sigma = 2 * marginal[1]
    F: Any = jax.jit(raw.apply)({"params": params}, y, jnp.log(sigma / 2))
    score_of_y = F / sigma[:, None, None, None]  # (D − y)/sigma^2
    found = call(score_fn, (y + 1) / 2, t)
    # float32; the frequencies multiply the rounding of the label, some 1e-7, by up to 300
    assert relative(found, 2 * score_of_y) < 1e-4


def test_weights_in_float16_are_read_as_float32(made, tmp_path):
    config, params, _, _ = made
    half = jax.tree.map(lambda a: a.astype(np.float16), params)
    path = edm_files.write(tmp_path / "x", {"ema": edm_files.network(config, half, use_fp16=True)})
    restored = restore(path, config)
    assert {leaf.dtype for leaf in jax.tree.leaves(restored)} == {np.dtype(np.float32)}
    assert_same(restored, jax.tree.map(np.float32, half))


def test_another_config_than_that_of_the_file_is_refused(made):
    config, _, path, _ = made
    for key, value in {"model.num_classes": 0, "sde.name": "vp", "data.centered": False}.items():
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({key: value, "model.prediction": "edm"})
        with pytest.raises(
            ValueError, match=rf"config must be that of .*'config.{key}': .* \(got .*{key}': "
        ):
            restore(path, other)
    with pytest.raises(ValueError, match=r"for raw weights, but a snapshot of EDM .*: take these, with raw"):
        restore(path, config, raw=True)


@pytest.mark.parametrize(
    ("kind", "attributes", "message"),
    [
        (
            "iDDPMPrecond",
            {},
            r"VEPrecond around SongUNet \(got 'iDDPMPrecond around SongUNet'\): take another",
        ),
        (
            "EDMPrecond",
            {"sigma_data": "x"},
            r"^sigma_data in .* must be a number > 0 \(got 'x'\): take another",
        ),
        ("EDMPrecond", {"sigma_data": np.float64(0.5)}, "sigma_data in .* must be a number > 0"),
        ("VPPrecond", {"M": 100}, r"M in .* must be 1000, for labels of 999 t \(got 100.0\)"),
        (
            "EDMPrecond",
            {"unet": {"options": {"encoder_type": "skip", "channel_mult_emb": 2}}},
            r"SongUNet in .* must be DDPM\+\+ or NCSN\+\+, which is NCSN\+\+ with .*'encoder_type': "
            r"'residual'.* \(got \"{.*'encoder_type': 'skip'}\"\)",
        ),
        (
            "EDMPrecond",
            {"unet": {"options": {"num_heads": 2}}},
            r"num_heads in .* must be absent, since SongUNet has no such option \(got 2\)",
        ),
        (
            "EDMPrecond",
            {"unet": {"options": {"label_dim": 10**400}}},
            r"label_dim in .* \(got 'a huge number'\)",
        ),
        ("EDMPrecond", {"unet": {"options": {"channel_mult": [[]]}}}, "channel_mult in .* a list of whole "),
        ("EDMPrecond", {"unet": {"options": {"out_channels": 6}}}, "out_channels in .* 3, the number of in_"),
        ("EDMPrecond", {"model": 7, "_modules": {}}, r"\(got 'EDMPrecond around nothing'\)"),
        (
            "EDMPrecond",
            {"_modules": {"model": 7}},
            r"with a network under 'ema', but in this one that is not so",
        ),
    ],
)
def test_a_network_of_another_kind_is_refused_by_name(made, kind, attributes, message, tmp_path):
    path = changed(made, tmp_path / "x", kind, **attributes)
    with pytest.raises(ValueError, match=message) as caught:
        published_edm.describe(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(path))


def test_a_dhariwal_network_is_refused_by_name(made, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(made[2].read_bytes().replace(b"\x8c\x08SongUNet", b"\x8c\x0cDhariwalUNet"))
    # the frames of the pickle are four bytes short, of which the reader takes no notice
    with pytest.raises(
        ValueError, match=r"around SongUNet \(got 'EDMPrecond around DhariwalUNet'\): take an"
    ):
        restore(path, made[0])


def test_another_embedding_under_ve_is_refused(tmp_path):
    config = edm_config("VPPrecond", ch_mult=(1,), attn_resolutions=())
    network = edm_files.network(config, tiny.params(config), "VEPrecond")
    path = edm_files.write(tmp_path / "x", {"ema": network})
    with pytest.raises(ValueError, match=r"SongUNet in .* NCSN\+\+ with VEPrecond.* \(got 'DDPM\+\+'\)"):
        published_edm.describe(path)


class Evil:
    """What would run a command if it were unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("place", ["ema", "beside", "inside"])
def test_a_pickle_that_names_anything_else_is_refused_by_name_and_not_run(made, place, tmp_path):
    config, params, _, beside = made
    evil = Evil(f"touch {tmp_path / 'run'}")
    inside: dict[str, Any] = {"_init_kwargs": {"a": evil}} if place == "inside" else {}
    state = {"ema": edm_files.network(config, params, **inside), **beside}
    path = edm_files.write(tmp_path / "x", state if place == "inside" else {**state, place: evil})
    message = (
        r"checkpoint must be a pickle of a network alone, but it names '(posix|nt).system' .*: nothing was"
    )
    for read in (published_edm.describe, lambda path: restore(path, config)):
        with pytest.raises(ValueError, match=message):
            read(path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, r"network under 'ema', but in this one that is not so \(TypeError: it holds nothing\)"),
        (7, "it holds int"),
        ({"G_ema": edm_files.Module("Generator")}, "it holds 'G_ema'"),
        ({"ema": {"model": 7}}, "it holds 'ema'"),
    ],
)
def test_a_pickle_of_something_else(state, message, tmp_path):
    path = edm_files.write(tmp_path / "x", state)
    with pytest.raises(ValueError, match=message):
        published_edm.describe(path)


def test_layers_that_are_something_else(made, tmp_path):
    config, params, _, _ = made

    def written(change: Any) -> Path:
        network = edm_files.network(config, params)
        change(network.attributes["_modules"]["model"].attributes["_modules"])
        return edm_files.write(tmp_path / "x", {"ema": network})

    def own_strides(modules: Any) -> None:
        tensors = modules["map_layer0"].attributes["_parameters"]
        tensors["weight"] = edm_files.Tensor(tensors["weight"].array, (-1, 1))

    def other_bias(modules: Any) -> None:
        modules["map_label"].attributes["_parameters"]["bias"] = 7

    def more(modules: Any) -> None:
        modules["map_more"] = edm_files.Module("Linear")

    def fewer_classes(modules: Any) -> None:
        weight = edm_files.Tensor(np.ones((8, 3), np.float32))
        modules["map_label"].attributes["_parameters"]["weight"] = weight

    def beyond(modules: Any) -> None:
        modules["map_layer0"].attributes["_parameters"]["bias"] = edm_files.Tensor(
            np.ones(16, np.float32), (2,)
        )

    for change, message in (
        (own_strides, r"weight is a shape, strides or an offset that PyTorch does not write"),
        (other_bias, r"with a network under 'ema', but in this one that is not so"),
        (more, r"with a network under 'ema', but .*map_more"),
        (fewer_classes, r"(?s)misshapen \(1\): ClassEmbedding_0/Dense_0/kernel \(3, 8\) instead of \(5, 8\)"),
        (beyond, r"a whole pickle, but .*a tensor goes beyond storage"),
    ):
        with pytest.raises(ValueError, match=message):
            restore(written(change), config)


@pytest.mark.parametrize("keep", [0.999, 0.5, 0.01])
def test_a_truncated_file(made, keep, tmp_path):
    content = made[2].read_bytes()
    short = tmp_path / "x"
    short.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(
        ValueError, match=rf"checkpoint must be a whole pickle, but .*'{short}'\): copy it again"
    ):
        restore(short, made[0])


def test_an_absent_published_file_says_where_it_is(tmp_path):
    with pytest.raises(ValueError, match=rf"download it from {published_edm.PAGE} and put it there"):
        models.find(tmp_path / "edm-cifar10-32x32-cond-vp.pkl")
