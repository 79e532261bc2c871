"""Sums over a sample that have the same value in every compiled program.

A compiler may order the terms of ``jnp.sum`` differently for another batch size, which changes the rounding.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from solvers.interface import Sample


def inner_product(x: Sample, y: Sample) -> Float[Array, ""]:
    """Σ x y, by adding the second half of the terms to the first until one is left: a fixed order."""
    # The clip only keeps a product from being fused with a sum, in one rounding instead of two: a compiler
    # does that in some rows of a batch and not in others, such as the last few.
    largest = jnp.finfo(x.dtype).max
    terms = jnp.clip(x * y, -largest, largest).reshape(-1)
    while (count := terms.size) > 1:
        half = count // 2
        folded = terms[:half] + terms[half : 2 * half]
        terms = jnp.concatenate([folded, terms[2 * half :]]) if count % 2 else folded
    return terms[0]


def sum_of_squares(x: Sample) -> Float[Array, ""]:
    """Σ x²."""
    return inner_product(x, x)


def root_mean_square(x: Sample) -> Float[Array, ""]:
    """√(Σ x²/n)."""
    return jnp.sqrt(sum_of_squares(x) / x.size)
