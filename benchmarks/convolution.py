"""The machine's rate in one 3x3 convolution, the yardstick for the networks' rates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

SIDE, CHANNELS = 32, 128  # as in the widest layers of the CIFAR-10 networks


def one_convolution(batch_size: int) -> tuple[Callable[[], Any], float]:
    """A compiled 3x3 convolution of 128 channels at 32x32 in float32, and its number of operations."""
    x = jnp.ones((batch_size, SIDE, SIDE, CHANNELS))
    kernel = jnp.full((3, 3, CHANNELS, CHANNELS), 1e-3)
    convolve = jax.jit(
        lambda x, kernel: jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
    )
    jax.block_until_ready(convolve(x, kernel))
    return lambda: jax.block_until_ready(convolve(x, kernel)), operations(convolve, x, kernel)


def operations(function: Callable[..., Any], *arguments: Any) -> float:
    """Count the multiplications and additions in the convolutions and matrix products of a function.

    Operations on the zeros that a convolution inserts between its input's pixels do not count.
    """

    def of(jaxpr: Any) -> float:
        total = 0.0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "conv_general_dilated":
                kernel, output = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
                zeros = math.prod(equation.params["lhs_dilation"])
                total += 2 * math.prod(output) * math.prod(kernel[:-1]) / zeros
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                lengths = [equation.invars[0].aval.shape[axis] for axis in contracted]
                total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(lengths)
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                total += of(inner) if hasattr(inner, "eqns") else 0
        return total

    return of(jax.make_jaxpr(function)(*arguments).jaxpr)


def seconds(task: Callable[[], Any]) -> float:
    """The time that a task takes, which has to wait for its result itself."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start
