"""Quality against evaluations: AdaptiveExponential, and at each number the best of many fixed grids.

python -m benchmarks.front [--quick] [--json FILE] [--problems NAME,NAME] [--workdir DIR]

At 6 to 50 evaluations, every fixed method, order and grid in ``FIXED`` draws samples. The rival of
AdaptiveExponential at a number of evaluations is the best of them there, chosen for this problem, for this
number and by the figure of merit itself. That is more tuning than a user can do where the truth is unknown.
The ``FINALISTS`` best of a search with one seed run again with other seeds, as AdaptiveExponential does, and
the better of them counts. So the choice is not paid with luck, except for the choice between finalists, whose
luck is the rival's. AdaptiveExponential has no choice: its settings are its defaults, with the data's range.
It is given the number of evaluations, or a tolerance, in which case it is placed at its mean number. Beside
them, it runs without noise, at eta 0.

The problems are mixtures with exact scores around 1,797 digits (benchmarks/mixture.py) and in 2 to 64
dimensions (benchmarks/torture.py), and the shipped networks digits_ve and digits_vp.

    exact scores    the root mean square difference D of distribution functions to those of the true law at
                    eps, of benchmarks/distance.py; solvers do not denoise. The standard error is of D².
    networks        FID, the mean of two seeds, and Inception Score beside it. The last evaluation is the
                    final denoising. The standard error is from the relative differences of all rows' seeds.

AdaptiveExponential is "at least as good" where its D² (or FID) is above the rival's by no more than two
standard errors of the difference, and "better" where it is below by more than that. A last table compares it
with each fixed solver alone, as if that were kept for all problems with exact scores. There the samples are
those of the search, and both D² are less the mean of as many true samples.

    <problem>.<evaluations>.ours, .best, .ratio, .at_least_as_good      the names in --json
    share, eps_rel_share        of all cells at 10 evaluations and above, for both ways to choose the steps

Every run is a line of front.jsonl in the workdir, with a hash of all that determines it. A killed run is
resumed by the same command. The plot is front.png in the workdir. Compilation takes most of the time for
exact scores; XLA_FLAGS=--xla_backend_optimization_level=0 halves it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from scipy.special import logsumexp
from tqdm import tqdm

from benchmarks import beyond, torture
from benchmarks.distance import Distance
from benchmarks.exact_score import code_of, figures_of_samples
from benchmarks.mixture import SHAPE, Mixture, digits_mixture
from benchmarks.report import Records, hash_of, machine, names_in, write_json
from benchmarks.torture import Modes
from evaluation.runs.tables import markdown
from evaluation.store.files import atomic_file, make_folder
from sde_lib import SDE, VESDE, VPSDE
from solvers import (
    DDIM,
    DEIS,
    ERSDE,
    AdaptiveExponential,
    DPMSolverPP,
    Heun,
    Rho,
    SASolver,
    SDEDPMSolverPP,
    Status,
    UniPC,
    sample,
)

COUNTS = (6, 8, 10, 15, 20, 30, 50)  # evaluations
JUDGED_FROM = 10  # evaluations, in the summary
TOLERANCES = (0.32, 0.08, 0.04, 0.02, 0.01, 0.005)
FINALISTS = 2
REFERENCE = 40_000  # true samples
BLOCK = 1024  # samples at a time

# A rho of 1,000 stands for the grid that is uniform in log-SNR, from which it differs by less than 0.01 of
# the whole range, and shares the compiled program of a rho of 7.
GRIDS = {"log-SNR": Rho(rho=1000.0), "rho 7": Rho(rho=7.0)}
METHODS: dict[str, Callable[[int, Rho], Any]] = {
    "DPM++ 2M": lambda n, grid: DPMSolverPP(order=2, num_steps=n, grid=grid),
    "DPM++ 3M": lambda n, grid: DPMSolverPP(order=3, num_steps=n, grid=grid),
    "UniPC-2": lambda n, grid: UniPC(order=2, num_steps=n, grid=grid),
    "UniPC-3": lambda n, grid: UniPC(order=3, num_steps=n, grid=grid),
    "SDE-DPM++ 2M": lambda n, grid: SDEDPMSolverPP(num_steps=n, grid=grid),
    "ER-SDE-3": lambda n, grid: ERSDE(num_steps=n, grid=grid),
    "SA-Solver": lambda n, grid: SASolver(num_steps=n, grid=grid),
    "DEIS in t": lambda n, grid: DEIS(num_steps=n, grid=grid),
    "DEIS in log rho": lambda n, grid: DEIS(num_steps=n, grid=grid, polynomial="log_rho"),
    "DDIM eta 0": lambda n, grid: DDIM(eta=0.0, num_steps=n, grid=grid),
    "DDIM eta 1": lambda n, grid: DDIM(eta=1.0, num_steps=n, grid=grid),
    "Heun": lambda n, grid: Heun(num_steps=n // 2, grid=grid),  # as many as fit
}
FIXED = [f"{method}, {grid}" for method in METHODS for grid in GRIDS]
Record = dict[str, Any]


def fixed(label: str, num_evaluations: int) -> Any:
    method, _, grid = label.rpartition(", ")
    return METHODS[method](num_evaluations, GRIDS[grid])


# --- problems --------------------------------------------------------------------------------------------

TORTURE = ("pair_8_vp", "decades_pair_8_vp", "four_8_ve", "heavy_8_ve", "sixteen_2_vp", "near_2_ve")
TORTURE += ("pair_64_ve", "sixteen_64_vp")
NETWORKS = ("digits_ve", "digits_vp")
PROBLEMS = [name for name in beyond.PROBLEMS if name.startswith("mixture")] + [*TORTURE, *NETWORKS]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One run of one solver."""

    problem: str
    label: str
    solver: Any
    seed: int
    num_samples: int

    @property
    def identity(self) -> str:
        """A hash of all that determines the record, the code of the solver and of the distance included."""
        modules = ("benchmarks.distance", "benchmarks.mixture", "benchmarks.torture")
        modules = (() if self.problem in NETWORKS else modules) + (type(self.solver).__module__,)
        return hash_of(self.problem, repr(self.solver), self.seed, self.num_samples, code(modules))


