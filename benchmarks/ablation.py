"""Remove parts of AdaptiveExponential, or change a setting, and measure the effect on exact scores.

python -m benchmarks.ablation [--json FILE] [--num_samples 4096]

The problems are the mixtures of benchmarks/beyond.py with the narrowest and the widest modes, for VE and VP,
with one seed and without final denoising. The table shows the mean NFE, and the residual variance, the mean
log-likelihood and the Fréchet distance less those of true samples (benchmarks/exact_score.py explains all
three). The row "true samples" is a second draw of true samples: smaller differences are noise.

    <problem>.<row>.nfe, .nfe_max_over_mean, .residual, .log_likelihood, .frechet     the names in --json
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from tqdm import tqdm

from benchmarks.beyond import Task, on_mixture, ours
from benchmarks.report import machine, write_json
from evaluation.runs.tables import markdown
from solvers import adaptive_exponential
from solvers.adaptive_exponential import AdaptiveExponential

PROBLEMS = ("mixture_ve_0.05", "mixture_ve_0.2", "mixture_vp_0.05", "mixture_vp_0.2")
MEASURES = ("residual", "log_likelihood", "frechet")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A variant of the solver: the functions and constants of its module that are replaced, and settings."""

    name: str
    instead: dict[str, Any] = dataclasses.field(default_factory=dict)
    tolerance: float = 1.0  # factor on both default tolerances
    eta: float = 1.0

    def solver(self, problem: str) -> AdaptiveExponential:
        default = ours("_ve" in problem)
        return dataclasses.replace(
            default,
            eta=self.eta,
            eps_rel=self.tolerance * default.eps_rel,
            eps_abs=self.tolerance * default.eps_abs,
        )


NO_WIDTH = {"fitted_variance": lambda now, before: jnp.zeros_like(now.log_snr)}
ROWS = [
    Row(name="as it is"),
    *(Row(name=f"tolerance x {factor:g}", tolerance=factor) for factor in (4, 2, 0.5)),
    Row(name="b = 0", instead=NO_WIDTH),
    Row(name="as much noise at every level", instead={"FAR_ABOVE": 1.0}),
    # extrapolation, UniC's weight and Milne's error at eta = 1; the tolerance gives about as many evaluations
    Row(name="as if G drifted", instead={"drift_of": lambda eta: 1.0}, tolerance=0.25),
    *(Row(name=f"eta {eta:g}", eta=eta) for eta in (0.75, 0.5, 0.25, 0.0)),
    Row(name="eta 0, b = 0", instead=NO_WIDTH, eta=0.0),
]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The effect of each part of AdaptiveExponential")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--num_samples", type=int, default=4096)
    parsed = parser.parse_args(arguments)

    def run(problem: str, solver: AdaptiveExponential | None, *, seed: int = 0) -> dict[str, float]:
        return on_mixture(
            Task(problem=problem, name="", solver=solver, seed=seed, num_samples=parsed.num_samples)
        )

    truth = {problem: run(problem, None) for problem in PROBLEMS}
    records = {("true samples", problem): run(problem, None, seed=1) for problem in PROBLEMS}
    for row in tqdm(ROWS, unit="row"):
        jax.clear_caches()  # compiled programs would keep the function that is replaced
        with mock.patch.dict(vars(adaptive_exponential), row.instead):
            for problem in PROBLEMS:
                records[row.name, problem] = run(problem, row.solver(problem))

    figures, table = {}, []
    for name in ("true samples", *(row.name for row in ROWS)):
        cells = [name]
        for problem in PROBLEMS:
            record = records[name, problem]
            measures = {"nfe": record["nfe"], "nfe_max_over_mean": record["nfe_max"] / max(record["nfe"], 1)}
            measures |= {measure: record[measure] - truth[problem][measure] for measure in MEASURES}
            figures |= {f"{problem}.{name}.{measure}": value for measure, value in measures.items()}
            residual, likelihood, distance = (measures[measure] for measure in MEASURES)
            cells.append(f"{record['nfe']:.1f}: {residual:+.3f}, {likelihood:+.2f}, {distance:+.3f}")
        table.append(cells)
    print(f"{machine()}\n{parsed.num_samples} samples; NFE: residual, log-likelihood, Fréchet distance\n")
    print(markdown(["", *PROBLEMS], table))
    if parsed.json:
        write_json(parsed.json, figures)


if __name__ == "__main__":
    main()
