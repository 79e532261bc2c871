"""How the paper's solver controls its steps, and what its rejections do to the noise.

python -m benchmarks.step_control [--quick] [--json FILE] [--parts scaling,exponents,noise] [--workdir DIR]

docs/step_control.md has the derivations, the tables and the plot of this module. The error of a step is
E = (K2 − K1)/2, half the difference of the two stages of Algorithm 1 with the same noise z.

    scaling     E at exact samples of the digits mixture (benchmarks/mixture.py), at several times. Of the E
                with z and with −z, half the difference is what noise causes, and the mean what the drift
                causes. And e, the error in units of the paper's tolerance, with its exponent p where it is 1.
    exponents   evaluations, rejections and quality on the same mixture for exponents r of step 5, with the
                share of rejections that a normal AR(1) process for log h predicts.
    noise       the moments of the noise after one rejection; the factor κ on its variance and the share μ of
                the drift in a long run; and the solver on data ~ N(2, 0.5² I), whose limits follow from both.

A killed run is resumed by the same command. The plot is step_control.png in the workdir.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.special
import scipy.stats
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.exact_score import SDES, adaptive, code_of, figures_of_samples
from benchmarks.mixture import SHAPE, Mixture, digits_mixture
from benchmarks.report import Records, hash_of, machine, names_in, write_json
from evaluation.runs.tables import markdown
from evaluation.store.files import atomic_file, make_folder
from sde_lib import SDE, reverse_drift
from solvers import Adaptive, Status, sample
from solvers.adaptive import NoiseOnRejection

PARTS = ("scaling", "exponents", "noise")
BANDWIDTH = 0.1  # of the digits mixture
SAFETY = 0.9  # θ
MEAN, DEVIATION = 2.0, 0.5  # of the Gaussian data
Figures = dict[str, float]


# --- the error of a step ---------------------------------------------------------------------------------


def step_error(
    score_fn: Any,
    sde: SDE,
    x: Float[Array, "b *shape"],
    t: Float[Array, ""],
    h: Float[Array, ""],
    z: Float[Array, "b *shape"],
) -> Float[Array, "b *shape"]:
    """E = (K2 − K1)/2 of a step from t to t − h with the noise z."""

    def stage(x: Array, t: Array) -> Array:
        score = score_fn(x, jnp.full(len(x), t, x.dtype))
        return -h * reverse_drift(sde, x, t, score) + sde.diffusion(t) * jnp.sqrt(h) * z

    first = stage(x, t)
    return (stage(x + first, t - h) - first) / 2


def samples_at(mixture: Mixture, sde: SDE, t: Any, key: PRNGKeyArray, num_samples: int) -> Array:
    """Exact samples of p_t, [n, d]."""
    d = mixture.centres.shape[1]
    return mixture.samples(sde, t, key=key, num_samples=num_samples, shape=(d,))


@functools.partial(jax.jit, static_argnames="num_samples")
def error_parts(
    mixture: Mixture,
    sde: SDE,
    t: Float[Array, ""],
    h: Float[Array, ""],
    key: PRNGKeyArray,
    *,
    num_samples: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Root mean squares of the part of E that is odd in z, and of the part that is even.

    The odd part is what noise causes. The even one is what the drift causes, with the curvature of the score
    along the noise.
    """
    key_x, key_z = jax.random.split(key)
    x = samples_at(mixture, sde, t, key_x, num_samples)
    z = jax.random.normal(key_z, x.shape)
    plus, minus = (step_error(mixture.score_fn(sde), sde, x, t, h, sign * z) for sign in (1, -1))
    return jnp.sqrt(jnp.mean((plus - minus) ** 2)) / 2, jnp.sqrt(jnp.mean((plus + minus) ** 2)) / 2


