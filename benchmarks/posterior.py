"""How wrong are the methods for inverse problems, where the posterior is known?

python -m benchmarks.posterior [--json FILE] [--num_samples 2048] [--full] [--pictures FOLDER]

The data are images of 4 × 4 pixels of 3 channels, Gaussian with a smooth covariance that has no symmetry
between the channels: deviations of 0.4 to 0.5, and correlations that fall with the distance. The score is
exact, and so is the posterior N(m, C) for one observation. Inpainting (the upper half is known) and
colorization observe without noise, the other methods with a deviation of 0.1. Samples are taken at t = eps of
VP, where their law is N(α m, α² C + σ² I), and so scaled that it is N(0, I). For each run:

    nfe           network evaluations a sample, products with the Jacobian included
    mean          root mean square of the mean's 48 coordinates: its error in deviations of the posterior
    covariance    root mean square over the 48 directions of the covariance's relative error

From both, the expected value for exact samples is taken out, under the root; what is less counts as 0. The
table marks figures that exact samples exceed once in 15,000 times (4 standard errors), and its last line says
how large these are.

moments_3 is moment matching with 3 iterations. By default, AdaptiveExponential draws everything, and Adaptive
and 1,000 steps of Euler–Maruyama only some rows of the mask; with --full, they draw everything.

The second table has data of several modes, for which no method is exact: the mixture of benchmarks/paths.py,
with 3 of the 8 coordinates observed with a deviation of 0.5, which leaves the mode open. Over 8 observations:

    weights       mean total variation distance between the share of the samples in each mode and its
                  posterior probability, from 0 to 1

    <operator>.<method>.<solver>.nfe, .mean, .covariance, and mixture.<method>.nfe, .weights: names in --json

--pictures FOLDER writes conditional_inpainting.png and conditional_resolution.png, of the shipped VP digits
network, and conditional_colours.png, of coloured digits with an exact score, and measures nothing.
"""

import argparse
import colorsys
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float
from sklearn.datasets import load_digits
from tqdm import tqdm

import models
from benchmarks.mixture import Mixture
from benchmarks.paths import DEVIATION as MODE_DEVIATION
from benchmarks.paths import REPEATS, mixture, modes
from benchmarks.report import machine, table_of_runs, write_json
from configs.vp import digits_adaptive
from evaluation.runs.plots import save_grid
from evaluation.runs.tables import markdown
from sde_lib import SDE, VPSDE, from_config
from sde_lib.inverse import Observation, colorization, inpainting, moment_matching, pseudoinverse_guidance
from sde_lib.operators import Blur, BoxDownsample, Grey, Mask, Matrix, Operator
from solvers import Adaptive, AdaptiveExponential, EulerMaruyama, Solver, sample

