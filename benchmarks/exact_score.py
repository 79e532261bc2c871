"""Run every solver on an exact score, and compare its samples with the known distribution, by evaluations.

python -m benchmarks.exact_score [--quick] [--json FILE] [--solvers NAME,NAME] [--sdes ve,vp] [--workdir DIR]

The data are a Gaussian mixture around scikit-learn's 1,797 digits (benchmarks/mixture.py), at three
bandwidths in units of images in [0, 1]. Solvers stop at t = eps and do not denoise. There the true
distribution is the mixture's own marginal, whose density, moments and residuals have a closed form, and the
samples of an exact solver match all of them. (After a final denoising step, which would cost one more
evaluation, there is no closed form.)

    Fréchet     distance of the samples' mean and covariance to the true ones, in pixels of [0, 1]; for a
                finite number of true samples it is above 0 too, and the table shows by how much
    log p       mean log-likelihood of the samples under the truth, in nats an image of pixels in [0, 1]
    residual    mean squared distance of a sample to the centre it came from, over the true one; 1 is right
    modes       number of centres nearest to some sample, over the number that as many true samples hit

Some of the rows compare how rejected steps can draw their noise, and others the solvers of the reverse SDE
that need few evaluations:

python -m benchmarks.exact_score --solvers adaptive,adaptive_hold,adaptive_bridge
python -m benchmarks.exact_score --solvers er_sde_3,sa_solver,sde_dpm_solver_pp_2m,adaptive_exponential

Every cell is a file below the workdir, named by a hash of all that determines it, the solver's code included.
A killed run is resumed by the same command, and two runs can share the work by --sdes. The plot is
exact_score.png in the workdir.
"""

import argparse
import ast
import dataclasses
import functools
import hashlib
import importlib.util
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

import solvers
from benchmarks.mixture import SHAPE, Mixture, digits_mixture, pixel_unit
from benchmarks.report import OURS, PAPERS, hash_of, kept, machine, names_in, write_json
from evaluation.metrics.fid import frechet_distance
from evaluation.runs.tables import markdown
from evaluation.store.files import atomic_file, make_folder
from sde_lib import SDE, VESDE, VPSDE
from solvers import Adaptive, AdaptiveExponential, EulerMaruyama, Status, off_the_shelf
from solvers.ddim import DDIM
from solvers.deis import DEIS
from solvers.dpm_solver import DPMSolverPP, SDEDPMSolverPP
from solvers.edm import EDM, Heun
from solvers.er_sde import ERSDE
from solvers.langevin import AnnealedLangevin
from solvers.predictor_corrector import AncestralSampling, PredictorCorrector, ReverseDiffusion
from solvers.rk45 import RK45
from solvers.sa_solver import SASolver
from solvers.unipc import UniPC