@functools.partial(jax.jit, static_argnames="num_samples")
def errors_in_tolerance(
    mixture: Mixture,
    sde: SDE,
    solver: Adaptive,
    t: Float[Array, ""],
    h: Float[Array, ""],
    key: PRNGKeyArray,
    *,
    num_samples: int,
) -> Float[Array, " n"]:
    """The solver's own e for steps from exact samples at t, with x'_prev = x."""
    key_x, key_z = jax.random.split(key)
    x = samples_at(mixture, sde, t, key_x, num_samples)

    def start(x: Array, key: PRNGKeyArray) -> Any:
        return dataclasses.replace(solver.init(sde, key, x.shape, x.dtype), x=x, t=t, h=h, x_previous=x)

    states = jax.vmap(start)(x, jax.random.split(key_z, num_samples))
    for _ in range(2):  # the two stages
        score = mixture.score_fn(sde)(*jax.vmap(solver.ask)(states))
        states = jax.vmap(solver.tell, in_axes=(None, 0, 0))(sde, states, score)
    return states.e


TIMES = {"ve": (0.9, 0.7, 0.5, 0.3, 0.1), "vp": (0.9, 0.6, 0.3, 0.1, 0.02)}
STEPS = np.geomspace(1e-4, 0.2, 18)
TOLERANCES = (0.02, 0.1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling:
    """The error at one time.

    Attributes:
        steps: h, increasing.
        noise, drift: root mean squares of the two parts of E at these steps.
        unit: {ε_rel: (the step at which e is 1, and there: its exponent p, the deviation of log e, the noise
            over the drift)}.
    """

    steps: Float[np.ndarray, " k"]
    noise: Float[np.ndarray, " k"]
    drift: Float[np.ndarray, " k"]
    unit: dict[float, tuple[float, float, float, float]]


def scaling(process: str, t: float, num_samples: int) -> Scaling:
    """The error at one time of the digits mixture."""
    sde, mixture = SDES[process], digits_mixture(SDES[process], BANDWIDTH)
    steps = STEPS[: np.searchsorted(STEPS, 0.8 * t)]
    settings: dict[str, Any] = {"key": jax.random.key(0), "num_samples": num_samples}
    time, of_step = jnp.float32(t), [jnp.float32(h) for h in steps]
    parts = np.array([error_parts(mixture, sde, time, h, **settings) for h in of_step], np.float64)
    unit = {}
    for eps_rel in TOLERANCES:
        solver = adaptive(eps_rel, process == "ve")
        e = np.array([errors_in_tolerance(mixture, sde, solver, time, h, **settings) for h in of_step])
        size, spread = 0.5 * np.log(np.mean(e**2, axis=1)), np.std(np.log(e), axis=1)
        at = float(np.interp(0, size, np.log(steps)))
        measured = np.gradient(size, np.log(steps)), spread, parts[:, 0] / parts[:, 1]
        p, deviation, ratio = (float(np.interp(at, np.log(steps), each)) for each in measured)
        unit[eps_rel] = math.exp(at), p, deviation, ratio
    return Scaling(steps=steps, noise=parts[:, 0], drift=parts[:, 1], unit=unit)


def exponent(steps: Float[np.ndarray, " k"], errors: Float[np.ndarray, " k"]) -> float:
    """The slope of log error by log step, by least squares."""
    return float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def rejected_share(r: float, p: float, spread: float) -> float:
    """The share of rejections if e = (h/h*)^p e^ξ with ξ ~ N(0, spread²), independent in each try.

    By step 5, log h is then an AR(1) process with coefficient 1 − pr, and log e is normal.
    """
    of_h = (r * spread) ** 2 / (1 - (1 - p * r) ** 2)
    return float(scipy.stats.norm.cdf(math.log(SAFETY) / r / math.sqrt(p**2 * of_h + spread**2)))


# --- the noise after rejections, in closed form ----------------------------------------------------------


def second_moment_after_one(kept: float, d: int, c: float) -> float:
    """Of B(1) in each of d dimensions, where a step from 0 to 1 with noise z is rejected if rms(z) > c.

    After a rejection the step is divided, and its parts together get kept · z and fresh noise, which makes up
    for the rest of the variance: kept is 0 for "redraw"; √q for "hold", where q is the length of the first
    part; q for a bridge whose end point is forgotten; 1 for "bridge".
    """
    # P(rms ≤ c) less E[z²; rms ≤ c] = P(χ²_d ≤ d c²) − P(χ²_(d+2) ≤ d c²)
    lost = 2 * float(scipy.stats.chi2.pdf(d * c**2, d + 2))
    return 1 - (1 - kept**2) * lost


def mean_after_one(kept: float, c: float, shift: float) -> float:
    """Of B(1) in one dimension, where a step is rejected if |z + shift| > c; ``kept`` as above."""
    normal = scipy.stats.norm.pdf
    return (1 - kept) * float(normal(c + shift) - normal(c - shift))


def _joint_moment(d: int, i: float, j: float, accepted: bool) -> float:
    """E[w^2i y^2j; y ≤ θ^(−3/2) w], or of the complement, for w² and y² ~ χ²_d/d, independent."""
    bound = 1 / (1 + SAFETY**3)  # of y²/(w² + y²) ~ Beta(d/2, d/2), which is independent of w² + y²
    a, b = d / 2 + j, d / 2 + i
    share = scipy.special.betainc(a, b, bound) if accepted else scipy.special.betaincc(a, b, bound)
    log_norm = scipy.special.betaln(a, b) - scipy.special.betaln(d / 2, d / 2)
    log_sum = (i + j) * math.log(2 / d) + math.lgamma(d + i + j) - math.lgamma(d)
    return float(share * math.exp(log_norm + log_sum))


def noise_factors(policy: NoiseOnRejection, d: int) -> tuple[float, float]:
    """(κ, μ) for r = 2/3, where E is d-dimensional and noise causes it in all directions alike.

    κ multiplies the variance of the noise. The drift changes by −μ g A⁻¹ b, where E = h^(3/2) A z + h² b.
    With r = 2/3, a step of length θ w^(−2/3) is tried after a try whose z had the root mean square w.
    """
    m = functools.partial(_joint_moment, d)
    if policy == "bridge":
        return 1.0, 0.0
    if policy == "redraw":
        time, noise = m(-1 / 3, 0, True), m(-1 / 3, 1, True)
        return noise / time, 1 - noise / time
    # held noise is accepted at the second try, whose step is θ y^(−2/3)
    time = m(-1 / 3, 0, True) + m(0, -1 / 3, False)
    noise = m(-1 / 3, 1, True) + m(0, 2 / 3, False)
    pull = m(-1 / 3, 1, True) + m(-1 / 6, 5 / 6, False) - m(-1 / 6, -1 / 6, False)
    return noise / time, (m(-1 / 3, 0, True) - pull) / time


def simulated_factors(
    policy: NoiseOnRejection, d: int, r: float, *, chains: int = 20_000, tries: int = 300, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """κ, μ, the share of accepted tries and the evaluations a unit of time, each with its standard error.

    Every chain tries steps with e = u^(3/2) rms(z + s), where u = h/h* and the drift causes s = 0.02 √u in
    the first dimension. Of each chain there is one with the first dimension's noise mirrored: in the sum of
    both, the noise cancels from what s causes.
    """
    random, small = np.random.default_rng(seed), 0.02
    log_u = np.zeros((2, chains))
    z, rest = np.zeros((2, chains)), np.zeros((2, chains))
    fresh = np.ones((2, chains), bool)
    sums = np.zeros((5, chains))
    for number in range(tries):
        draw = random.standard_normal(chains)
        others = random.chisquare(d - 1, chains) if d > 1 else np.zeros(chains)
        z = np.where(fresh, np.stack([draw, -draw]), z)
        rest = np.where(fresh, others, rest)
        u = np.exp(log_u)
        e = u**1.5 * np.sqrt(((z + small * np.sqrt(u)) ** 2 + rest) / d)
        accept = e <= 1
        if number >= 30:  # by then the start is forgotten
            terms = (u * (z**2 + rest) / d, np.sqrt(u) * z / -small, np.ones_like(u), u)
            sums[:4] += [np.sum(term * accept, axis=0) for term in terms]
            sums[4] += 2
        log_u = log_u + math.log(SAFETY) - r * np.log(e)
        fresh = accept if policy == "hold" else np.ones_like(accept)
    noise, pull, steps, time, total = sums
    quotients = {"kappa": (noise, time), "mu": (pull, time), "accepted": (steps, total)}
    quotients["evaluations"] = total + steps, time
    return {name: _quotient(*pair) for name, pair in quotients.items()}


def _quotient(top: np.ndarray, bottom: np.ndarray) -> tuple[float, float]:
    """The quotient of two means with its standard error."""
    value = top.mean() / bottom.mean()
    return float(value), float(np.std(top - value * bottom) / bottom.mean() / math.sqrt(len(top)))


def gaussian(d: int, mean: float = MEAN, deviation: float = DEVIATION) -> Mixture:
    """Data ~ N(mean, deviation² I)."""
    return Mixture.around(np.full((1, d), mean, np.float32), deviation)


def limit(
    sde: SDE, kappa: float, mu: float, mean: float = MEAN, deviation: float = DEVIATION
) -> tuple[float, float]:
    """Mean and deviation at t = eps, for data ~ N(mean, deviation²), of the SDE that the steps converge to.

    With τ = T − t and v the reverse drift in τ, it is dx = (v − μ g A⁻¹ b) dτ + √κ g dW, where
    A = (g ∂v/∂x + dg/dτ)/2 and b = (v ∂v/∂x + ∂v/∂τ)/2.
    """
    score_fn = gaussian(1, mean, deviation).score_fn(sde)

    def v(x: Array, t: Array) -> Array:
        return -reverse_drift(sde, x, t, score_fn(x[None, None], t[None])[0, 0])

    def drift(x: Array, t: Array) -> Array:
        slope, in_t = jax.grad(v)(x, t), jax.grad(v, argnums=1)(x, t)
        noise = (sde.diffusion(t) * slope - jax.grad(sde.diffusion)(t)) / 2
        return v(x, t) - mu * sde.diffusion(t) / noise * (v(x, t) * slope - in_t) / 2

    @jax.jit
    def change(t: Array, m: Array, variance: Array) -> Array:
        slope = jax.grad(drift)(m, t)  # of a drift that is linear in x
        return jnp.stack([drift(m, t), 2 * slope * variance + kappa * sde.diffusion(t) ** 2])

    def of_tau(tau: float, moments: np.ndarray) -> np.ndarray:
        return np.asarray(change(jnp.float32(sde.T - tau), *map(jnp.float32, moments)), np.float64)

    begin = [0.0, float(sde.marginal(sde.T)[1]) ** 2]
    span = 0.0, float(sde.T - sde.eps)
    found = scipy.integrate.solve_ivp(of_tau, span, begin, method="LSODA", rtol=1e-5, atol=1e-6)
    return float(found.y[0, -1]), math.sqrt(found.y[1, -1])


# --- the solver ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run of ``Adaptive`` on the digits mixture (``dimensions`` None) or on Gaussian data."""

    process: str
    dimensions: int | None
    eps_rel: float
    eps_abs: float
    r: float
    policy: NoiseOnRejection
    error_estimate: Literal["heun", "lamba"] = "heun"
    seed: int
    num_samples: int

    @property
    def identity(self) -> str:
        """A hash of all that determines the record, the solver's code included."""
        return hash_of(repr(self), code_of(("benchmarks.mixture", "solvers.adaptive")))


def on_digits(
    process: str, eps_rel: float, r: float, policy: NoiseOnRejection, *, seed: int, num_samples: int
) -> Run:
    """With the paper's ε_abs, which shrinks along with an ε_rel below 0.02."""
    grey_level = (1 if process == "ve" else 2) / 256
    return Run(
        process=process,
        dimensions=None,
        eps_rel=eps_rel,
        eps_abs=grey_level * min(1, eps_rel / 0.02),
        r=r,
        policy=policy,
        seed=seed,
        num_samples=num_samples,
    )


def on_gaussian(
    d: int, delta: float, r: float, policy: NoiseOnRejection, numbers: int, **settings: Any
) -> Run:
    """VP with the tolerance δ on every element, whatever x is."""
    return Run(
        process="vp",
        dimensions=d,
        eps_rel=1e-9,
        eps_abs=delta,
        r=r,
        policy=policy,
        seed=0,
        num_samples=numbers // d,
        **settings,
    )


def measure(run: Run) -> dict[str, float]:
    """Evaluations, steps and quality of a run."""
    sde = SDES[run.process]
    mixture = digits_mixture(sde, BANDWIDTH) if run.dimensions is None else gaussian(run.dimensions)
    solver = Adaptive(
        eps_rel=run.eps_rel,
        eps_abs=run.eps_abs,
        exponent=run.r,
        first_step=adaptive(0.02, run.process == "ve").first_step,
        noise_on_rejection=run.policy,
        error_estimate=run.error_estimate,
    )
    solution = sample(
        mixture.score_fn(sde),
        sde,
        solver,
        key=jax.random.key(run.seed),
        shape=SHAPE if run.dimensions is None else (run.dimensions,),
        num_samples=run.num_samples,
        batch_size=min(512 if run.dimensions is None else 4096, run.num_samples),
        denoise=False,
        max_evaluations=50_000,
    )
    x = solution.x[solution.status == Status.COMPLETED]
    record = {
        "nfe": float(solution.nfe.mean()),
        "rejected": float(solution.rejected.sum() / (solution.accepted + solution.rejected).sum()),
        "failed": run.num_samples - len(x),
    }
    if run.dimensions is None:
        return record | figures_of_samples(mixture, sde, x)
    numbers = x.astype(np.float64).ravel()
    return record | {"mean": float(numbers.mean()), "deviation": float(numbers.std())}


def records(runs: Sequence[Run], path: Path) -> list[dict[str, Any]]:
    """The record of each run, from the file, or measured and added to it."""
    known = Records(path)
    return [
        known.of(run.identity, lambda run=run: measure(run) | {"run": repr(run)})
        for run in tqdm(runs, unit="run", disable=None)
    ]


# --- the parts -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Where records are kept, whether the run is a quick one, and what the plot shows."""

    path: Path
    quick: bool
    shown: dict[str, Any] = dataclasses.field(default_factory=dict)


def of_scaling(settings: Settings) -> tuple[str, Figures]:
    """The table of exponents by time."""
    found = {
        (process, t): scaling(process, t, 16 if settings.quick else 256)
        for process, times in TIMES.items()
        for t in (times[1:2] if settings.quick else times)
    }
    settings.shown["scaling"] = found
    rows, figures = [], {}
    for (process, t), each in found.items():
        alpha, sigma = SDES[process].marginal(t)
        small = each.steps < 2e-3
        of = {
            "noise": exponent(each.steps[small], each.noise[small]),
            "drift": exponent(each.steps[small], each.drift[small]),
        }
        cells = [process, f"{t:g}", f"{sigma / alpha:.3g}", f"{of['noise']:.2f}", f"{of['drift']:.2f}"]
        for eps_rel, (h, p, spread, ratio) in each.unit.items():
            cells += [f"{h:.4f}", f"{p:.2f}", f"{1 / p:.2f}", f"{spread:.2f}", f"{ratio:.1f}"]
            names = ("step", "p", "spread", "noise_over_drift")
            of |= {
                f"{eps_rel:g}.{name}": value for name, value in zip(names, each.unit[eps_rel], strict=True)
            }
        rows.append(cells)
        figures |= {f"scaling.{process}.{t:g}.{name}": value for name, value in of.items()}
    head = ["SDE", "t", "sigma/alpha", "noise", "drift"]
    for eps_rel in TOLERANCES:
        head += [f"h at {eps_rel:g}", "p", "1/p", "spread", "noise/drift"]
    return markdown(head, rows), figures


EXPONENTS = (0.5, 2 / 3, 0.8, 0.9, 1.0)
SEEDS, NUM_SAMPLES = 3, 2048
# (p, deviation of log e) at this ε_rel, about
PREDICTED_AT = 0.02
PREDICTED = {"ve": (1.25, 0.145), "vp": (1.4, 0.12)}


def of_exponents(settings: Settings) -> tuple[str, Figures]:
    """The table of evaluations, rejections and quality by r; and redrawing at tightening tolerances."""
    runs = exponent_runs(settings.quick)
    groups: dict[tuple[str, float, NoiseOnRejection, float], list[dict[str, Any]]] = {}
    for run, record in zip(runs, records(runs, settings.path), strict=True):
        groups.setdefault((run.process, run.eps_rel, run.policy, run.r), []).append(record)
    rows, figures = [], {}
    for (process, eps_rel, policy, r), of_group in groups.items():
        values = {name: [record[name] for record in of_group] for name in QUALITY}
        predicted = policy == "redraw" and eps_rel == PREDICTED_AT
        row = [process, f"{eps_rel:g}", policy, f"{r:.2g}", f"{np.mean(values['nfe']):.1f}"]
        row += [f"{np.mean(values['rejected']):.3f}"]
        row += [f"{rejected_share(r, *PREDICTED[process]):.3f}" if predicted else ""]
        row += [_with_deviation(values["log_likelihood"], 2), _with_deviation(values["residual"], 3)]
        rows.append([*row, str(sum(record["failed"] for record in of_group))])
        name = f"exponents.{process}.{eps_rel:g}.{policy}.{r:.2g}"
        figures |= {f"{name}.{measured}": float(np.mean(of)) for measured, of in values.items()}
    head = ["SDE", "eps_rel", "on rejection", "r", "NFE", "rejected", "predicted"]
    return markdown([*head, "log p", "residual", "failed"], rows), figures


def exponent_runs(quick: bool) -> list[Run]:
    """All seeds of a cell of the table behind one another."""
    policies: tuple[NoiseOnRejection, ...] = ("redraw", "bridge")
    cells: list[tuple[str, float, float, NoiseOnRejection]] = [
        (process, eps_rel, r, policy)
        for process in SDES
        for eps_rel in (0.02, 0.05)
        for policy in policies
        for r in EXPONENTS
        if eps_rel == 0.02 or policy == "bridge"
    ]
    if quick:
        return [on_digits(*cell, seed=0, num_samples=64) for cell in cells[:2]]
    cells.extend(("vp", eps_rel, 0.9, policy) for eps_rel in (0.005, 0.002) for policy in policies)
    return [
        on_digits(*cell, seed=seed, num_samples=NUM_SAMPLES)
        for cell in cells
        # below 0.02, one seed suffices to see the excess of redrawing grow
        for seed in range(SEEDS if cell[1] >= 0.02 else 1)
    ]


def _with_deviation(values: Sequence[float], digits: int) -> str:
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


QUALITY = ("nfe", "rejected", "log_likelihood", "residual", "frechet")
DIMENSIONS = (1, 2, 8, 64)
MODE = 2 * BANDWIDTH  # deviation of a mode of the digits mixture in the units of VP
DELTAS = (0.03, 0.01, 0.003, 0.001)
NUMBERS = 65_536
LAMBA = "redraw, Lamba's error"


def of_noise(settings: Settings) -> tuple[str, Figures]:
    """The tables of the noise after one rejection, in a long run, and of the solver on Gaussian data."""
    tables, figures = [], {}
    for part in (after_one_rejection, in_a_long_run, on_gaussian_data):
        table, of_part = part(settings)
        tables.append(table)
        figures |= of_part
    return "\n\n".join(tables), figures


KEPT = {"redraw": 0.0, "hold": math.sqrt(0.5), "bridge, end forgotten": 0.5, "bridge": 1.0}


def simulated_after_one(kept: float, d: int, c: float, shift: float, num: int, seed: int) -> np.ndarray:
    """B(1) in the first of d dimensions, [num]: a step is rejected if rms(z + shift) > c, and then halved."""
    random = np.random.default_rng(seed)
    z, first, second = (random.standard_normal((num, d)) for _ in range(3))
    rejected = np.sqrt(np.mean((z + shift) ** 2, axis=1)) > c
    if kept == 0:  # redraw: both halves are drawn anew
        halves = math.sqrt(0.5) * (first + second)
    elif kept == 1:  # bridge: the first half given the whole, then the rest of it
        half = z / 2 + first / 2
        halves = half + (z - half)
    elif kept == 0.5:  # the first half given the whole, then as if nothing were known
        halves = z / 2 + first / 2 + math.sqrt(0.5) * second
    else:  # hold: the first half with the same z, then anew
        halves = math.sqrt(0.5) * z + math.sqrt(0.5) * second
    return np.where(rejected[:, None], halves, z)[:, 0]


def after_one_rejection(settings: Settings) -> tuple[str, Figures]:
    """The moments of B(1) by formula and by simulation."""
    num = 10_000 if settings.quick else 1_000_000
    rows, figures = [], {}
    for policy, kept in KEPT.items():
        row = [policy, f"{kept:.2g}"]
        moved = simulated_after_one(kept, 1, 1.0, 0.3, num, seed=0)
        expected = mean_after_one(kept, 1.0, 0.3)
        row += [f"{expected:+.4f}", f"{moved.mean():+.4f} ± {moved.std() / math.sqrt(num):.4f}"]
        figures[f"one.{policy}.mean"] = expected
        for d in (1, 8):
            squares = simulated_after_one(kept, d, 1.0, 0.0, num, seed=1) ** 2
            expected = second_moment_after_one(kept, d, 1.0)
            row += [f"{expected:.4f}", f"{squares.mean():.4f} ± {squares.std() / math.sqrt(num):.4f}"]
            figures[f"one.{policy}.{d}.second_moment"] = expected
        rows.append(row)
    head = ["on rejection", "share of z kept", "mean, shift 0.3", "simulated"]
    return markdown([*head, "E B² in 1 dimension", "simulated", "in 8", "simulated"], rows), figures


def in_a_long_run(settings: Settings) -> tuple[str, Figures]:
    """κ and μ by formula and by simulation, and what they make of a mode's variance at r = 0.9 with VP."""
    rows, figures = [], {}
    size = {"chains": 500, "tries": 60} if settings.quick else {}
    policies: tuple[NoiseOnRejection, ...] = ("redraw", "hold")
    for policy in policies:
        for d in DIMENSIONS:
            row = [policy, str(d)]
            expected = noise_factors(policy, d)
            for r in (2 / 3, 0.9):
                found = simulated_factors(policy, d, r, **size)
                for number, name in enumerate(("kappa", "mu")):
                    row += [f"{expected[number]:.4f}"] * (r < 0.7)
                    row.append("{:.4f} ± {:.4f}".format(*found[name]))
                    figures[f"long.{policy}.{d}.{r:.2g}.{name}"] = found[name][0]
                row.append(f"{1 - found['accepted'][0]:.3f}")
            ends = limit(SDES["vp"], found["kappa"][0], found["mu"][0], 0.0, MODE)
            variance = (ends[1] / limit(SDES["vp"], 1.0, 0.0, 0.0, MODE)[1]) ** 2
            figures[f"long.{policy}.{d}.0.9.mode"] = variance
            rows.append([*row, f"{variance:.4f}"])
    head = ["on rejection", "d", "κ, r = 2/3", "simulated", "μ", "simulated", "rejected"]
    return markdown([*head, "κ, r = 0.9", "μ", "rejected", "a mode's variance"], rows), figures


def on_gaussian_data(settings: Settings) -> tuple[str, Figures]:
    """The solver's mean and deviation at tightening tolerances, and their limits."""
    policies: tuple[NoiseOnRejection, ...] = ("redraw", "hold", "bridge")
    numbers = 512 if settings.quick else NUMBERS
    deltas = DELTAS[:1] if settings.quick else DELTAS
    rows, figures = [], {}
    shown = settings.shown.setdefault("gaussian", {})
    for d, r in ((2, 2 / 3),) if settings.quick else ((2, 2 / 3), (2, 0.9), (8, 2 / 3)):
        for policy in policies:
            if r < 0.7 or policy == "bridge":
                factors = noise_factors(policy, d)
            else:
                found = simulated_factors(policy, d, r)
                factors = found["kappa"][0], found["mu"][0]
            ends = limit(SDES["vp"], *factors)
            of_runs = records([on_gaussian(d, delta, r, policy, numbers) for delta in deltas], settings.path)
            rows.append(_gaussian_row(policy, d, r, of_runs, ends, numbers))
            shown[policy, d, r] = of_runs, ends
            name = f"gaussian.{d}.{r:.2g}.{policy}"
            figures |= {f"{name}.limit.mean": ends[0], f"{name}.limit.deviation": ends[1]}
            for delta, record in zip(deltas, of_runs, strict=True):
                figures |= {f"{name}.{delta:g}.{key}": record[key] for key in ("mean", "deviation", "nfe")}
    # an error that does not look at the noise, with the exponent for h²
    lamba = [on_gaussian(2, delta, 0.5, "redraw", numbers, error_estimate="lamba") for delta in deltas]
    of_runs = records(lamba, settings.path)
    rows.append(_gaussian_row(LAMBA, 2, 0.5, of_runs, limit(SDES["vp"], 1.0, 0.0), numbers))
    for delta, record in zip(deltas, of_runs, strict=True):
        figures |= {f"gaussian.2.lamba.{delta:g}.{key}": record[key] for key in ("mean", "deviation", "nfe")}
    head = ["on rejection", "d", "r", *(f"δ = {delta:g}" for delta in deltas), "limit", "standard error"]
    return markdown(head, rows), figures


def _gaussian_row(
    policy: str, d: int, r: float, of_runs: Sequence[dict[str, Any]], ends: tuple[float, float], numbers: int
) -> list[str]:
    pairs = [*((record["mean"], record["deviation"]) for record in of_runs), ends]
    row = [policy, str(d), f"{r:.2g}", *(f"{mean:.3f}, {deviation:.3f}" for mean, deviation in pairs)]
    root = math.sqrt(numbers)
    return [*row, f"{DEVIATION / root:.4f}, {DEVIATION / root / math.sqrt(2):.4f}"]


# --- the plot --------------------------------------------------------------------------------------------


def plot(shown: dict[str, Any], path: Path) -> None:
    """The two parts of E by step size, and the solver's moments on Gaussian data by tolerance."""
    figure = Figure(figsize=(11, 8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    for panel, process in zip(panels[0], TIMES, strict=True):
        of_process = {t: each for (name, t), each in shown["scaling"].items() if name == process}
        for number, (t, each) in enumerate(of_process.items()):
            color = f"C{number}"
            panel.loglog(each.steps, each.noise, color=color, label=f"t = {t:g}")
            panel.loglog(each.steps, each.drift, color=color, linestyle="--")
            h = each.unit[TOLERANCES[0]][0]
            panel.loglog(
                h, np.exp(np.interp(np.log(h), np.log(each.steps), np.log(each.noise))), "o", color=color
            )
        steps = STEPS[:8]
        top = max(each.noise[0] for each in of_process.values())
        panel.loglog(steps, 4 * top * (steps / steps[0]) ** 1.5, "k", linewidth=2, label="slope 3/2")
        panel.loglog(steps, 4e-3 * top * (steps / steps[0]) ** 2, "k--", linewidth=2, label="slope 2")
        panel.set(
            xlabel="step h", ylabel="E, root mean square", title=f"{process}: noise (solid), drift (dashed)"
        )
        panel.legend(fontsize=8)
    for panel, number, measured in zip(panels[1], (0, 1), ("mean", "deviation"), strict=True):
        cases = [(key, each) for key, each in shown["gaussian"].items() if key[1:] == (2, 2 / 3)]
        for color, ((policy, _, _), (of_runs, ends)) in zip(("C3", "C1", "C0"), cases, strict=True):
            deltas, values = DELTAS[: len(of_runs)], [record[measured] for record in of_runs]
            error = DEVIATION / math.sqrt(NUMBERS * (1 + number))
            panel.errorbar(deltas, values, 2 * error, color=color, marker="o", linewidth=1, label=policy)
            panel.axhline(ends[number], color=color, linestyle=":", linewidth=1.5)
        panel.set(xscale="log", xlabel="tolerance δ", ylabel=f"{measured} of the samples")
        panel.set_title("data ~ N(2, 0.5² I) in 2 dimensions; dotted: predicted limits", fontsize=10)
        panel.legend(fontsize=8)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few small cells of each part")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--parts", help=", ".join(PARTS))
    parser.add_argument("--workdir", type=Path, default=Path("runs/step_control"))
    parsed = parser.parse_args(arguments)
    names = names_in(parser, "--parts", parsed.parts, PARTS, PARTS)
    make_folder(parsed.workdir)
    settings = Settings(path=parsed.workdir / "step_control.jsonl", quick=parsed.quick)
    parts: dict[str, Callable[[Settings], tuple[str, Figures]]] = {
        "scaling": of_scaling,
        "exponents": of_exponents,
        "noise": of_noise,
    }
    print(machine())
    figures: Figures = {}
    for name in names:
        table, of_part = parts[name](settings)
        figures |= of_part
        print(f"\n{table}")
    if {"scaling", "gaussian"} <= set(settings.shown):
        plot(settings.shown, parsed.workdir / "step_control.png")
    if parsed.json:
        write_json(parsed.json, figures)


if __name__ == "__main__":
    main()
