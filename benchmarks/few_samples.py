"""Which figure tells two solvers apart with few samples, whose difference many samples show?

python -m benchmarks.few_samples [--num_samples 6000] [--json FILE]

The solvers are Euler-Maruyama with 40 and with 64 steps on the VP network of the digits. Their samples are
divided into disjoint sets of 100, 300 and 1,000, at most 60 each. Every set is measured by FID to all images,
and by FID, KID and the sliced Wasserstein distance to as many images, drawn anew. The shares say how often a
set of the solver with fewer steps has the larger figure: a half by chance, all of them if the figure tells
the solvers apart.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

import configs
from benchmarks.report import machine, write_json
from data import datasets
from evaluation.metrics.features import FeatureNetwork, load_features
from evaluation.metrics.fid import Moments, Source, fid
from evaluation.metrics.kid import kid
from evaluation.metrics.sliced_wasserstein import sliced_wasserstein
from evaluation.runs.run import drawing, prepare
from evaluation.runs.tables import markdown
from evaluation.store.samples import Samples, joined

STEPS = (64, 40)
SIZES = (100, 300, 1000)
SETS = 60  # of a size, at most

Set = Float[np.ndarray, "n d"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_samples", type=int, default=6000, help="of each solver; at least 1,000")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    config = configs.load("vp/digits_adaptive")
    network = load_features(config.eval.features)
    data = network(datasets.load(config.data))[0]
    pools = [features_of(config, network, steps, arguments.num_samples) for steps in STEPS]
    rows, shares = [], {}
    for size in SIZES:
        found = {name: of_sets(pools, data, figure, size) for name, figure in FIGURES.items()}
        share = {name: np.mean(fewer[:, None] > more) for name, (more, fewer) in found.items()}
        for solver, steps in enumerate(STEPS):
            cells = [f"{sets[solver].mean():.3f} ± {sets[solver].std(ddof=1):.3f}" for sets in found.values()]
            if solver == 1:
                cells = [f"{cell} ({larger:.0%})" for cell, larger in zip(cells, share.values(), strict=True)]
            sets = len(found["FID"][solver])
            rows.append([f"{size:,}", str(sets), str(steps), *cells])
        shares |= {f"{size}.{name}": float(larger) for name, larger in share.items()}
    whole = [of_all(pool, data) for pool in pools]
    print(f"{machine()}\n\n{markdown(['samples', 'sets', 'steps', *FIGURES], rows)}")
    print(
        "\n".join(
            f"FID of all, {steps} steps: {value:.2f}" for steps, value in zip(STEPS, whole, strict=True)
        )
    )
    if arguments.json:
        write_json(arguments.json, shares)


def features_of(config, network: FeatureNetwork, steps: int, num_samples: int) -> Set:
    """The features of samples by so many steps."""
    config.solver.name, config.solver.num_steps = "euler_maruyama", steps
    config.eval.update({"num_samples": num_samples, "batch_size": 512})
    draw, _ = drawing(prepare(config, name="digits"))
    parts = draw(sample_ids=np.arange(num_samples), total=num_samples, progress=True)
    return network(joined(*map(Samples.of, parts)).images)[0]


def of_all(features: Set, data: Set) -> float:
    """FID to all images."""
    source = Source(features="digits", features_sha256="", preprocessing="", data="digits", split="all")
    return fid(Moments.of(features, source), Moments.of(data, source))


Figure = Callable[[Set, Set, Set], float]  # of the features of samples, of as many images, and of all images

FIGURES: dict[str, Figure] = {
    "FID": lambda samples, images, data: of_all(samples, data),
    "FID to as many images": lambda samples, images, data: of_all(samples, images),
    "KID": lambda samples, images, data: kid(samples, images, blocks=20, block_size=len(samples) // 2)[0],
    "sliced Wasserstein": lambda samples, images, data: sliced_wasserstein(samples, images),
}


def of_sets(pools: list[Set], data: Set, figure: Figure, size: int) -> list[Float[np.ndarray, " sets"]]:
    """The figure of disjoint sets of each solver's samples; all figures see the same sets and images."""
    random = np.random.default_rng(size)
    return [
        np.array(
            [
                figure(pool[start : start + size], random.permutation(data)[:size], data)
                for start in range(0, len(pool) - size + 1, size)[:SETS]
            ]
        )
        for pool in pools
    ]


if __name__ == "__main__":
    main()
