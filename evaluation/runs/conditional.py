"""What a config says of a class-conditional network: each sample's class, and how strongly it is guided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from sde_lib import SDE, ScoreFn
from sde_lib.checks import require
from sde_lib.guidance import classifier_free
from solvers.noise import sample_key

ClassesOf = Callable[[np.ndarray], Int32[np.ndarray, " n"]]  # from sample ids to their classes
CLASS_DRAW = 2**31 + 2  # folded into a sample's key, for its class; steps count from 0
NO_CLASS = -1


def check(config: Any) -> None:
    """Raises ValueError for classes or guidance that the config's network does not have, or out of range."""
    number, classes, guidance = config.model.num_classes, config.eval.classes, config.guidance
    given = {"eval.classes": (classes, "balanced"), "guidance.scale": (guidance.scale, 1.0)}
    if number == 0:
        for key, (value, default) in given.items():
            fix = "leave it out, or take a class-conditional network"
            allowed = f"{default!r} with config.model.num_classes = 0"
            require(value == default, f"config.{key}", value, allowed, fix)
    for key, default in (("interval", None), ("rescale", 0.0)):
        fix = "leave it out, or set config.guidance.scale too"
        allowed = f"{default!r} with config.guidance.scale = 1.0, which is no guidance"
        unused = guidance.scale == 1.0 and guidance[key] != default
        require(not unused, f"config.guidance.{key}", guidance[key], allowed, fix)
    if classes not in ("balanced", "all"):
        inside = classes.isdecimal() and int(classes) < number
        allowed = f"'balanced', 'all', or a class from 0 to {number - 1}"
        require(inside, "config.eval.classes", classes, allowed, "choose one of these")


def classes_of(config: Any) -> ClassesOf | None:
    """The class of each sample id, which depends on nothing else but the seed; None without classes.

    "balanced" is class i mod n for sample i, so that all classes are equally many; "all" draws each sample's
    class from all; a number is that class for all.

    Example:
        >>> import configs
        >>> config = configs.load("vp/digits_adaptive")
        >>> config.model.num_classes = 3
        >>> classes_of(config)(np.arange(5, dtype=np.uint32)).tolist()
        [0, 1, 2, 0, 1]
    """
    number, classes = config.model.num_classes, config.eval.classes
    if number == 0:
        return None
    if classes == "balanced":
        return lambda ids: (ids % number).astype(np.int32)
    if classes != "all":
        return lambda ids: np.full(len(ids), int(classes), np.int32)
    key = jax.random.key(config.seed)

    def drawn(i: Any) -> Any:
        return jax.random.randint(jax.random.fold_in(sample_key(key, i), CLASS_DRAW), (), 0, number)

    def draw(ids: np.ndarray) -> np.ndarray:
        room = np.zeros(-(-len(ids) // 1024) * 1024, np.uint32)  # of few lengths: each compiles once
        room[: len(ids)] = ids
        return np.asarray(jax.jit(jax.vmap(drawn))(jnp.asarray(room)), np.int32)[: len(ids)]

    return draw


def guided(config: Any, score_fn: ScoreFn, sde: SDE) -> ScoreFn:
    """The score function with the config's guidance; unchanged at scale 1.

    Raises:
        ValueError: naming the key of a setting out of range.
    """
    guidance = config.guidance
    if guidance.scale == 1.0:
        return score_fn
    settings = {"scale": guidance.scale, "interval": guidance.interval, "rescale": guidance.rescale}
    try:
        return classifier_free(score_fn, sde, null=NO_CLASS, **settings)
    except ValueError as error:
        raise ValueError(f"config.guidance.{error}") from None
