"""One way to refuse a bad value: name it, show it, say what was allowed and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import numpy as np


def is_known(*values: Any) -> bool:
    """Whether all values are plain numbers: settings traced by JAX have no value to check yet."""
    return all(isinstance(value, int | float) for value in values)


def require(holds: Any, name: str, value: Any, allowed: str, fix: str) -> None:
    """Raises ValueError "name = value: allowed is …; fix" unless ``holds``."""
    if not holds:
        raise ValueError(f"{name} = {value!r}: allowed is {allowed}; {fix}")


def require_positive(**settings: Any) -> None:
    """Raises ValueError naming the first setting that is not a finite number above zero."""
    for name, value in settings.items():
        if is_known(value):
            require(0 < value < float("inf"), name, value, "a number > 0", f"set {name} above zero")


def require_count(**settings: Any) -> None:
    """Raises ValueError naming the first setting that is not a whole number >= 1."""
    for name, value in settings.items():
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1
        require(whole, name, value, "a whole number >= 1", f"set {name} to how many you want")


def require_shared(name: str, value: int, number: int, sharers: str) -> None:
    """Raises ValueError unless so many ``sharers``, such as devices, get as much of ``value`` each."""
    fits = -(-value // number) * number
    require(value == fits, name, value, f"a multiple of the {number} {sharers}", f"set it to {fits}")


def require_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``; suggests the nearest."""
    choices = list(choices)
    near = difflib.get_close_matches(str(value), choices, n=1)
    fix = f"did you mean {near[0]!r}?" if near else "take one of these"
    require(value in choices, name, value, "one of " + ", ".join(map(repr, choices)), fix)
