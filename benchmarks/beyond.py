"""Compare AdaptiveExponential with the paper's solver and with tuned fixed grids: NFE at equal quality.

python -m benchmarks.beyond [--quick] [--json FILE] [--problems NAME,NAME] [--no_search] [--workdir DIR]

The problems mixture_ve_0.05 … mixture_vp_0.2 are the exact scores of benchmarks/mixture.py around 1,797
digits, where solvers stop at eps and do not denoise. The problems digits_ve, digits_vp, mnist_ve and mnist_vp
are the shipped networks. On each problem run the paper's solver at eps_rel 0.02, AdaptiveExponential with its
defaults, and a search over fixed grids: every method, order and eta in ``fixed``, on two grids, at growing
numbers of steps. For the plot, every solver of the library also runs on the digits networks with 8 to 400
evaluations; these runs have fewer samples, and therefore a larger FID.

Quality is the distance of each measured figure from the truth. For the mixtures, these are the mean
log-likelihood and the residual variance, compared with their expectations, and the Fréchet distance, compared
with 0 (benchmarks/exact_score.py explains all three). For the networks, they are FID (lower is better) and
Inception Score (higher is better). Two solvers have equal quality if no figure is worse than the paper's
solver's by more than the standard deviation over the paper's solver's seeds.

    <problem>.nfe_ratio     mean NFE over the paper's solver's
    <problem>.quality_ok    1 if the quality is equal, else 0
    <problem>.nfe_mean, nfe_max_over_mean, failed       of all our samples with the defaults
    <problem>.best_fixed_nfe, fixed_ratio     the least NFE of a fixed grid with the quality of the paper's
                            solver (NaN if the search found none), and our NFE over it
    <problem>.best_fixed_as_ours_nfe, fixed_as_ours_ratio     the same for the quality of ours

The fixed grids are searched with one seed. "noisy" rows have a score with 5 % of noise on every element.
Every run is a file below the workdir, named by a hash of all that determines it. A killed benchmark is
resumed by the same command, and two can share the work by --problems. The plot is beyond.png in the workdir.
"""

import argparse
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from tqdm import tqdm

import configs
import models
import sde_lib
import solvers
from benchmarks.exact_score import adaptive, code_of, figures_of_samples
from benchmarks.mixture import SHAPE, digits_mixture
from benchmarks.report import OURS, PAPERS, hash_of, kept, machine, names_in, write_json
from evaluation.metrics import fid
from evaluation.metrics.inception_score import inception_score
from evaluation.runs import measurement
from evaluation.runs.tables import markdown
from evaluation.store.files import atomic_file, make_folder
from evaluation.store.samples import to_uint8
from sde_lib import VESDE, VPSDE
from solvers import (
    DDIM,
    DEIS,
    EDM,
    ERSDE,
    RK45,
    Adaptive,
    AdaptiveExponential,
    AncestralSampling,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ReverseDiffusion,
    Rho,
    SASolver,
    SDEDPMSolverPP,
    Status,
    UniformLogSNR,
    UniPC,
)

