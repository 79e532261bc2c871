"""The networks, option by option, against the plain formulas of ``slow``, and the refusals of bad options."""

from __future__ import annotations

import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import sde_lib
from configs import image_shape
from tests.models import slow, tiny

# Together they give each option all of its values
CASES = {
    "ddpm++": {},
    "ddpm++ without options": {"skip_rescale": False, "conditional": False, "attn_resolutions": ()},
    "ddpm": {"name": "ddpm"},
    "ddpm without convolutions": {"name": "ddpm", "resamp_with_conv": False},
    "ddpm with the options of diffusers": {
        "name": "ddpm",
        "attn_resolutions": (8, 4),
        "norm_groups": 8,
        "norm_epsilon": 0.1,
        "attn_every_up_block": True,
        "attn_head_dim": 16,
        "downsample_padding": 1,
        "freq_shift": 0,
    },
    "ddpm blocks": {"resblock_type": "ddpm"},
    "ddpm blocks, fir": {"resblock_type": "ddpm", "fir": True, "fir_kernel": (1, 2, 4, 1)},
    "ddpm blocks, plain resampling": {"resblock_type": "ddpm", "resamp_with_conv": False},
    "ve": {
        "sde": "ve",
        "fir": True,
        "embedding_type": "fourier",
        "scale_by_sigma": True,
        "progressive_input": "residual",
    },
    "256": {
        "sde": "ve",
        "fir": True,
        "embedding_type": "fourier",
        "scale_by_sigma": True,
        "progressive": "output_skip",
        "progressive_input": "input_skip",
    },
    "residual": {
        "fir": True,
        "progressive": "residual",
        "progressive_input": "residual",
        "skip_rescale": False,
    },
    "residual, plain": {"progressive": "residual", "progressive_input": "residual"},
    "skip, plain, side by side": {
        "progressive": "output_skip",
        "progressive_input": "input_skip",
        "progressive_combine": "cat",
    },
    "rectangles": {"width": 16, "fir": True, "progressive": "output_skip"},
    "patches": {"width": 16, "patch_size": 2, "resblock_type": "ddpm", "resamp_with_conv": False},
    "patches, 256": {
        "sde": "ve",
        "patch_size": 2,
        "fir": True,
        "embedding_type": "fourier",
        "scale_by_sigma": True,
        "progressive": "output_skip",
        "progressive_input": "input_skip",
    },
    "ddpm, rectangles": {"name": "ddpm", "width": 16},
    "fourier without its use": {"sde": "ve", "embedding_type": "fourier", "conditional": False},
}


def setting(options):
    config = tiny.config(**options)
    x = np.random.default_rng(1).standard_normal((2, *image_shape(config.data))).astype(np.float32)
    label = np.array([0.05, 3.0] if config.sde.name == "ve" else [1.0, 600.0], np.float32)
    return config, x, label


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# Each of their options has its value in another case too
SLOW = {
    "ddpm without convolutions",
    "residual, plain",
    "patches",
    "ddpm, rectangles",
    "fourier without its use",
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES]
)
def test_network_and_its_pytorch_file_agree_with_the_plain_formulas(case, tmp_path):
    config, x, label = setting(CASES[case])
    params, raw = tiny.params(config), tiny.params(config, seed=1)
    plain = slow.Network(params, config)
    expected = plain(x, label)
    module = models.build(config).module
    fast = jax.jit(module.apply)({"params": params}, x, label)
    assert fast.dtype == jnp.float32
    # single precision through some thirty layers
    assert relative(fast, expected) < 2e-5

    # The PyTorch file numbers layers as the plain network used them.
    if "GaussianFourierProjection_0" in raw:
        raw["GaussianFourierProjection_0"] = params["GaussianFourierProjection_0"]
    path = tiny.write_torch(tmp_path / "x.pth", plain.order, params, raw)
    for wanted, as_trained in ((params, False), (raw, True)):
        restored, metadata = models.restore_params(path, models.build(config), config, raw=as_trained)
        assert metadata["step"] == 7000
        jax.tree.map(np.testing.assert_array_equal, restored, wanted)
        assert list(restored) == plain.order


