"""How tests check shapes and dtypes at run time: every function, but not the making of dataclasses.

JAX makes pytrees anew with whatever it has for leaves: batches of what the fields say, tracers, None.
"""

from collections.abc import Callable

from beartype import beartype


def check(function: Callable) -> Callable:
    """beartype, as jaxtyping's import hook calls it."""
    return function if function.__name__ == "__init__" else beartype(function)
