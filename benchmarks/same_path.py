"""Give a solver of the reverse SDE the noise of a Brownian path, along which the SDE is also solved finely.

With y = x/α, the log-SNR λ = log(α/σ), ς = σ/α = e^(−λ) and the denoiser D, the reverse process whose share
of noise is η, a function of λ that is 1 for the reverse SDE itself, is

    dy = −(1 + η²) (y − D) dλ + η ς √2 dw

For η = 1, τ = e^(2λ) and U = τ y, it is dU = D dτ + dB with a standard Brownian motion B in τ. In either form
a sample is a function of its prior draw and of one path of the noise.

The path is made once, as standard normals e_i of cells of equal length in λ. A solver knows it by one
standard normal z a step: the noise that the step adds, over its deviation. This is the increment, over its
deviation, of a Brownian motion in a clock C that belongs to the solver's formula:

    C = τ                       a step of the reverse SDE that holds D or extrapolates it: ∫ dB
    C = (b² + ς²)^(−η²)         a step of AdaptiveExponential with the width b; for η = 1, ∫ dB/(1 + b² τ)
    C = (ς/φ(ς))²               a step of ER-SDE-Solver with the noise scale function φ
    C = −t                      a step of Euler–Maruyama or of the paper's solver: ∫ dw, with w in t

    z = Σ √(ΔC_i/ΔC) e_i        over the cells of the step

For many cells z is this integral. For any number of them it is standard normal, as it must be, and
independent for steps that do not overlap. Where a step ends within a cell, the cell is cut at the fraction f
of its τ into two parts with independent normals, and the path remembers them:

    √f e + √(1 − f) n,      √(1 − f) e − √f n,      n ~ N(0, I)

A solver whose steps do not depend on their own noise therefore draws the law that it draws by itself. One
that rejects a step for its noise stays on the path, as the paper's solver does with
``noise_on_rejection="bridge"``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, PRNGKeyArray

from sde_lib import SDE, ScoreFn, denoise
from sde_lib.checks import require
from sde_lib.pytrees import as_partial, register_dataclass
from solvers.adaptive import Adaptive
from solvers.adaptive_exponential import LONGEST, AdaptiveExponential
from solvers.arguments import as_arrays
from solvers.ddim import DDIM
from solvers.dpm_solver import SDEDPMSolverPP
from solvers.er_sde import ERSDE, OFFSET, POWER, added_noise
from solvers.euler_maruyama import EulerMaruyama
from solvers.fixed_steps import Correction
from solvers.interface import Solver, Status
from solvers.noise import prior_key, sample_key, standard_normal
from solvers.sa_solver import SASolver

MAX_EVALUATIONS = 5000
# Log-SNRs that are nearer are the same but for rounding: times are in float32. Cells are far longer.
SAME = 1e-5

Clock = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (log-SNRs, times) -> C


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Paths:
    """The Brownian paths of n samples, and where the samples start.

    Attributes:
        log_snr: the ends of the N cells, from T to eps, equally far apart.
        times: t there.
        e: a standard normal for each element of each cell.
        prior: x at T.
    """

    log_snr: Float64[np.ndarray, " N+1"]
    times: Float64[np.ndarray, " N+1"]
    e: Float[Array, "N n *shape"]
    prior: Float[Array, "n *shape"]

    @classmethod
    def draw(
        cls, sde: SDE, *, key: PRNGKeyArray, shape: tuple[int, ...], num_samples: int, num_cells: int
    ) -> Paths:
        """Paths whose samples start where those of ``solvers.sample`` with the same key do."""
        begin, end = (float(jnp.float32(sde.log_snr(t))) for t in (sde.T, sde.eps))
        log_snr = np.linspace(begin, end, num_cells + 1)
        times = np.asarray(jax.vmap(sde.inverse_log_snr)(jnp.asarray(log_snr, jnp.float32)), np.float64)
        times[0], times[-1] = np.float32(sde.T), np.float32(sde.eps)

        def prior(sample_id: Array) -> Array:
            return sde.prior(prior_key(sample_key(key, sample_id)), shape)

        return cls(
            log_snr=log_snr,
            times=times,
            e=jax.random.normal(jax.random.split(key)[1], (num_cells, num_samples, *shape)),
            prior=jax.vmap(prior)(jnp.arange(num_samples, dtype=jnp.uint32)),
        )


class Path:
    """The path of one sample, with the cuts that one solver makes."""

    def __init__(self, paths: Paths, sample: int, random: np.random.Generator):
        self._log_snr, self._times, self._random = paths.log_snr, paths.times, random
        self._cells = np.asarray(paths.e)[:, sample]
        self._parts: list[np.ndarray] = []  # of cells that were cut
        self._rows = np.arange(len(self._cells))  # of the pieces: in the cells, and beyond them in the parts

    def increment(self, log_snr: Any, times: Any, clock: Clock) -> Float[np.ndarray, "*shape"]:
        """z of the step between two log-SNRs, whose times are these too."""
        first, last = (self._cut(*end) for end in zip(log_snr, times, strict=True))
        pieces = slice(first, last + 1)
        lengths = np.diff(clock(self._log_snr[pieces], self._times[pieces]))
        weights = np.sqrt(lengths / lengths.sum()).astype(np.float32)
        rows = self._rows[first:last]
        whole = rows < len(self._cells)
        z = np.tensordot(weights[whole], self._cells[rows[whole]], 1)
        for row, weight in zip(rows[~whole], weights[~whole], strict=True):
            z += weight * self._parts[row - len(self._cells)]
        return z

    def _cut(self, log_snr: float, time: float) -> int:
        """The number of the point at this log-SNR, which is made if there is none."""
        place = int(np.searchsorted(self._log_snr, log_snr))
        for point in (place - 1, place):
            if 0 <= point < len(self._log_snr) and abs(self._log_snr[point] - log_snr) < SAME:
                return point
        before, after = self._log_snr[place - 1], self._log_snr[place]
        f = math.expm1(2 * (log_snr - before)) / math.expm1(2 * (after - before))
        row, count = self._rows[place - 1], len(self._cells)
        e = self._cells[row] if row < count else self._parts[row - count]
        n = self._random.standard_normal(e.shape, np.float32)
        new = count + len(self._parts)
        self._parts += [math.sqrt(f) * e + math.sqrt(1 - f) * n, math.sqrt(1 - f) * e - math.sqrt(f) * n]
        self._rows = np.insert(self._rows, place, new + 1)
        self._rows[place - 1] = new
        self._log_snr = np.insert(self._log_snr, place, log_snr)
        self._times = np.insert(self._times, place, time)
        return place


def clock_of_width(variance: float, share: float = 1.0) -> Clock:
    """That of data of the width b, given b² and η²."""
    return lambda log_snr, times: (variance + np.exp(-2 * log_snr)) ** -share


def clock_of(solver: Solver, step: dict[str, np.ndarray]) -> Clock:
    """That of a solver's step."""
    if isinstance(solver, EulerMaruyama | Adaptive):
        return lambda log_snr, times: -times
    if isinstance(solver, ERSDE):  # φ(ς)/ς is its bracket
        return lambda log_snr, times: (np.exp(np.exp(-POWER * log_snr)) + OFFSET) ** -2
    return clock_of_width(float(step["variance"]), float(step["eta"]) ** 2)


