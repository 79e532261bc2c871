"""Linear operators against their matrices, and the check of linearity."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib.operators import Blur, BoxDownsample, Grey, Mask, Matrix, Operator, require_linear

SHAPE = (4, 6, 3)
SIZE = 72
RNG = np.random.default_rng(0)
KERNEL = RNG.uniform(size=(3, 2))  # without a symmetry
OPERATORS: dict[str, Any] = {
    "mask": Mask(RNG.random(SHAPE) < 0.5),
    "box": BoxDownsample(2),
    "grey": Grey(),
    "blur": Blur(KERNEL),
    "matrix": Matrix(RNG.standard_normal((5, SIZE))),
}


def matrix_of(operator: Any) -> np.ndarray:
    """Column by column."""
    units = jnp.eye(SIZE).reshape(SIZE, *SHAPE)
    return np.asarray(jax.jit(jax.vmap(operator))(units)).reshape(SIZE, -1).T


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.usefixtures("double_precision")
def test_solve_inverts_the_covariance_of_an_observation(name):
    operator, a = OPERATORS[name], matrix_of(OPERATORS[name])
    assert isinstance(operator, Operator)
    x = jnp.asarray(RNG.standard_normal(SHAPE))
    y = operator(x)
    np.testing.assert_allclose(np.ravel(y), a @ np.ravel(x), rtol=1e-6, atol=1e-6)
    got = jax.jit(lambda operator, y: operator.solve(y, 0.7, 0.1))(operator, y)
    expected = np.linalg.solve(0.7 * a @ a.T + 0.1 * np.eye(len(a)), np.ravel(y))
    assert got.shape == y.shape
    np.testing.assert_allclose(np.ravel(got), expected, rtol=1e-5, atol=1e-5)


def test_a_blur_is_a_circular_convolution_about_the_kernels_centre():
    x = RNG.standard_normal(SHAPE).astype(np.float32)
    shifts = [(i, j) for i in range(3) for j in range(2)]
    expected = sum(KERNEL[i, j] * np.roll(x, (i - 1, j - 1), axis=(0, 1)) for i, j in shifts)
    np.testing.assert_allclose(Blur(KERNEL)(jnp.asarray(x)), expected, atol=1e-5)


def test_the_others_are_what_they_say():
    x = jnp.asarray(RNG.standard_normal(SHAPE), jnp.float32)
    blocks = [[x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((0, 1)) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(BoxDownsample(2)(x), blocks, atol=1e-6)
    np.testing.assert_allclose(Grey()(x), x.mean(axis=2, keepdims=True), atol=1e-6)
    mask = np.asarray(OPERATORS["mask"].mask)
    np.testing.assert_array_equal(Mask(mask)(x), np.where(mask, x, 0))
    np.testing.assert_array_equal(Mask(mask.astype(np.float32))(x), np.where(mask, x, 0))
    # a grey image has no third axis
    assert BoxDownsample(2)(x[:, :, 0]).shape == (2, 3)
    assert Blur(KERNEL)(x[:, :, 0]).shape == (4, 6)


@pytest.mark.parametrize("name", OPERATORS)
def test_they_pass_the_check_of_linearity(name):
    require_linear(OPERATORS[name], SHAPE, jnp.float32)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + 0.01,
        jnp.abs,
        lambda x: jnp.clip(x, -1, 1),
        lambda x: jnp.round(255 * x) / 255,
        lambda x: x**2,
        lambda x: x / jnp.sqrt(jnp.sum(x**2)),
        lambda x: x * jnp.nan,
    ],
)
def test_what_is_not_linear_is_refused(function):
    with pytest.raises(ValueError, match="operator must be a linear function of a sample"):
        require_linear(function, (4, 4, 1), jnp.float32)


@pytest.mark.parametrize("function", [lambda x: 0 * x, lambda x: x[:1], lambda x: 1e6 * jnp.cumsum(x)])
def test_any_other_linear_function_is_taken(function):
    require_linear(function, (40,), jnp.float32)


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        (Mask, [0, 2], "mask must be 0 or 1 everywhere (got [2])"),
        (Mask, [0.0, np.nan], "mask must be 0 or 1 everywhere"),
        (BoxDownsample, 0, "factor must be a whole number >= 1"),
        (BoxDownsample, 1.5, "factor must be a whole number >= 1"),
        (Grey, 0, "num_channels must be a whole number >= 1"),
        (Blur, np.ones(2), "kernel must be of two axes"),
        (Matrix, [1.0, 2.0], "matrix must be a matrix of finite numbers"),
        (Matrix, [[np.inf]], "matrix must be a matrix of finite numbers"),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_settings_that_mean_nothing_are_refused(kind, setting, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        kind(setting)


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (Mask(np.ones((4, 6, 1))), "mask must be of the shape of a sample, (4, 6, 3)"),
        (BoxDownsample(4), "factor must be a divisor of the first two sides"),
        (Grey(1), "num_channels must be the last side of a sample, of shape (4, 6, 3) (got 1)"),
        (Blur(np.ones((5, 5))), "kernel must be at most as large as the first two sides"),
        (Matrix(np.ones((2, 71))), "matrix must be of 72 columns, for a sample of shape (4, 6, 3)"),
    ],
)
def test_samples_of_another_shape_are_refused(operator, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        operator(jnp.zeros(SHAPE))
