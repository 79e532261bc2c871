"""What a caller gives for each sample: its condition and its start, one row a sample id.

A condition is a pytree of arrays that the score function gets with the sample: a class, an observation, a
parameter. A start takes the place of the prior. Rows are given for all samples at once, or by a function of
the ids, which is asked when the devices are about to need them, so that memory stays flat.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from sde_lib import SDE
from sde_lib.checks import is_known, require
from sde_lib.processes import Sample, Scalar
from sde_lib.pytrees import register_dataclass
from solvers.layouts import Layout
from solvers.noise import sample_key

Ids = UInt32[np.ndarray, " n"]
START_NOISE = 2**31 + 1  # folded into a sample's key, for ``Start.noised``; steps count from 0


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Start:
    """Where samples start instead of at a draw of the prior at T.

    Attributes:
        x: the samples at time t, [n, ...], or a pytree where samples are one.
        t: their times, [n], or one for all; each above eps and up to T of the process.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sde_lib import VPSDE
        >>> from solvers import DDIM, Start, sample
        >>> score_fn = lambda x, t: -x  # of standard normal data
        >>> start = Start.noised(VPSDE(), jnp.full((3, 2), 0.5), 0.3, key=jax.random.key(1))
        >>> sample(
        ...     score_fn, VPSDE(), DDIM(), key=jax.random.key(0), shape=(2,), num_samples=3, start=start
        ... ).x.shape
        (3, 2)
    """

    x: Any
    t: Any

    @classmethod
    def noised(
        cls, sde: SDE, x: Float[Array | np.ndarray, "n *shape"], t: Any, *, key: PRNGKeyArray, ids: Any = None
    ) -> Start:
        """Data with the noise of time t, alpha x + sigma z, as for SDEdit (arXiv 2108.01073).

        Args:
            sde: the process.
            x: data, one row a sample.
            t: the time to which they are noised, for all or one each [n].
            key: root of the noise, which depends on it and the ids alone.
            ids: of the samples, [n]; 0 to n − 1 by default.
        """
        x = jnp.asarray(x)
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), len(x))
        ids = jnp.arange(len(x), dtype=jnp.uint32) if ids is None else jnp.asarray(ids, jnp.uint32)

        def noised(x: Array, t: Array, i: Array) -> Any:
            alpha, sigma = sde.marginal(t)
            own = jax.random.fold_in(sample_key(key, i), START_NOISE)
            return alpha * x + sigma * jax.random.normal(own, x.shape, x.dtype)

        return cls(jax.vmap(noised)(x, t, ids), t)


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of some samples; every leaf has the samples for its leading axis.

    Attributes:
        condition: what the score function gets; None without conditions.
        start: None for a draw of the prior.
    """

    condition: Any = None
    start: Start | None = None


NOTHING = Rows()


