"""Memory does not grow with the number of samples, and one shard of them is held at a time."""

import sys
import time
import weakref
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from benchmarks.evaluation import peak_in_new_process
from evaluation.metrics import reference
from evaluation.metrics.features import FeatureNetwork, compiled
from evaluation.metrics.figures import evaluate
from evaluation.metrics.measurement import Measurement
from evaluation.store.samples import Samples


def _first_pixels(images):
    pixels = images[:, 0, :2].reshape(len(images), 6).astype(jnp.float32)
    return pixels, pixels[:, :3]


NETWORK = FeatureNetwork(
    name="pixels",
    sha256="00",
    preprocessing="none",
    num_features=6,
    num_classes=3,
    image_shape=(32, 32, 3),
    forward=compiled(Partial(_first_pixels)),
)


def test_one_shard_of_fifty_thousand_samples_is_in_memory_at_a_time():
    random = np.random.default_rng(0)
    made, alive = [], []

    def shard(start: int) -> Samples:
        ids = np.arange(start, min(start + 1024, 50_000))
        ones = np.ones(len(ids), int)
        images = random.integers(0, 256, (len(ids), 32, 32, 3), np.uint8)
        made.append(weakref.ref(images))
        return Samples(sample_ids=ids, images=images, nfe=ones, accepted=ones, rejected=ones, status=ones)

    def shards() -> Iterator[Samples]:
        for start in range(0, 50_000, 1024):
            yield shard(start)
            # by the time that the next one is wanted; JAX lets go of what it was given at a later call of it
            for _ in range(500):
                jnp.zeros(1).block_until_ready()
                if not any(images() is not None for images in made):
                    break
                time.sleep(0.01)
            alive.append(sum(images() is not None for images in made))

    measurement = Measurement(
        network=NETWORK,
        reference=reference.compute([shard(0).images], NETWORK, data="noise", split="all"),
        compared=lambda: NETWORK(shard(0).images[:100])[0],
        fid_infinity=True,
        replicates=4,
    )
    found = evaluate(
        shards(),
        num_samples=50_000,
        batch_size=1,
        evaluations_per_step=1,
        measurement=measurement,
    )
    assert len(alive) == 49
    assert max(alive) == 0
    assert found["fid"] > 0
    assert found["compared"] == 100


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak of a process's memory")
def test_moments_of_2048_dimensions_take_less_than_300_megabytes_for_any_number_of_samples():
    # intervals and the distance at the end included
    few, many = peak_in_new_process(4096), peak_in_new_process(16384)
    assert few < 300
    assert many < 300
    assert many - few < 20  # less than one covariance: what allocators and BLAS's threads keep differs
