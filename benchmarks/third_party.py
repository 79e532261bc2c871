"""Do few evaluations give what many small steps give, on score networks that others trained?

pip install galaxygrad==0.1.9
python -m benchmarks.third_party [--quick] [--json FILE] [--networks NAME,NAME] [--solvers NAME,NAME]
                                 [--num_samples N] [--workdir DIR]

The networks of galaxygrad (Sampson et al., arXiv 2401.07313) know single images of galaxies in surveys;
examples/galaxies.py draws them. Their true distribution is not known. In its place are samples by many small
steps: the reference. A second reference, with other noise, is compared with the first like any solver's
samples, and shows what chance does. All samples end with the library's final denoising. For each solver:

    distance    sliced Wasserstein distance of the pixels to the reference, over the floor: its mean between
                random halves of both references together. 1 is as near as chance lets it be. The table has
                the interval of 95 % of these halves.
    flux        mean over the images of the total brightness, over the reference's; an image has the logarithm
                of 1 + brightness, in units of 0.1
    spread      the deviation of the total brightness, over the reference's
    coarse, middle, small, residual     power at spatial frequencies below 0.1, 0.2 and 0.35 cycles a pixel,
                and above: the geometric mean over the images, over the reference's. Noise that was left in
                the images is in the last.
    noisy       images with more power in the last band than any of the reference: one is expected, k or more
                have a probability of 1/2^k
    nfe, max    evaluations of a sample, mean and largest
    failed      samples that did not complete; they are left out of the other figures

A ratio is shown with its 95 % interval, from the scatter of the images of both sets. A star marks what chance
does once in 16,000 figures, which is 4 standard errors; and a distance beyond 99 % of the halves.

    <network>.<solver>.<figure>, and .<figure>_error, the standard error of a ratio's logarithm     in --json

The numbers behind a solver are its evaluations without the denoising, or its eps_rel. Every set of samples is
a file in the workdir, named by a hash of all that determines it, the solver's code included; the references
are in chunks. Every row is a line of third_party.jsonl there. A killed run is resumed by the same command.
The plots are third_party.png and third_party_images.png in the workdir.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.exact_score import code_of
from benchmarks.report import OURS, PAPERS, Records, hash_of, machine, names_in, write_json
from evaluation.metrics.bootstrap import Z
from evaluation.metrics.sliced_wasserstein import SCALE, directions, sliced_wasserstein
from evaluation.runs.tables import markdown
from evaluation.store.files import atomic_file, make_folder
from sde_lib import VPSDE
from sde_lib.checks import refusal
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
    SASolver,
    SDEDPMSolverPP,
    Status,
    UniformLogSNR,
    UniPC,
    sample,
)

PROCESS = VPSDE(beta_min=10.0, beta_max=10.0)  # the integral of beta is 10 t, up to the networks' 10 at t = 1
BRIGHTNESS = 0.1  # the unit of an image's logarithms
MAX_EVALUATIONS = 4000
ALL_NOISE = 1000.0  # a data_deviation at which AdaptiveExponential adds all of the noise at every level

SOLVERS: dict[str, Any] = {
    "adaptive_exponential 0.02": AdaptiveExponential(),
    "sde_dpm_solver_pp 20": SDEDPMSolverPP(num_steps=20),
    "sde_dpm_solver_pp 40": SDEDPMSolverPP(num_steps=40),
    "er_sde 20": ERSDE(num_steps=20),
    "er_sde 40": ERSDE(num_steps=40),
    "sa_solver 20": SASolver(num_steps=20),
    "sa_solver 40": SASolver(num_steps=40),
    "adaptive_exponential 0.05": AdaptiveExponential(eps_rel=0.05),
    "adaptive_exponential 0.01": AdaptiveExponential(eps_rel=0.01),
    "adaptive_exponential 0.005": AdaptiveExponential(eps_rel=0.005),
    "adaptive_exponential_steps 20": AdaptiveExponential(num_evaluations=20),
    "adaptive_exponential_all_noise 0.02": AdaptiveExponential(data_deviation=ALL_NOISE),
    "adaptive_exponential_all_noise_steps 20": AdaptiveExponential(
        num_evaluations=20, data_deviation=ALL_NOISE
    ),
    "unipc 20": UniPC(num_steps=20),
    "dpm_solver_pp_2m 20": DPMSolverPP(num_steps=20, order=2),
    "deis 20": DEIS(num_steps=20),
    "ddim 20": DDIM(num_steps=20),
    "heun 20": Heun(num_steps=10),
    "adaptive 0.05": Adaptive(eps_rel=0.05),
    "adaptive 0.02": Adaptive(),
    "unipc 40": UniPC(num_steps=40),
    "dpm_solver_pp_2m 40": DPMSolverPP(num_steps=40, order=2),
    "deis 40": DEIS(num_steps=40),
    "ddim 40": DDIM(num_steps=40),
    "heun 40": Heun(num_steps=20),
    "adaptive_exponential_ode 0.02": AdaptiveExponential(eta=0.0),
    "ddim_eta_1 40": DDIM(num_steps=40, eta=1.0),
    "edm_churn 40": EDM(num_steps=20, churn=40.0),
    "rk45 0.01": RK45(rtol=0.01, atol=0.01),
    "ancestral 40": AncestralSampling(num_steps=40),
    "reverse_diffusion 40": ReverseDiffusion(num_steps=40),
    "predictor_corrector 40": PredictorCorrector(predictor=ReverseDiffusion(num_steps=20)),
    "euler_maruyama 40": EulerMaruyama(num_steps=40),
    "euler_maruyama 200": EulerMaruyama(num_steps=200),
    "euler_maruyama_log_snr 500": EulerMaruyama(num_steps=500, grid=UniformLogSNR()),
    "euler_maruyama_log_snr 2000": EulerMaruyama(num_steps=2000, grid=UniformLogSNR()),
    "sde_dpm_solver_pp 300": SDEDPMSolverPP(num_steps=300),
}
CHECKS = (
    "euler_maruyama_log_snr 500",
    "euler_maruyama_log_snr 2000",
    "sde_dpm_solver_pp 300",
)  # of references
ALL = tuple(name for name in SOLVERS if name not in CHECKS)
MAIN = ALL[: ALL.index("adaptive 0.02")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """What is drawn from a network of galaxygrad.

    Attributes:
        side: of its images, in pixels.
        reference: the solver of the references.
        rows: the solvers that draw from it by default.
    """

    side: int
    reference: Any = SOLVERS["sde_dpm_solver_pp 300"]
    rows: tuple[str, ...] = MAIN


NETWORKS = {
    "HSC_32": Network(
        side=32,
        reference=SOLVERS["euler_maruyama_log_snr 2000"],
        rows=(*ALL, "euler_maruyama_log_snr 500", "sde_dpm_solver_pp 300"),
    ),
    "HSC_64": Network(side=64),
    "ZTF_32": Network(side=32, rows=ALL),
    "ZTF_64": Network(side=64),
    "LSST_60": Network(side=60),
    "QUASAR_72": Network(side=72),
}
DEFAULT = ("HSC_32", "ZTF_32", "LSST_60", "HSC_64")
BATCH_SIZE = 32
NUM_SAMPLES, QUICK_SAMPLES = 1024, 64
QUICK = ("adaptive_exponential 0.02", "er_sde 20", "unipc 20")
QUICK_REFERENCE = EulerMaruyama(num_steps=50, grid=UniformLogSNR())
AGAIN = "reference again"
REFERENCES, SOLVERS_SEED = (1, 2), 0
CHUNK, FEWEST = 64, 16  # samples

EDGES = (0.1, 0.2, 0.35)  # cycles a pixel
BANDS = ("coarse", "middle", "small", "residual")
RATIOS = ("flux", "spread", *BANDS)
LARGE = 4.0  # standard errors
MANY = 14  # noisy images, as unlikely as LARGE
SPLITS = 200
TICKS = (20, 50, 100, 200, 500)  # evaluations

Images = Float[np.ndarray, "n h w"]


def power(images: Images) -> Float[np.ndarray, "n bands"]:
    """The power of each image in the bands between ``EDGES``, averaged over all directions, without the mean.

    It is the periodogram, whose mean over all frequencies is the variance of the pixels: white noise of
    variance v has the power v in every band.

    Args:
        images: [n, h, w].
    """
    spectrum = np.abs(np.fft.fft2(images)) ** 2 / np.prod(images.shape[1:])
    frequency = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, images.shape[1:]), indexing="ij"))
    band = np.digitize(frequency, EDGES)
    return np.stack(
        [spectrum[:, (band == number) & (frequency > 0)].mean(axis=1) for number in range(len(BANDS))], axis=1
    )


def flux(images: Images) -> Float[np.ndarray, " n"]:
    """The total brightness of each image; its pixels are log(1 + brightness), in units of ``BRIGHTNESS``."""
    return np.expm1(BRIGHTNESS * images.astype(np.float64)).sum(axis=(1, 2))


def ratio(ours: Float[np.ndarray, " n"], theirs: Float[np.ndarray, " m"]) -> tuple[float, float]:
    """The ratio of two means of positive numbers, and the standard error of its logarithm."""
    relative = [values.var(ddof=1) / len(values) / values.mean() ** 2 for values in (ours, theirs)]
    return float(ours.mean() / theirs.mean()), float(np.sqrt(sum(relative)))


def geometric_ratio(ours: Float[np.ndarray, " n"], theirs: Float[np.ndarray, " m"]) -> tuple[float, float]:
    """The ratio of two geometric means, and the standard error of its logarithm."""
    logs = [np.log(values) for values in (ours, theirs)]
    error = np.sqrt(sum(values.var(ddof=1) / len(values) for values in logs))
    return float(np.exp(logs[0].mean() - logs[1].mean())), float(error)


def compared(x: Images, reference: Images) -> dict[str, float]:
    """The figures of a set of images beside as many others; ``distance`` is not yet over the floor."""
    light = [flux(images) for images in (x, reference)]
    spectra = [power(images) for images in (x, reference)]
    variance, error = ratio(*((values - values.mean()) ** 2 for values in light))
    found = {"flux": ratio(*light), "spread": (variance**0.5, error / 2)}
    for i, name in enumerate(BANDS):
        found[name] = geometric_ratio(*(values[:, i] for values in spectra))
    residual, largest = spectra[0][:, -1], spectra[1][:, -1].max()
    figures = {"distance": sliced_wasserstein(pixels(x), pixels(reference))}
    figures["noisy"] = int(np.sum(residual > largest))
    for name, (value, error) in found.items():
        figures |= {name: value, f"{name}_error": error}
    return figures


def pixels(images: Images) -> Float[np.ndarray, "n d"]:
    return images.reshape(len(images), -1)


def floor(first: Images, second: Images) -> dict[str, float]:
    """The sliced Wasserstein distance between random halves of both sets together.

    Returns:
        of ``SPLITS`` halves, the mean as ``floor``; ``low`` and ``high``, between which 95 % of them lie; and
        ``beyond``, which 1 % exceed.
    """
    both = pixels(np.concatenate([first, second])).astype(np.float64)
    projected = directions(both.shape[1]) @ both.T
    random, distances = np.random.default_rng(0), []
    for _ in range(SPLITS):
        halves = np.split(projected[:, random.permutation(len(both))], 2, axis=1)
        one, other = (np.sort(half, axis=1) for half in halves)
        distances.append(SCALE * both.shape[1] * np.mean((one - other) ** 2))
    low, high, beyond = np.quantile(distances, [0.025, 0.975, 0.99])
    return {"floor": float(np.mean(distances)), "low": low, "high": high, "beyond": beyond}


def require_galaxygrad() -> None:
    """Ends the program unless the package with the networks is installed."""
    if importlib.util.find_spec("galaxygrad") is None:
        fix = "pip install galaxygrad==0.1.9"
        raise SystemExit(refusal("galaxygrad", None, "installed: its networks are measured here", fix))


@functools.cache
def score_fn(name: str) -> Partial:
    """The score of a network of galaxygrad, whose own is that of one image [1, h, w]."""
    import equinox as eqx  # pyright: ignore[reportMissingImports]
    from galaxygrad import scorenet  # pyright: ignore[reportMissingImports]

    weights, rest = eqx.partition(getattr(scorenet, name), eqx.is_array)

    def score(weights: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        return jax.vmap(eqx.combine(weights, rest))(x, 10 * t)  # its time is the integral of beta

    return Partial(score, weights)


def drawn(folder: Path, name: str, solver: Any, *, seed: int, ids: range, code: str) -> dict[str, np.ndarray]:
    """Samples x [n, h, w] of a network with their nfe and status, from their file if it is there.

    Args:
        code: a hash of the code that the file depends on; empty for none.
    """
    identity = hash_of(name, repr(PROCESS), repr(solver), seed, [ids.start, ids.stop], code)
    path = folder / f"{name}_{identity}.npz"
    if not path.exists():
        side, start = NETWORKS[name].side, time.process_time()
        solution = sample(
            score_fn(name),
            PROCESS,
            solver,
            key=jax.random.key(seed),
            shape=(1, side, side),
            sample_ids=ids,
            batch_size=BATCH_SIZE,
            max_evaluations=MAX_EVALUATIONS,
            devices=jax.local_devices()[:1],
        )
        with atomic_file(path) as file:
            np.savez(
                file,
                x=solution.x[:, 0],
                nfe=solution.nfe,
                status=solution.status,
                seconds=time.process_time() - start,
            )
    with np.load(path) as kept:
        return dict(kept)


def reference(folder: Path, name: str, solver: Any, *, seed: int, num_samples: int) -> Images:
    """Samples by many small steps, kept in chunks.

    Their files do not depend on the code: they cost hours, and what they hold is the limit of small steps.
    """
    chunks, starts = [], range(0, num_samples, CHUNK)
    for start in tqdm(starts, desc=f"{name}, reference {seed}", unit="chunk", disable=None):
        ids = range(start, min(start + CHUNK, num_samples))
        chunks.append(drawn(folder, name, solver, seed=seed, ids=ids, code=""))
    failed = sum(int(np.sum(chunk["status"] != Status.COMPLETED)) for chunk in chunks)
    if failed:
        raise RuntimeError(refusal(f"reference of {name}", f"{failed} failed", "complete", "take more steps"))
    return np.concatenate([chunk["x"] for chunk in chunks])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One network with its references."""

    name: str
    num_samples: int
    reference: Any
    folder: Path

    @functools.cached_property
    def references(self) -> tuple[Images, Images]:
        first, second = (
            reference(self.folder, self.name, self.reference, seed=seed, num_samples=self.num_samples)
            for seed in REFERENCES
        )
        return first, second

    def samples(self, row: str) -> dict[str, np.ndarray]:
        """The samples of a solver, or of the second reference."""
        if row == AGAIN:
            x = self.references[1]
            return {
                "x": x,
                "nfe": np.full(len(x), self.reference.num_steps + 1),
                "status": np.full(len(x), Status.COMPLETED),
            }
        solver, code = SOLVERS[row], code_of((type(SOLVERS[row]).__module__,))
        ids = range(self.num_samples)
        return drawn(self.folder, self.name, solver, seed=SOLVERS_SEED, ids=ids, code=code)

    def identity(self, row: str) -> str:
        """A hash of all that determines a row."""
        modules = ("benchmarks.third_party", "evaluation.metrics.sliced_wasserstein")
        solver = None if row == AGAIN else SOLVERS[row]
        modules += () if solver is None else (type(solver).__module__,)
        return hash_of(self.name, self.num_samples, repr(self.reference), row, repr(solver), code_of(modules))

    def measure(self, row: str) -> dict[str, Any]:
        """The record of a row."""
        found = self.samples(row)
        first, _ = self.references
        x = found["x"][found["status"] == Status.COMPLETED]
        record: dict[str, Any] = {
            "network": self.name,
            "row": row,
            "nfe": float(found["nfe"].mean()),
            "nfe_max": int(found["nfe"].max()),
            "failed": len(found["x"]) - len(x),
        }
        record |= floor(*self.references) if row == AGAIN else {}
        return record | (compared(x, first[: len(x)]) if len(x) > 1 else {})