def test_dropout_acts_in_training_only():
    config, x, label = setting({"dropout": 0.5, "ch_mult": (1,), "attn_resolutions": ()})
    module, params = models.build(config).module, {"params": tiny.params(config)}
    apply = jax.jit(module.apply, static_argnames="train")
    still = apply(params, x, label)
    np.testing.assert_array_equal(still, apply(params, x, label))
    first, second = (
        apply(params, x, label, train=True, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 1)
    )
    assert relative(first, still) > 1e-2
    assert relative(first, second) > 1e-2


def test_a_new_network_starts_at_almost_zero():
    config, x, label = setting({"ch_mult": (1,), "attn_resolutions": ()})  # little to compile
    network = models.build(config)
    params = jax.jit(network.init)(jax.random.key(0, impl="rbg"))  # compiles sooner than the default
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, network.abstract_params())
    assert np.abs(jax.jit(network.module.apply)({"params": params}, x, label)).max() < 1e-3


@pytest.mark.parametrize("options", [{"name": "ddpm"}, {}, {"embedding_type": "fourier_of_label"}])
def test_a_class_shifts_the_bias_of_the_first_dense_layer(options):
    small = {**options, "ch_mult": (1,), "attn_resolutions": ()}
    config, x, label = setting({**small, "num_classes": 3})
    module, params = models.build(config).module, tiny.params(config)
    plain = jax.jit(models.build(tiny.config(**small)).module.apply)
    classes = np.array([2, -1], np.int32)
    found = jax.jit(module.apply)({"params": params}, x, label, classes)
    rest = dict(params)
    table, dense = rest.pop("ClassEmbedding_0")["Dense_0"], rest["Dense_0"]
    for i, row in enumerate([table["bias"] + math.sqrt(3) * table["kernel"][2], table["bias"]]):
        shifted = rest | {"Dense_0": {**dense, "bias": dense["bias"] + row @ dense["kernel"]}}
        assert relative(found[i], plain({"params": shifted}, x, label)[i]) < 1e-5
    with pytest.raises(ValueError, match=r"classes must be one class from 0 to 2 for every image, or -1"):
        module.apply({"params": params}, x, label)
    with pytest.raises(ValueError, match=r"classes must be None for a network without classes \(got 'shape"):
        plain({"params": rest}, x, label, classes)


def test_fourier_features_of_a_label_are_those_of_its_logarithm_where_it_is_one():
    small = {"sde": "ve", "ch_mult": (1,), "attn_resolutions": (), "embedding_type": "fourier"}
    config, x, label = setting(small)
    params = {"params": tiny.params(config)}
    module = models.build(config).module
    of_label = module.clone(embedding_type="fourier_of_label")
    expected = jax.jit(module.apply)(params, x, label)
    assert relative(jax.jit(of_label.apply)(params, x, jnp.log(label)), expected) < 1e-5


@pytest.mark.parametrize("sde", ["ve", "vp", "subvp"])
def test_score_is_the_output_at_the_network_time_and_a_pytree(sde):
    config, x, _ = setting({"sde": sde})
    process = sde_lib.from_config(config.sde)
    params = tiny.params(config)
    t: Any = np.array([0.3, 0.9], np.float32)
    network = models.build(config)
    score_fn = network.score_fn(process, params)
    traces = []

    @jax.jit
    def call(score_fn, x, t):
        traces.append(None)
        return score_fn(x, t)

    label = jax.vmap(process.network_time)(t)
    output: Any = jax.jit(network.module.apply)({"params": params}, x, label)
    expected = jax.vmap(process.score)(output, t)
    np.testing.assert_allclose(call(score_fn, x, t), expected, rtol=1e-4, atol=1e-5)

    # Another build, other weights and other numbers of the process: the compiled program is found again.
    config.sde.update({"sigma_max": 40.0} if sde == "ve" else {"beta_max": 19.0})
    other = models.build(config).score_fn(sde_lib.from_config(config.sde), tiny.params(config, seed=1))
    assert relative(call(other, x, t), expected) > 1e-3
    assert len(traces) == 1
    assert len(jax.tree.leaves(score_fn)) == len(jax.tree.leaves(params)) + 4


