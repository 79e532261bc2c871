"""Measure the speed of Inception features and of FID at 2048 features, and the memory that both take.

python -m benchmarks.evaluation [--only inception|frechet|moments] [--json FILE]

Both speeds are compared with a yardstick on the same machine in the same run. The two take turns, and the
best turn of each counts. For the network, the yardstick is the rate of one 3x3 convolution of 128 channels at
32x32; for the Fréchet distance, it is scipy.linalg.sqrtm of the product of the covariances. All parts
together take two minutes on 2 cores. The network's weights are random, which makes no difference to its
speed.

The memory is the peak during the evaluation of samples, less what the process holds once the network has run.
It includes the feature statistics, the intervals and the distance at the end. The second run has four times
as many samples.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from benchmarks.convolution import one_convolution, operations, seconds
from benchmarks.driver import random_weights
from benchmarks.report import machine, write_json
from evaluation.metrics.features import FeatureNetwork, compiled
from evaluation.metrics.fid import frechet_distance
from evaluation.metrics.figures import evaluate
from evaluation.metrics.inception import IMAGE_SHAPE, NUM_CLASSES, PREPROCESSING, Inception, batch_size
from evaluation.metrics.measurement import Measurement
from evaluation.metrics.reference import compute
from evaluation.store.samples import Samples

ROOT = Path(__file__).resolve().parent.parent

BATCH_SIZE = 64
TURNS = 3
NUM_FEATURES = 2048
SHARD_SIZE = 1024
FEW_SAMPLES = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parts = {"inception": inception, "frechet": frechet, "moments": moments}
    parser.add_argument("--only", choices=parts)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    arguments = parser.parse_args()
    figures = {}
    for name, part in parts.items():
        if arguments.only in (None, name):
            figures |= part()
    for name, value in figures.items():
        print(f"{name:>28}  {value:10.4g}")
    print(machine())
    if arguments.json:
        write_json(arguments.json, figures)


def inception() -> dict[str, float]:
    """Images a second from uint8 to features on the host, and the network's rate over a convolution's."""
    network, of_one_batch = random_inception()
    images = np.random.default_rng(0).integers(0, 256, (BATCH_SIZE, 32, 32, 3), np.uint8)

    convolve, of_convolution = one_convolution(BATCH_SIZE)
    network(images)  # compiles
    of_network, of_one = [], []
    for _ in range(TURNS):
        of_one += [seconds(convolve) for _ in range(3)]
        of_network.append(seconds(lambda: network(images)))
    rate = of_one_batch / min(of_network)
    convolution_rate = of_convolution / min(of_one)
    return {
        "inception.images_per_second": BATCH_SIZE / min(of_network),
        "inception.gflops": rate / 1e9,
        "conv.gflops": convolution_rate / 1e9,
        "inception.rate_over_conv": rate / convolution_rate,
    }


def random_inception() -> tuple[FeatureNetwork, float]:
    """The network with random weights, and its number of operations for one batch."""
    model = Inception()
    images = jax.ShapeDtypeStruct((BATCH_SIZE, 32, 32, 3), jnp.uint8)
    expected = jax.eval_shape(model.init, jax.random.key(0), images)
    network = FeatureNetwork(
        name="inception",
        sha256="random weights",
        preprocessing=PREPROCESSING,
        num_features=NUM_FEATURES,
        num_classes=NUM_CLASSES,
        image_shape=IMAGE_SHAPE,
        forward=compiled(jax.tree_util.Partial(model.apply, random_weights(expected, gain=2.0))),
        batch_size=batch_size(),
    )
    return network, operations(model.apply, expected, images)


def frechet() -> dict[str, float]:
    """Seconds for the distance of two Gaussians of 2048 dimensions, by us and by scipy's square root."""
    generator = np.random.default_rng(0)
    # as for real features, the variances span six orders of magnitude; the two have no axes in common
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


def moments() -> dict[str, float]:
    """Peak megabytes (10^6 bytes) of an evaluation, for two numbers of samples."""
    return {
        "moments.megabytes": peak_in_new_process(FEW_SAMPLES),
        "moments.megabytes_of_4_times": peak_in_new_process(4 * FEW_SAMPLES),
    }


def peak_in_new_process(num_samples: int) -> float:
    """``peak_of_evaluation`` in a new process, free of what this one holds.

    Raises:
        subprocess.CalledProcessError: if the process fails; it needs Linux's /proc.
    """
    code = f"from benchmarks.evaluation import peak_of_evaluation; print(peak_of_evaluation({num_samples}))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def peak_of_evaluation(num_samples: int) -> float:
    """Peak megabytes of evaluating so many samples at 2048 features, above the network's own."""
    generator = np.random.default_rng(0)
    kernel = jnp.asarray(generator.standard_normal((64, NUM_FEATURES), np.float32))
    network = FeatureNetwork(
        name="a layer",
        sha256="random weights",
        preprocessing="none",
        num_features=NUM_FEATURES,
        num_classes=NUM_CLASSES,
        image_shape=(8, 8, 1),
        forward=compiled(jax.tree_util.Partial(_layer, kernel)),
    )

    def shards() -> Iterator[Samples]:
        for start in range(0, num_samples, SHARD_SIZE):
            count = min(SHARD_SIZE, num_samples - start)
            ones = np.ones(count, np.int32)
            yield Samples(
                sample_ids=np.arange(start, start + count),
                images=generator.integers(0, 256, (count, 8, 8, 1), np.uint8),
                nfe=ones,
                accepted=ones,
                rejected=ones,
                status=ones,
            )

    network(next(shards()).images)  # compiles
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present use
    before = resident("VmRSS")
    evaluate(
        shards(),
        num_samples=num_samples,
        batch_size=1,
        evaluations_per_step=1,
        measurement=Measurement(
            network=network,
            reference=compute([next(shards()).images], network, data="noise", split="all"),
        ),
    )
    return (resident("VmHWM") - before) / 1e6


def _layer(kernel: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    features = jnp.sin(images.reshape(len(images), -1).astype(jnp.float32) @ kernel)  # of full rank
    return features, features[:, :NUM_CLASSES]


def resident(name: str) -> float:
    """Bytes of this process's memory: VmRSS is the present use, VmHWM the peak so far."""
    status = Path("/proc/self/status").read_text()
    return 1024 * float(status.partition(f"{name}:")[2].split()[0])


if __name__ == "__main__":
    main()
