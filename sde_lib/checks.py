"""Checks of inputs, whose messages have one form: ``NAME must be ALLOWED (got VALUE): FIX``."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def is_known(*values: Any) -> bool:
    """Whether JAX traces none of the values: a traced setting has no value to check yet."""
    return not any(isinstance(value, Tracer) for value in values)


def is_number(value: Any, *, whole: bool = False) -> bool:
    """Whether a value is one real number, of Python, numpy or JAX; a bool is none.

    Example:
        >>> is_number(jnp.float32(0.5)), is_number(2), is_number(True), is_number([0.5])
        (True, True, False, False)
    """
    if isinstance(value, bool):
        return False
    if hasattr(value, "dtype"):
        kinds = (jnp.integer,) if whole else (jnp.integer, jnp.floating)
        return np.shape(value) == () and any(jnp.issubdtype(value.dtype, kind) for kind in kinds)
    return isinstance(value, int if whole else int | float)


def refusal(name: str, value: Any, allowed: str, fix: str) -> str:
    """The message ``NAME must be ALLOWED (got VALUE): FIX``, for errors that are not a ValueError."""
    return f"{name} must be {allowed} (got {value!r}): {fix}"


def require(holds: Any, name: str, value: Any, allowed: str, fix: str) -> None:
    """Raises ValueError with the message of ``refusal`` unless ``holds``.

    Example:
        >>> require(0.02 > 0, "eps_rel", 0.02, "a number > 0", "set eps_rel above zero")
        >>> require(-1 > 0, "eps_rel", -1, "a number > 0", "set eps_rel above zero")
        Traceback (most recent call last):
        ValueError: eps_rel must be a number > 0 (got -1): set eps_rel above zero
    """
    if not holds:
        raise ValueError(refusal(name, value, allowed, fix))


def require_number(name: str, value: Any, holds: Callable[[float], bool], allowed: str, fix: str) -> None:
    """Raises ValueError unless ``value`` is a number for which ``holds`` is true, or JAX traces it."""
    if is_known(value):
        # float() gives a plain number also where JAX traces the comparisons of its arrays
        require(is_number(value) and holds(float(value)), name, value, allowed, fix)


def require_positive(**settings: Any) -> None:
    """Raises ValueError for the first setting that is not a finite number above zero; traced ones pass."""
    for name, value in settings.items():
        fix = f"set {name} above zero"
        require_number(name, value, lambda number: 0 < number < math.inf, "a number > 0", fix)


def require_count(**settings: Any) -> None:
    """Raises ValueError for the first setting that is not a whole number of at least 1; traced ones pass."""
    for name, value in settings.items():
        if is_known(value):
            counts = is_number(value, whole=True) and int(value) >= 1
            require(counts, name, value, "a whole number >= 1", f"set {name} to 1 or more")


def require_seed(name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is a seed: JAX would take 2^32 for 0 without a word."""
    seed = is_number(value, whole=True) and 0 <= int(value) < 2**32
    allowed = "a whole number from 0 to 4294967295, which is 2^32 - 1"
    require(seed, name, value, allowed, "choose a seed in this range")


def require_shared(name: str, value: int, number: int, sharers: str) -> None:
    """Raises ValueError unless ``value`` divides evenly among ``number`` sharers, such as devices."""
    fits = -(-value // number) * number
    require(value == fits, name, value, f"a multiple of the {number} {sharers}", f"set it to {fits}")


def require_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``; suggests the nearest."""
    choices = list(choices)
    near = difflib.get_close_matches(str(value), choices, n=1)
    fix = f"did you mean {near[0]!r}?" if near else "choose one of these"
    require(value in choices, name, value, "one of " + ", ".join(map(repr, choices)), fix)