code = functools.cache(code_of)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers of samples and seeds: of the search among fixed grids, and of what counts."""

    search: int
    counted: int
    seeds: tuple[int, ...] = (1,)


def sizes_of(problem: str, *, quick: bool) -> Sizes:
    if problem in NETWORKS:  # FID has no standard error of its own
        return Sizes(search=256 if quick else 512, counted=256 if quick else 1024, seeds=(1, 2))
    if quick:
        return Sizes(search=1024, counted=1024)
    if problem in TORTURE:
        return Sizes(search=2048, counted=8192)
    return Sizes(search=1024, counted=4096)


def ours(problem: str, **settings: Any) -> AdaptiveExponential:
    """With the range of the data where they are images, else with the defaults."""
    return (
        AdaptiveExponential(**settings) if problem in TORTURE else beyond.ours("_ve" in problem, **settings)
    )


def torture_number(problem: str) -> int:
    """The position of a problem in the list of benchmarks/torture.py."""
    name, _, process = problem.rpartition("_")
    return [(each.name, each.process) for each in torture.PROBLEMS].index((name, process))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exact:
    """A problem whose score and law are known."""

    law: Modes | Mixture  # of the data, for a Mixture; at eps, for Modes
    sde: SDE
    score_fn: Any
    shape: tuple[int, ...]
    distance: Distance


@functools.lru_cache(maxsize=2)
def exact(problem: str) -> Exact:
    if problem in TORTURE:
        number = torture_number(problem)
        law, sde = torture.law(torture.PROBLEMS[number]), torture.PROCESSES[torture.PROBLEMS[number].process]
        reference = law.samples(REFERENCE, seed=2000 + number)
        return Exact(
            law=law,
            sde=sde,
            score_fn=torture.PROBLEMS[number].modes.score_fn(sde),
            shape=reference.shape[1:],
            distance=Distance.to(functools.partial(log_density_of_modes, law), reference),
        )
    _, name, bandwidth = problem.split("_")
    sde = VESDE() if name == "ve" else VPSDE()
    mixture = digits_mixture(sde, float(bandwidth))
    drawn = mixture.samples(sde, sde.eps, key=jax.random.key(2000), num_samples=REFERENCE)
    reference = np.asarray(drawn, np.float64).reshape(REFERENCE, -1)
    return Exact(
        law=mixture,
        sde=sde,
        score_fn=mixture.score_fn(sde),
        shape=SHAPE,
        distance=Distance.to(functools.partial(log_density_of_digits, mixture, sde), reference),
    )


def log_density_of_modes(modes: Modes, x: np.ndarray) -> np.ndarray:
    return np.asarray(logsumexp(modes.log_densities(modes.squares(x)), axis=1))


def log_density_of_digits(mixture: Mixture, sde: SDE, x: np.ndarray) -> np.ndarray:
    """In blocks, since a block takes memory for each of its samples and each of the 1,797 modes."""
    blocks = (jnp.asarray(x[i : i + BLOCK], jnp.float32) for i in range(0, len(x), BLOCK))
    return np.concatenate([mixture.log_density(sde, b, jnp.full(len(b), sde.eps)) for b in blocks])


def on_exact(task: Task) -> Record:
    problem = exact(task.problem)
    solution = sample(
        problem.score_fn,
        problem.sde,
        task.solver,
        key=jax.random.key(task.seed),
        shape=problem.shape,
        num_samples=task.num_samples,
        batch_size=min(BLOCK, task.num_samples),
        denoise=False,
        max_evaluations=beyond.MAX_EVALUATIONS,
    )
    x = solution.x[solution.status == Status.COMPLETED]
    record = beyond.counts(solution) | {"floor": problem.distance.floor(task.num_samples)}
    if record["failed"]:  # a set that is not complete has no place on the front
        return record | {"value": 1.0, "error": 0.0}
    value, error = problem.distance(np.asarray(x, np.float64).reshape(len(x), -1))
    record |= {"value": value, "error": error}
    if isinstance(problem.law, Mixture):
        figures = figures_of_samples(problem.law, problem.sde, x)
        return record | {name: figures[name] for name in ("residual", "log_likelihood", "frechet")}
    figures = torture.quality(torture_number(task.problem), x)
    return record | {name: figures[name] for name in ("residual", "weights_z", "ks", "gross")}


def on_network(task: Task) -> Record:
    settings = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    record = beyond.on_network(beyond.Task(name=settings.pop("label"), **settings))
    return record | {"value": record["fid"]}


# --- runs ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """What counts of one solver at one number of evaluations.

    Attributes:
        label: of the solver, or the setting of ours.
        evaluations: the number that was allowed, or the mean that a tolerance took.
        values: D² or FID, of each seed.
        error: standard error of their mean; NaN where it is not known yet.
        beside: the record of the first seed.
    """

    label: str
    evaluations: float
    values: tuple[float, ...]
    error: float
    beside: Record

    @property
    def value(self) -> float:
        return float(np.mean(self.values))


def point_of(label: str, records: Sequence[Record], evaluations: float | None = None) -> Point:
    """The point of one solver's records; without a number of evaluations, it is their mean."""
    mean = float(np.mean([record["nfe"] for record in records]))
    errors = [record.get("error", np.nan) for record in records]
    return Point(
        label=label,
        evaluations=mean if evaluations is None else evaluations,
        values=tuple(record["value"] for record in records),
        error=float(np.linalg.norm(errors) / len(records)),
        beside=records[0],
    )