PUBLISHED = {
    "ve.cifar10": 62_758_915,
    "ve.cifar10_deep": 107_587_075,
    "vp.cifar10": 61_804_419,
    "vp.cifar10_deep": 106_632_579,
    "vp.cifar10_ncsnpp": 62_693_251,
    "vp.cifar10_ddpm": 35_218_947,
    "subvp.cifar10": 61_804_419,
    "subvp.cifar10_deep": 106_632_579,
    "ve.church_256": 65_574_549,
    "ve.bedroom_256": 65_574_549,
    "ve.celebahq_256": 65_574_549,
    "ve.ffhq_256": 65_574_549,
    "ve.ffhq_1024": 105_785_896,
}
# Those whose network is another one's, which needs no second counting
SAME = {"subvp.cifar10": "vp.cifar10", "subvp.cifar10_deep": "vp.cifar10_deep"}
SAME |= {f"ve.{name}_256": "ve.church_256" for name in ("bedroom", "celebahq", "ffhq")}


def published(name):
    return importlib.import_module(f"configs.{name}_adaptive").get_config()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if "cifar10" in name else pytest.mark.slow)
        for name in sorted(set(PUBLISHED) - set(SAME))
    ],
)
def test_published_networks_have_their_number_of_parameters(name):
    shapes = jax.tree.leaves(models.build(published(name)).abstract_params())
    assert sum(math.prod(leaf.shape) for leaf in shapes) == PUBLISHED[name]