SDES: dict[str, Any] = {"ve": VESDE(), "vp": VPSDE()}
BANDWIDTHS = (0.05, 0.1, 0.2)
MAIN_BANDWIDTH = 0.1  # every setting is run here; at the others, only each solver's ``elsewhere``
NUM_SAMPLES, SEEDS, BATCH_SIZE = 4096, 3, 1024
MAX_EVALUATIONS = 4000
MAX_EVALUATIONS_OFF_THE_SHELF = 1000  # fewer, because each batch waits for its slowest sample
STYLES = {"adaptive": PAPERS, "adaptive_exponential": OURS}  # in the plot
MEASURED = ("nfe_mean", "nfe_max", "frechet", "log_likelihood", "residual", "modes", "failed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OffTheShelf:
    """The arguments of ``off_the_shelf.sample`` in place of a solver."""

    solver_name: str
    num_steps: int | None = None
    rtol: float | None = None
    atol: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A solver and the settings to run it with.

    Attributes:
        make: (value, whether for VE) -> the solver.
        setting: name of the setting that the values are for.
        values: values at the main bandwidth.
        elsewhere: values at the other bandwidths.
    """

    make: Callable[[Any, bool], Any]
    setting: str
    values: tuple[float, ...]
    elsewhere: tuple[float, ...]


def flows(make: Callable[[int, bool], Any]) -> Row:
    """The row of a solver of the probability flow, by evaluations; beyond 50 there is little to gain."""
    return Row(make=make, setting="evaluations", values=(10, 20, 50), elsewhere=(20,))


def noisy(
    make: Callable[[int, bool], Any],
    values: tuple[int, ...] = (20, 50, 200),
    elsewhere: tuple[int, ...] = (50,),
) -> Row:
    """The row of a solver of the reverse SDE, by evaluations."""
    return Row(make=make, setting="evaluations", values=values, elsewhere=elsewhere)


def few(make: Callable[[int, bool], Any]) -> Row:
    """The row of a solver of the reverse SDE for few evaluations, the same at every bandwidth."""
    return noisy(make, (20, 30, 50), (20, 30, 50))


def diffrax_steps(name: str) -> Row:
    """One number of evaluations at one bandwidth only, as diffrax takes five to ten times as long."""

    def make(evaluations: int, ve: bool) -> OffTheShelf:
        num_steps = evaluations // off_the_shelf.METHODS[name].evaluations
        return OffTheShelf(solver_name=name, num_steps=num_steps)

    return noisy(make, values=(50,), elsewhere=())


def tolerant(
    make: Callable[[float, bool], Any],
    setting: str,
    values: tuple[float, ...],
    elsewhere: tuple[float, ...] = (),
) -> Row:
    """The row of a solver whose step sizes follow from a tolerance."""
    return Row(make=make, setting=setting, values=values, elsewhere=elsewhere)


def adaptive(eps_rel: float, ve: bool, noise_on_rejection: Any = "redraw") -> Adaptive:
    return Adaptive(
        eps_rel=eps_rel,
        eps_abs=1 / 256 if ve else 2 / 256,
        first_step=0.5 if ve else 0.01,
        noise_on_rejection=noise_on_rejection,
    )


def diffrax_adaptive(name: str) -> Row:
    """One tolerance only and no step doubling, as a cell takes twenty times as long as one of ours."""

    def make(rtol: float, ve: bool) -> OffTheShelf:
        return OffTheShelf(solver_name=name, rtol=rtol, atol=1 / 256 if ve else 2 / 256)

    return tolerant(make, "rtol", (0.05,))


SOLVERS: dict[str, Row] = {
    "euler_maruyama": noisy(lambda n, ve: EulerMaruyama(num_steps=n), (20, 50, 200, 1000)),
    "reverse_diffusion": noisy(lambda n, ve: ReverseDiffusion(num_steps=n), (20, 50)),
    "ancestral": noisy(lambda n, ve: AncestralSampling(num_steps=n), (20, 50)),
    "predictor_corrector": noisy(
        lambda n, ve: PredictorCorrector(
            predictor=ReverseDiffusion(num_steps=n // 2), snr=0.16 if ve else 0.01
        )
    ),
    "annealed_langevin": noisy(
        lambda n, ve: AnnealedLangevin(num_steps=n // 2, corrector_steps=2, snr=0.16 if ve else 0.01),
        (50, 200),
    ),
    "adaptive": tolerant(adaptive, "eps_rel", (0.5, 0.1, 0.05, 0.02), (0.1,)),
    "adaptive_hold": tolerant(
        functools.partial(adaptive, noise_on_rejection="hold"), "eps_rel", (0.05, 0.02)
    ),
    "adaptive_bridge": tolerant(
        functools.partial(adaptive, noise_on_rejection="bridge"), "eps_rel", (0.05, 0.02)
    ),
    "adaptive_exponential": tolerant(
        lambda eps_rel, ve: AdaptiveExponential(eps_rel=eps_rel),
        "eps_rel",
        (0.08, 0.02, 0.007),
        (0.08, 0.02, 0.007),
    ),
    "rk45": tolerant(lambda tol, ve: RK45(rtol=tol, atol=tol), "rtol = atol", (1e-1, 1e-2, 1e-3), (1e-2,)),
    "heun": flows(lambda n, ve: Heun(num_steps=n // 2)),
    "edm_churn": noisy(
        lambda n, ve: EDM(
            num_steps=n // 2, churn=80 if ve else 30, churn_min=0.05 if ve else 0.01, churn_max=1.0
        ),
    ),
    "ddim": flows(lambda n, ve: DDIM(num_steps=n)),
    "ddim_eta_1": noisy(lambda n, ve: DDIM(num_steps=n, eta=1.0), (20, 50)),
    "dpm_solver_pp_2m": flows(lambda n, ve: DPMSolverPP(num_steps=n, order=2)),
    "dpm_solver_pp_3m": flows(lambda n, ve: DPMSolverPP(num_steps=n, order=3)),
    "sde_dpm_solver_pp_2m": few(lambda n, ve: SDEDPMSolverPP(num_steps=n)),
    "er_sde_3": few(lambda n, ve: ERSDE(num_steps=n)),
    "sa_solver": few(lambda n, ve: SASolver(num_steps=n)),
    "unipc_2": flows(lambda n, ve: UniPC(num_steps=n, order=2)),
    "unipc_3": flows(lambda n, ve: UniPC(num_steps=n, order=3)),
    "deis_3": flows(lambda n, ve: DEIS(num_steps=n)),
    "deis_3_log_rho": flows(lambda n, ve: DEIS(num_steps=n, polynomial="log_rho")),
    "diffrax_sea": diffrax_steps("sea"),
    "diffrax_shark": diffrax_steps("shark"),
    "diffrax_slow_rk": diffrax_steps("slow_rk"),
    "diffrax_sra1_adaptive": diffrax_adaptive("sra1"),
}
QUICK = ("euler_maruyama", "adaptive", "heun", "dpm_solver_pp_2m")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a solver; ``solver`` None stands for true samples."""

    sde: str
    bandwidth: float
    name: str
    value: float
    solver: Any
    seed: int
    num_samples: int

    @property
    def identity(self) -> str:
        """A hash of all that determines the samples, the solver's code included."""
        module = "benchmarks.mixture" if self.solver is None else type(self.solver).__module__
        modules = ("benchmarks.mixture", "solvers.off_the_shelf" if module == __name__ else module)
        # the solver's repr contains its settings; the row's name is left out, as it may change
        what = (self.sde, self.bandwidth, repr(self.solver), self.seed, self.num_samples, code_of(modules))
        return hash_of(*what)


@functools.cache
def code_of(modules: tuple[str, ...]) -> str:
    """A hash of the code of these modules and of the solvers and processes that they import."""
    found: dict[str, str] = {}
    wanted = list(modules)
    while wanted:
        name = wanted.pop()
        spec = importlib.util.find_spec(name)
        if name in found or spec is None or spec.origin is None:
            continue
        found[name] = text = Path(spec.origin).read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
                "solvers",
                "sde_lib",
            ):
                wanted.append(node.module or "")
    return hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few small cells of VP, in under a minute")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--solvers", help="names of rows, separated by commas")
    parser.add_argument("--sdes")
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmark_exact_score"))
    parsed = parser.parse_args(arguments)
    names = names_in(parser, "--solvers", parsed.solvers, SOLVERS, QUICK if parsed.quick else SOLVERS)
    sdes = names_in(parser, "--sdes", parsed.sdes, SDES, ["vp"] if parsed.quick else SDES)

    cells = list(all_cells(names, sdes, quick=parsed.quick))
    make_folder(parsed.workdir / "cells")
    records = {}
    with tqdm(cells, unit="cell", smoothing=0) as bar:
        for cell in bar:
            bar.set_postfix_str(f"{cell.sde} {cell.bandwidth} {cell.name} {cell.value:g} seed {cell.seed}")
            records[cell] = kept(parsed.workdir / "cells" / f"{cell.identity}.json", cell, measure)

    lines, figures = table(records)
    print(f"{machine()}\n{cells[0].num_samples} samples; mean ± deviation over seeds\n\n{lines}")
    if parsed.json:
        write_json(parsed.json, figures)
    plot(parsed.workdir / "exact_score.png", records)