def with_pooled_errors(points: Sequence[Point]) -> list[Point]:
    """With standard errors from the seeds, whose relative deviation is taken as that of all points."""
    variances = [np.var(point.values, ddof=1) / point.value**2 for point in points]
    relative = np.sqrt(np.mean(variances))
    return [dataclasses.replace(p, error=float(relative * p.value / np.sqrt(len(p.values)))) for p in points]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Front:
    """All points of a problem.

    Attributes:
        searched: by label and number of evaluations, the points of the search, which has fewer samples.
        best: the better of the finalists at each number of evaluations, in rising order.
        by_number, by_tolerance: ours, in the same order and in that of the tolerances.
        without_noise: ours by number at eta 0.
    """

    problem: str
    searched: dict[str, dict[int, Point]]
    best: list[Point]
    by_number: list[Point]
    by_tolerance: list[Point]
    without_noise: list[Point]


def front_of(
    problem: str,
    measure: Callable[[Task], Record],
    sizes: Sizes,
    *,
    counts: Sequence[int] = COUNTS,
    labels: Sequence[str] = tuple(FIXED),
    tolerances: Sequence[float] = TOLERANCES,
) -> Front:
    """Searches the fixed grids, and runs the finalists and AdaptiveExponential with other seeds."""
    last = int(problem in NETWORKS)  # the final denoising takes one evaluation

    def run(label: str, solver: Any, seed: int, num_samples: int) -> Record:
        task = Task(problem=problem, label=label, solver=solver, seed=seed, num_samples=num_samples)
        return measure(task)

    def counted(label: str, solver: Any, evaluations: int | None = None) -> Point:
        records = [run(label, solver, seed, sizes.counted) for seed in sizes.seeds]
        return point_of(label, records, evaluations)

    points = [counted(f"num_evaluations {n}", ours(problem, num_evaluations=n - last), n) for n in counts]
    points += [
        counted(f"eta 0, num_evaluations {n}", ours(problem, num_evaluations=n - last, eta=0.0), n)
        for n in counts
    ]
    points += [counted(f"eps_rel {eps_rel:g}", ours(problem, eps_rel=eps_rel)) for eps_rel in tolerances]
    searched = {
        label: {n: point_of(label, [run(label, fixed(label, n - last), 0, sizes.search)], n) for n in counts}
        for label in labels
    }
    for n in counts:
        points += [counted(label, fixed(label, n - last), n) for label in finalists(searched, n)]
    if len(sizes.seeds) > 1:
        points = with_pooled_errors(points)
    first, second = len(counts), 2 * len(counts)
    third = second + len(tolerances)
    return Front(
        problem=problem,
        searched=searched,
        best=best_of(points[third:]),
        by_number=points[:first],
        by_tolerance=points[second:third],
        without_noise=points[first:second],
    )


