"""Dataclasses as pytrees whose structure knows the class.

For ``jax.tree_util.register_dataclass`` of jax 0.10, two classes with the same number of fields have tree
structures that compare equal; only the hashes differ. ``jax.jit`` looks up programs by both. Where the two
hashes share a bucket of its table (once in about a hundred processes), it runs the program of the other
class: that of VP for sub-VP, or that of another time grid.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.tree_util import Partial

from sde_lib.checks import require

Class = TypeVar("Class", bound=type)

STATIC = {"static": True}  # metadata of a field that is part of the program: another value recompiles


def register_dataclass(cls: Class) -> Class:
    """Makes a dataclass a pytree whose leaves are its fields; fields with ``STATIC`` metadata are structure.

    A tree that JAX rebuilds holds tracers or placeholders. It therefore skips ``__init__`` and its checks,
    which are for values given by users.
    """
    names = [field.name for field in dataclasses.fields(cls) if not field.metadata.get("static")]
    static = [field.name for field in dataclasses.fields(cls) if field.metadata.get("static")]
    keys = [jax.tree_util.GetAttrKey(name) for name in names]

    def structure(tree: Any) -> tuple:
        return tuple(getattr(tree, name) for name in static)

    def flatten(tree: Any) -> tuple:
        return [getattr(tree, name) for name in names], structure(tree)

    def flatten_with_keys(tree: Any) -> tuple:
        return [(key, getattr(tree, name)) for key, name in zip(keys, names, strict=True)], structure(tree)

    def unflatten(structure: tuple, leaves: Any) -> Any:
        tree = object.__new__(cls)
        for name, value in (*zip(names, leaves, strict=True), *zip(static, structure, strict=True)):
            object.__setattr__(tree, name, value)  # works for frozen classes too
        return tree

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def as_partial(function: Callable[..., Any]) -> Partial:
    """A function as a pytree, so that it can be an argument of another ``jax.tree_util.Partial``.

    The arrays of a callable pytree, such as a dataclass of weights with a ``__call__``, become its leaves. If
    it has other leaves, too, it is a function like any other, since a program may depend on their values.

    Raises:
        ValueError: for what cannot be called.
    """
    if isinstance(function, Partial):
        return function
    given = function if isinstance(function, int | float | str | None) else type(function).__name__
    fix = "pass a function, such as score_fn(x, t)"
    require(callable(function), "a function of samples", given, "callable", fix)
    leaves, structure = jax.tree.flatten(function)
    if jax.tree_util.treedef_is_leaf(structure) or not all(map(_is_array, leaves)):
        return Partial(function)
    return Partial(call, function)


def call(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What the ``Partial`` of a callable pytree holds, whose first argument is the pytree."""
    return function(*arguments, **named)


def require_takes(name: str, function: Partial, arguments: tuple[Any, ...], first: str) -> None:
    """Raises ValueError unless a function takes these ``arguments``: two, named ``first``, or three."""
    called = function.args[0] if function.func is call else function
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # some callables have none
        return
    conditional = len(arguments) > 2
    wanted = f"({first}, condition), since there are conditions" if conditional else f"({first})"
    fix = "leave conditions out" if conditional else "pass conditions=, one row a sample"
    try:
        signature.bind(*arguments)
    except TypeError:
        allowed = f"a function of {wanted}"
        require(False, name, str(signature), allowed, f"{fix}, or change the function")


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)
