"""Feature networks: batching, devices and the kind of array do not change the features."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.metrics import features
from models import classifier
from training import classifiers


@pytest.fixture(scope="module")
def network() -> features.FeatureNetwork:
    return features.load_features("digits")


@pytest.mark.parametrize("number", [1, 256, 300])
def test_any_number_of_images_by_one_compiled_program(network, number, caplog):
    images, _ = classifiers.labelled_digits()
    all_features, all_logits = network(images[:600])
    with jax.log_compiles(), caplog.at_level("WARNING"):
        some_features, some_logits = network(images[:number])
    assert "Compiling" not in caplog.text
    # bitwise: the rows of a convolution do not mix, and the batch has the same shape
    assert np.array_equal(some_features, all_features[:number])
    assert np.array_equal(some_logits, all_logits[:number])
    assert some_features.shape == (number, network.num_features)


def test_images_may_be_on_a_device_already(network):
    images, _ = classifiers.labelled_digits()
    on_device = jnp.asarray(images[:300])
    # bitwise: the same program on the same numbers
    assert all(map(np.array_equal, network(on_device), network(images[:300])))


def test_devices_share_a_batch():
    # in a new process, where the number of devices can be chosen
    program = """
import jax, numpy as np
from evaluation.metrics import features
from training import classifiers
network = features.load_features("digits")
assert jax.local_device_count() == 2
images = classifiers.labelled_digits()[0][:5]
parts = features.FeatureNetwork(**{**vars(network), "batch_size": 3})(images)  # 3 is rounded up to 4
forward = jax.tree.map(lambda leaf: jax.device_put(leaf, jax.devices()[0]), network.forward)
for part, whole in zip(parts, jax.jit(forward)(images), strict=True):
    np.testing.assert_allclose(part, whole, atol=1e-5)  # float32, of another batch size
sharding = jax.tree.leaves(network.forward)[0].sharding
assert sharding.device_set == set(jax.devices()) and sharding.is_fully_replicated
"""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, env=environment)


def test_weights_are_leaves_of_the_function(network):
    assert sum(leaf.size for leaf in jax.tree.leaves(network.forward)) > 10_000


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 1), np.float32), r"images.dtype must be uint8 .*\(got 'float32'\): .*to_uint8"),
        (
            np.zeros((2, 8, 8, 3), np.uint8),
            r"must be \(n, 8, 8, 1\) .*\(got \(2, 8, 8, 3\)\): choose a feature network",
        ),
        (np.zeros((8, 8, 1), np.uint8), r"must be \(n, 8, 8, 1\) .*\(got \(8, 8, 1\)\)"),
    ],
)
def test_wrong_images_are_refused(network, images, message):
    with pytest.raises(ValueError, match=message):
        network.check(images)


def test_unknown_networks_are_refused():
    with pytest.raises(ValueError, match=r"features must be .* \(got 'digit'\): did you mean 'digits'"):
        features.load_features("digit")


def test_weights_that_the_features_do_not_use_are_refused():
    with pytest.raises(
        ValueError, match=r"inception_weights must be None with the features 'digits' .got 'a'"
    ):
        features.load_features("digits", "a")


@pytest.mark.parametrize("name", classifier.CLASSIFIERS)
def test_every_classifier_is_a_feature_network(name):
    network = features.load_features(name)
    images = np.zeros((3, *classifier.CLASSIFIERS[name].image_shape), np.uint8)
    some_features, logits = network(images)
    assert some_features.shape == (3, network.num_features)
    assert logits.shape == (3, network.num_classes)
