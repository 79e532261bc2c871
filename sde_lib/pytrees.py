"""Dataclasses as pytrees that know their own class.

``jax.tree_util.register_dataclass`` of jax 0.10 makes tree structures that compare equal for two classes with
as many fields; only their hashes differ. ``jax.jit`` looks programs up by both, and where two hashes share a
bucket of its table (once in about a hundred processes) it runs the program of the other class: VP's for
sub-VP, another time grid's for this one.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax

Class = TypeVar("Class", bound=type)


def register_dataclass(cls: Class) -> Class:
    """Makes a dataclass a pytree whose leaves are its fields; those with ``static`` metadata are structure.

    A tree put together by JAX holds tracers or placeholders: it skips ``__init__`` and its checks, which are
    for what users write.
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
            object.__setattr__(tree, name, value)  # also where it is frozen
        return tree

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