def all_cells(names: Sequence[str], sdes: Sequence[str], *, quick: bool) -> Iterator[Cell]:
    """The cells in the order of the table, true samples first."""
    for sde in sdes:
        for bandwidth in (MAIN_BANDWIDTH,) if quick else BANDWIDTHS:
            chosen = [("truth", 0.0, None)]
            for name in names:
                row = SOLVERS[name]
                values = row.values if bandwidth == MAIN_BANDWIDTH else row.elsewhere
                for value in values[:1] if quick else values:
                    number: Any = int(value) if row.setting == "evaluations" else value
                    chosen.append((name, number, row.make(number, sde == "ve")))
            for name, value, solver in chosen:
                for seed in range(1 if quick else SEEDS):
                    yield Cell(
                        sde=sde,
                        bandwidth=bandwidth,
                        name=name,
                        value=value,
                        solver=solver,
                        seed=seed,
                        num_samples=256 if quick else NUM_SAMPLES,
                    )


def measure(cell: Cell) -> dict[str, float]:
    """The figures ``MEASURED``, with ``modes`` as a count, and the seconds that sampling took.

    Samples that did not complete are counted as failed and excluded from the other figures.
    """
    sde: SDE = SDES[cell.sde]
    mixture = digits_mixture(sde, cell.bandwidth)
    key = jax.random.key(cell.seed)
    settings: dict[str, Any] = {"key": key, "shape": SHAPE, "num_samples": cell.num_samples}
    settings |= {"batch_size": min(BATCH_SIZE, cell.num_samples), "denoise": False}
    start = time.perf_counter()
    if cell.solver is None:
        x = np.asarray(mixture.samples(sde, sde.eps, key=key, num_samples=cell.num_samples))
        nfe = np.zeros(1)
    else:
        score_fn = mixture.score_fn(sde)
        if isinstance(cell.solver, OffTheShelf):
            own = dataclasses.asdict(cell.solver)
            evaluations = off_the_shelf.METHODS[cell.solver.solver_name].evaluations
            max_steps = MAX_EVALUATIONS_OFF_THE_SHELF // evaluations
            own |= {"first_step": adaptive(0.1, cell.sde == "ve").first_step, "max_steps": max_steps}
            solution = off_the_shelf.sample(score_fn, sde, **own, **settings)
        else:
            settings |= {"max_evaluations": MAX_EVALUATIONS}
            solution = solvers.sample(score_fn, sde, cell.solver, **settings)
        x, nfe = solution.x[solution.status == Status.COMPLETED], solution.nfe
    record = {"nfe_mean": float(nfe.mean()), "nfe_max": float(nfe.max())}
    record |= {"failed": cell.num_samples - len(x), "seconds": time.perf_counter() - start}
    if len(x) < 2:
        return record | dict.fromkeys(("frechet", "log_likelihood", "residual", "modes"), math.nan)

    return record | figures_of_samples(mixture, sde, x)


