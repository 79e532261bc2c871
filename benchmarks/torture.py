"""Draw hard data with exact scores: do a solver's completed samples follow the law that they should?

python -m benchmarks.torture [--quick] [--json FILE] [--solvers NAME,NAME] [--problems NAME,NAME]
                             [--num_samples 20000] [--workdir DIR]

The data are mixtures of Gaussians with a width for each mode and direction, in 1 to 1,024 dimensions: two to
sixteen modes, at distances from one width to a hundred, with weights down to 0.01; widths over three decades;
points and a constant; heavy tails; deviations from 0.01 to 50. They are drawn by all processes, in float32
and bfloat16, and with 5 % of noise on the score. Solvers stop at eps and do not denoise. There the law is a
mixture too. For each run:

    weights     the largest |z| of the modes' shares
    residual    mean squared distance of a sample to its mode, over the true one; 1 is right
    tail        share of samples beyond the distance that one in 1,000 true samples exceeds, over that
    ks          Kolmogorov and Smirnov's largest distance in six projections (one in one dimension)
    gross       samples farther from every mode than 10 of its deviations and a tenth of the data's
    failed      samples that did not complete; they are left out of the other figures

A run is marked for each figure that exact samples would exceed with a probability of ``ALARM`` over the whole
table (Bonferroni). The residual has an allowance of 0.03 and ks one of 0.01 beyond that, 0.03 in bfloat16,
which rounds the samples: an error below is visible in many samples, and harmless. One gross sample is a
failure of its own. So is a failed one, which is at least an honest failure.

    <problem>.<process>.<solver>.nfe, .weights, .residual, .tail, .ks, .gross, .failed     the names in --json

Every run is a line of torture.jsonl in the workdir, with a hash of all that determines it. A killed run is
resumed by the same command. The plot is torture.png in the workdir.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats
from tqdm import tqdm

from benchmarks.exact_score import code_of
from benchmarks.report import Records, hash_of, machine, names_in, write_json
from evaluation.runs.tables import markdown
from evaluation.store.files import atomic_file, make_folder
from sde_lib import SDE, VESDE, VPSDE, CosineVP, DiscreteVP, EDMProcess, RectifiedFlow, SubVPSDE
from sde_lib.pytrees import register_dataclass
from solvers import (
    DDIM,
    DEIS,
    EDM,
    ERSDE,
    RK45,
    Adaptive,
    AdaptiveExponential,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    ReverseDiffusion,
    SASolver,
    SDEDPMSolverPP,
    Solver,
    Status,
    UniformLogSNR,
    UniPC,
    sample,
)

PROCESSES: dict[str, SDE] = {
    "ve": VESDE(),
    "ve_5": VESDE(sigma_max=5.0),
    "ve_1348": VESDE(sigma_max=1348.0),
    "vp": VPSDE(),
    "vp_10": VPSDE(beta_max=10.0, T=1.5),  # at T = 1 it is not yet noise
    "vp_40": VPSDE(beta_max=40.0),
    "subvp": SubVPSDE(),
    "edm": EDMProcess(),
    "flow": RectifiedFlow(),
    "cosine": CosineVP(),
    "table": DiscreteVP.from_betas(np.linspace(1e-4, 0.02, 1000)),
}


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Modes:
    """A mixture of Gaussians with diagonal covariances, which stays one under noise."""

    weights: Float[Array | np.ndarray, " K"]
    centres: Float[Array | np.ndarray, "K d"]
    widths: Float[Array | np.ndarray, "K d"]

    @classmethod
    def of(cls, weights: Any, centres: Any, widths: Any, *, scale: float = 1.0) -> Modes:
        """Centred: the priors leave out the mean of the data."""
        weights = np.asarray(weights, np.float64)
        weights = weights / weights.sum()
        centres = np.asarray(centres, np.float64)
        centres = centres - weights @ centres
        widths = np.broadcast_to(np.asarray(widths, np.float64), centres.shape)
        return cls(weights=weights, centres=centres * scale, widths=widths * scale)

    def at(self, sde: SDE, t: Any) -> Modes:
        """The mixture of x(t), in float64."""
        alpha, sigma = (float(value) for value in sde.marginal(jnp.float32(t)))
        widths = np.sqrt((alpha * self.widths) ** 2 + sigma**2)
        return dataclasses.replace(self, centres=alpha * self.centres, widths=widths)

    def score_fn(self, sde: SDE) -> Partial:
        return Partial(_score, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), self), sde)

    def samples(self, n: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        k = rng.choice(len(self.weights), n, p=self.weights)
        return np.asarray(self.centres[k] + self.widths[k] * rng.standard_normal((n, self.centres.shape[1])))

    def squares(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n K"]:
        """The Mahalanobis distance squared of each sample to each mode."""
        each = zip(self.centres, self.widths, strict=True)
        return np.stack([np.sum(((x - centre) / width) ** 2, axis=1) for centre, width in each], axis=1)

    def log_densities(self, squares: Float[np.ndarray, "n K"]) -> Float[np.ndarray, "n K"]:
        """Of each mode with its weight, up to a constant of all."""
        return np.log(self.weights) - 0.5 * squares - np.sum(np.log(self.widths), axis=1)

    @property
    def deviation(self) -> float:
        """Root mean square of the data, which have mean 0."""
        return float(np.sqrt(np.mean(self.weights @ (self.centres**2 + self.widths**2))))


def _score(modes: Modes, sde: SDE, x: Array, t: Array) -> Array:
    marginal: Any = jax.vmap(sde.marginal)(t.astype(jnp.float32))
    alpha, sigma = (value[:, None, None] for value in marginal)
    x32 = x.astype(jnp.float32)
    difference = alpha * modes.centres - x32[:, None]
    variance = (alpha * modes.widths) ** 2 + sigma**2
    logits = jnp.log(modes.weights) - 0.5 * jnp.sum(difference**2 / variance + jnp.log(variance), axis=2)
    share = jax.nn.softmax(logits, axis=1)[..., None]
    return jnp.sum(share * difference / variance, axis=1).astype(x.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    name: str
    process: str
    modes: Modes
    dtype: str = "float32"
    noise: float = 0.0

    @property
    def dimensions(self) -> int:
        return self.modes.centres.shape[1]


def pair(d: int, distance: float, width: float, minority: float, **settings: Any) -> Modes:
    """Two modes at a distance in every coordinate."""
    return Modes.of([1 - minority, minority], [[0.0] * d, [distance] * d], width, **settings)


def several(d: int, count: int, width: float, ratio: float, seed: int = 0, **settings: Any) -> Modes:
    """Modes at random places in [−1, 1]^d, each ``ratio`` times as frequent as the one before."""
    centres = np.random.default_rng(seed).uniform(-1, 1, (count, d))
    return Modes.of(ratio ** np.arange(count), centres, width, **settings)


def decades(d: int, minority: float = 0.0, **settings: Any) -> Modes:
    """Widths from 1 to 0.001 by direction; with a minority mode at 4 widths in every direction."""
    widths = np.logspace(0, -3, d)
    if not minority:
        return Modes.of([1.0], [np.zeros(d)], widths, **settings)
    return Modes.of([1 - minority, minority], [np.zeros(d), 4 * widths], widths, **settings)


def heavy(d: int, **settings: Any) -> Modes:
    """One centre, widths 1, 2, 4 … 32, each a third as frequent: a tail like that of Student's t."""
    widths = np.repeat(2.0 ** np.arange(6)[:, None], d, axis=1) / 8
    return Modes.of(3.0 ** -np.arange(6), np.zeros((6, d)), widths, **settings)