SHAPE, SIZE = (4, 4, 3), 48
NOISE, DEVIATION = 0.1, 0.46  # of the observation, and of the data on average
STANDARD_ERRORS = 4
EXACT = "exact samples"
SDE_: SDE = VPSDE()
UPPER_HALF = np.broadcast_to(np.arange(4)[:, None, None] < 2, SHAPE)
OPERATORS: dict[str, Any] = {
    "mask": Mask(UPPER_HALF),
    "grey": Grey(),
    "box": BoxDownsample(2),
    "blur": Blur(np.outer([1, 2, 1], [1, 2, 1]) / 16),
}
SOLVERS: dict[str, Solver] = {
    "adaptive_exponential": AdaptiveExponential(),
    "adaptive": Adaptive(),
    "euler_maruyama": EulerMaruyama(num_steps=1000),
}
METHODS = ("replacement", "pseudoinverse", "moments_3", "moments_12")
COLOURED, HUES = 300, 6  # digits that are coloured, each in so many hues


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The errors of methods for inverse problems on Gaussians")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--num_samples", type=int, default=2048)
    parser.add_argument("--full", action="store_true", help="all solvers on all operators")
    parser.add_argument("--pictures", type=Path, help="write the pictures of docs/conditional.md instead")
    parsed = parser.parse_args(arguments)
    if parsed.pictures:
        draw_digits(parsed.pictures)
        draw_colours(parsed.pictures)
        return
    figures = measure(parsed.num_samples, full=parsed.full)
    print(f"{machine()}\n{parsed.num_samples:,} samples\n\n{table(figures, parsed.num_samples)}\n")
    of_modes = measure_modes(parsed.num_samples)
    print(markdown(["data", "method", "nfe", "weights"], mode_rows(of_modes)))
    if parsed.json:
        write_json(parsed.json, figures | of_modes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Data ~ N(mean, covariance), for flattened samples; the mean is one, or one for each row of a batch."""

    mean: Float[np.ndarray, "... d"]
    covariance: Float[np.ndarray, "d d"]

    def given(
        self, matrix: Float[np.ndarray, "m d"], y: Float[np.ndarray, "... m"], noise: float
    ) -> "Gaussian":
        """The posterior for y = A x0 + n, with n ~ N(0, noise² I)."""
        observed = matrix @ self.covariance @ matrix.T + noise**2 * np.eye(len(matrix))
        gain = self.covariance @ matrix.T @ np.linalg.pinv(observed, hermitian=True)
        mean = self.mean + (y - self.mean @ matrix.T) @ gain.T
        return Gaussian(mean=mean, covariance=self.covariance - gain @ matrix @ self.covariance)

    def score_fn(self, sde: SDE) -> Partial:
        """The score, (x [b, ...], t [b]) -> ∇ log p_t(x) [b, ...]."""
        values, vectors = np.linalg.eigh(self.covariance)
        return Partial(_score, *(jnp.asarray(array, float) for array in (self.mean, values, vectors)), sde)

    def scaled(self, sde: SDE, x: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n d"]:
        """Samples at eps, so scaled and shifted that they are N(0, I) if they are right."""
        alpha, sigma = (float(value) for value in sde.marginal(sde.eps))
        factor = np.linalg.cholesky(alpha**2 * self.covariance + sigma**2 * np.eye(len(self.covariance)))
        centred = x.reshape(len(x), -1).astype(np.float64) - alpha * self.mean
        return np.linalg.solve(factor, centred.T).T


def _score(mean: Array, values: Array, vectors: Array, sde: SDE, x: Array, t: Array) -> Array:
    def of_one(x: Array, t: Any, mean: Array) -> Array:
        alpha, sigma = sde.marginal(t)
        coordinates = (x.ravel() - alpha * mean) @ vectors
        return -(vectors @ (coordinates / (alpha**2 * values + sigma**2))).reshape(x.shape)

    return jax.vmap(of_one)(x, t, jnp.broadcast_to(mean, (len(x), mean.shape[-1])))


def data() -> Gaussian:
    """Smooth images whose channels differ."""
    rows, columns = np.divmod(np.arange(16), 4)
    distances = np.hypot(*(np.subtract.outer(axis, axis) for axis in (rows, columns)))
    channels = np.array([[1.0, 0.8, 0.3], [0.8, 1.0, 0.6], [0.3, 0.6, 0.6]]) / 4
    mean = np.random.default_rng(0).standard_normal(SIZE) / 2
    return Gaussian(mean=mean, covariance=np.kron(np.exp(-distances / 2), channels))


def score_of(method: str, score_fn: Partial, sde: SDE, operator: Operator) -> Partial:
    """The score function of a row of the table."""
    name, _, iterations = method.partition("_")
    if name == "replacement":
        return (inpainting if isinstance(operator, Mask) else colorization)(score_fn, sde)
    if name == "pseudoinverse":
        return pseudoinverse_guidance(score_fn, sde, operator, noise=NOISE, data_deviation=DEVIATION)
    return moment_matching(score_fn, sde, operator, noise=NOISE, iterations=int(iterations))


def measure(
    num_samples: int, *, full: bool = False, operators: Sequence[str] = tuple(OPERATORS)
) -> dict[str, float]:
    """The figures of all runs, by their names in --json."""
    exact = np.random.default_rng(0).standard_normal((num_samples, SIZE))
    figures = {f".{EXACT}..{name}": value for name, value in errors(exact).items()}
    runs = [
        (operator, method, solver)
        for operator in operators
        for method in METHODS
        for solver in SOLVERS
        if method != "replacement" or operator in ("mask", "grey")
        if full or solver == "adaptive_exponential" or (operator == "mask" and method != "moments_12")
    ]
    for operator, method, solver in tqdm(runs, unit="run", disable=None):
        posterior, observation = observed(operator, noise=0 if method == "replacement" else NOISE)
        rows = jax.tree.map(lambda array: np.broadcast_to(array, (num_samples, *array.shape)), observation)
        solution = sample(
            score_of(method, data().score_fn(SDE_), SDE_, OPERATORS[operator]),
            SDE_,
            SOLVERS[solver],
            key=jax.random.key(0),
            shape=SHAPE,
            num_samples=num_samples,
            conditions=rows,
            batch_size=1024,
            denoise=False,
        )
        if solution.failed:
            raise RuntimeError(f"{solution.failed} samples of {method} with {solver} failed")
        found = errors(posterior.scaled(SDE_, solution.x))
        found = {"nfe": float(solution.nfe.mean()), **found}
        figures |= {f"{operator}.{method}.{solver}.{name}": value for name, value in found.items()}
    return figures


def observed(operator: str, *, noise: float) -> tuple[Gaussian, Observation]:
    """The posterior of the data for an observation of one of them, and this observation, without [b]."""
    apply, problem = OPERATORS[operator], data()
    units = jnp.eye(SIZE).reshape(SIZE, *SHAPE)
    seen = np.asarray(jax.vmap(apply)(units), np.float64)
    matrix = seen.reshape(SIZE, -1).T
    rng = np.random.default_rng(1)
    x = problem.mean + np.linalg.cholesky(problem.covariance) @ rng.standard_normal(SIZE)
    y = matrix @ x + noise * rng.standard_normal(len(matrix)) * matrix.any(axis=1)
    mask = UPPER_HALF if operator == "mask" and noise == 0 else None  # for inpainting
    observation = Observation(y=y.reshape(seen.shape[1:]).astype(np.float32), mask=mask)
    return problem.given(matrix, y, noise), observation


def errors(z: Float[np.ndarray, "n d"]) -> dict[str, float]:
    """The errors of the mean and covariance of samples that should be N(0, I)."""
    n, d = z.shape
    mean = z.mean(axis=0)
    difference = (z - mean).T @ (z - mean) / (n - 1) - np.eye(d)
    return {
        "mean": math.sqrt(max(np.mean(mean**2) - 1 / n, 0)),
        "covariance": math.sqrt(max(np.sum(difference**2) / d - (d + 1) / n, 0)),
    }


def limits(num_samples: int, d: int = SIZE) -> dict[str, float]:
    """What the errors of exact samples exceed once in 15,000 times.

    Their squares have deviations of √(2/d)/n, and of 2 √((d + 1)/d)/n for the covariance.
    """
    deviations = {"mean": math.sqrt(2 / d), "covariance": 2 * math.sqrt((d + 1) / d)}
    return {name: math.sqrt(STANDARD_ERRORS * value / num_samples) for name, value in deviations.items()}


def alarms(figures: dict[str, float], num_samples: int) -> set[str]:
    """The names of the figures that the table marks."""
    limit = limits(num_samples)
    return {name for name, value in figures.items() if value > limit.get(name.rpartition(".")[2], math.inf)}


def table(figures: dict[str, float], num_samples: int) -> str:
    """One row for each run, the figures that ``alarms`` names marked with a star."""
    forms = {"nfe": ".0f", "mean": ".3f", "covariance": ".3f"}
    about = ("operator", "method", "solver")
    limit = limits(num_samples)
    return "\n".join(
        [
            table_of_runs(figures, alarms(figures, num_samples), about=about, forms=forms),
            f"\n* above {limit['mean']:.3f} (mean) or {limit['covariance']:.3f} (covariance)",
        ]
    )


def measure_modes(num_samples: int, observations: int = 8) -> dict[str, float]:
    """The figures of the mixture, by their names in --json."""
    problem, centres, weights = mixture(), modes(), np.array(REPEATS) / sum(REPEATS)
    matrix, noise = np.eye(centres.shape[1])[:3], 0.5
    rng = np.random.default_rng(0)
    chosen = centres[rng.choice(len(centres), observations, p=weights)]
    x = chosen + MODE_DEVIATION * rng.standard_normal(chosen.shape)
    y = x @ matrix.T + noise * rng.standard_normal((observations, len(matrix)))
    squares = np.sum((y[:, None] - centres @ matrix.T) ** 2, axis=2) / (MODE_DEVIATION**2 + noise**2)
    exact = weights * np.exp(-squares / 2)
    exact /= exact.sum(axis=1, keepdims=True)

    each = -(-num_samples // observations)
    score_fn, operator = problem.score_fn(SDE_), Matrix(matrix)
    spread = math.sqrt(np.mean(weights @ (centres - weights @ centres) ** 2) + MODE_DEVIATION**2)
    methods = {
        "pseudoinverse": pseudoinverse_guidance(score_fn, SDE_, operator, noise=noise, data_deviation=spread),
        "moments_1": moment_matching(score_fn, SDE_, operator, noise=noise, iterations=1),
        "moments_3": moment_matching(score_fn, SDE_, operator, noise=noise),
    }
    figures = {}
    for name, method in methods.items():
        solution = sample(
            method,
            SDE_,
            AdaptiveExponential(),
            key=jax.random.key(0),
            shape=centres.shape[1:],
            num_samples=observations * each,
            conditions=Observation(y=np.repeat(y, each, axis=0).astype(np.float32)),
            batch_size=1024,
        )
        distances = np.sum((solution.x[:, None] - centres) ** 2, axis=2)
        nearest = np.argmin(distances, axis=1).reshape(observations, each)
        shares = np.stack([np.mean(nearest == mode, axis=1) for mode in range(len(centres))], axis=1)
        figures[f"mixture.{name}.nfe"] = float(solution.nfe.mean())
        figures[f"mixture.{name}.weights"] = float(np.mean(np.sum(np.abs(shares - exact), axis=1) / 2))
    return figures


def mode_rows(figures: dict[str, float]) -> list[list[str]]:
    runs = list(dict.fromkeys(name.rpartition(".")[0] for name in figures))
    return [
        [*run.split("."), f"{figures[f'{run}.nfe']:.0f}", f"{figures[f'{run}.weights']:.3f}"] for run in runs
    ]


def draw_digits(folder: Path) -> None:
    """Inpainted and enlarged digits of the shipped VP network."""
    config = digits_adaptive.get_config()
    sde, score_fn = from_config(config.sde), models.load_score_fn(config)
    digits = 2 * jnp.asarray(grey_digits()[[0, 4, 6, 9]], jnp.float32) - 1
    mask = jnp.broadcast_to(jnp.arange(8)[:, None, None] < 4, digits.shape[1:])
    replaced, matched = inpainting(score_fn, sde), moment_matching(score_fn, sde, Mask(mask), noise=NOISE)
    known = Observation(y=digits, mask=jnp.broadcast_to(mask, digits.shape))
    save_rows(
        folder / "conditional_inpainting.png",
        [
            (digits, jnp.where(mask, digits, 0), drawn(replaced, sde, known, digits.shape[1:])),
            (
                digits,
                jnp.where(mask, digits, 0),
                drawn(matched, sde, Observation(y=digits), digits.shape[1:]),
            ),
        ],
        title="The lower half of a digit, given the upper one (VP digits network)",
        caption="Left to right: digit, observation, six samples. Top: replacement. Bottom: moment matching.",
    )
    operator = BoxDownsample(2)
    small = jax.vmap(operator)(digits)
    matched = moment_matching(score_fn, sde, operator, noise=NOISE)
    shown = small.repeat(2, axis=1).repeat(2, axis=2)
    save_rows(
        folder / "conditional_resolution.png",
        [(digits, shown, drawn(matched, sde, Observation(y=small), digits.shape[1:]))],
        title="A digit of 8 by 8 pixels, given 4 by 4 (VP digits network)",
        caption="Left to right: digit, observation, six samples by moment matching.",
    )


def draw_colours(folder: Path) -> None:
    """Coloured digits given their grey images, with the exact score of a mixture around the data."""
    images = coloured_digits()
    score_fn = Mixture.around(images, bandwidth=0.05).score_fn(SDE_)
    chosen = jnp.asarray(images[[0, 4 * HUES + 2, 6 * HUES + 4]], jnp.float32)
    grey = jnp.mean(chosen, axis=3, keepdims=True)
    methods = colorization(score_fn, SDE_), moment_matching(score_fn, SDE_, Grey(), noise=NOISE)
    save_rows(
        folder / "conditional_colours.png",
        [
            (chosen, grey.repeat(3, axis=3), drawn(method, SDE_, Observation(y=grey), chosen.shape[1:]))
            for method in methods
        ],
        title="The colours of a digit, given its grey image (exact score)",
        caption="Left to right: digit, observation, six samples. Top: replacement. Bottom: moment matching.",
    )


def grey_digits() -> Float[np.ndarray, "1797 8 8 1"]:
    """Scikit-learn's digits, in [0, 1]."""
    pixels, _ = load_digits(return_X_y=True)
    return np.asarray(pixels).reshape(-1, 8, 8, 1) / 16


def coloured_digits() -> Float[np.ndarray, "n 8 8 3"]:
    """The first 300 digits in six hues each, in [−1, 1]. The grey image says nothing about the hue."""
    hues = np.array([colorsys.hsv_to_rgb(hue, 1, 1) for hue in np.arange(HUES) / HUES])
    hues /= hues.sum(axis=1, keepdims=True)  # of one brightness: red is (1, 0, 0), yellow (1/2, 1/2, 0)
    images = grey_digits()[:COLOURED, None] * hues[:, None, None]
    return 2 * images.reshape(-1, 8, 8, 3) - 1


def drawn(
    score_fn: Partial, sde: SDE, observation: Observation, shape: tuple[int, ...], each: int = 6
) -> Float[np.ndarray, "n each h w c"]:
    """Samples for each observation."""
    rows = jax.tree.map(lambda array: jnp.repeat(array, each, axis=0), observation)
    settings: Any = {"key": jax.random.key(0), "shape": shape, "num_samples": len(rows.y)}
    solution = sample(score_fn, sde, AdaptiveExponential(), conditions=rows, **settings)
    return solution.x.reshape(-1, each, *shape)


def save_rows(path: Path, parts: Sequence[tuple[Any, Any, Any]], *, title: str, caption: str) -> None:
    """A picture with a row for each image of each part: the image, its observation, the samples."""
    rows = np.concatenate(
        [np.concatenate([image[:, None], seen[:, None], samples], axis=1) for image, seen, samples in parts]
    )
    images = np.clip(np.round((rows + 1) / 2 * 255), 0, 255).astype(np.uint8)
    images = images.reshape(-1, *rows.shape[2:])
    save_grid(path, images, title=title, caption=caption, columns=rows.shape[1])


if __name__ == "__main__":
    main()
