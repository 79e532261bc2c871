"""How far do a solver's samples end from a fine solution with the same noise?

python -m benchmarks.strong_error [--quick] [--json FILE] [--problems NAME,NAME] [--solvers NAME,NAME]
                                  [--cells 4000] [--workdir DIR]

Every sample has one Brownian path (benchmarks/same_path.py). The reverse SDE is solved along it by an
exponential Euler step in each of 4,000 cells of equal length in log-SNR, and by each solver with the noise of
the same path. All solvers share the paths, and the fine solution too unless they solve a process with another
share of noise, as AdaptiveExponential and ER-SDE-Solver do. Solvers of the probability flow start from the
same draws of the prior, and are compared with 400 steps of DPM-Solver++ 3M. Samples are at t = eps, without
denoising. With the distance of a sample, the root mean square over its elements of the difference to the fine
solution, the figures are

    error       root mean square of the distances of all samples: the strong error, in data units
    relative    the same over the data's deviation, with a standard error
    median      median of the distances over the data's deviation
    parted      share of samples that ended at another image: their distance is above half the deviation

The strong error bounds the Wasserstein distance W2 between the laws of the solver and of the fine solution,
divided by the root of the number of elements. The rows "half" are the fine solution with half the steps. A
solver gets its noise in the clock of its own formula; in the rows "…_width", in that of the known width.

The problems are the exact scores of the mixture around the digits (benchmarks/mixture.py, bandwidth 0.1), the
shipped networks of the digits, and HSC_32 of galaxygrad, which takes part where it is installed.

    <problem>.<solver>.<setting>.<measure>      the names in --json

Every run is a line of strong_error.jsonl in the workdir, with a hash of all that determines it. A killed run
is resumed by the same command. The plot is strong_error.png in the workdir.
"""

import argparse
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

import configs
import models
import sde_lib
import solvers
from benchmarks import same_path, third_party
from benchmarks.exact_score import SDES, adaptive, code_of
from benchmarks.mixture import SHAPE, Mixture, digits_mixture
from benchmarks.report import Records, hash_of, machine, names_in, write_json
from benchmarks.same_path import Paths, clock_of_width, noise_share, run_along, solve_along
from evaluation.runs.tables import markdown
from evaluation.store.files import atomic_file, make_folder
from models.checkpoints import checkpoint_sha256
from sde_lib import SDE
from sde_lib.checks import refusal
from solvers import (
    DDIM,
    ERSDE,
    AdaptiveExponential,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    SASolver,
    SDEDPMSolverPP,
    UniformLogSNR,
    UniPC,
)

CELLS, QUICK_CELLS = 4000, 400
FINE_FLOW = DPMSolverPP(num_steps=400, order=3)
PARTED = 0.5  # of the data's deviation; two images are √2 of it apart in the mean
KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A score and how many samples are drawn.

    Attributes:
        load: () -> the score function.
        source: what identifies a network.
        deviation: of the data: the root of the variance's mean over the elements.
        ve: whether the data are in [0, 1], as for VE.
        width: of a mode, in data units, where it is known.
    """

    sde: SDE
    load: Callable[[], Partial]
    source: str
    shape: tuple[int, ...]
    num_samples: int
    deviation: float
    ve: bool
    width: float | None = None


def mixture(name: str) -> Problem:
    """The exact score of the mixture around the digits."""
    sde = SDES[name]
    exact = digits_mixture(sde, 0.1)
    return Problem(
        sde=sde,
        load=lambda: exact.score_fn(sde),
        source="",
        shape=SHAPE,
        num_samples=512,
        deviation=deviation_of(exact, sde),
        ve=name == "ve",
        width=float(exact.bandwidth),
    )


def digits(name: str) -> Problem:
    """The shipped network of the digits."""
    config = configs.load(f"{name}/digits_adaptive")
    sde = sde_lib.from_config(config.sde)
    return Problem(
        sde=sde,
        load=lambda: models.load_score_fn(config),
        source=checkpoint_sha256(models.find(config.model.checkpoint)),
        shape=SHAPE,
        num_samples=256,
        deviation=deviation_of(digits_mixture(sde, 0.0), sde),
        ve=name == "ve",
    )


def galaxies() -> Problem:
    """HSC_32 of galaxygrad; see benchmarks/third_party.py."""
    return Problem(
        sde=third_party.PROCESS,
        load=lambda: third_party.score_fn("HSC_32"),
        source=importlib.metadata.version("galaxygrad"),
        shape=(1, 32, 32),
        num_samples=64,
        deviation=0.51,  # of the fine solution of the SDE
        ve=False,
    )


def deviation_of(data: Mixture, sde: SDE) -> float:
    _, covariance = data.moments(sde, sde.eps)
    return float(np.sqrt(np.trace(covariance) / len(covariance)))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "mixture_ve": functools.partial(mixture, "ve"),
    "mixture_vp": functools.partial(mixture, "vp"),
    "digits_ve": functools.partial(digits, "ve"),
    "digits_vp": functools.partial(digits, "vp"),
    "galaxies": galaxies,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A solver and its settings.

    Attributes:
        make: (value, whether for VE) -> the solver; None for the fine solution's method with half its steps.
        setting: name of the setting that the values are for.
        flow: whether it solves the probability flow.
        exact: whether it runs on exact scores alone.
        width: whether it gets its noise in the clock of the known width.
    """

    make: Callable[[Any, bool], Any] | None
    values: tuple[float, ...] = (10, 20, 30, 50)
    setting: str = "evaluations"
    flow: bool = False
    exact: bool = False
    width: bool = False


