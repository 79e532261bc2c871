"""Every layer against its formula, written out in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import layers
from tests.models import slow

# float32 sums of some hundred products of unit normals
TOLERANCE: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-5}
KERNELS = [(1, 3, 3, 1), (1.0, 2.0, 4.0, 0.5), (1, 1), (1, 2, 1), (1, 4, 6, 3, 1), (0.5, 1, 4, 6, 3, 1)]


def apply(module: Any, params: Any, *inputs: Any) -> Any:
    return module.apply({"params": params}, *map(jnp.asarray, inputs))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("kernel", KERNELS)
def test_fir_resampling_is_zero_insertion_and_convolution(kernel):
    x = normal(0, 2, 6, 8, 3)
    up, down = layers.fir_upsample(jnp.asarray(x), kernel), layers.fir_downsample(jnp.asarray(x), kernel)
    np.testing.assert_allclose(up, slow.fir_upsample(x, kernel), **TOLERANCE)
    np.testing.assert_allclose(down, slow.fir_downsample(x, kernel), **TOLERANCE)
    assert up.shape == (2, 12, 16, 3)
    assert down.shape == (2, 3, 4, 3)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("up", [True, False])
def test_fir_resampling_convolution_is_both_in_turn(kernel, up):
    x, weight, bias = normal(0, 2, 4, 6, 3), normal(1, 3, 3, 3, 5), normal(2, 5)
    module = layers.Conv2d(5, up=up, fir_kernel=kernel)
    fast = apply(module, {"weight": weight, "bias": bias}, x)
    formula = slow.fir_upsample_convolve if up else slow.fir_convolve_downsample
    np.testing.assert_allclose(fast, formula(x, weight, kernel) + bias, **TOLERANCE)
    assert fast.shape == ((2, 8, 12, 5) if up else (2, 2, 3, 5))


def test_a_constant_image_keeps_its_value_under_the_filter():
    x = jnp.full((1, 8, 8, 1), 3.0)
    np.testing.assert_allclose(layers.fir_upsample(x, (1, 3, 3, 1))[:, 2:-2, 2:-2], 3.0, rtol=1e-6)
    np.testing.assert_allclose(layers.fir_downsample(x, (1, 3, 3, 1))[:, 1:-1, 1:-1], 3.0, rtol=1e-6)


def test_plain_resampling_repeats_and_averages():
    x = normal(0, 2, 4, 6, 3)
    np.testing.assert_array_equal(layers.repeat_upsample(jnp.asarray(x)), slow.repeat(x).astype(np.float32))
    np.testing.assert_allclose(layers.mean_downsample(jnp.asarray(x)), slow.means(x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions(size, stride):
    x, weight, bias = normal(0, 2, 6, 6, 4), normal(1, size, size, 4, 5), normal(2, 5)
    module = layers.Conv(5, size, stride=stride, dtype=jnp.float32)
    fast = apply(module, {"kernel": weight, "bias": bias}, x)
    np.testing.assert_allclose(fast, slow.convolve(x, weight, stride) + bias, **TOLERANCE)


def test_swish_and_its_derivative():
    x = np.array([-1e30, -1000, -100, -20, -1, 0, 0.3, 20, 100, 1e30], np.float32)
    exact = x.astype(np.float64)
    sigmoid = 0.5 * (1 + np.tanh(exact / 2))
    # a few roundings of float32; what is below 1e-30 may as well be 0
    np.testing.assert_allclose(layers.swish(jnp.asarray(x)), exact * sigmoid, rtol=2e-6, atol=1e-30)
    slope = sigmoid + exact * sigmoid * (1 - sigmoid)
    np.testing.assert_allclose(jax.vmap(jax.grad(layers.swish))(jnp.asarray(x)), slope, rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (24, 6), (32, 32), (256, 32)])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_group_normalisation(channels, groups, offset):
    x = normal(0, 2, 4, 4, channels) + offset
    scale, bias = normal(1, channels), normal(2, channels)
    fast = apply(layers.GroupNorm(groups), {"scale": scale, "bias": bias}, x)
    # with the offset, a float32 pixel itself is only known to 4e-6
    expected = slow.normalise(x.astype(np.float64), scale, bias, groups)
    np.testing.assert_allclose(fast, expected, rtol=1e-4, atol=1e-4 if offset else 1e-5)


def test_groups_are_four_channels_each_but_at_most_32():
    assert [layers.group_norm(c, None).groups for c in (4, 24, 128, 384)] == [1, 6, 32, 32]
    assert layers.group_norm(64, 32).groups == 32
    with pytest.raises(ValueError, match=r"channels must be a multiple of .* = 32 \(got 130\): choose nf"):
        layers.group_norm(130, None)


def test_attention_is_a_softmax_over_all_pixels():
    x = normal(0, 2, 4, 4, 8)
    module = layers.AttnBlockpp(skip_rescale=True, init_scale=1.0)
    params = module.init(jax.random.key(0), jnp.asarray(x))["params"]
    params = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(jax.random.key(1), a.shape), params)
    h = slow.normalise(x.astype(np.float64), params["GroupNorm_0"]["scale"], params["GroupNorm_0"]["bias"], 2)
    q, k, v, out = ((np.float64(p["W"]), np.float64(p["b"])) for p in (params[f"NIN_{i}"] for i in range(4)))
    h = slow.attend(*(h @ w + b for w, b in (q, k, v))) @ out[0] + out[1]
    fast = apply(module, params, x)
    np.testing.assert_allclose(fast, (x + h) / np.sqrt(2), **TOLERANCE)


@pytest.mark.parametrize("features", [8, 9, 128])
def test_positional_embedding(features):
    y = np.array([0.0, 0.999, 17.5, 999.0], np.float32)
    fast = layers.positional_embedding(jnp.asarray(y), features)
    # angles up to 999 rad are known to 999 · 2^-24 · a few in float32
    np.testing.assert_allclose(fast, slow.positional(y.astype(np.float64), features), atol=3e-4)
    if features % 2 == 0:
        np.testing.assert_allclose((fast**2).sum(1), features / 2, rtol=1e-5)


def test_fourier_embedding():
    y, frequencies = np.array([-4.0, 0.3, 3.9], np.float32), normal(0, 5)
    fast = apply(layers.GaussianFourierProjection(5, 16.0), {"W": frequencies}, y)
    angles = 2 * np.pi * np.outer(y.astype(np.float64), frequencies)
    np.testing.assert_allclose(fast, np.concatenate([np.sin(angles), np.cos(angles)], 1), atol=2e-5)


def test_fourier_frequencies_are_drawn_with_the_scale_and_not_trained():
    module, y = layers.GaussianFourierProjection(4096, 16.0), jnp.ones((1,))
    params: Any = module.init(jax.random.key(0), y)["params"]
    # the standard deviation of 4,096 normals is known to 1.1 %; 5 of its standard errors
    assert float(params["W"].std()) == pytest.approx(16.0, rel=0.055)
    gradient = jax.grad(lambda p: apply(module, p, y).sum())(params)
    assert not np.any(gradient["W"])


@pytest.mark.parametrize("method", ["sum", "cat"])
def test_combine(method):
    image, h, weight = normal(0, 1, 4, 4, 3), normal(1, 1, 4, 4, 5), normal(2, 1, 1, 3, 5)
    params = {"Conv_0": {"kernel": weight, "bias": np.zeros(5, np.float32)}}
    fast = apply(layers.Combine(method), params, image, h)
    projected = image @ weight[0, 0]
    expected = projected + h if method == "sum" else np.concatenate([projected, h], -1)
    np.testing.assert_allclose(fast, expected, **TOLERANCE)


def test_residual_sums_are_float32_and_rescaled_on_request():
    x, h = jnp.full((1, 2, 2, 1), 3.0, jnp.bfloat16), jnp.full((1, 2, 2, 1), 1 / 256, jnp.bfloat16)
    assert layers.residual_sum(x, h, False).dtype == jnp.float32
    np.testing.assert_allclose(layers.residual_sum(x, h, False), 3 + 1 / 256, rtol=1e-7)
    np.testing.assert_allclose(layers.residual_sum(x, h, True), (3 + 1 / 256) / np.sqrt(2), rtol=1e-6)
