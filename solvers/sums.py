"""Sums over a sample that come out the same in every program.

A compiler may order the terms of ``jnp.sum`` otherwise for another batch size, and rounding then differs.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from solvers.interface import Sample


def inner_product(x: Sample, y: Sample) -> Float[Array, ""]:
    """Σ x y, added up in halves, first to second, again and again: the order is part of the program."""
    terms = (x * y).reshape(-1)
    while (count := terms.size) > 1:
        half = count // 2
        folded = terms[:half] + terms[half : 2 * half]
        terms = jnp.concatenate([folded, terms[2 * half :]]) if count % 2 else folded
    return terms[0]


def sum_of_squares(x: Sample) -> Float[Array, ""]:
    """Σ x²."""
    return inner_product(x, x)


def mean_of_squares(x: Sample) -> Float[Array, ""]:
    """Σ x²/n."""
    return sum_of_squares(x) / x.size
