"""One mixture, six processes: do the adaptive solvers draw the same data whatever the process?

python -m benchmarks.paths [--json FILE] [--num_samples 4096]

The data are a mixture of four Gaussians in 8 dimensions, with the weights 1/2, 1/4, 1/8 and 1/8 and a
deviation of 0.1 each. They are the same for VP, VE, EDM, the rectified flow, the cosine schedule and DDPM's
table. The scores are exact. No sample is denoised at the end, so that the exact law of the samples is that of
x(eps). Every sample belongs to its nearest mode; the modes are at least 10 deviations apart. For each run:

    nfe         evaluations a sample
    weights     χ² of the modes' counts, 3 degrees of freedom
    means       χ² of the modes' means, 32 degrees of freedom
    variance    mean square of (x − mean of its mode) over the exact variance: 1, with a standard error
                of √(2/8n)

The two χ² are given as p-values, the probability of one at least as large if the samples were exact. The
table marks a p-value below 1e-4, and a variance that is off by more than four standard errors. It would mark
exact samples once in 160 tables: 48 p-values at 1e-4 each, and 24 variances at 6e-5. Ten evaluations of a
method with fixed steps are there for comparison, and are not exact.

    <process>.<solver>.nfe, .weights_p, .means_p, .variance     the names in --json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float
from scipy import stats
from tqdm import tqdm

from benchmarks.mixture import Mixture
from benchmarks.report import machine, table_of_runs, write_json
from sde_lib import SDE, VESDE, VPSDE, CosineVP, DiscreteVP, EDMProcess, RectifiedFlow
from solvers import Adaptive, AdaptiveExponential, Solver, Status, UniformLogSNR, UniPC, sample

DIMENSIONS, DEVIATION = 8, 0.1
REPEATS = (4, 2, 1, 1)  # a centre that is there four times has four times the weight
ALARM, DEVIATIONS = 1e-4, 4
PROCESSES: dict[str, SDE] = {
    "vp": VPSDE(),
    "ve": VESDE(),
    "edm": EDMProcess(),
    "flow": RectifiedFlow(),
    "cosine": CosineVP(),
    "table": DiscreteVP.from_betas(np.linspace(1e-4, 0.02, 1000)),
}
SOLVERS: dict[str, Solver] = {
    "adaptive_exponential": AdaptiveExponential(),
    "adaptive": Adaptive(noise_on_rejection="bridge"),
    "unipc, 10 steps": UniPC(num_steps=10, grid=UniformLogSNR()),
}
EXACT = "exact samples"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The adaptive solvers on one mixture, for six processes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--num_samples", type=int, default=4096)
    parsed = parser.parse_args(arguments)
    figures = measure(parsed.num_samples)
    spread = np.sqrt(2 / (DIMENSIONS * parsed.num_samples))
    print(f"{machine()}\n{parsed.num_samples:,} samples, a variance has a standard error of {spread:.4f}\n")
    print(table(figures, parsed.num_samples))
    if parsed.json:
        write_json(parsed.json, figures)


def modes() -> Float[np.ndarray, "4 8"]:
    """The centres, in [−1, 1]."""
    return np.random.default_rng(0).uniform(-1, 1, (len(REPEATS), DIMENSIONS))


def mixture() -> Mixture:
    """The mixture of all processes."""
    return Mixture.around(np.repeat(modes(), REPEATS, axis=0), DEVIATION)


def measure(num_samples: int, processes: Sequence[str] = tuple(PROCESSES)) -> dict[str, float]:
    """The figures of all runs, and of exact samples, by their names in --json."""
    problem, figures = mixture(), {}
    for number, name in enumerate(tqdm(processes, unit="process", disable=None)):
        sde = PROCESSES[name]
        exact = problem.samples(
            sde, sde.eps, key=jax.random.key(1 + number), num_samples=num_samples, shape=(DIMENSIONS,)
        )
        found = {EXACT: quality(np.asarray(exact), sde)}
        for label, solver in SOLVERS.items():
            solution = sample(
                problem.score_fn(sde),
                sde,
                solver,
                key=jax.random.key(0),
                shape=(DIMENSIONS,),
                num_samples=num_samples,
                batch_size=512,
                denoise=False,
            )
            if solution.failed:
                statuses = sorted({Status(status).name for status in solution.status})
                raise RuntimeError(f"{solution.failed} samples of {label} on {name} failed: {statuses}")
            found[label] = {"nfe": float(solution.nfe.mean()), **quality(solution.x, sde)}
        figures |= {
            f"{name}.{label}.{measure}": value
            for label, row in found.items()
            for measure, value in row.items()
        }
    return figures


def quality(x: Float[np.ndarray, "n 8"], sde: SDE) -> dict[str, float]:
    """The two p-values and the relative variance of samples at eps."""
    alpha, sigma = (float(value) for value in sde.marginal(sde.eps))
    variance = (alpha * DEVIATION) ** 2 + sigma**2
    centres = alpha * modes()
    x = np.asarray(x, np.float64)
    nearest = np.argmin(np.sum((x[:, None] - centres) ** 2, axis=2), axis=1)
    counts = np.bincount(nearest, minlength=len(centres))
    expected = len(x) * np.asarray(REPEATS) / sum(REPEATS)
    differences = x - centres[nearest]
    # count × mean²/variance of each mode and coordinate; a mode without samples has no mean to be wrong
    sums = np.array([differences[nearest == mode].sum(axis=0) for mode in range(len(centres))])
    means = np.sum(sums**2 / (np.maximum(counts, 1)[:, None] * variance))
    return {
        "weights_p": float(stats.chi2.sf(np.sum((counts - expected) ** 2 / expected), len(centres) - 1)),
        "means_p": float(stats.chi2.sf(means, DIMENSIONS * np.count_nonzero(counts))),
        "variance": float(np.mean(differences**2) / variance),
    }


def alarms(figures: dict[str, float], num_samples: int) -> set[str]:
    """The names of the figures that the table marks."""
    error = DEVIATIONS * np.sqrt(2 / (DIMENSIONS * num_samples))
    return {
        name
        for name, value in figures.items()
        if (name.endswith("_p") and value < ALARM) or (name.endswith(".variance") and abs(value - 1) > error)
    }


def table(figures: dict[str, float], num_samples: int) -> str:
    """One row for each run, the figures that ``alarms`` names marked with a star."""
    forms = {"nfe": ".1f", "weights_p": ".2g", "means_p": ".2g", "variance": ".4f"}
    about = ("process", "samples of")
    return table_of_runs(figures, alarms(figures, num_samples), about=about, forms=forms)


if __name__ == "__main__":
    main()