def finalists(searched: dict[str, dict[int, Point]], num_evaluations: int) -> list[str]:
    """The labels with the least values at a number of evaluations, the best first."""
    return sorted(searched, key=lambda label: searched[label][num_evaluations].value)[:FINALISTS]


def best_of(points: Sequence[Point]) -> list[Point]:
    """The least value at each number of evaluations, in rising order."""
    best: dict[float, Point] = {}
    for point in sorted(points, key=lambda point: (point.evaluations, point.value)):
        best.setdefault(point.evaluations, point)
    return list(best.values())


def rival_at(best: Sequence[Point], evaluations: float) -> Point | None:
    """The best fixed one at any number of evaluations, by lines in the logarithms; None outside the range."""
    known = [point.evaluations for point in best]
    if not known[0] <= evaluations <= known[-1]:
        return None
    nearest = min(best, key=lambda point: abs(np.log(point.evaluations / evaluations)))

    def between(of: Sequence[float]) -> float:
        return float(np.exp(np.interp(np.log(evaluations), np.log(known), np.log(of))))

    value = between([point.value for point in best])
    error = nearest.error * value / nearest.value
    return dataclasses.replace(nearest, evaluations=evaluations, values=(value,), error=error)


def at_least_as_good(point: Point, rival: Point) -> bool:
    """Whether the value is above the rival's by no more than two standard errors of the difference."""
    return point.value - rival.value <= 2 * np.hypot(point.error, rival.error)


# --- report ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """Ours and its rival at one number of evaluations."""

    problem: str
    ours: Point
    rival: Point

    @property
    def good(self) -> bool:
        return at_least_as_good(self.ours, self.rival)

    @property
    def ratio(self) -> float:
        return shown(self.problem, self.ours.value) / shown(self.problem, self.rival.value)


def shown(problem: str, value: float) -> float:
    """FID as it is, and D for D²."""
    return value if problem in NETWORKS else float(np.sqrt(value))


def cells_of(points: Sequence[Point], front: Front) -> list[Cell]:
    """Of points of ours, where their number of evaluations is in the range of the fixed ones."""
    pairs = ((point, rival_at(front.best, point.evaluations)) for point in points)
    return [Cell(problem=front.problem, ours=point, rival=rival) for point, rival in pairs if rival]


def judged(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.ours.evaluations >= JUDGED_FROM]