def figures_of_samples(mixture: Mixture, sde: SDE, x: np.ndarray) -> dict[str, float]:
    """The figures ``frechet``, ``log_likelihood``, ``residual`` and ``modes`` of samples at t = eps.

    Args:
        mixture: the true distribution of the data.
        sde: the process.
        x: the samples, [n, h, w, c].
    """
    likelihood, residual, nearest = _judge(mixture, sde, jnp.asarray(x))
    # from data units to pixels in [0, 1]; the density grows as the volume shrinks
    unit, pixels = pixel_unit(sde), math.prod(SHAPE)
    flat = x.reshape(len(x), -1).astype(np.float64) / unit
    mean, covariance = mixture.moments(sde, sde.eps)
    moments = flat.mean(axis=0), np.cov(flat, rowvar=False)
    return {
        "frechet": frechet_distance(*moments, mean / unit, covariance / unit**2),
        "log_likelihood": float(jnp.mean(likelihood)) + pixels * math.log(unit),
        "residual": float(jnp.mean(residual)),
        "modes": len(np.unique(nearest)),
    }


@jax.jit
def _judge(mixture: Any, sde: Any, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    t = jnp.full(len(x), sde.eps, x.dtype)
    return mixture.log_density(sde, x, t), mixture.residual(sde, x, t), mixture.nearest(sde, x, t)


Groups = dict[tuple[str, float, str, float], dict[str, list[float]]]


def by_row(records: dict[Cell, dict[str, float]]) -> Groups:
    """{(sde, bandwidth, name, value): {measured: one number a seed}}, modes relative to the truth's."""
    hit = {(c.sde, c.bandwidth, c.seed): r["modes"] for c, r in records.items() if c.solver is None}
    groups: Groups = {}
    for cell, record in records.items():
        group = groups.setdefault((cell.sde, cell.bandwidth, cell.name, cell.value), {})
        relative = record | {"modes": record["modes"] / hit[cell.sde, cell.bandwidth, cell.seed]}
        for name in MEASURED:
            group.setdefault(name, []).append(relative[name])
    return groups


def table(records: dict[Cell, dict[str, float]]) -> tuple[str, dict[str, float]]:
    """The table in Markdown, and its means by name."""

    def spread(values: Sequence[float], digits: int) -> str:
        if np.isnan(values).any():
            return "—"  # no sample of some seed completed
        deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
        return f"{np.mean(values):.{digits}f}{deviation}"

    rows, figures = [], {}
    for (sde, bandwidth, name, value), group in by_row(records).items():
        setting = f"{SOLVERS[name].setting} {value:g}" if name in SOLVERS else ""
        rows.append(
            [
                sde,
                f"{bandwidth:g}",
                name,
                setting,
                f"{np.mean(group['nfe_mean']):.1f}",
                f"{np.max(group['nfe_max']):.0f}",
                spread(group["frechet"], 4),
                spread(group["log_likelihood"], 2),
                spread(group["residual"], 3),
                spread(group["modes"], 3),
                f"{sum(group['failed']):.0f}",
            ]
        )
        for measured in MEASURED:
            figures[f"{sde}.{bandwidth:g}.{name}.{value:g}.{measured}"] = float(np.mean(group[measured]))
    header = ["sde", "bandwidth", "solver", "setting", "NFE", "max", "Fréchet", "log p", "residual", "modes"]
    return markdown([*header, "failed"], rows), figures


def plot(path: Path, records: dict[Cell, dict[str, float]]) -> None:
    """Plot Fréchet distance and log-likelihood by NFE at the main bandwidth, a line for each solver."""
    groups = by_row(records)
    sdes = list(dict.fromkeys(sde for sde, *_ in groups))
    names = list(dict.fromkeys(name for _, _, name, _ in groups if name != "truth"))
    figure = Figure(figsize=(15, 6 * len(sdes)), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(len(sdes), 2, squeeze=False)
    shown = (("frechet", "Fréchet distance to the true moments"), ("log_likelihood", "mean log-likelihood"))
    for panel_row, sde in zip(panels, sdes, strict=True):
        for panel, (measured, label) in zip(panel_row, shown, strict=True):
            truth = float(np.mean(groups[sde, MAIN_BANDWIDTH, "truth", 0.0][measured]))
            panel.axhline(truth, color="black", linestyle="--", linewidth=1, label="true samples")
            for i, name in enumerate(names):
                runs = [
                    group
                    for key, group in groups.items()
                    if (key[0], key[1], key[2]) == (sde, MAIN_BANDWIDTH, name)
                ]
                points = sorted(
                    (np.mean(run["nfe_mean"]), np.mean(run[measured]), np.std(run[measured])) for run in runs
                )
                nfe, values, deviations = np.transpose(points)
                other = {"color": f"C{i % 10}", "marker": "osv^DPX*"[i // 10], "linewidth": 1}
                style = STYLES.get(name, other)
                panel.errorbar(nfe, values, deviations, label=name, markersize=4, **style)
            panel.set(xscale="log", xlabel="evaluations a sample", ylabel=label)
            panel.set_title(f"{sde}, bandwidth {MAIN_BANDWIDTH:g}")
            # the interesting differences are near the truth: values far from it are cut off
            if measured == "frechet":
                panel.set_yscale("log")
                panel.set_ylim(top=5)
            else:
                panel.set_ylim(truth - 15, truth + 10)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    with atomic_file(path) as file:
        canvas.print_png(file)


if __name__ == "__main__":
    main()
