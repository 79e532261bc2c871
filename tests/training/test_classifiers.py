"""The classifiers that ship are small, and as good as is said of them on images that they have not seen."""

import jax
import numpy as np
import pytest

from models.classifier import CLASSIFIERS, load_forward, weights_path
from tests.conftest import SHARED
from tests.data.sources import write_mnist
from training import classifiers


def test_the_digits_classifier_knows_digits_it_has_not_seen():
    images, labels = classifiers.labelled_digits()
    trained, held_out = classifiers.split_digits()
    assert not set(trained) & set(held_out)
    assert set(trained) | set(held_out) == set(range(1797))
    forward, _ = load_forward("digits")
    assert classifiers.accuracy(forward, images[held_out], labels[held_out]) >= 0.98


def test_the_mnist_classifier_knows_images_it_has_not_seen():
    folder = SHARED / "data" / "mnist"
    if not folder.is_dir():
        pytest.skip(f"MNIST's own files not found at {folder}")
    images, labels = classifiers.labelled_mnist(str(folder), "test")
    assert images.shape == (10_000, 32, 32, 1)
    forward, _ = load_forward("mnist")
    assert classifiers.accuracy(forward, images, labels) >= 0.99


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_shipped_weights_are_small(name):
    assert weights_path(name).stat().st_size < 500_000


def test_digits_use_all_grey_levels():
    images, _ = classifiers.labelled_digits()
    assert np.array_equal(np.unique(images), np.rint(np.arange(17) * 255 / 16))


def test_mnist_gets_a_margin(tmp_path):
    pixels = np.full((3, 28, 28), 7, np.uint8)
    folder = write_mnist(tmp_path, pixels, np.array([4, 0, 9]))
    images, labels = classifiers.labelled_mnist(str(folder), "train")
    assert images.shape == (3, 32, 32, 1)
    assert labels.tolist() == [4, 0, 9]
    assert images.sum() == pixels.sum()
    assert images[:, 2:-2, 2:-2, 0].tolist() == pixels.tolist()


def test_absent_weights_and_images_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m training.classifiers digits"):
        load_forward("digits", tmp_path / "absent.npz")
    with pytest.raises(ValueError, match=r"path must be a folder .*train-images-idx3-ubyte.gz"):
        classifiers.labelled_mnist(str(tmp_path), "train")


@pytest.mark.slow
def test_training_again_gives_the_shipped_accuracy():
    images, labels = classifiers.labelled_digits()
    trained, held_out = classifiers.split_digits()
    params = classifiers.train("digits", images[trained], labels[trained])
    forward = jax.tree_util.Partial(CLASSIFIERS["digits"].apply, {"params": params})
    assert classifiers.accuracy(forward, images[held_out], labels[held_out]) >= 0.98