@register_dataclass
@dataclasses.dataclass(frozen=True)
class StartedAt:
    """A process that begins at a time of one sample's own, with that sample for its prior.

    Every solver begins at ``sde.T`` with ``sde.prior``, so that none has to know of starts.
    """

    sde: SDE
    T: Scalar
    x: Any = None

    @property
    def eps(self) -> Any:
        return self.sde.eps

    def drift(self, x: Sample, t: Scalar) -> Sample:
        return self.sde.drift(x, t)

    def diffusion(self, t: Scalar) -> Scalar:
        return self.sde.diffusion(t)

    def marginal(self, t: Scalar) -> tuple[Scalar, Scalar]:
        return self.sde.marginal(t)

    def log_snr(self, t: Scalar) -> Scalar:
        return self.sde.log_snr(t)

    def inverse_log_snr(self, log_snr: Scalar) -> Scalar:
        return self.sde.inverse_log_snr(log_snr)

    def prior(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Sample:
        return jnp.asarray(self.x, dtype)

    def network_time(self, t: Scalar) -> Scalar:
        return self.sde.network_time(t)

    def score(self, output: Sample, t: Scalar) -> Sample:
        return self.sde.score(output, t)


def process_of(sde: SDE) -> SDE:
    """The process itself, of one that may start at a time of a sample's own."""
    return sde.sde if isinstance(sde, StartedAt) else sde


class RowSource:
    """Hands out rows by sample id, and checks them.

    Args:
        conditions: see ``solvers.sample``.
        start: see ``solvers.sample``.
        ids: all ids, where they are known; None where an iterable yields them.
        shape: of one sample.
        layout: of samples that are a pytree; they start as such.
        dtype: of the solver's state.
        sde: the process, whose times bound the starts.

    Raises:
        ValueError: for rows that do not match the ids, arrays without known ids, an id twice, an array that
            JAX traces, or a start of another shape or out of the process's times.
    """

    def __init__(
        self,
        *,
        conditions: Any,
        start: Start | Callable[[Ids], Start] | None,
        ids: Ids | None,
        shape: tuple[int, ...],
        layout: Layout | None,
        dtype: Any,
        sde: SDE,
    ):
        self._shape, self._layout, self._dtype, self._sde = shape, layout, jnp.dtype(dtype), sde
        self._like: dict[str, Any] = {}
        if callable(conditions):
            self._condition: Any = lambda some: self._alike("conditions", conditions(some), some)
        else:
            self._condition = _by_id("conditions", conditions, ids)
        if callable(start):
            self._start: Any = lambda some: self._alike("start", self._checked(start(some), some), some)
        else:
            if isinstance(start, Start) and np.ndim(start.t) == 0 and ids is not None:
                start = Start(start.x, np.full(len(ids), start.t))
            self._start = _by_id("start", start, ids)
            if self._start is not None and ids is not None:  # all of them are checked before any work
                self._start = _by_id("start", self._checked(self._start(ids), ids), ids)

    def __call__(self, ids: Ids) -> Rows:
        """The rows of some samples, on the host.

        Raises:
            ValueError: for rows that a function returns for other ids, or of other shapes than before.
        """
        condition = None if self._condition is None else self._condition(ids)
        return Rows(condition=condition, start=None if self._start is None else self._start(ids))

    def _checked(self, start: Any, ids: Ids) -> Start:
        allowed, fix = "a Start, or a function that returns one", "give solvers.Start(x, t)"
        require(isinstance(start, Start), "start", type(start).__name__, allowed, fix)
        x, t = start.x, np.asarray(start.t, self._dtype)
        x = np.asarray(x if self._layout is None else self._layout.flatten(x), self._dtype)
        t = np.broadcast_to(t, len(ids)) if t.ndim == 0 else t
        allowed, fix = f"of shape {(len(ids), *self._shape)}", "give one row a sample id"
        require(x.shape == (len(ids), *self._shape), "start.x", f"shape {x.shape}", allowed, fix)
        require(np.isfinite(x).all(), "start.x", "NaN or infinite values", "finite", "correct those rows")
        eps, end = float(self._sde.eps), float(self._sde.T)
        outside = t[~((t > eps) & (t <= np.asarray(end, self._dtype)))]
        allowed = f"times above eps = {eps:g} and up to T = {end:g}"
        fix = "start later or earlier, or set eps or T of the process"
        require(outside.size == 0, "start.t", outside[:3].tolist(), allowed, fix)
        return Start(x, t)

    def _alike(self, name: str, rows: Any, ids: Ids) -> Any:
        """A function's rows as NumPy arrays; refused unless there is one for each id, shaped as before."""
        rows = _as_numpy(name, rows)
        lengths = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(rows)}
        fix = "give every array one row for each sample id, in the order of the ids"
        allowed = f"arrays with a leading axis of {len(ids)}"
        require(lengths <= {len(ids)}, name, f"leading axes {sorted(map(str, lengths))}", allowed, fix)
        found = jax.tree.map(lambda leaf: (leaf.shape[1:], str(leaf.dtype)), rows)
        like = self._like.setdefault(name, found)
        fix = "return rows of one shape and type for all ids"
        require(found == like, name, found, f"alike for all ids, as {like}", fix)
        return rows


def _as_numpy(name: str, rows: Any) -> Any:
    """Arrays of the types that JAX has; refused if JAX traces one, or has no such type or value."""
    known = all(is_known(leaf) for leaf in jax.tree.leaves(rows))
    require(known, name, "traced", "concrete", "pass values")

    def converted(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        numbers = any(jnp.issubdtype(array.dtype, kind) for kind in (np.number, np.bool_))
        fix = "give numbers, such as the index of each class"
        require(numbers, name, f"an array of type {array.dtype}", "arrays of numbers", fix)
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        if dtype == array.dtype:
            return array
        with np.errstate(over="ignore"):
            narrow = array.astype(dtype)
        whole = jnp.issubdtype(dtype, jnp.integer)
        kept = narrow == array if whole else np.isfinite(narrow) | ~np.isfinite(array)
        allowed, fix = f"numbers that {dtype} holds", "give smaller ones, or enable jax_enable_x64"
        require(np.all(kept), name, array[~kept][:3].tolist(), allowed, fix)
        return narrow

    return jax.tree.map(converted, rows)


def _by_id(name: str, given: Any, ids: Ids | None) -> Callable[[Ids], Any] | None:
    """A function from ids to the rows of arrays that are given at once; None without any."""
    if given is None:
        return None
    fix = "give a function from ids to rows, as the ids are not known at once"
    require(ids is not None, name, type(given).__name__, "None or a function", fix)
    assert ids is not None
    allowed, fix = "arrays", "leave it out, or give one row a sample id"
    require(jax.tree.leaves(given), name, given, allowed, fix)
    order = np.argsort(ids, kind="stable")
    ascending = ids[order]
    twice = ascending[1:][np.diff(ascending) == 0]
    fix = "draw each id once; samples of one id have the same noise"
    require(twice.size == 0, "sample_ids", twice[:3].tolist(), f"different ids with {name}", fix)
    arrays = _as_numpy(name, given)
    for leaf in jax.tree.leaves(arrays):
        allowed = f"arrays with a leading axis of {len(ids)}, the number of sample ids"
        fix = "give one row for each sample id, in the order of the ids"
        require(leaf.shape[:1] == (len(ids),), name, f"an array of shape {leaf.shape}", allowed, fix)

    def rows_of(some: Ids) -> Any:
        places = order[np.searchsorted(ascending, some)]
        return jax.tree.map(lambda leaf: leaf[places], arrays)

    return rows_of