def noise_share(solver: Solver, log_snr: Array, shape: tuple[int, ...]) -> Float[Array, " N"]:
    """η of the process that a solver solves, for samples of this shape."""
    if isinstance(solver, AdaptiveExponential):
        h, size = jnp.float32(LONGEST), math.prod(shape)
        return jax.vmap(lambda each: solver.noise_share(each, h, size))(log_snr)
    if isinstance(solver, ERSDE):  # 1 + η² = d log φ/d log ς
        power = jnp.exp(-POWER * log_snr)
        return jnp.sqrt(POWER * power / (1 + OFFSET * jnp.exp(-power)))
    return jnp.ones_like(log_snr)


@functools.partial(jax.jit, static_argnames="merged")
def solve_along(
    score_fn: ScoreFn, sde: SDE, paths: Paths, share: Float[Array, " N"], *, merged: int = 1
) -> Float[Array, "n *shape"]:
    """x at eps by exponential Euler steps along the paths.

        y' = D + e^(−(1 + η²) h) (y − D) + ς' √(1 − e^(−2 η² h)) z

    Args:
        score_fn: (x [n, ...], t [n]) -> score [n, ...], a ``jax.tree_util.Partial``.
        sde: the process.
        paths: the paths, of which each step takes ``merged`` cells.
        share: η > 0 in each cell.
        merged: a divisor of the number of cells.
    """
    num_cells, n = paths.e.shape[:2]
    h = (paths.log_snr[-1] - paths.log_snr[0]) / num_cells  # of a cell
    begins, ends = paths.times[:-1:merged], paths.log_snr[merged::merged]

    def step(y: Array, each: Any) -> tuple[Array, None]:
        time, end, eta, e = each
        t, alpha = jnp.full(n, time), sde.marginal(time)[0]
        x = alpha * y
        denoised = jax.vmap(lambda x, t, score: denoise(sde, x, t, score))(x, t, score_fn(x, t))
        clock = jnp.expm1(2 * eta**2 * h * jnp.arange(merged + 1))  # less its value at the start, over that
        z = jnp.tensordot(jnp.sqrt(jnp.diff(clock) / clock[-1]), e, 1)
        noise = jnp.exp(-end) * jnp.sqrt(-jnp.expm1(-2 * eta**2 * h * merged)) * z
        return denoised + jnp.exp(-(1 + eta**2) * h * merged) * (y - denoised) + noise, None

    first, last = sde.marginal(sde.T)[0], sde.marginal(sde.eps)[0]
    e = paths.e.reshape(num_cells // merged, merged, *paths.e.shape[1:])
    y, _ = jax.lax.scan(step, paths.prior / first, (begins, ends, share[::merged], e))
    return last * y


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A solver's samples at eps without denoising, [n, ...], and the evaluations of each, [n]."""

    x: np.ndarray
    nfe: np.ndarray


def run_along(
    score_fn: ScoreFn,
    sde: SDE,
    solver: Solver,
    paths: Paths,
    *,
    key: PRNGKeyArray,
    clock: Clock | None = None,
) -> Run:
    """The solver's samples with the noise of the paths.

    Args:
        score_fn, sde, solver: see ``run``.
        paths: of the samples.
        key: that of the paths.
        clock: in the place of the solver's own.
    """
    random = np.random.default_rng(0)
    each = [Path(paths, sample, random) for sample in range(len(paths.prior))]

    def draw(sample: int, number: int, step: dict[str, np.ndarray]) -> np.ndarray:
        return each[sample].increment(step["log_snr"], step["times"], clock or clock_of(solver, step))

    shape = paths.prior.shape[1:]
    return run(score_fn, sde, solver, key=key, shape=shape, num_samples=len(each), draw=draw)


def run(
    score_fn: ScoreFn,
    sde: SDE,
    solver: Solver,
    *,
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    num_samples: int,
    draw: Callable[[int, int, dict[str, np.ndarray]], np.ndarray],
) -> Run:
    """The samples of ``solvers.sample`` with the same key, but with other numbers for the noise.

    Args:
        score_fn: (x [b, ...], t [b]) -> score [b, ...].
        sde, solver, key, shape, num_samples: see ``solvers.sample``.
        draw: gives z of every step that is tried: of (sample, number of the draw from 1 on, what ``_step``
            says of the step).

    Raises:
        ValueError: for a solver whose noise is not known here.
        RuntimeError: if a sample does not complete.
    """
    require_path(solver)
    score_fn = as_partial(score_fn)
    sde, solver = as_arrays((sde, solver), jnp.float32)
    keys = jax.vmap(sample_key, (None, 0))(key, jnp.arange(num_samples, dtype=jnp.uint32))
    states = jax.vmap(lambda key: solver.init(sde, key, shape, jnp.float32))(keys)
    nfe, draws = np.zeros(num_samples, int), np.zeros(num_samples, int)
    while (running := np.asarray(states.status) == Status.RUNNING).any() and nfe.max() < MAX_EVALUATIONS:
        nfe += running
        states, step = _advance(score_fn, sde, solver, states)
        host = {name: np.asarray(value) for name, value in step.items()}
        z = host["z"].copy()
        for sample in np.flatnonzero(host["drawn"]):
            draws[sample] += 1
            own = {name: value[sample] for name, value in host.items()}
            z[sample] = draw(int(sample), int(draws[sample]), own)
        states = _with_noise(states, step, z)
    status = np.asarray(states.status)
    if (failed := status != Status.COMPLETED).any():
        statuses = sorted({Status(each).name for each in status[failed]})
        raise RuntimeError(f"{failed.sum()} of {num_samples} samples of {solver} failed: {statuses}")
    return Run(x=np.asarray(states.x), nfe=nfe)


def require_path(solver: Solver) -> None:
    """Raises ValueError for a solver whose noise is not known here."""
    kinds = (DDIM, SDEDPMSolverPP, SASolver, AdaptiveExponential, ERSDE, EulerMaruyama, Adaptive)
    allowed = f"one of {', '.join(kind.__name__ for kind in kinds)}"
    require(isinstance(solver, kinds), "solver", solver, allowed, "choose one of these")
    if isinstance(solver, Adaptive):
        kind = solver.error_estimate
        require(kind == "heun", "error_estimate", kind, "'heun'", "leave it out")
    share = "tau" if isinstance(solver, SASolver) else "eta"
    if hasattr(solver, share):
        value = getattr(solver, share)
        require(float(value) == 1, share, value, "1", "set it to 1; other shares of noise are not known here")


@jax.jit
def _advance(score_fn: Any, sde: Any, solver: Any, states: Any) -> tuple[Any, dict[str, Array]]:
    """One evaluation of every sample that is not finished, and the step that each has tried."""
    x, t = jax.vmap(solver.ask)(states)
    told = jax.vmap(lambda state, score: solver.tell(sde, state, score))(states, score_fn(x, t))
    running = states.status == Status.RUNNING

    def kept(new: Array, old: Array) -> Array:
        return jnp.where(running.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    step = jax.vmap(lambda before, after: _step(sde, solver, before, after))(states, told)
    return jax.tree.map(kept, told, states), step | {"drawn": step["drawn"] & running}


def _step(sde: SDE, solver: Any, before: Any, after: Any) -> dict[str, Any]:
    """The step that one evaluation of one sample has tried, with b², η, and its noise deviation × z in x."""
    if isinstance(solver, Adaptive):  # after an accepted step, the score that the next one needs is missing
        drawn, begin, end, z = after.second_stage, after.t, after.t_proposed, after.z
    else:
        drawn, begin, end = after.accepted > before.accepted, before.t, after.t
        z = standard_normal(before.key, after.accepted, before.x.shape, before.x.dtype)
    log_snr = jnp.stack([sde.log_snr(begin), sde.log_snr(end)])
    variance, eta = 0.0, 1.0
    if isinstance(solver, AdaptiveExponential):
        variance = after.variance
        eta = solver.noise_share(after.history[0].log_snr, after.h, before.x.size)
    if isinstance(solver, Adaptive):
        deviation = sde.diffusion(begin) * jnp.sqrt(after.h)
    elif isinstance(solver, EulerMaruyama):
        deviation = sde.diffusion(begin) * jnp.sqrt(begin - end)
    elif isinstance(solver, ERSDE):
        deviation = sde.marginal(end)[1] * jnp.sqrt(
            -jnp.expm1(-2 * added_noise(log_snr[1], log_snr[1] - log_snr[0]))
        )
    else:
        widths = variance + jnp.exp(-2 * log_snr)
        left = (widths[1] / widths[0]) ** eta**2
        deviation = sde.marginal(end)[0] * jnp.sqrt(widths[1] * (1 - left))
    scalars = {"variance": variance, "eta": eta, "deviation": deviation}
    return {
        "drawn": drawn,
        "log_snr": log_snr,
        "times": jnp.stack([begin, end]),
        "z": z,
        **{name: jnp.asarray(value, begin.dtype) for name, value in scalars.items()},
    }


@jax.jit
def _with_noise(states: Any, step: dict[str, Array], z: Array) -> Any:
    """The states with other numbers in the place of the z of the latest step; linear in z, as the step is."""
    change = jax.vmap(jnp.multiply)(step["deviation"], z - step["z"])
    if hasattr(states, "x_proposed"):
        return dataclasses.replace(states, z=z, x_proposed=states.x_proposed + change)
    other = {"x": states.x + change}
    if isinstance(correction := getattr(states, "correction", None), Correction):
        other["correction"] = dataclasses.replace(correction, without=correction.without + change)
    return dataclasses.replace(states, **other)
