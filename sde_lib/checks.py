"""Checks of inputs, whose messages have one form: ``NAME must be ALLOWED (got VALUE): FIX``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import numpy as np


def is_known(*values: Any) -> bool:
    """Whether all values are plain numbers; settings that JAX traces have no value to check yet."""
    return all(isinstance(value, int | float | np.number) for value in values)


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


def require_positive(**settings: Any) -> None:
    """Raises ValueError for the first setting that is not a finite number above zero."""
    for name, value in settings.items():
        if is_known(value):
            require(0 < value < float("inf"), name, value, "a number > 0", f"set {name} above zero")


def require_count(**settings: Any) -> None:
    """Raises ValueError for the first setting that is not a whole number of at least 1."""
    for name, value in settings.items():
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1
        require(whole, name, value, "a whole number >= 1", f"set {name} to 1 or more")


def require_seed(name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is a seed: JAX would take 2^32 for 0 without a word."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    allowed = "a whole number from 0 to 4294967295, which is 2^32 - 1"
    require(whole and 0 <= value < 2**32, name, value, allowed, "choose a seed in this range")


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
