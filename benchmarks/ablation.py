"""What each part of AdaptiveExponential is worth: it is taken away, or a setting is changed, on exact scores.

python -m benchmarks.ablation [--json FILE] [--num_samples 4096]

The mixtures of benchmarks/beyond.py with the narrowest and the widest modes, VE and VP, one seed, no final
denoising. Mean NFE, the most that a sample took over that mean, and how far residual variance and mean
log-likelihood are from those of true samples (benchmarks/exact_score.py explains both); the rows named
"true samples" are a second draw of these, and show what the number of samples can tell apart.

    <problem>.<row>.nfe, .nfe_max_over_mean, .residual, .log_likelihood     the names in --json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from tqdm import tqdm

from benchmarks.beyond import Task, on_mixture, ours
from benchmarks.report import machine, write_json
from evaluation.tables import markdown
from solvers import adaptive_exponential

PROBLEMS = ("mixture_ve_0.05", "mixture_ve_0.2", "mixture_vp_0.05", "mixture_vp_0.2")
# what stands in for a function of the solver's module, and the settings, by the row's name
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it is": ({}, {}),
    "b = 0": ({"fitted_variance": lambda now, before: jnp.zeros_like(now.log_snr)}, {}),
    "G as if it drifted": ({"drift_of": lambda eta: 1.0}, {}),
    "eps_rel 0.08": ({}, {"eps_rel": 0.08}),
    "eps_rel 0.04": ({}, {"eps_rel": 0.04}),
    "eps_rel 0.01": ({}, {"eps_rel": 0.01}),
    **{f"eta {eta:g}": ({}, {"eta": eta}) for eta in (0.75, 0.5, 0.25, 0.0)},
    "eta 0, b = 0": ({"fitted_variance": lambda now, before: jnp.zeros_like(now.log_snr)}, {"eta": 0.0}),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What each part of AdaptiveExponential is worth")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--num_samples", type=int, default=4096)
    parsed = parser.parse_args(arguments)

    def run(problem: str, name: str, solver: Any, *, seed: int = 0) -> dict[str, float]:
        task = Task(problem=problem, name=name, solver=solver, seed=seed, num_samples=parsed.num_samples)
        return on_mixture(task)

    truth = {problem: run(problem, "truth", None) for problem in PROBLEMS}
    records = {("true samples", problem): run(problem, "truth", None, seed=1) for problem in PROBLEMS}
    for row, (instead, settings) in tqdm(ROWS.items(), unit="row"):
        jax.clear_caches()  # compiled programs do not know that a function was replaced
        with mock.patch.multiple(adaptive_exponential, **instead) if instead else mock.MagicMock():
            for problem in PROBLEMS:
                records[row, problem] = run(problem, row, ours("_ve" in problem, **settings))

    figures, table = {}, []
    for row in ("true samples", *ROWS):
        cells = [row]
        for problem in PROBLEMS:
            record = records[row, problem]
            spread = record["nfe_max"] / max(record["nfe"], 1)
            residual, likelihood = (record[n] - truth[problem][n] for n in ("residual", "log_likelihood"))
            measures = {"nfe": record["nfe"], "nfe_max_over_mean": spread}
            measures |= {"residual": residual, "log_likelihood": likelihood}
            figures |= {f"{problem}.{row}.{name}": value for name, value in measures.items()}
            cells.append(f"{record['nfe']:.1f} ({spread:.2f}): {residual:+.4f}, {likelihood:+.2f}")
        table.append(cells)
    print(f"{machine()}\n{parsed.num_samples} samples; NFE (max/mean): residual variance, log-likelihood\n")
    print(markdown(["", *PROBLEMS], table))
    if parsed.json:
        write_json(parsed.json, figures)


if __name__ == "__main__":
    main()