Rows = dict[tuple[str, str], dict[str, Any]]  # (network, row) -> record


def marked(record: dict[str, Any], chance: dict[str, Any]) -> set[str]:
    """The figures of a row that chance does not explain; ``chance`` is the row of the second reference."""
    found = {name for name in RATIOS if abs(np.log(record[name])) > LARGE * record[f"{name}_error"]}
    found |= {"distance"} if record["distance"] > chance["beyond"] else set()
    return found | ({"noisy"} if record["noisy"] >= MANY else set())


def table(rows: Rows, name: str) -> str:
    """The rows of a network, by their evaluations."""
    chance, lines = rows[name, AGAIN], []
    of = [(row, record) for (network, row), record in rows.items() if network == name]
    for row, record in sorted(of, key=lambda each: each[1]["nfe"]):
        cells = [row, f"{record['nfe']:.1f}", str(record["nfe_max"]), str(record["failed"])]
        if "distance" in record:
            stars = marked(record, chance)
            cells.append(f"{record['distance'] / chance['floor']:.2f}{'*' * ('distance' in stars)}")
            cells += [
                f"{record[figure]:.3f} ± {Z * record[f'{figure}_error'] * record[figure]:.3f}"
                + "*" * (figure in stars)
                for figure in RATIOS
            ]
            cells.append(f"{record['noisy']}{'*' * ('noisy' in stars)}")
        lines.append(cells)
    low, high = (chance[end] / chance["floor"] for end in ("low", "high"))
    header = ["solver", "nfe", "max", "failed", f"distance ({low:.2f} to {high:.2f})", *RATIOS, "noisy"]
    return markdown(header, lines)


