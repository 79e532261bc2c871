"""Do few evaluations give what many small steps give, on networks that others trained?

pip install galaxygrad==0.1.9
python -m benchmarks.third_party [--networks HSC_32,LSST_60] [--num_samples 256] [--reference_steps 500]
                                 [--json FILE]

The networks of galaxygrad (arXiv 2401.07313) draw single images of galaxies; examples/galaxies.py shows them.
The truth is not known. In its place are samples by Euler-Maruyama with many steps, twice: the second set is
compared with the first like any solver's, and shows what chance does. For each set:

    <network>.<sampler>.nfe           mean evaluations of a sample
    <network>.<sampler>.distance      sliced Wasserstein distance of the pixels to the first set, divided by
                                      that of the second set: 1 is as near as chance lets it be
    <network>.<sampler>.brightness    difference of the mean pixel, in its standard errors
    <network>.<sampler>.coarse, .fine difference of the mean log power at low and high spatial frequencies, in
                                      standard errors; noise that was left in the images is seen in fine
    <network>.<sampler>.failed        samples that did not complete

The fractions are eps_rel, which is 1/50 by default. A star marks differences above 4 standard errors.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from benchmarks.report import machine, names_in, table_of_runs, write_json
from evaluation.metrics.sliced_wasserstein import sliced_wasserstein
from sde_lib import VPSDE
from solvers import ERSDE, AdaptiveExponential, EulerMaruyama, SDEDPMSolverPP, Solution, UniPC, sample

NETWORKS = {"HSC_32": 32, "ZTF_32": 32, "LSST_60": 60, "QUASAR_72": 72}  # name: side of its images
DEFAULT = ("HSC_32", "LSST_60")
SAMPLERS: dict[str, Any] = {
    "adaptive_exponential": AdaptiveExponential(),
    "adaptive_exponential, 1/200": AdaptiveExponential(eps_rel=0.005),
    "adaptive_exponential, 1/500": AdaptiveExponential(eps_rel=0.002),
    "er_sde, 20": ERSDE(num_steps=20),
    "er_sde, 50": ERSDE(num_steps=50),
    "sde_dpm_solver_pp, 50": SDEDPMSolverPP(num_steps=50),
    "unipc, 20": UniPC(num_steps=20),
}
FORMS = {
    "nfe": ".1f",
    "distance": ".2f",
    "brightness": "+.1f",
    "coarse": "+.1f",
    "fine": "+.1f",
    "failed": ".0f",
}
LARGE = 4.0  # standard errors; one of 16,000 exact figures is larger


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", help=", ".join(NETWORKS))
    parser.add_argument("--num_samples", type=int, default=256)
    parser.add_argument("--reference_steps", type=int, default=500)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args(arguments)
    figures: dict[str, float] = {}
    for name in names_in(parser, "--networks", parsed.networks, NETWORKS, DEFAULT):
        reference = EulerMaruyama(num_steps=parsed.reference_steps)
        first, again = (drawn(name, reference, parsed.num_samples, seed) for seed in (0, 1))
        chance = sliced_wasserstein(pixels(again), pixels(first))
        sets = {f"euler_maruyama, {parsed.reference_steps}": again}
        sets |= {key: drawn(name, solver, parsed.num_samples, seed=2) for key, solver in SAMPLERS.items()}
        for key, solution in sets.items():
            run = f"{name}.{key}"
            found = compared(pixels(solution), pixels(first), side=NETWORKS[name])
            found["distance"] /= chance
            more = {"nfe": float(solution.nfe.mean()), "failed": float(solution.failed)}
            figures |= {f"{run}.{figure}": value for figure, value in (more | found).items()}
    errors = ("brightness", "coarse", "fine")
    marked = {key for key, value in figures.items() if key.endswith(errors) and abs(value) > LARGE}
    print(f"{machine()}\n\n{parsed.num_samples:,} samples\n")
    print(table_of_runs(figures, marked, about=["network", "sampler"], forms=FORMS))
    if parsed.json:
        write_json(parsed.json, figures)


def drawn(name: str, solver: Any, num_samples: int, seed: int) -> Solution:
    """Samples of a network: the logarithms of an image's brightness."""
    from galaxygrad import scorenet  # pyright: ignore[reportMissingImports]

    network, side = getattr(scorenet, name), NETWORKS[name]

    def score_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        return jax.vmap(network)(x, 10 * t)  # its time is the integral of beta

    settings: Any = {"shape": (1, side, side), "num_samples": num_samples, "batch_size": 128}
    sde = VPSDE(beta_min=10.0, beta_max=10.0)
    return sample(score_fn, sde, solver, key=jax.random.key(seed), **settings)


def pixels(solution: Solution) -> Float[np.ndarray, "n d"]:
    return np.asarray(solution.x).reshape(len(solution.nfe), -1)


def compared(
    x: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "n d"], *, side: int
) -> dict[str, float]:
    """The figures of a set of images beside another."""

    def error(ours: np.ndarray, theirs: np.ndarray) -> float:
        scatter = ours.var(ddof=1) / len(ours) + theirs.var(ddof=1) / len(theirs)
        return float((ours.mean() - theirs.mean()) / np.sqrt(scatter))

    ours, theirs = (power(images.reshape(-1, side, side)) for images in (x, reference))
    return {
        "distance": sliced_wasserstein(x, reference),
        "brightness": error(x.mean(axis=1), reference.mean(axis=1)),
        "coarse": error(ours[0], theirs[0]),
        "fine": error(ours[1], theirs[1]),
    }


def power(images: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "2 n"]:
    """The log power of each image at less than 0.1 and at more than 0.35 cycles a pixel."""
    spectrum = np.abs(np.fft.rfft2(images)) ** 2
    frequency = np.hypot(np.fft.fftfreq(images.shape[1])[:, None], np.fft.rfftfreq(images.shape[2]))
    bands = (frequency > 0) & (frequency < 0.1), frequency > 0.35
    return np.log([spectrum[:, band].mean(axis=1) for band in bands])


if __name__ == "__main__":
    main()