PROBLEMS = [f"mixture_{sde}_{width}" for sde in ("ve", "vp") for width in ("0.05", "0.1", "0.2")]
PROBLEMS += [f"{data}_{sde}" for data in ("digits", "mnist") for sde in ("ve", "vp")]
SAMPLES = {"mixture": 1024, "digits": 2048, "mnist": 256}
FRONT_SAMPLES = 512
MANY_SAMPLES = 10_000  # for failures and the spread of NFE
SEEDS, BATCH_SIZE, MAX_EVALUATIONS = 5, 512, 4000
STEPS = {"mixture": (12, 16, 20, 25, 30, 40), "digits": (20, 30), "mnist": (20, 30)}
FRONT = (8, 20, 50, 130, 400)  # evaluations
# figures that are best at an extreme; the others are best at their expectation
LOWER_IS_BETTER = {"frechet": True, "fid": True, "is_mean": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One run of one solver, with its name in the table; solver None stands for true samples."""

    problem: str
    name: str
    solver: Any
    seed: int
    num_samples: int
    noise: float = 0.0  # relative noise on every element of the score

    @property
    def identity(self) -> str:
        """A hash of all that determines the samples, the solver's code included."""
        modules = ("benchmarks.mixture",)
        modules += () if self.solver is None else (type(self.solver).__module__,)
        what = (self.problem, repr(self.solver), self.seed, self.num_samples, self.noise, code_of(modules))
        return hash_of(*what)


def paper(ve: bool) -> Adaptive:
    return adaptive(0.02, ve)


def ours(ve: bool, **settings: Any) -> AdaptiveExponential:
    suited: dict[str, Any] = {"eps_abs": 1 / 256, "data_deviation": 0.25} if ve else {"eps_abs": 2 / 256}
    return AdaptiveExponential(**suited | settings)


def fixed(num_steps: int) -> Iterator[tuple[str, Any]]:
    for label, grid in (("log-SNR", UniformLogSNR()), ("rho 7", Rho())):
        for order in (2, 3):
            yield f"DPM++ {order}M, {label}", DPMSolverPP(order=order, num_steps=num_steps, grid=grid)
            yield f"UniPC-{order}, {label}", UniPC(order=order, num_steps=num_steps, grid=grid)
    yield "SDE-DPM++ 2M, log-SNR", SDEDPMSolverPP(num_steps=num_steps, grid=UniformLogSNR())
    for eta in (0.0, 1.0):
        yield f"DDIM eta {eta:g}, log-SNR", DDIM(eta=eta, num_steps=num_steps, grid=UniformLogSNR())
    if num_steps % 2 == 0:
        yield "Heun, rho 7", Heun(num_steps=num_steps // 2, grid=Rho())


def front(ve: bool) -> Iterator[tuple[str, Any]]:
    """Every solver of the library with its defaults, at several tolerances or numbers of steps."""
    for eps_rel in (0.08, 0.04, 0.02, 0.01, 0.005):
        yield f"ours, eps_rel {eps_rel:g}", ours(ve, eps_rel=eps_rel)
        yield f"ours at eta 0, eps_rel {eps_rel:g}", ours(ve, eps_rel=eps_rel, eta=0.0)
    for n in FRONT:
        yield "Euler-Maruyama", EulerMaruyama(num_steps=n)
        yield "reverse diffusion", ReverseDiffusion(num_steps=n)
        yield "ancestral", AncestralSampling(num_steps=n)
        corrected = ReverseDiffusion(num_steps=n // 2)
        yield "predictor-corrector", PredictorCorrector(predictor=corrected, snr=0.16 if ve else 0.01)
        if n == FRONT[-1]:  # the others no longer improve there
            break
        yield "DPM++ 2M", DPMSolverPP(num_steps=n, order=2)
        yield "DPM++ 3M", DPMSolverPP(num_steps=n, order=3)
        yield "UniPC-3", UniPC(num_steps=n)
        yield "SDE-DPM++ 2M", SDEDPMSolverPP(num_steps=n)
        yield "ER-SDE-3", ERSDE(num_steps=n)
        yield "SA-Solver", SASolver(num_steps=n)
        yield "DDIM", DDIM(num_steps=n)
        yield "Heun", Heun(num_steps=n // 2)
        yield "DEIS", DEIS(num_steps=n)
        yield "EDM, churn 40", EDM(num_steps=n // 2, churn=40.0)
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4):
        yield f"RK45, tolerance {tolerance:g}", RK45(rtol=tolerance, atol=tolerance)
    for eps_rel in (0.5, 0.1, 0.05, 0.02, 0.01):
        yield f"paper, eps_rel {eps_rel:g}", adaptive(eps_rel, ve)


def tasks(problems: Sequence[str], *, quick: bool, search: bool) -> Iterator[Task]:
    """The runs in order: our solver and the paper's at all seeds, the search, the runs for the plot."""
    for problem in problems:
        family, ve = problem.partition("_")[0], "_ve" in problem
        common: dict[str, Any] = {"problem": problem}
        common["num_samples"] = 256 if quick else SAMPLES[family]
        for seed in range(2 if quick else SEEDS):
            if family == "mixture":
                yield Task(name="truth", solver=None, problem=problem, seed=seed, num_samples=MANY_SAMPLES)
            yield Task(name="ours", solver=ours(ve), seed=seed, **common)
            yield Task(name="paper", solver=paper(ve), seed=seed, **common)
    for problem in problems:
        family, ve = problem.partition("_")[0], "_ve" in problem
        shared: dict[str, Any] = {"problem": problem, "seed": 0}
        shared["num_samples"] = 256 if quick else SAMPLES[family]
        for eps_rel in () if quick else (0.04, 0.01):
            yield Task(name=f"ours, eps_rel {eps_rel:g}", solver=ours(ve, eps_rel=eps_rel), **shared)
        for eta in () if quick else (0.0, 0.5):
            yield Task(name=f"ours, eta {eta:g}", solver=ours(ve, eta=eta), **shared)
        if family == "mixture" and not quick:
            yield Task(name="ours, many", solver=ours(ve), problem=problem, seed=0, num_samples=MANY_SAMPLES)
        if problem.endswith("_0.1") and not quick:
            yield Task(name="ours, noisy", solver=ours(ve), noise=0.05, **shared)
            yield Task(name="paper, noisy", solver=paper(ve), noise=0.05, **shared)
            yield Task(name="UniPC-3, noisy", solver=UniPC(num_steps=25), noise=0.05, **shared)
        for n in (20,) if quick else STEPS[family] if search else ():
            for name, solver in fixed(n):
                yield Task(name=name, solver=solver, **shared)
    for problem in problems:
        if problem.startswith("digits") and search and not quick:
            for name, solver in front("_ve" in problem):
                yield Task(name=name, solver=solver, problem=problem, seed=0, num_samples=FRONT_SAMPLES)


def measured(path: Path, task: Task) -> dict[str, float]:
    """The record of a task, from its file if it is there."""
    measure = on_mixture if task.problem.startswith("mixture") else on_network
    return kept(path, task, measure)


def counts(solution: Any) -> dict[str, float]:
    failed = int((solution.status != Status.COMPLETED).sum())
    return {"nfe": float(solution.nfe.mean()), "nfe_max": float(solution.nfe.max()), "failed": failed}


def noisy_score(score_fn: Any, noise: Any, x: jax.Array, t: jax.Array) -> jax.Array:
    """The score times 1 + noise N(0, 1); like a network's error, the noise is a function of x."""

    def factor(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x.ravel()[0], jnp.uint32)
        return 1 + noise * jax.random.normal(jax.random.key(bits), x.shape)

    return score_fn(x, t) * jax.vmap(factor)(x)


def on_mixture(task: Task) -> dict[str, float]:
    _, name, bandwidth = task.problem.split("_")
    sde: Any = VESDE() if name == "ve" else VPSDE()
    mixture, key = digits_mixture(sde, float(bandwidth)), jax.random.key(task.seed)
    if task.solver is None:
        x = np.asarray(mixture.samples(sde, sde.eps, key=key, num_samples=task.num_samples))
        record = {"nfe": 0.0, "nfe_max": 0.0, "failed": 0}
    else:
        solution = solvers.sample(
            Partial(noisy_score, mixture.score_fn(sde), jnp.float32(task.noise)),
            sde,
            task.solver,
            key=key,
            shape=SHAPE,
            num_samples=task.num_samples,
            batch_size=min(BATCH_SIZE, task.num_samples),
            denoise=False,
            max_evaluations=MAX_EVALUATIONS,
        )
        x, record = solution.x, counts(solution)
    figures = figures_of_samples(mixture, sde, x)
    return record | {name: figures[name] for name in ("log_likelihood", "frechet", "residual")}


def on_network(task: Task) -> dict[str, float]:
    data, _, name = task.problem.partition("_")
    config = configs.load(f"{name}/{data}_adaptive")
    sde = sde_lib.from_config(config.sde)
    solution = solvers.sample(
        models.load_score_fn(config),
        sde,
        task.solver,
        key=jax.random.key(task.seed),
        shape=configs.image_shape(config.data),
        num_samples=task.num_samples,
        batch_size=64,
        max_evaluations=MAX_EVALUATIONS,
    )
    measured = measurement.from_config(config, num_samples=task.num_samples)
    network, reference = measured.network, measured.reference
    assert reference is not None  # the shipped networks come with the statistics of their data
    features, logits = network(to_uint8(solution.x, centered=config.data.centered))
    source = fid.Source.of(network, data="samples", split="all")
    return counts(solution) | {
        "fid": fid.fid(fid.Moments.of(features, source), reference),
        "is_mean": inception_score(logits)[0],
    }


Runs = dict[str, list[dict[str, float]]]  # row name with its setting -> one record a seed


def grouped(records: dict[Task, dict[str, float]], problem: str, *, of_front: bool = False) -> Runs:
    runs: Runs = {}
    for task, record in records.items():
        if task.problem == problem and (task.num_samples == FRONT_SAMPLES) == of_front:
            # a predictor-corrector has the number of steps of its predictor
            has_steps = hasattr(getattr(task.solver, "predictor", task.solver), "num_steps")
            row = f"{task.name}, {record['nfe']:.0f}" if has_steps else task.name
            runs.setdefault(row, []).append(record)
    return runs


def badness(runs: Runs, row: str) -> dict[str, float]:
    """The distance of each figure's mean from the truth; larger is worse."""
    bad = {}
    for number in runs["paper"][0].keys() - {"nfe", "nfe_max", "failed", "run"}:
        mean = float(np.mean([record[number] for record in runs[row]]))
        if number in LOWER_IS_BETTER:
            bad[number] = mean if LOWER_IS_BETTER[number] else -mean
        else:
            bad[number] = abs(mean - float(np.mean([record[number] for record in runs["truth"]])))
    return bad


def equal_quality(runs: Runs, row: str, *, to: str = "paper") -> bool:
    """Whether no figure is worse than another row's by more than that row's deviation over its seeds."""
    limits = badness(runs, to)
    for number, limit in limits.items():
        spread = np.std([record[number] for record in runs[to]], ddof=1)
        if not badness(runs, row)[number] <= limit + spread:
            return False
    return True


def figures_of(problem: str, runs: Runs) -> dict[str, float]:
    mean, theirs = (float(np.mean([r["nfe"] for r in runs[row]])) for row in ("ours", "paper"))
    grids = [row for row in runs if not row.startswith(("ours", "paper", "truth")) and "noisy" not in row]

    def best_fixed(to: str) -> float:
        good = [runs[row][0]["nfe"] for row in grids if equal_quality(runs, row, to=to)]
        return min(good, default=math.nan)

    best, as_ours = best_fixed("paper"), best_fixed("ours")
    default = [*runs["ours"], *runs.get("ours, many", [])]
    figures = {
        "nfe_ratio": mean / theirs,
        "quality_ok": float(equal_quality(runs, "ours")),
        "nfe_mean": mean,
        "nfe_max_over_mean": max(r["nfe_max"] for r in default) / mean,
        "failed": float(sum(r["failed"] for r in default)),
        "best_fixed_nfe": best,
        "fixed_ratio": mean / best,
        "best_fixed_as_ours_nfe": as_ours,
        "fixed_as_ours_ratio": mean / as_ours,
    }
    return {f"{problem}.{name}": value for name, value in figures.items()}


def table(records: dict[Task, dict[str, float]], problems: Sequence[str]) -> str:
    parts = []
    for problem in problems:
        runs = grouped(records, problem)
        numbers = sorted(runs["paper"][0].keys() - {"nfe", "nfe_max", "failed", "run"})
        rows = []
        for row in sorted(runs, key=lambda row: float(np.mean([r["nfe"] for r in runs[row]]))):
            cells = [row, f"{np.mean([r['nfe'] for r in runs[row]]):.1f}"]
            cells += [f"{max(r['nfe_max'] for r in runs[row]):.0f}"]
            for number in numbers:
                values = [r[number] for r in runs[row]]
                deviation = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.4f}{deviation}")
            cells += [f"{sum(r['failed'] for r in runs[row]):.0f}", "yes" if equal_quality(runs, row) else ""]
            rows.append(cells)
        parts.append(
            f"{problem}\n\n"
            + markdown(["row", "NFE", "max", *numbers, "failed", "as good as the paper's"], rows)
        )
    return "\n\n".join(parts)


def line_of(row: str) -> str:
    """The plot's line that a row belongs to: its name without the number of steps or the tolerance."""
    name, _, setting = row.rpartition(", ")
    return name if setting.isdecimal() or setting.startswith(("eps_rel", "tolerance")) else row


def plot(path: Path, records: dict[Task, dict[str, float]], problems: Sequence[str]) -> None:
    """Plot FID, or the error of the residual variance, by NFE: a panel a problem, a line a method."""
    columns = min(2, len(problems))
    rows = -(-len(problems) // columns)
    figure = Figure(figsize=(5.5 * columns + 2, 4 * rows), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    styles: dict[str, dict[str, Any]] = {
        "paper": PAPERS,
        "ours": OURS,
        "ours at eta 0": {"color": "black", "linewidth": 1, "marker": "s", "linestyle": "--", "zorder": 3},
        "ours, eta 0": {"color": "black", "marker": "s", "linestyle": "none", "zorder": 3},
        "ours, eta 0.5": {"color": "grey", "marker": "s", "linestyle": "none", "zorder": 3},
    }
    handles: dict[str, Any] = {}
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel, problem in zip(panels, problems, strict=False):
        number = "residual" if problem.startswith("mixture") else "fid"
        lines: dict[str, list[tuple[float, float]]] = {}
        runs_by_row = grouped(records, problem, of_front=True) or grouped(records, problem)
        for row, runs in runs_by_row.items():
            if row == "truth" or "noisy" in row or "many" in row:
                continue
            value = float(np.mean([record[number] for record in runs]))
            value = value if number == "fid" else max(abs(value - 1), 1e-3)  # the samples resolve no less
            lines.setdefault(line_of(row), []).append((float(np.mean([r["nfe"] for r in runs])), value))
        for label, points in lines.items():
            i = len(styles)
            other = {"color": f"C{i % 10}", "linewidth": 0.8, "marker": "sDv^<>"[i // 10 % 6]}
            style = styles.setdefault(label, other)
            (handles[label],) = panel.plot(*zip(*sorted(points), strict=True), markersize=3.5, **style)
        panel.set(xscale="log", yscale="log", xlabel="evaluations a sample", title=problem)
        panel.set_ylabel("FID" if number == "fid" else "distance of the residual variance from 1")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.2)
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=7)
    with atomic_file(path) as file:
        canvas.print_png(file)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="one mixture with few samples, in a minute or two"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--problems", help=f"some of {', '.join(PROBLEMS)}, separated by commas")
    parser.add_argument("--no_search", action="store_true", help="leave out the fixed grids")
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmark_beyond"))
    parsed = parser.parse_args(arguments)
    default = PROBLEMS[:1] if parsed.quick else PROBLEMS
    problems = names_in(parser, "--problems", parsed.problems, PROBLEMS, default)

    make_folder(parsed.workdir / "runs")
    records = {}
    with tqdm(list(tasks(problems, quick=parsed.quick, search=not parsed.no_search)), unit="run") as bar:
        for task in bar:
            bar.set_postfix_str(f"{task.problem} {task.name} seed {task.seed}")
            records[task] = measured(parsed.workdir / "runs" / f"{task.identity}.json", task)

    figures: dict[str, float] = {}
    for problem in problems:
        figures |= figures_of(problem, grouped(records, problem))
    names = list(dict.fromkeys(name.rpartition(".")[2] for name in figures))
    summary = [[p, *(f"{figures[f'{p}.{name}']:.3g}" for name in names)] for p in problems]
    print(f"{machine()}\n\n{table(records, problems)}\n\n{markdown(['problem', *names], summary)}")
    if parsed.json:
        write_json(parsed.json, figures)
    plot(parsed.workdir / "beyond.png", records, problems)


if __name__ == "__main__":
    main()