def problems() -> Iterator[Problem]:
    three = ("ve", "vp", "subvp")
    for process in PROCESSES:
        yield Problem(name="pair_1", process=process, modes=pair(1, 1.0, 0.05, 0.1))
        yield Problem(name="four_8", process=process, modes=several(8, 4, 0.1, 0.6))
    for process in three:
        for d in (2, 8, 64):
            yield Problem(name=f"pair_{d}", process=process, modes=pair(d, 1.0, 0.05, 0.1))
        for d in (1, 8):
            yield Problem(name=f"rare_{d}", process=process, modes=pair(d, 1.0, 0.05, 0.01))
            yield Problem(name=f"far_{d}", process=process, modes=pair(d, 1.0, 0.01, 0.3))
            yield Problem(name=f"heavy_{d}", process=process, modes=heavy(d))
        yield Problem(name="near_1", process=process, modes=pair(1, 0.6, 0.3, 0.1))
        yield Problem(name="near_2", process=process, modes=pair(2, 0.6, 0.2, 0.2))
        for d in (2, 64):
            yield Problem(name=f"sixteen_{d}", process=process, modes=several(d, 16, 0.02, 0.8))
        yield Problem(name="decades_8", process=process, modes=decades(8))
        yield Problem(name="decades_pair_8", process=process, modes=decades(8, 0.2))
        yield Problem(name="decades_64", process=process, modes=decades(64))
        yield Problem(name="points_1", process=process, modes=pair(1, 1.0, 0.0, 0.2))
        yield Problem(name="points_8", process=process, modes=several(8, 3, 0.0, 0.5))
        yield Problem(name="constant_8", process=process, modes=Modes.of([1.0], np.zeros((1, 8)), 0.0))
        for scale in (0.02, 0.1):
            yield Problem(
                name=f"pair_1_x{scale:g}", process=process, modes=pair(1, 2.0, 0.2, 0.1, scale=scale)
            )
            yield Problem(
                name=f"four_8_x{scale:g}", process=process, modes=several(8, 4, 0.1, 0.6, scale=scale)
            )
    for process in ("ve_1348", "vp_40", "flow"):
        yield Problem(name="pair_1_x50", process=process, modes=pair(1, 2.0, 0.1, 0.1, scale=50))
        yield Problem(name="four_8_x50", process=process, modes=several(8, 4, 0.1, 0.6, scale=50))
    for process in ("ve", "vp"):
        yield Problem(name="pair_1024", process=process, modes=pair(1024, 1.0, 0.05, 0.1))
        yield Problem(name="sixteen_1024", process=process, modes=several(1024, 16, 0.1, 0.8))
        for name, modes in (("pair_1", pair(1, 1.0, 0.05, 0.1)), ("four_8", several(8, 4, 0.1, 0.6))):
            yield Problem(name=f"{name}_bf16", process=process, modes=modes, dtype="bfloat16")
            yield Problem(name=f"{name}_noisy", process=process, modes=modes, noise=0.05)