def table(cells: Sequence[Cell]) -> str:
    """A row for each problem and number of evaluations."""
    rows = []
    for cell in cells:
        row = [cell.problem, cell.ours.label, f"{cell.ours.evaluations:.1f}"]
        for point in (cell.ours, cell.rival):
            value = shown(cell.problem, point.value)
            # the error of a square root is that of the square over twice the root
            error = point.error / (1 if cell.problem in NETWORKS else 2 * value)
            row.append(f"{value:.4f} ± {error:.4f}")
        beside = [
            " / ".join(f"{point.beside[name]:.{digits}f}" for point in (cell.ours, cell.rival))
            for name, digits in (("residual", 3), ("weights_z", 1), ("is_mean", 2))
            if name in cell.ours.beside and name in cell.rival.beside
        ]
        verdict = "" if cell.good else "worse"
        rows.append([*row, cell.rival.label, f"{cell.ratio:.2f}", verdict, ", ".join(beside)])
    head = ["problem", "setting", "evaluations", "ours", "best fixed", "which", "ratio", "", "beside"]
    return markdown(head, rows)


def compact(fronts: Sequence[Front]) -> str:
    """A row for each problem: ours / best fixed by number of evaluations, in bold where ours is worse."""
    rows = []
    for front in fronts:
        row = [front.problem]
        for cell in cells_of(front.by_number, front):
            text = " / ".join(f"{shown(front.problem, p.value):.3f}" for p in (cell.ours, cell.rival))
            row.append(text if cell.good else f"**{text}**")
        rows.append([*row, f"{floor_of(front):.3f}" if front.problem not in NETWORKS else ""])
    return markdown(["problem", *(f"{p.evaluations}" for p in fronts[0].by_number), "floor"], rows)


def floor_of(front: Front) -> float:
    """Root of the mean of D² of as many true samples."""
    return float(np.sqrt(front.by_number[-1].beside["floor"]))


def summary(cells: Sequence[Cell], name: str) -> str:
    """In how many cells ours is at least as good, and better, and the others with the ratio of D or FID."""
    worse = [f"{c.problem} at {c.ours.evaluations:.4g} ({c.ratio:.2f})" for c in cells if not c.good]
    good = f"at least as good in {len(cells) - len(worse)} of {len(cells)} cells"
    better = f"better in {sum(not at_least_as_good(cell.rival, cell.ours) for cell in cells)}"
    return f"{name}: {good}, {better}. Worse: {', '.join(worse) or 'none'}"


def without_floor(point: Point) -> Point:
    """With what D² has beyond its mean for true samples, to compare different numbers of samples."""
    return dataclasses.replace(point, values=tuple(value - point.beside["floor"] for value in point.values))


def against_each(fronts: Sequence[Front]) -> str:
    """For each fixed solver, kept for all problems with exact scores: where ours is better, and worse."""
    exact_ones = [front for front in fronts if front.problem not in NETWORKS]
    rows = []
    for label in exact_ones[0].searched if exact_ones else ():
        pairs = [
            (without_floor(ours), without_floor(front.searched[label][int(ours.evaluations)]))
            for front in exact_ones
            for ours in front.by_number
            if ours.evaluations >= JUDGED_FROM
        ]
        better = sum(not at_least_as_good(theirs, ours) for ours, theirs in pairs)
        worse = sum(not at_least_as_good(ours, theirs) for ours, theirs in pairs)
        rows.append((worse - better, [label, str(better), str(len(pairs) - better - worse), str(worse)]))
    head = ["fixed solver", "ours is better", "as good", "worse"]
    return markdown(head, [row for _, row in sorted(rows, reverse=True)])


def figures_of(by_number: Sequence[Cell], by_tolerance: Sequence[Cell]) -> dict[str, float]:
    """The figures in --json by name."""
    figures: dict[str, float] = {}
    for cell in by_number:
        run = f"{cell.problem}.{cell.ours.evaluations:g}"
        figures[f"{run}.ours"] = shown(cell.problem, cell.ours.value)
        figures[f"{run}.best"] = shown(cell.problem, cell.rival.value)
        figures[f"{run}.ratio"] = cell.ratio
        figures[f"{run}.at_least_as_good"] = float(cell.good)
    for name, cells in (("share", judged(by_number)), ("eps_rel_share", judged(by_tolerance))):
        if cells:  # perhaps none is in the range
            figures[name] = float(np.mean([cell.good for cell in cells]))
    return figures