def plot(rows: Rows, path: Path) -> None:
    """Distance against evaluations, a panel a network and a line a solver; the floor is a band."""
    names = list(dict.fromkeys(name for name, _ in rows))
    columns = min(2, len(names))
    height = -(-len(names) // columns)
    figure = Figure(figsize=(5 * columns + 2.5, 4 * height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    styles: dict[str, dict[str, Any]] = {
        "adaptive_exponential": OURS,
        "adaptive_exponential_steps": {"color": "black", "marker": "s"},
        "adaptive_exponential_all_noise": {"color": "black", "marker": "o", "markerfacecolor": "white"},
        "adaptive_exponential_all_noise_steps": {"color": "black", "marker": "s", "markerfacecolor": "white"},
        "adaptive": PAPERS,
    }
    handles: dict[str, Any] = {}
    for name, axes in zip(names, figure.subplots(height, columns, squeeze=False).flat, strict=False):
        chance = rows[name, AGAIN]
        low, high = (chance[end] / chance["floor"] for end in ("low", "high"))
        handles["chance, 95 %"] = axes.axhspan(low, high, color="tab:green", alpha=0.25)
        lines: dict[str, list[tuple[float, float]]] = {}
        for (network, row), record in rows.items():
            if network == name and row != AGAIN and "distance" in record:
                point = (record["nfe"], record["distance"] / chance["floor"])
                lines.setdefault(row.rpartition(" ")[0], []).append(point)
        for label, points in lines.items():
            i = len(styles)
            other = {"color": f"C{i % 10}", "linewidth": 0.8, "marker": "sDv^<>"[i // 10]}
            style = styles.setdefault(label, other)
            (handles[label],) = axes.plot(*zip(*sorted(points), strict=True), markersize=4, **style)
        axes.set(xscale="log", yscale="log", xlabel="evaluations a sample", title=name)
        axes.set_xticks(TICKS, [f"{tick}" for tick in TICKS])
        axes.set_xticks([], minor=True)
        axes.set_ylabel("distance, over that of chance")
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=7)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")


def picture(settings: Sequence[Setting], row: str, path: Path) -> None:
    """The first images of the reference and of a solver, in one grey scale for each network."""
    count = 6
    figure = Figure(figsize=(2 * count + 0.5, 1.1 * len(settings)), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    for setting, line in zip(settings, figure.subplots(len(settings), 2 * count, squeeze=False), strict=True):
        images = np.concatenate([setting.references[0][:count], setting.samples(row)["x"][:count]])
        darkest, brightest = np.quantile(images, [0.005, 0.995])
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image, cmap="gray", vmin=darkest, vmax=brightest)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(setting.name)
        line[0].set_title("reference", loc="left", fontsize=9)
        line[count].set_title(row, loc="left", fontsize=9)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three solvers, few samples and steps: a minute")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--networks", help=f"some of {', '.join(NETWORKS)}, separated by commas")
    parser.add_argument("--solvers", help="names of rows, separated by commas")
    parser.add_argument("--num_samples", type=int, help=f"of each set ({NUM_SAMPLES:,})")
    parser.add_argument("--workdir", type=Path, default=Path("runs/third_party"))
    parsed = parser.parse_args(arguments)
    names = names_in(parser, "--networks", parsed.networks, NETWORKS, DEFAULT[: 1 if parsed.quick else None])
    chosen = names_in(parser, "--solvers", parsed.solvers, SOLVERS, QUICK if parsed.quick else ())
    if parsed.num_samples is not None and parsed.num_samples < FEWEST:
        fix = "ask for more, since all intervals come from the scatter of the images"
        parser.error(refusal("--num_samples", parsed.num_samples, f"a whole number >= {FEWEST}", fix))
    require_galaxygrad()

    make_folder(parsed.workdir / "samples")
    records, rows, settings = Records(parsed.workdir / "third_party.jsonl"), Rows(), []
    for name in names:
        network = NETWORKS[name]
        setting = Setting(
            name=name,
            num_samples=parsed.num_samples or (QUICK_SAMPLES if parsed.quick else NUM_SAMPLES),
            reference=QUICK_REFERENCE if parsed.quick else network.reference,
            folder=parsed.workdir / "samples",
        )
        settings.append(setting)
        for row in tqdm([AGAIN, *(chosen or network.rows)], desc=name, unit="row", disable=None):
            measure = functools.partial(setting.measure, row)
            rows[name, row] = records.of(setting.identity(row), measure)
    print(f"{machine()}\n")
    for setting in settings:
        about = f"{setting.num_samples:,} samples, reference by {setting.reference}"
        print(f"{setting.name}: {about}\n\n{table(rows, setting.name)}\n")
    plot(rows, parsed.workdir / "third_party.png")
    picture(settings, (chosen or ALL)[0], parsed.workdir / "third_party_images.png")
    if parsed.json:
        figures = {}
        for (name, row), record in rows.items():
            numbers = {key: value for key, value in record.items() if not isinstance(value, str)}
            figures |= {f"{name}.{row}.{key}": float(value) for key, value in numbers.items()}
        write_json(parsed.json, figures)


if __name__ == "__main__":
    main()