@pytest.mark.parametrize("name", SAME)
def test_other_configs_share_a_published_network(name):
    assert models.build(published(name)) == models.build(published(SAME[name]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "ncsn"}, r"config.model.name must be one of .* \(got 'ncsn'\): did you mean 'ncsnpp'"),
        ({"dtype": "float16"}, r"config.model.dtype must be one of 'float32', 'bfloat16' \(got 'float16'\)"),
        ({"resblock_type": "bigan"}, r"config.model.resblock_type must .*'bigan'\): did you mean 'biggan'"),
        ({"progressive": "skip"}, r"config.model.progressive must be one of 'none', .* \(got 'skip'\)"),
        ({"progressive_input": "output_skip"}, r"config.model.progressive_input must be .*'output_skip'\)"),
        ({"progressive_combine": "add"}, r"config.model.progressive_combine must be one of 'sum', 'cat' "),
        (
            {"embedding_type": "sine"},
            r"config.model.embedding_type must be one of 'fourier', .*'positional' ",
        ),
        (
            {"fir": True, "fir_kernel": (1, -1)},
            r"config.model.fir_kernel must be at least two taps with a sum above zero \(got \(1, -1\)\)",
        ),
        ({"dropout": 1.0}, r"config.model.dropout must be a rate in \[0, 1\) \(got 1.0\)"),
        ({"nf": 2}, r"config.model.nf must be a whole number >= 4 \(got 2\)"),
        ({"ch_mult": (1,) * 5}, r"config.data.image_size must be a multiple of 16, .* \(got 8\)"),
        ({"ch_mult": ()}, r"config.model.ch_mult must be one whole number >= 1 .* \(got \(\)\)"),
        ({"scale_by_sigma": True}, r"config.model.scale_by_sigma must be False with config.sde.name='vp'"),
        (
            {"sde": "ve", "scale_by_sigma": True},
            r"config.model.scale_by_sigma must be False with embedding_type='positional'.*='fourier'",
        ),
        ({"ch_mult": (1.5, 2)}, r"config.model.ch_mult must be one whole number >= 1 .* \(got \(1.5, 2\)\)"),
        ({"ch_mult": (0, 2)}, r"config.model.ch_mult must be one whole number >= 1 .* \(got \(0, 2\)\)"),
        ({"nf": 48}, r"config.model: channels must be a multiple .* \(got 144\): choose nf and ch_mult so"),
        ({"patch_size": 0}, r"config.model.patch_size must be a whole number >= 1 \(got 0\)"),
        (
            {"patch_size": 3},
            r"config.data.image_size must be a multiple of 6, .* and patches take 3 pixels a side \(got 8\)",
        ),
        ({"name": "ddpm", "patch_size": 2}, r"config.model.patch_size must be 1 with .*'ddpm'"),
        (
            {"patch_size": 2, "attn_resolutions": (8,)},
            r"config.model.attn_resolutions must be among 4, 2, the .* \(got \(8,\)\)",
        ),
        ({"num_res_blocks": 0}, r"config.model.num_res_blocks must be a whole number >= 1 \(got 0\)"),
        (
            {"attn_resolutions": (5,)},
            r"config.model.attn_resolutions must be among 8, 4, the .* \(got \(5,\)\)",
        ),
        (
            {"sde": "ve", "scale_by_sigma": True, "embedding_type": "fourier_of_label"},
            r"config.model.scale_by_sigma must be False with embedding_type='fourier_of_label', whose label",
        ),
        (
            {"num_classes": -1},
            r"config.model.num_classes must be a whole number >= 0 \(got -1\): set it to 0",
        ),
        (
            {"num_classes": 3, "conditional": False},
            r"config.model.num_classes must be 0 with conditional=False",
        ),
        ({"sigma_data": 0.0}, r"config.model.sigma_data must be a number > 0 \(got 0.0\)"),
        ({"sigma_data": math.nan}, r"config.model.sigma_data must be a number > 0 \(got nan\)"),
        ({"fourier_scale": -1.0}, r"config.model.fourier_scale must be a number > 0 \(got -1.0\)"),
        ({"init_scale": -1.0}, r"config.model.init_scale must be a number >= 0 \(got -1.0\)"),
        ({"name": "ddpm", "nf": 48}, r"config.model.nf must be a multiple of 32 for DDPM.* \(got 48\)"),
        ({"name": "ddpm", "norm_groups": 0}, r"config.model.norm_groups must be a whole .* \(got 0\)"),
        (
            {"name": "ddpm", "norm_epsilon": 0.0},
            r"config.model.norm_epsilon must be a number > 0 \(got 0.0\)",
        ),
        ({"name": "ddpm", "attn_head_dim": 0}, r"config.model.attn_head_dim must be a whole .* \(got 0\)"),
        (
            {"name": "ddpm", "attn_head_dim": 24},
            r"config.model: channels must be a multiple of the 24 channels of an attention head \(got 64\)",
        ),
        (
            {"name": "ddpm", "downsample_padding": 2},
            r"config.model.downsample_padding must be 0 for zeros .* \(got 2\)",
        ),
        ({"attn_every_up_block": True}, r"config.model.attn_every_up_block must be False with .*'ncsnpp'"),
        ({"name": "ddpm", "fir": True}, r"config.model.fir must be False with config.model.name='ddpm'"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        models.build(tiny.config(**options))


@pytest.mark.parametrize(
    "fields", [{"nf": np.int32(2)}, {"num_res_blocks": np.int64(0)}, {"ch_mult": (np.float32(1.5),)}]
)
def test_numbers_of_numpy_are_checked_too(fields):
    common: dict[str, Any] = {"image_size": np.int32(8), "num_channels": np.int64(1), "centered": True}
    common |= {"nf": np.int32(4), "ch_mult": (np.int8(1),), "num_res_blocks": 1, "attn_resolutions": ()}
    models.NCSNpp(**common).check()
    with pytest.raises(ValueError, match=next(iter(fields))):
        models.NCSNpp(**common | fields).check()


def test_images_of_another_size_are_refused():
    config, x, label = setting({})
    with pytest.raises(ValueError, match=r"x.shape must be \(batch, 8, 8, 3\) \(got \(2, 4, 8, 3\)\)"):
        models.build(config).module.apply({"params": tiny.params(config)}, x[:, ::2], label)


def test_equal_configs_give_equal_networks_whatever_holds_their_lists():
    first, second = tiny.config(), tiny.config()
    assert models.build(first) == models.build(second)
    assert hash(models.build(first)) == hash(models.build(second))
    second.model.nf = 8
    assert models.build(first) != models.build(second)
    second.model.nf = first.model.nf
    second.model.sigma_data = 0.5
    assert models.build(first) != models.build(second)


def test_a_score_with_a_dropout_key_is_that_of_training():
    config, x, _ = setting({"dropout": 0.5, "ch_mult": (1,), "attn_resolutions": ()})  # little to compile
    network, params, process = models.build(config), tiny.params(config), sde_lib.from_config(config.sde)
    t: Any = np.array([0.3, 0.9], np.float32)
    key = jax.random.key(0)

    @jax.jit
    def scores(params, x, t):
        rngs, label = {"dropout": key}, jax.vmap(process.network_time)(t)
        output: Any = network.module.apply({"params": params}, x, label, train=True, rngs=rngs)
        expected = jax.vmap(process.score)(output, t)
        training = network.score(process, params, x, t, dropout_key=key)
        return training, expected, network.score(process, params, x, t)

    training, expected, sampling = scores(params, x, t)
    np.testing.assert_allclose(training, expected, rtol=1e-4, atol=1e-5)
    assert relative(training, sampling) > 1e-2
