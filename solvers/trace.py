"""What a solver does with single samples: every evaluation's time, step, error and image.

The samples are those of ``solvers.sample``, drawn by the same compiled loop (solvers/lanes.py). Here the loop
returns after every evaluation, and the host looks at the lanes. So it works for every solver, and changes no
bit of a sample.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Bool, Float, Int, PRNGKeyArray, UInt32

from sde_lib import SDE, ScoreFn
from sde_lib import denoise as tweedie
from sde_lib.checks import require_count
from sde_lib.guidance import evaluations_of
from sde_lib.pytrees import register_dataclass
from solvers.arguments import as_arrays, check_setting, checked_score_fn, checked_shape
from solvers.driver import IDS_PER_LANE, MAX_EVALUATIONS
from solvers.interface import Solver, Status
from solvers.lanes import AXIS, OWN, SHARED, Finished, Problem, Program, Queue, fresh_lanes, idle_lanes, run
from solvers.queues import ids_asked_for
from solvers.rows import RowSource, Start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """Every evaluation of n samples, in the order in which a sample made them.

    An evaluation is one call of the score function, which may take several of the network, as with guidance.

    Arrays [n, k] have a column for each evaluation, up to the largest number that a sample made. Where a
    sample made fewer, the rest of its row is NaN or False.

    Attributes:
        sample_ids: [n].
        x: the finished samples, [n, ...]: bit by bit those of ``solvers.sample`` with these ids.
        nfe, status: of each sample, [n], as in ``solvers.Solution``.
        t: where the score was evaluated, [n, k].
        begin: the time that the sample had reached before, where the step under way begins, [n, k].
        h: the step that the evaluation decides, from ``begin`` to ``begin`` − h, taken or not, [n, k]; NaN
            for an evaluation within a step, and for that of the final denoising.
        error: of the step that ends at t, in units of the tolerance, [n, k]; NaN where the solver has no
            tolerance or no step ends.
        accepted, rejected: whether the step of h was taken, or was not, [n, k].
        kept: the columns whose images are kept, [n, f]; −1 behind the last.
        points: the point x at which the score was evaluated, [n, f, ...].
        denoised: E[x(0) | x] there, [n, f, ...].
    """

    sample_ids: UInt32[np.ndarray, " n"]
    x: Float[np.ndarray, "n *shape"]
    nfe: Int[np.ndarray, " n"]
    status: Int[np.ndarray, " n"]
    t: Float[np.ndarray, "n k"]
    begin: Float[np.ndarray, "n k"]
    h: Float[np.ndarray, "n k"]
    error: Float[np.ndarray, "n k"]
    accepted: Bool[np.ndarray, "n k"]
    rejected: Bool[np.ndarray, "n k"]
    kept: Int[np.ndarray, "n f"]
    points: Float[np.ndarray, "n f *shape"]
    denoised: Float[np.ndarray, "n f *shape"]


def trace(
    score_fn: ScoreFn,
    sde: SDE,
    solver: Solver,
    *,
    key: PRNGKeyArray,
    shape: Sequence[int],
    num_samples: int | None = None,
    sample_ids: Sequence[int] | np.ndarray | None = None,
    conditions: Any = None,
    start: Start | None = None,
    log_snrs: Sequence[float] | np.ndarray | None = None,
    denoise: bool = True,
    max_evaluations: int = MAX_EVALUATIONS,
    dtype: Any = jnp.float32,
) -> Trace:
    """Draws a few samples and records every evaluation of each; on one device.

    The score is evaluated twice as often as by ``solvers.sample``, for the denoised images.

    Args:
        score_fn, sde, solver, key, shape, num_samples, sample_ids, conditions, start, denoise,
            max_evaluations, dtype: as for ``solvers.sample``.
        log_snrs: keep images at these log-SNRs alone: that of the first evaluation at each or beyond, or the
            last that there is. None keeps the images of all evaluations, which takes twice the memory of the
            samples for each.

    Raises:
        ValueError: as ``solvers.sample``.

    Example:
        >>> import jax, sde_lib, solvers
        >>> from solvers.trace import trace
        >>> found = trace(
        ...     lambda x, t: -x, sde_lib.VPSDE(), solvers.EulerMaruyama(num_steps=4),
        ...     key=jax.random.key(0), shape=(2,), num_samples=1,
        ... )
        >>> print(found.t[0].round(2), found.h[0].round(2))  # the last evaluation denoises
        [1.   0.75 0.5  0.25 0.  ] [0.25 0.25 0.25 0.25  nan]
    """
    ids = ids_asked_for(num_samples, sample_ids)
    lanes = len(ids)
    require_count(max_evaluations=max_evaluations)
    shape = checked_shape(shape)
    check_setting(sde, key, shape, dtype, solver=solver)
    setting = {"ids": ids, "shape": shape, "layout": None, "dtype": dtype, "sde": sde}
    rows = RowSource(conditions=conditions, start=start, **setting)(ids)
    per_call = evaluations_of(score_fn)
    score_fn = checked_score_fn(score_fn, lanes, shape, dtype, condition=rows.condition)
    sde, solver = as_arrays((sde, solver), dtype)
    mesh = Mesh(np.array(jax.local_devices()[:1]), (AXIS,))
    cap = jnp.int32(min(-(-max_evaluations // per_call), 2**31 - 1))  # calls
    problem = Problem(score_fn=score_fn, sde=sde, solver=solver, key=key, max_evaluations=cap)
    problem = jax.device_put(problem, NamedSharding(mesh, SHARED))
    evaluate = functools.partial(
        run, program=Program(lanes=lanes, denoising=denoise, output=jnp.asarray, mesh=mesh)
    )

    # the first call gives each lane its sample, in the order of the ids; there are no others
    room = functools.partial(_with_room, length=IDS_PER_LANE * lanes)
    queue = Queue(
        ids=room(ids),
        length=np.array([lanes], np.int32),
        more=np.array([False]),
        rows=jax.tree.map(room, rows),
    )
    work = idle_lanes(sde, solver, key, rows, lanes=lanes, shape=shape, dtype=dtype, mesh=mesh)
    rows = jax.tree.map(jnp.asarray, rows)
    busy = np.ones(lanes, bool)
    state = fresh_lanes(sde, solver, key, jnp.asarray(ids), rows, jnp.asarray(busy), shape, dtype).state
    looks, made, ends = [], [], []
    frames = [
        _Frame(log_snr, np.zeros((lanes, *shape), dtype))
        for log_snr in (() if log_snrs is None else log_snrs)
    ]
    while busy.any():
        look = _look(problem, state, rows.condition, lanes)
        if log_snrs is None:
            frames.append(_Frame(-np.inf, look.point))
        for frame in frames if log_snrs is not None else frames[-1:]:
            frame.take(look, len(looks), busy)
        looks.append(dataclasses.replace(look, point=None, denoised=None))
        made.append(busy)
        queue = jax.device_put(queue, NamedSharding(mesh, OWN))
        work, finished, counts = evaluate(problem, work, queue, jnp.int32(1))
        queue = dataclasses.replace(queue, length=np.zeros(1, np.int32))
        busy, state = np.array(work.busy[:lanes]), work.state
        ends.append(_first_rows(finished, int(counts.finished[0])))
    looks.append(_look(problem, state, rows.condition, lanes))
    return Trace(
        **_finished(ids, ends, per_call),
        **_evaluations(looks, np.stack(made, axis=1)),
        kept=np.stack([frame.column for frame in frames], axis=1),
        points=np.stack([frame.point for frame in frames], axis=1),
        denoised=np.stack([frame.denoised for frame in frames], axis=1),
    )


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Look:
    """The lanes before an evaluation: what the samples have reached, and the point of the evaluation."""

    begin: Any  # [n], as all but the images
    accepted: Any
    rejected: Any
    error: Any
    t: Any
    log_snr: Any
    point: Any  # [n, ...]
    denoised: Any


def _with_room(rows: np.ndarray, length: int) -> np.ndarray:
    """The rows, and behind them others that nobody reads, up to this length."""
    return np.resize(rows, (length, *rows.shape[1:]))


def _look(problem: Problem, state: Any, condition: Any, lanes: int) -> _Look:
    # copied: the loop takes over the memory of its lanes
    return jax.tree.map(np.array, _looked(problem, state, condition, lanes=lanes))


@functools.partial(jax.jit, static_argnames="lanes")
def _looked(problem: Problem, state: Any, condition: Any, *, lanes: int) -> _Look:
    sde, state = problem.sde, jax.tree.map(lambda leaf: leaf[:lanes], state)
    arrived = state.status == Status.COMPLETED  # only the denoising is left, at the point reached
    x, t = jax.vmap(problem.solver.ask)(state)
    x = jnp.where(arrived.reshape(-1, *(1,) * (x.ndim - 1)), state.x, x)
    t = jnp.where(arrived, state.t, t)
    score = problem.score_fn(x, t, *(() if condition is None else (condition,)))
    return _Look(
        begin=state.t,
        accepted=state.accepted,
        rejected=state.rejected,
        error=getattr(state, "e", jnp.full_like(t, jnp.nan)),
        t=t,
        log_snr=jax.vmap(sde.log_snr)(t),
        point=x,
        denoised=jax.vmap(tweedie, (None, 0, 0, 0))(sde, x, t, score),
    )


class _Frame:
    """One image a sample: of the first evaluation at or above a log-SNR, or the last before the end."""

    def __init__(self, log_snr: float, like: np.ndarray):
        self.column = np.full(len(like), -1)
        self.point = np.full_like(like, np.nan)
        self.denoised = np.full_like(like, np.nan)
        self._log_snr = log_snr
        self._below = np.ones(len(like), bool)

    def take(self, look: _Look, column: int, busy: np.ndarray) -> None:
        """Takes in an evaluation of the lanes that are busy."""
        rows = busy & self._below
        self.column[rows] = column
        self.point[rows] = look.point[rows]
        self.denoised[rows] = look.denoised[rows]
        self._below[rows] = look.log_snr[rows] < self._log_snr


def _first_rows(finished: Finished, count: int) -> Finished:
    return jax.tree.map(lambda rows: np.array(rows[:count]), finished)


def _finished(ids: np.ndarray, ends: list[Finished], per_call: int) -> dict[str, np.ndarray]:
    """The finished samples in the order of the ids."""
    found = {name: np.concatenate([getattr(end, name) for end in ends]) for name in ("x", "nfe", "status")}
    ended = np.concatenate([end.sample_ids for end in ends])
    order = np.argsort(ended, kind="stable")[np.argsort(np.argsort(ids, kind="stable"), kind="stable")]
    found["nfe"] *= per_call
    return {"sample_ids": ids, **{name: array[order] for name, array in found.items()}}


def _evaluations(looks: list[_Look], made: np.ndarray) -> dict[str, np.ndarray]:
    """What each evaluation did, from the lanes before it and after it; ``made`` says whose lane was busy."""
    begin, accepted, rejected, error, t = (
        np.stack([getattr(look, name) for look in looks], axis=1)
        for name in ("begin", "accepted", "rejected", "error", "t")
    )
    taken, refused = np.diff(accepted) > 0, np.diff(rejected) > 0
    end = np.where(taken, begin[:, 1:], t[:, :-1])  # a step that was refused ended where it was judged

    def where(known: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.where(known & made, values, np.nan)

    return {
        "t": where(made, t[:, :-1]),
        "begin": where(made, begin[:, :-1]),
        "h": where(taken | refused, begin[:, :-1] - end),
        "error": where(taken | refused, error[:, 1:]),
        "accepted": taken & made,
        "rejected": refused & made,
    }