def plot(fronts: Sequence[Front], path: Path) -> None:
    """A panel a problem: ours, each fixed solver of the search, the best of them, and true samples."""
    columns = min(4, len(fronts))
    rows = -(-len(fronts) // columns)
    figure = Figure(figsize=(4 * columns, 3.4 * rows + 0.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    handles: dict[str, Any] = {}
    for panel, front in zip(panels, fronts, strict=False):

        def draw(panel: Any, points: Sequence[Point], problem: str, **style: Any) -> None:
            values = [shown(problem, point.value) for point in points]
            (line,) = panel.plot([point.evaluations for point in points], values, **style)
            handles[style["label"]] = line

        for values in front.searched.values():
            heights = [shown(front.problem, point.value) for point in values.values()]
            (line,) = panel.plot(list(values), heights, color="0.75", linewidth=0.7)
            handles["each fixed grid, fewer samples"] = line
        best = [shown(front.problem, point.value) for point in front.best]
        number = [point.evaluations for point in front.best]
        panel.fill_between(number, best, 1e3, color="tab:blue", alpha=0.08)
        draw(panel, front.best, front.problem, color="tab:blue", marker=".", label="best fixed grid at each")
        by_number = {"color": "black", "linewidth": 2.2, "marker": "o", "markersize": 4}
        without = {"color": "black", "linewidth": 1, "linestyle": "--"}
        draw(panel, front.without_noise, front.problem, **without, label="ours at eta 0, by num_evaluations")
        draw(panel, front.by_number, front.problem, **by_number, label="ours, by num_evaluations")
        by_tolerance = {"color": "tab:red", "linewidth": 2.2, "marker": "s", "markersize": 4}
        draw(panel, front.by_tolerance, front.problem, **by_tolerance, label="ours, by eps_rel")
        of_ours = [*front.by_number, *front.by_tolerance, *front.without_noise]
        lowest = min([*best, *(shown(front.problem, point.value) for point in of_ours)])
        if front.problem not in NETWORKS:
            floor = floor_of(front)
            band = panel.axhspan(0.5 * floor, floor, color="tab:green", alpha=0.15)
            handles["the mean of true samples, and below"] = band
            lowest = min(lowest, floor)
        highest = max(best[0], *(shown(front.problem, p.value) for p in front.by_number))
        panel.set(xscale="log", yscale="log", title=front.problem)
        panel.set(xlim=(COUNTS[0] * 0.9, 75), ylim=(0.8 * lowest, 3 * highest))
        panel.set_xticks(COUNTS)
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set(xlabel="evaluations", ylabel="FID" if front.problem in NETWORKS else "D")
    for panel in list(figure.axes)[len(fronts) :]:
        panel.set_axis_off()
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, fontsize=9)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one problem in 2 dimensions, few samples")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--problems", help=f"some of {', '.join(PROBLEMS)}, separated by commas")
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmark_front"))
    parsed = parser.parse_args(arguments)
    default = ["near_2_ve"] if parsed.quick else PROBLEMS
    problems = names_in(parser, "--problems", parsed.problems, PROBLEMS, default)
    make_folder(parsed.workdir)
    records = Records(parsed.workdir / "front.jsonl")
    bar = tqdm(unit="run", disable=None)

    def measure(task: Task) -> Record:
        bar.set_postfix_str(f"{task.problem} {task.label}")
        bar.update()
        about = {"problem": task.problem, "solver": repr(task.solver), "seed": task.seed}
        on_problem = on_network if task.problem in NETWORKS else on_exact
        return records.of(task.identity, lambda: about | on_problem(task))

    fronts = [front_of(problem, measure, sizes_of(problem, quick=parsed.quick)) for problem in problems]
    bar.close()
    by_number = [cell for front in fronts for cell in cells_of(front.by_number, front)]
    by_tolerance = [cell for front in fronts for cell in cells_of(front.by_tolerance, front)]
    without_noise = [cell for front in fronts for cell in cells_of(front.without_noise, front)]
    everything = [*by_number, *by_tolerance, *without_noise]
    print(f"{machine()}\n\n{table(everything)}\n\n{compact(fronts)}\n")
    print(f"At {JUDGED_FROM} evaluations and above:")
    print(summary(judged(by_number), "by num_evaluations"))
    print(summary(judged(by_tolerance), "by eps_rel"))
    print(summary(judged(without_noise), "by num_evaluations, eta 0"))
    print(f"\n{against_each(fronts)}")
    plot(fronts, parsed.workdir / "front.png")
    if parsed.json:
        write_json(parsed.json, figures_of(by_number, by_tolerance))


if __name__ == "__main__":
    main()
