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
from solvers.interface import Status

REVIEWED = 1024  # samples, which tell the size of the data well enough
FAR_BELOW = 0.1  # the share of the samples' size that an absolute tolerance may have


def review(sde: SDE, solver: Any, x: Any, status: np.ndarray) -> None:
    """Warns if samples are smaller than the noise at eps, or do not suit a solver that has a ``review``.

    Args:
        x: samples, [n, ...] or a pytree of such arrays, of which those that completed count.
        status: their status, [n].
    """
    size = size_of(x, np.flatnonzero(status == Status.COMPLETED)[:REVIEWED])
    if size == 0:
        return
    messages = []
    alpha, sigma = sde.marginal(sde.eps)
    if sigma / alpha > size:
        fix = "scale the data up, or end at a smaller eps"
        messages.append(unsuited("the noise that is left at eps", sigma / alpha, "far below", size, fix))
    if hasattr(solver, "review"):
        messages.append(solver.review(size))
    for message in filter(None, messages):
        warnings.warn(message, stacklevel=3)  # at the caller of ``sample``


def size_of(x: Any, rows: np.ndarray) -> float:
    """The root mean square of these rows of a pytree of arrays; 0 if there are none.

    Example:
        >>> size_of({"a": np.array([[3.0], [4.0], [9.0]]), "b": np.array([5.0, 0.0, 9.0])}, np.array([0, 1]))
        3.5355339059327378
    """
    # one row at a time, since those of large images would fill the memory in float64
    chosen = [leaf[i] for leaf in jax.tree.leaves(x) for i in rows]
    squares = sum(float(np.sum(np.asarray(row, np.float64) ** 2)) for row in chosen)
    return math.sqrt(squares / max(sum(row.size for row in chosen), 1))


def not_far_below(name: str, value: Any, size: float) -> str | None:
    """A message if an absolute tolerance is large for samples of this root mean square."""
    return unsuited(name, value, "far below", size, f"lower {name}") if value > FAR_BELOW * size else None


def unsuited(name: str, value: Any, relation: str, size: float, fix: str) -> str:
    """The message of ``refusal`` for a setting that should be in a relation to the size of the samples."""
    allowed = f"{relation} the samples' root mean square {size:.2g}"
    return refusal(name, float(f"{float(value):.2g}"), allowed, fix)