SAMPLES = 20_000
ELEMENTS = 4_000_000  # fewer samples of many dimensions


def number_of_samples(problem: Problem, most: int) -> int:
    return min(most, ELEMENTS // problem.dimensions)


GROSS_WIDTHS, GROSS_DEVIATIONS = 10.0, 0.1
TAIL = 1e-3
EXACT_SAMPLES = 100_000


def shares(modes: Modes, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each sample and mode: the probability of the mode, Mahalanobis distance squared, largest |z|."""
    squares = modes.squares(x)
    logits = modes.log_densities(squares)
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    largest = [
        np.max(np.abs(x - centre) / (GROSS_WIDTHS * width + GROSS_DEVIATIONS * modes.deviation), axis=1)
        for centre, width in zip(modes.centres, modes.widths, strict=True)
    ]
    return share, squares, np.stack(largest, axis=1)


@functools.cache
def directions(d: int) -> np.ndarray:
    """Of the projections: up to three axes, the diagonal, and random ones."""
    rng = np.random.default_rng(d)
    axes = np.eye(d)[sorted({0, d // 2, d - 1})]
    if d == 1:
        return axes
    return np.concatenate([axes, np.ones((1, d)) / np.sqrt(d), rng.standard_normal((2, d)) / np.sqrt(d)])


def statistics(modes: Modes, x: np.ndarray) -> dict[str, np.ndarray]:
    """Figures of each sample, whose means over exact samples are known or can be drawn, and ``off``."""
    share, squares, off = shares(modes, x)
    return {
        "weights": share,
        "residual": np.sum(share * squares, axis=1) / x.shape[1],
        "tail": np.min(squares, axis=1) > stats.chi2.isf(TAIL, x.shape[1]),
        "off": off.min(axis=1),
    }


@functools.lru_cache(maxsize=4)
def exact_statistics(number: int, process: str) -> dict[str, np.ndarray]:
    """Of many exact samples of a problem at eps."""
    problem = PROBLEMS[number]
    modes = law(problem)
    count = max(4000, ELEMENTS // problem.dimensions // 4)
    return statistics(modes, modes.samples(min(count, EXACT_SAMPLES), seed=1000 + number))


def law(problem: Problem) -> Modes:
    """The law of x(eps)."""
    sde = PROCESSES[problem.process]
    return problem.modes.at(sde, sde.eps)


def quality(number: int, x: np.ndarray) -> dict[str, Any]:
    """The comparison of samples of a problem with their law."""
    problem = PROBLEMS[number]
    modes, x = law(problem), np.asarray(x, np.float64)
    n, root = len(x), np.sqrt(len(x))
    exact, found = exact_statistics(number, problem.process), statistics(modes, x)
    ours, spread = found["weights"].mean(axis=0), exact["weights"].std(axis=0)
    z = (ours - modes.weights) / np.maximum(spread, 1e-9) * root if len(ours) > 1 else np.zeros(1)
    worst = int(np.argmax(np.abs(z)))
    expected = {name: float(exact[name].mean()) for name in ("residual", "tail")}
    expected["residual"] = 1.0  # to the bit
    return {
        "samples": n,
        "weights_z": float(z[worst]),
        "weight": [float(modes.weights[worst]), float(ours[worst])],
        "residual": float(found["residual"].mean()),
        "residual_error": float(exact["residual"].std() / root),
        "tail": float(found["tail"].mean() / max(expected["tail"], 1e-9)),
        "tail_error": float(np.sqrt(max(expected["tail"], 1e-9) / n) / max(expected["tail"], 1e-9)),
        "ks": kolmogorov(modes, x),
        "gross": int(np.sum(~(found["off"] <= 1))),
        "farthest": float(np.max(found["off"])),
    }


def kolmogorov(modes: Modes, x: np.ndarray) -> float:
    """The largest distance to the distribution function over some projections."""
    distances = []
    for v in directions(x.shape[1]):
        projected, n = np.sort(x @ v), len(x)
        each = zip(modes.weights, modes.centres @ v, np.sqrt(modes.widths**2 @ v**2), strict=True)
        cdf = np.sum([w * stats.norm.cdf(projected, c, s) for w, c, s in each], axis=0)
        grid = np.arange(n + 1) / n
        distances.append(max(np.max(grid[1:] - cdf), np.max(cdf - grid[:-1])))
    return float(max(distances))


def noisy_score(score_fn: Any, noise: Any, x: Array, t: Array) -> Array:
    """The score times 1 + noise N(0, 1) in every element; like a network's error, a function of x."""

    def factor(x: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(jnp.sum(x).astype(jnp.float32), jnp.uint32)
        return 1 + noise * jax.random.normal(jax.random.key(bits), x.shape)

    return (score_fn(x, t) * jax.vmap(factor)(x)).astype(x.dtype)


def run(number: int, solver: Solver | None, most: int, max_evaluations: int = 6000) -> dict[str, Any]:
    """The record of a solver on a problem; None stands for exact samples."""
    problem = PROBLEMS[number]
    sde, n = PROCESSES[problem.process], number_of_samples(problem, most)
    start = time.perf_counter()
    if solver is None:
        x = law(problem).samples(n, seed=number)
        record = {"nfe": 0.0, "nfe_max": 0.0, "failed": 0}
    else:
        score_fn = problem.modes.score_fn(sde)
        if problem.noise:
            score_fn = Partial(noisy_score, score_fn, jnp.float32(problem.noise))
        solution = sample(
            score_fn,
            sde,
            solver,
            key=jax.random.key(number),
            shape=(problem.dimensions,),
            num_samples=n,
            batch_size=min(n, 2**15 // problem.dimensions if problem.dimensions > 16 else 4096),
            denoise=False,
            max_evaluations=max_evaluations,
            dtype=jnp.dtype(problem.dtype),
        )
        completed = solution.status == Status.COMPLETED
        x = solution.x[completed]
        record = {
            "nfe": float(solution.nfe.mean()),
            "nfe_max": float(solution.nfe.max()),
            "failed": int(np.sum(~completed)),
        }
    record["seconds"] = time.perf_counter() - start
    return record | (quality(number, x) if len(x) > 10 else {})


PROBLEMS: list[Problem] = list(problems())

ALARM = 0.01  # probability that the table of one solver marks exact samples
MEASURED = ("weights", "residual", "tail", "ks")
ALLOWED = {"residual": 0.03, "ks": 0.01}
ALLOWED_IN_BFLOAT16 = {"residual": 0.03, "ks": 0.03}


def marks(record: dict[str, Any], problem: Problem) -> list[str]:
    """The names of the figures that are wrong."""
    found = ["failed"] if record["failed"] else []
    if "weights_z" not in record:
        return found
    allowed = ALLOWED if problem.dtype == "float32" else ALLOWED_IN_BFLOAT16
    n, each = record["samples"], ALARM / (len(PROBLEMS) * len(MEASURED))
    z = stats.norm.isf(each / 2 / len(problem.modes.weights))
    if abs(record["weights_z"]) > z:
        found.append("weights")
    if (
        abs(record["residual"] - 1)
        > allowed["residual"] + stats.norm.isf(each / 2) * record["residual_error"]
    ):
        found.append("residual")
    beyond = 1 / record["tail_error"] ** 2  # the expected number of samples
    if record["tail"] * beyond > 1.5 * beyond + stats.poisson.isf(each, beyond) - beyond:
        found.append("tail")
    if record["ks"] > allowed["ks"] + stats.kstwo.isf(each / len(directions(problem.dimensions)), n):
        found.append("ks")
    return found + (["gross"] if record["gross"] else [])


def fixed(make: Any) -> Any:
    return make(num_steps=20, grid=UniformLogSNR())


SOLVERS: dict[str, Any] = {
    "exact": None,
    "adaptive_exponential": AdaptiveExponential(),
    "adaptive_exponential_ode": AdaptiveExponential(eta=0.0),
    "adaptive": Adaptive(eps_rel=0.02, noise_on_rejection="bridge"),
    "rk45": RK45(rtol=1e-3, atol=1e-3),
    "rk45_tight": RK45(rtol=1e-5, atol=1e-5),
    "sde_dpm_solver_pp": fixed(SDEDPMSolverPP),
    "er_sde": fixed(ERSDE),
    "sa_solver": fixed(SASolver),
    "unipc": fixed(UniPC),
    "deis": fixed(DEIS),
    "ddim": fixed(DDIM),
    "dpm_solver_pp": fixed(DPMSolverPP),
    "heun": Heun(num_steps=10, grid=UniformLogSNR()),
    "edm_churn": EDM(num_steps=10, grid=UniformLogSNR(), churn=5.0),
    "ddim_eta_1": DDIM(num_steps=20, grid=UniformLogSNR(), eta=1.0),
    "reverse_diffusion": ReverseDiffusion(num_steps=1000),
    "euler_maruyama": EulerMaruyama(num_steps=1000),
}
DEFAULT = ("adaptive_exponential",)
SLOW = {"adaptive": 4000, "rk45": 4000, "rk45_tight": 4000}  # at most so many samples


def identity(number: int, name: str, most: int) -> str:
    """A hash of all that determines a record, the solver's code included."""
    problem, solver = PROBLEMS[number], SOLVERS[name]
    modules = ("benchmarks.torture", *(() if solver is None else (type(solver).__module__,)))
    return hash_of(number, problem.name, problem.process, repr(solver), most, code_of(modules))


def table(rows: Sequence[tuple[int, str, dict[str, Any]]]) -> str:
    """One row for each run."""
    lines = []
    for number, name, record in rows:
        problem = PROBLEMS[number]
        cells = [
            f"{problem.name}, {problem.process}",
            name,
            f"{record['nfe']:.1f}",
            f"{record['nfe_max']:.0f}",
        ]
        if "weights_z" in record:
            true, found = record["weight"]
            cells += [
                f"{record['weights_z']:+.1f} ({true:.3f}: {found:.4f})",
                f"{record['residual']:.4g}",
                f"{record['ks']:.4f}",
                str(record["gross"]),
            ]
        else:
            cells += [""] * 4
        lines.append([*cells, str(record["failed"]), " ".join(marks(record, problem))])
    head = [
        "problem",
        "solver",
        "nfe",
        "max",
        "weights z (true: found)",
        "residual",
        "ks",
        "gross",
        "failed",
        "",
    ]
    return markdown(head, lines)


def plot(rows: Sequence[tuple[int, str, dict[str, Any]]], path: Path) -> None:
    """For each solver, the share of runs whose weights, and whose variance, are off by less than a value."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for name in dict.fromkeys(row[1] for row in rows):
        of = [record for _, other, record in rows if other == name and "weights_z" in record]
        nfe = float(np.mean([record["nfe"] for record in of]))
        label = f"{name}, {nfe:.0f} evaluations" if nfe else name
        axes[0].ecdf([abs(record["weights_z"]) for record in of], label=label)
        axes[1].ecdf([abs(record["residual"] - 1) for record in of], label=label)
    axes[0].set(xlabel="largest |z| of the weights", ylabel="share of the runs below", xlim=(0, 8))
    axes[1].set(xlabel="|residual variance - 1|", xscale="log", xlim=(1e-3, 3))
    axes[0].legend(fontsize=8)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Hard data with exact scores")
    parser.add_argument("--quick", action="store_true", help="one dimension and eight, 2,000 samples")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--solvers", help=", ".join(SOLVERS))
    parser.add_argument("--problems", help="names of data or of processes")
    parser.add_argument("--num_samples", type=int, default=SAMPLES)
    parser.add_argument("--workdir", type=Path, default=Path("runs/torture"))
    parsed = parser.parse_args(arguments)
    names = names_in(parser, "--solvers", parsed.solvers, SOLVERS, DEFAULT)
    choices = dict.fromkeys(name for problem in PROBLEMS for name in (problem.name, problem.process))
    chosen = set(names_in(parser, "--problems", parsed.problems, choices, choices))
    most = 2000 if parsed.quick else parsed.num_samples
    # processes of one class and data of one shape share a compiled program
    numbers = sorted(
        (i for i, problem in enumerate(PROBLEMS) if {problem.name, problem.process} & chosen),
        key=lambda i: (type(PROCESSES[PROBLEMS[i].process]).__name__, PROBLEMS[i].dimensions),
    )
    if parsed.quick:
        numbers = [i for i in numbers if PROBLEMS[i].dimensions <= 8]
    make_folder(parsed.workdir)
    records, rows = Records(parsed.workdir / "torture.jsonl"), []
    for name in names:
        for number in tqdm(numbers, desc=name, unit="problem", disable=None):
            count = min(most, SLOW.get(name, most))
            measure = functools.partial(run, number, SOLVERS[name], count)
            rows.append((number, name, records.of(identity(number, name, count), measure)))
        jax.clear_caches()  # the programs of all solvers together exhaust the memory maps of a process
    print(f"{machine()}\n\n{table(rows)}\n")
    for name in names:
        wrong = [marks(record, PROBLEMS[number]) for number, other, record in rows if other == name]
        counts = {mark: sum(mark in each for each in wrong) for mark in (*MEASURED, "gross", "failed")}
        print(f"{name}: {sum(map(bool, wrong))} of {len(wrong)} runs are marked; {counts}")
    plot(rows, parsed.workdir / "torture.png")
    if parsed.json:
        write_json(
            parsed.json,
            {
                f"{PROBLEMS[number].name}.{PROBLEMS[number].process}.{name}.{short}": record[long]
                for number, name, record in rows
                for short, long in FIGURES.items()
                if long in record
            },
        )


FIGURES = {"nfe": "nfe", "weights": "weights_z", "residual": "residual", "tail": "tail", "ks": "ks"}
FIGURES |= {"gross": "gross", "failed": "failed"}

if __name__ == "__main__":
    main()
