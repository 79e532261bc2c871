"""Samples that are a pytree of arrays: one flat array inside, the user's tree outside.

Solvers measure errors over all numbers of a sample alike, whatever array they are in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from sde_lib.checks import is_number, require


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the arrays of a sample lie in the flat one.

    Attributes:
        shapes: of the arrays, in the order of the tree's leaves.
        tree: the tree's structure.

    Example:
        >>> import jax.numpy as jnp
        >>> layout = Layout.of({"position": (5, 3), "mass": (5,)})
        >>> flat = layout.flatten({"position": jnp.zeros((2, 5, 3)), "mass": jnp.ones((2, 5))})
        >>> flat.shape, layout.unflatten(flat)["mass"].shape
        ((2, 20), (2, 5))
    """

    shapes: tuple[tuple[int, ...], ...]
    tree: Any  # a PyTreeDef

    @classmethod
    def of(cls, shape: Any) -> Layout | None:
        """The layout for a pytree of shapes; None for one shape, such as (32, 32, 3).

        Raises:
            ValueError: for sides that are not whole numbers of at least 1.
        """
        if _is_shape(shape):
            return None
        shapes, tree = jax.tree.flatten(shape, is_leaf=_is_shape)
        sides = bool(shapes) and all(map(_is_shape, shapes)) and all(side >= 1 for s in shapes for side in s)
        fix = "give the shape of one sample: (32, 32, 3), or {'position': (5, 3), 'type': (5,)}"
        require(sides, "shape", shape, "a tuple of whole numbers >= 1, or a pytree of such tuples", fix)
        return cls(tuple(tuple(map(int, each)) for each in shapes), tree)

    @property
    def size(self) -> int:
        """Numbers in a sample."""
        return sum(map(math.prod, self.shapes))

    def flatten(self, tree: Any) -> Any:
        """Batches of the arrays, each with a leading [b], as one array [b, size].

        Raises:
            ValueError: for another tree, or arrays of other shapes.
        """
        leaves, found = jax.tree.flatten(tree)
        shapes = [tuple(np.shape(leaf)[1:]) for leaf in leaves]
        wanted = list(self.shapes)
        fix = "return what the samples are made of, with a leading axis for the batch"
        allowed = f"a pytree {self.tree} of arrays with shapes {wanted} behind a leading axis"
        require(found == self.tree and shapes == wanted, "samples", f"{found} with {shapes}", allowed, fix)
        numpy = np if all(isinstance(leaf, np.ndarray) for leaf in leaves) else jax.numpy
        # of an empty batch, the length of a row cannot be inferred
        rows = [leaf.reshape(len(leaf), math.prod(shape)) for leaf, shape in zip(leaves, shapes, strict=True)]
        return numpy.concatenate(rows, axis=1)

    def unflatten(self, flat: Any) -> Any:
        """The arrays of a batch [b, size], each with a leading [b]."""
        leaves, begin = [], 0
        for shape in self.shapes:
            end = begin + math.prod(shape)
            leaves.append(flat[:, begin:end].reshape(len(flat), *shape))
            begin = end
        return jax.tree.unflatten(self.tree, leaves)


@dataclasses.dataclass(frozen=True)
class FlatScore:
    """A score function of trees as one of flat arrays."""

    layout: Layout

    def __call__(self, score_fn: Callable[..., Any], x: Array, t: Array, *condition: Any) -> Array:
        return self.layout.flatten(score_fn(self.layout.unflatten(x), t, *condition))


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple | list) and all(is_number(side, whole=True) for side in shape)