def ours(eta: float, setting: str, value: float, ve: bool) -> AdaptiveExponential:
    settings: Any = {setting: value}
    return AdaptiveExponential(eta=eta, data_deviation=0.25 if ve else 0.5, **settings)


def by_tolerance(eta: float) -> Row:
    make = functools.partial(ours, eta, "eps_rel")
    return Row(make=make, values=(0.08, 0.04, 0.02, 0.01, 0.005), setting="eps_rel", flow=eta == 0)


def by_number(eta: float) -> Row:
    return Row(make=functools.partial(ours, eta, "num_evaluations"), flow=eta == 0)


SOLVERS: dict[str, Row] = {
    "half": Row(make=None, values=(0,)),
    "adaptive_exponential": by_tolerance(1.0),
    "adaptive_exponential_steps": by_number(1.0),
    "euler_maruyama": Row(make=lambda n, ve: EulerMaruyama(num_steps=n)),
    "ddim_eta_1": Row(
        make=lambda n, ve: DDIM(num_steps=n, eta=1.0, grid=UniformLogSNR()), values=(10, 20, 30, 50, 100, 400)
    ),
    "sde_dpm_solver_pp_2m": Row(make=lambda n, ve: SDEDPMSolverPP(num_steps=n)),
    "sde_dpm_solver_pp_2m_width": Row(make=lambda n, ve: SDEDPMSolverPP(num_steps=n), exact=True, width=True),
    "sa_solver": Row(make=lambda n, ve: SASolver(num_steps=n)),
    "er_sde_3": Row(make=lambda n, ve: ERSDE(num_steps=n), exact=True),
    "adaptive": Row(
        make=functools.partial(adaptive, noise_on_rejection="bridge"), values=(0.1, 0.02), setting="eps_rel"
    ),
    "adaptive_exponential_ode": by_tolerance(0.0),
    "adaptive_exponential_ode_steps": by_number(0.0),
    "ddim": Row(make=lambda n, ve: DDIM(num_steps=n, grid=UniformLogSNR()), flow=True),
    "heun": Row(make=lambda n, ve: Heun(num_steps=n // 2), flow=True),
    "unipc_3": Row(make=lambda n, ve: UniPC(num_steps=n, order=3), flow=True),
    "dpm_solver_pp_2m": Row(
        make=lambda n, ve: DPMSolverPP(num_steps=n, order=2), values=(10, 20, 30, 50, 200), flow=True
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a solver on a problem."""

    problem: str
    source: str
    name: str
    value: float
    solver: Any
    flow: bool
    width: float | None  # whose clock is taken
    num_samples: int
    num_cells: int

    @property
    def identity(self) -> str:
        """A hash of all that determines the figures, the solver's code included."""
        modules = ("benchmarks.mixture", *(() if self.solver is None else (type(self.solver).__module__,)))
        return self.hashed(f"{self.solver} {self.width}", modules)

    def hashed(self, what: str, modules: tuple[str, ...]) -> str:
        """A hash of the problem, of the paths, and of this."""
        about = (self.problem, self.source, self.num_samples, self.num_cells, what)
        return hash_of(*about, Path(same_path.__file__).read_text(), code_of(modules))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="32 samples of a mixture, in a minute")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--problems", help=f"some of {', '.join(PROBLEMS)}, separated by commas")
    parser.add_argument("--solvers", help=f"some of {', '.join(SOLVERS)}, separated by commas")
    parser.add_argument("--cells", type=int, default=CELLS, help="steps of the fine solution, an even number")
    parser.add_argument("--workdir", type=Path, default=Path("runs/strong_error"))
    parsed = parser.parse_args(arguments)
    installed = [name for name in PROBLEMS if name != "galaxies" or importlib.util.find_spec("galaxygrad")]
    usual = ["mixture_vp"] if parsed.quick else installed
    problems = names_in(parser, "--problems", parsed.problems, installed, usual)
    names = names_in(parser, "--solvers", parsed.solvers, SOLVERS, SOLVERS)
    num_cells = QUICK_CELLS if parsed.quick else parsed.cells
    if num_cells < 2 or num_cells % 2:
        parser.error(
            refusal("--cells", num_cells, "an even number of at least 2", f"leave it out for {CELLS}")
        )

    make_folder(parsed.workdir)
    records, rows = Records(parsed.workdir / "strong_error.jsonl"), []
    for name in problems:
        problem = PROBLEMS[name]()
        if parsed.quick:
            problem = dataclasses.replace(problem, num_samples=32)
        cells = cells_of(name, problem, names, num_cells)
        measure = measuring(problem, parsed.workdir)
        for cell in tqdm(cells, desc=name, unit="run", disable=None):
            record = records.of(cell.identity, functools.partial(measure, cell))
            rows.append((cell, figures_of(record, problem)))
    print(f"{machine()}\n\n{table(rows)}")
    plot(rows, parsed.workdir / "strong_error.png")
    if parsed.json:
        figures = {
            f"{cell.problem}.{cell.name}.{cell.value:g}.{measure}": value
            for cell, record in rows
            for measure, value in record.items()
        }
        write_json(parsed.json, figures)


def cells_of(name: str, problem: Problem, names: Sequence[str], num_cells: int) -> list[Cell]:
    """The runs of these solvers on a problem."""
    return [
        Cell(
            problem=name,
            source=problem.source,
            name=row,
            value=num_cells // 2 if SOLVERS[row].make is None else value,
            solver=None if (make := SOLVERS[row].make) is None else make(value, problem.ve),
            flow=SOLVERS[row].flow,
            width=problem.width if SOLVERS[row].width else None,
            num_samples=problem.num_samples,
            num_cells=num_cells,
        )
        for row in names
        if problem.width is not None or not SOLVERS[row].exact
        for value in SOLVERS[row].values
    ]


def measuring(problem: Problem, workdir: Path) -> Callable[[Cell], dict[str, Any]]:
    """From a run to the distance of each of its samples; what the runs share is made when it is needed."""
    settings: dict[str, Any] = {"key": KEY, "shape": problem.shape, "num_samples": problem.num_samples}

    @functools.cache
    def score_fn() -> Partial:
        return problem.load()

    @functools.cache
    def paths(num_cells: int) -> Paths:
        return Paths.draw(problem.sde, num_cells=num_cells, **settings)

    def flow(solver: Any) -> tuple[np.ndarray, np.ndarray]:
        solution = solvers.sample(
            score_fn(), problem.sde, solver, batch_size=problem.num_samples, denoise=False, **settings
        )
        if solution.failed:
            raise RuntimeError(f"{solution.failed} of {problem.num_samples} samples of {solver} failed")
        return solution.x, solution.nfe

    def share(cell: Cell) -> np.ndarray:
        begins = jnp.asarray(paths(cell.num_cells).log_snr[:-1], jnp.float32)
        return np.asarray(noise_share(cell.solver, begins, problem.shape))

    def fine(cell: Cell) -> np.ndarray:
        if cell.flow:
            name = cell.hashed(f"{FINE_FLOW}", ("benchmarks.mixture", type(FINE_FLOW).__module__))
        else:
            name = cell.hashed(hashlib.sha256(share(cell).tobytes()).hexdigest(), ("benchmarks.mixture",))
        file = workdir / f"fine_{name}.npy"
        if not file.exists():
            if cell.flow:
                x, _ = flow(FINE_FLOW)
            else:
                x = solve_along(score_fn(), problem.sde, paths(cell.num_cells), share(cell))
            with atomic_file(file) as opened:
                np.save(opened, np.asarray(x))
        return np.load(file)

    def measure(cell: Cell) -> dict[str, Any]:
        expected = fine(cell)
        if cell.flow:
            x, nfe = flow(cell.solver)
        elif cell.solver is None:
            along = paths(cell.num_cells)
            x = np.asarray(solve_along(score_fn(), problem.sde, along, share(cell), merged=2))
            nfe = np.array([cell.num_cells // 2])
        else:
            clock = None if cell.width is None else clock_of_width(cell.width**2)
            found = run_along(
                score_fn(), problem.sde, cell.solver, paths(cell.num_cells), key=KEY, clock=clock
            )
            x, nfe = found.x, found.nfe
        distances = np.sqrt(np.mean((x - expected).reshape(len(x), -1) ** 2, axis=1))
        record = {"nfe": float(nfe.mean()), "distances": [float(f"{each:.5g}") for each in distances]}
        return record | {"run": str(cell)}

    return measure


def figures_of(record: dict[str, Any], problem: Problem) -> dict[str, float]:
    """The measures of a run, from the distances of its samples."""
    distances = np.array(record["distances"])
    return {"nfe": record["nfe"], **errors(distances, problem.deviation)}


def errors(distances: Float[np.ndarray, " n"], deviation: float) -> dict[str, float]:
    """``error``, ``relative`` and its standard error, ``median`` and ``parted``."""
    error = np.sqrt(np.mean(distances**2))
    # of the root of a mean: that of the mean over twice the root
    spread = np.std(distances**2, ddof=1) / np.sqrt(len(distances)) / (2 * error)
    return {
        "error": float(error),
        "relative": float(error / deviation),
        "standard_error": float(spread / deviation),
        "median": float(np.median(distances) / deviation),
        "parted": float(np.mean(distances > PARTED * deviation)),
    }


Rows = Sequence[tuple[Cell, dict[str, float]]]


def table(rows: Rows) -> str:
    """One row for each run."""
    lines = [
        [
            cell.problem,
            cell.name,
            f"{SOLVERS[cell.name].setting} {cell.value:g}",
            f"{record['nfe']:.1f}",
            f"{record['error']:.4f}",
            f"{record['relative']:.3f} ± {record['standard_error']:.3f}",
            f"{record['median']:.5f}",
            f"{record['parted']:.3f}",
        ]
        for cell, record in rows
    ]
    return markdown(
        ["problem", "solver", "setting", "NFE", "error", "relative", "median", "parted"],
        lines,
    )


def plot(rows: Rows, path: Path) -> None:
    """The strong error and the median distance against evaluations, a column for each problem."""
    problems = list(dict.fromkeys(cell.problem for cell, _ in rows))
    names = list(dict.fromkeys(cell.name for cell, _ in rows))
    figure = Figure(figsize=(3.6 * len(problems) + 2, 8), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(problems), squeeze=False, sharex="col")
    for column, problem in enumerate(problems):
        for panel, measure in zip(panels[:, column], ("relative", "median"), strict=True):
            for name in names:
                points = sorted(
                    (record["nfe"], record[measure], record["standard_error"])
                    for cell, record in rows
                    if (cell.problem, cell.name) == (problem, name)
                )
                if not points:
                    continue
                nfe, values, spread = np.transpose(points)
                flow = SOLVERS[name].flow
                group = [other for other, row in SOLVERS.items() if row.flow == flow]
                style = {"color": f"C{group.index(name)}", "linestyle": "--" if flow else "-"}
                style["marker"] = "s" if flow else "o"
                bars = spread if measure == "relative" else None
                panel.errorbar(nfe, values, bars, label=name, markersize=3, linewidth=1, **style)
            panel.set(xscale="log", yscale="log")
            panel.set_ylim(top=3)
            start = np.array(panel.get_xlim())
            for slope, line in ((0.5, ":"), (1.0, "-.")):
                panel.plot(start, (start / start[0]) ** -slope, "k", linestyle=line, linewidth=0.7)
            panel.set_xlim(start)
        panels[0, column].set_title(problem)
        panels[1, column].set_xlabel("evaluations a sample")
    panels[0, 0].set_ylabel("strong error / deviation of the data")
    panels[1, 0].set_ylabel("median distance / deviation of the data")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    with atomic_file(path) as file:
        canvas.print_png(file)


if __name__ == "__main__":
    main()
