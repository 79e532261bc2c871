"""Whether finished samples have the size that the process and the solver's settings assume of the data.

Nothing before the end can tell, since the score function alone knows the data. The samples have their size,
even if their details are wrong.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax
import numpy as np

from sde_lib import SDE
from sde_lib.checks import refusal

FAR_BELOW = 0.1  # the share of the samples' size that an absolute tolerance may have


def review(sde: SDE, solver: Any, x: Any) -> None:
    """Warns if samples are smaller than the noise at eps, or do not suit a solver that has a ``review``.

    Args:
        x: completed samples, [n, ...] or a pytree of such arrays; there may be none.
    """
    size = root_mean_square_of(x)
    if size == 0:
        return
    alpha, sigma = sde.marginal(sde.eps)
    fix = "scale the data up, or end at a smaller eps"
    messages = [not_far_below("the noise that is left at eps", sigma / alpha, size, fix, share=1.0)]
    messages += [solver.review(size)] if hasattr(solver, "review") else []
    for message in filter(None, messages):
        warnings.warn(message, stacklevel=3)  # at the caller of ``sample``


def root_mean_square_of(x: Any) -> float:
    """Of all elements of a pytree of arrays; 0 if there are none.

    Example:
        >>> root_mean_square_of({"a": np.array([3.0, 4.0]), "b": np.array([5.0, 0.0])})
        3.5355339059327378
    """
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(x)]
    squares = sum(float(np.sum(leaf**2)) for leaf in leaves)
    return math.sqrt(squares / max(sum(leaf.size for leaf in leaves), 1))


def not_far_below(
    name: str, value: Any, size: float, fix: str = "", *, share: float = FAR_BELOW
) -> str | None:
    """A message if a value is more than this share of the samples' root mean square."""
    if value <= share * size:
        return None
    return unsuited(
        name, value, f"far below the samples' root mean square {size:.2g}", fix or f"lower {name}"
    )


def unsuited(name: str, value: Any, allowed: str, fix: str) -> str:
    """The message of ``refusal`` for a number that JAX may hold."""
    return refusal(name, float(f"{float(value):.2g}"), allowed, fix)
