"""Checks of the arguments of ``sample`` and ``stream``, before anything is compiled."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

from sde_lib import SDE, ScoreFn
from sde_lib.checks import is_known, is_number, require
from sde_lib.pytrees import as_partial, require_takes
from solvers.device_memory import Devices
from solvers.interface import Solver
from solvers.lanes import VECTOR
from solvers.noise import prior_key

KEPT = 64  # results of score functions, in ``_RESULTS``
ON_THE_HOST = "call sample outside of jax.jit, jax.vmap and jax.grad, since it runs on the host"


def all_unless_named(devices: Devices | None) -> Devices:
    """The devices named, or all of this process."""
    devices = jax.local_devices() if devices is None else devices
    allowed = "a list of at least one of jax.devices()"
    require(len(devices) > 0, "devices", devices, allowed, "leave it out to use all devices")
    return devices


def checked_shape(shape: Any) -> tuple[int, ...]:
    """The shape of a sample as a tuple of ints.

    Raises:
        ValueError: unless every side is a whole number of at least 1.
    """
    sides: tuple[Any, ...] = tuple(shape) if isinstance(shape, Iterable) else (None,)
    fits = all(is_number(side, whole=True) and side >= 1 for side in sides)
    require(
        fits, "shape", shape, "a tuple of whole numbers >= 1", "give the shape of one sample: (32, 32, 3)"
    )
    return tuple(int(side) for side in sides)


def check_setting(sde: SDE, key: Any, shape: tuple[int, ...], dtype: Any, *, solver: Solver | None) -> None:
    """Checks the process, the key, the type and, unless it is None, the solver.

    Raises:
        ValueError: for a value that JAX traces, no single key of JAX, a process or solver that is not an
            instance of a registered class, a type that JAX has not or that cannot tell T from a time of
            noise alone, or a prior of another shape or type.
    """
    # arrays made under jax.jit are traced even if no argument is
    traced = [leaf for leaf in jax.tree.leaves((key, sde, solver, jnp.zeros(()))) if not is_known(leaf)]
    require(not traced, "every argument", _described(traced[:1]), "concrete", ON_THE_HOST)
    require(_is_key(key), "key", _described(key), "one key of JAX", "pass jax.random.key(0), say")
    floating = jnp.issubdtype(dtype, jnp.floating)
    require(floating, "dtype", dtype, "a floating-point type", "leave it out for jnp.float32")
    known = jax.dtypes.canonicalize_dtype(dtype) == dtype
    fix = "call jax.config.update('jax_enable_x64', True) first, or leave it out for jnp.float32"
    require(known, "dtype", jnp.dtype(dtype).name, "a type that is enabled in JAX", fix)
    _require_instance("sde", sde, SDE)
    if solver is not None:
        _require_instance("solver", solver, Solver)
    rounded = as_arrays(sde, dtype)
    T = jnp.asarray(rounded.T, dtype)
    begins = jnp.isfinite(rounded.drift(jnp.ones(shape, dtype), T)).all() & ~jnp.isnan(rounded.log_snr(T))
    allowed = f"a time at which the drift is finite, and the log-SNR a number, in {jnp.dtype(dtype).name}"
    require(begins, "T", sde.T, allowed, "lower T, or choose a dtype of more digits")
    x = jax.eval_shape(lambda key: sde.prior(prior_key(key), shape, dtype), key)
    wanted = (shape, jnp.dtype(dtype))
    found = (getattr(x, "shape", None), getattr(x, "dtype", None))
    allowed = f"one array of shape {shape} and type {wanted[1].name}"
    require(
        found == wanted, "sde.prior(key, shape, dtype)", _described(x), allowed, "return a sample like this"
    )


def checked_score_fn(
    score_fn: ScoreFn,
    lanes: int,
    shape: tuple[int, ...],
    dtype: Any,
    *,
    condition: Any = None,
    total: int | None = None,
) -> Partial:
    """The score function as a pytree that is equal to another only if both hold the same arrays.

    JAX compiles the arrays that a function closes over as constants, and does not compile the same function
    again. So a network that is trained in place, such as a ``flax.nnx.Module``, would stay as it was when it
    was first sampled.

    Args:
        score_fn: of (x, t), or of (x, t, condition) if there is one.
        lanes: samples in a batch.
        shape, dtype: of a sample.
        condition: the rows of some samples; None without conditions.
        total: samples in all; None if not known.

    Raises:
        ValueError: unless it takes as many arguments as there are, keeps the shape of a batch of this many
            samples, gives real numbers, and holds no value that JAX traces.

    Warns:
        UserWarning: if it closes over an array that may have a row for each sample.
    """
    score_fn = as_partial(score_fn)
    x, t = jax.ShapeDtypeStruct((lanes, *shape), dtype), jax.ShapeDtypeStruct((lanes,), dtype)
    rows = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((lanes, *leaf.shape[1:]), leaf.dtype), condition)
    arguments = (x, t) if condition is None else (x, t, rows)
    require_takes("score_fn", score_fn, arguments, "x, t")
    try:
        arrays, score = _closed_over(score_fn, arguments)
    except Exception as error:
        received = " and ".join(f"{each.dtype.name}{list(each.shape)}" for each in jax.tree.leaves(arguments))
        error.add_note(f"This is an error of score_fn, which was called with a batch: {received}.")
        raise
    traced = [held for held in (*arrays, *jax.tree.leaves(score_fn)) if not is_known(held)]
    require(not traced, "score_fn", _described(traced[:1]), "a function of concrete weights", ON_THE_HOST)
    by_sample = [held for held in arrays if total is not None and np.shape(held)[:1] == (total,)]
    if by_sample and total != 1:
        warnings.warn(
            f"score_fn holds an {_described(by_sample[0])}. If it has a row for each of the {total} samples, "
            "pass it as sample(..., conditions=...) instead: row i of a batch is not sample i, since a lane "
            "that is done starts another sample",
            stacklevel=4,
        )
    require(
        getattr(score, "shape", None) == x.shape,
        "score_fn(x, t)",
        _described(score),
        f"one array of x's shape {x.shape}",
        "return one score for every element of x; t has shape [batch]",
    )
    real = jnp.issubdtype(score.dtype, jnp.floating)
    fix = "return real numbers of a floating-point type"
    require(real, "score_fn(x, t)", score.dtype.name, "an array of floating-point numbers", fix)
    if not arrays:
        return score_fn
    return Partial(_Holding(score_fn.func, arrays), *score_fn.args, **score_fn.keywords)


# by function and arguments, of functions that close over no array
_RESULTS: dict[Any, jax.ShapeDtypeStruct] = {}


def _closed_over(score_fn: Partial, arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
    """The arrays that a score function closes over, and the shape and type of its result.

    To trace a large network takes as long as several of its evaluations. So a function without such arrays is
    traced only once. They are the one thing that may change between two calls: of whatever else it reads, the
    compiled program keeps the first value, too.
    """
    leaves, structure = jax.tree.flatten(score_fn)
    specs, form = jax.tree.flatten(arguments)
    outline = (structure, form, *map(jax.typeof, leaves), *((each.shape, each.dtype) for each in specs))
    hashable = _is_hashable(outline)
    if hashable and outline in _RESULTS:
        return (), _RESULTS[outline]
    # the leaves of a Partial are arguments, so that only what is closed over is a constant
    call = jax.make_jaxpr(lambda score_fn, *arguments: score_fn(*arguments), return_shape=True)
    program, score = call(score_fn, *arguments)
    if hashable and not program.consts:
        if len(_RESULTS) == KEPT:
            _RESULTS.clear()
        _RESULTS[outline] = score
    return tuple(program.consts), score


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@dataclasses.dataclass(frozen=True, eq=False)
class _Holding:
    """A function, and the arrays that it closes over."""

    function: Callable[..., Any]
    arrays: tuple[Any, ...]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.function(*arguments, **named)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Holding) or self._outline != other._outline:
            return False
        return all(map(_same_bits, self.arrays, other.arrays))

    def __hash__(self) -> int:
        return hash(self._outline)

    @property
    def _outline(self) -> tuple:
        return (self.function, *((array.shape, array.dtype) for array in self.arrays))


def _same_bits(a: Any, b: Any) -> bool:
    """Whether two arrays of one shape and type are equal; one that a function makes is new in every trace."""
    if a is b:
        return True
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def check_output(output: Callable[[Array], Array], shape: tuple[int, ...], dtype: Any) -> None:
    """Raises ValueError unless ``output`` keeps one row for each sample."""
    x = jax.ShapeDtypeStruct((VECTOR, *shape), dtype)
    made = jax.eval_shape(output, x)
    require(
        getattr(made, "shape", (0,))[:1] == x.shape[:1],
        "output(x)",
        _described(made),
        f"one array with a row for each of x's {x.shape[0]} samples",
        "return one result for every sample of x",
    )


def as_arrays(settings: Any, dtype: Any) -> Any:
    """The numbers of a pytree as arrays, so that a number of another value or type does not recompile."""
    return jax.tree.map(functools.partial(_setting, dtype), settings)


def _setting(dtype: Any, value: Any) -> Array:
    array = jnp.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return jnp.asarray(value, dtype)
    # A whole number may stand for a real one, as in eta=1. As JAX has it from Python, weakly typed, it leaves
    # the type of the state alone; with 64-bit types, others do not.
    known = is_known(array) and is_number(array, whole=True)
    return jnp.asarray(array.item()) if known else array


def _is_key(key: Any) -> bool:
    """Whether this is one key: of jax.random.key, or, in the older form, of jax.random.PRNGKey."""
    # a new function, since JAX would keep the shape of one that it knows, also when the default changes
    legacy = jax.eval_shape(lambda: jax.random.PRNGKey(0))
    typed = jnp.issubdtype(getattr(key, "dtype", int), jax.dtypes.prng_key) and key.shape == ()
    return typed or (getattr(key, "dtype", None), getattr(key, "shape", None)) == (legacy.dtype, legacy.shape)


def _require_instance(name: str, value: Any, protocol: type) -> None:
    allowed = f"an instance of a class with the methods of {protocol.__name__}"
    fits = isinstance(value, protocol) and not isinstance(value, type)
    require(fits, name, _described(value), allowed, "pass an instance, such as VPSDE() or Adaptive()")
    tree = not jax.tree_util.all_leaves([value])
    fix = "register the class with sde_lib.pytrees.register_dataclass"
    require(tree, name, _described(value), "of a class that JAX knows as a pytree", fix)


def _described(value: Any) -> Any:
    """A value in one line: an array by its shape and type, an object or a class by its name."""
    if isinstance(value, list | tuple):
        return [_described(part) for part in value]
    if isinstance(value, int | float | str | None):
        return value
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and type {value.dtype}"
    return getattr(value, "__name__", type(value).__name__)
