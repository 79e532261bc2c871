"""How fast images get their Inception features, and two sets of 2048 features their Fréchet distance.

python benchmarks/evaluation.py [--only=inception|frechet] [--json=FILE]

Both are measured against something that the same machine does in the same run, in turns, the best of each:
the network's multiplications a second against those of one 3x3 convolution of 128 channels at 32x32, and the
distance against scipy.linalg.sqrtm of the product of the covariances. On 2 cores: three minutes for the
first, five for the second. The network's weights are random; that makes no difference to its speed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from benchmarks.report import machine, write_json
from evaluation.features import FeatureNetwork
from evaluation.fid import frechet_distance
from evaluation.inception import IMAGE_SHAPE, NUM_CLASSES, PREPROCESSING, Inception

BATCH_SIZE = 64
TURNS = 3
CONVOLUTION = (BATCH_SIZE, 32, 32, 128)
NUM_FEATURES = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=("inception", "frechet"))
    parser.add_argument("--json", type=Path, help="a file for the figures")
    arguments = parser.parse_args()
    figures = {}
    if arguments.only != "frechet":
        figures |= inception()
    if arguments.only != "inception":
        figures |= frechet()
    for name, value in figures.items():
        print(f"{name:>28}  {value:10.4g}")
    print(machine())
    if arguments.json:
        write_json(arguments.json, figures)


def inception() -> dict[str, float]:
    """Images a second from uint8 to features on the host, and their rate over a convolution's."""
    network, operations = random_inception()
    images = np.random.default_rng(0).integers(0, 256, (BATCH_SIZE, 32, 32, 3), np.uint8)

    convolve = jax.jit(
        lambda x, kernel: jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
    )
    x, kernel = jnp.ones(CONVOLUTION), jnp.full((3, 3, CONVOLUTION[-1], CONVOLUTION[-1]), 1e-3)
    of_convolution = convolution_operations(convolve, x, kernel)

    network(images)  # compiles
    convolve(x, kernel).block_until_ready()
    of_network, of_one = [], []
    for _ in range(TURNS):
        of_one += [seconds(lambda: convolve(x, kernel).block_until_ready()) for _ in range(3)]
        of_network.append(seconds(lambda: network(images)))
    rate = operations / min(of_network)
    convolution_rate = of_convolution / min(of_one)
    return {
        "inception.images_per_second": BATCH_SIZE / min(of_network),
        "inception.gflops": rate / 1e9,
        "conv.gflops": convolution_rate / 1e9,
        "inception.rate_over_conv": rate / convolution_rate,
    }


def random_inception() -> tuple[FeatureNetwork, float]:
    """The network with random weights, and the operations of its convolutions for one batch."""
    model = Inception()
    images = jax.ShapeDtypeStruct((BATCH_SIZE, 32, 32, 3), jnp.uint8)
    expected = jax.eval_shape(model.init, jax.random.key(0), images)
    generator = np.random.default_rng(0)

    def random(leaf: Any) -> jax.Array:
        # of a size that keeps the activations' size; zeros and infinities can be faster or slower
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
        return jnp.asarray(generator.standard_normal(leaf.shape, np.float32) * np.float32(spread))

    network = FeatureNetwork(
        name="inception",
        sha256="random weights",
        preprocessing=PREPROCESSING,
        num_features=NUM_FEATURES,
        num_classes=NUM_CLASSES,
        image_shape=IMAGE_SHAPE,
        forward=jax.tree_util.Partial(model.apply, jax.tree.map(random, expected)),
        batch_size=BATCH_SIZE,
    )
    return network, convolution_operations(model.apply, expected, images)


def convolution_operations(function: Callable[..., Any], *arguments: Any) -> float:
    """Multiplications and additions in the convolutions of a function; no others, which is to its loss."""

    def of(jaxpr: Any) -> float:
        total = 0.0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "conv_general_dilated":
                kernel, output = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
                total += 2 * np.prod(output) * np.prod(kernel[:-1])
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                total += of(inner) if hasattr(inner, "eqns") else 0
        return total

    return float(of(jax.make_jaxpr(function)(*arguments).jaxpr))


def frechet() -> dict[str, float]:
    """Seconds for the distance of two Gaussians of 2048 dimensions, by us and by scipy's square root."""
    generator = np.random.default_rng(0)
    # variances over six orders of magnitude, as features have, and no axes in common
    scales = np.logspace(0, -3, NUM_FEATURES)
    mix = generator.standard_normal((NUM_FEATURES, NUM_FEATURES)) / np.sqrt(NUM_FEATURES)
    first, second = (
        np.cov(generator.standard_normal((2 * NUM_FEATURES, NUM_FEATURES)) * scales @ axes, rowvar=False)
        for axes in (np.eye(NUM_FEATURES), mix)
    )
    means = np.zeros((2, NUM_FEATURES))
    distances = {}

    def ours() -> None:
        distances["ours"] = frechet_distance(means[0], first, means[1], second)

    def by_square_root() -> None:
        root = np.trace(np.real(scipy.linalg.sqrtm(first @ second)))
        step = means[0] - means[1]
        distances["sqrtm"] = step @ step + np.trace(first) + np.trace(second) - 2 * root

    before = seconds(ours)
    of_square_root = seconds(by_square_root)
    of_ours = min(before, *(seconds(ours) for _ in range(TURNS - 1)))
    return {
        "frechet.seconds": of_ours,
        "frechet.sqrtm_seconds": of_square_root,
        "frechet.speedup_over_sqrtm": of_square_root / of_ours,
        "frechet.relative_difference": abs(distances["ours"] / distances["sqrtm"] - 1),
    }


def seconds(task: Callable[[], Any]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
