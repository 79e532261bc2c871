"""The classifiers that ship are small, and as good as is said of them on images that they have not seen."""

import jax
import numpy as np
import pytest
from PIL import Image

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
    images, labels = classifiers.labelled("mnist", str(folder), held_out=True)
    assert images.shape == (10_000, 32, 32, 1)
    forward, _ = load_forward("mnist")
    assert classifiers.accuracy(forward, images, labels) >= 0.99


def test_the_classifier_of_colour_images_knows_images_it_has_not_seen():
    """A quarter of CIFAR-10's test images, in a lossy copy: mosaics of 50 by 50 tiles."""
    folder = SHARED / "data" / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"a copy of CIFAR-10 was not found at {folder}")
    with Image.open(folder / "test_00.avif") as opened:
        mosaic = np.asarray(opened.convert("RGB"))
    images = mosaic.reshape(50, 32, 50, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
    labels = np.load(folder / "labels.npz")["test"][: len(images)].astype(np.int64)
    forward, _ = load_forward("cifar10")
    assert classifiers.accuracy(forward, images, labels) >= 0.77  # 0.795 of all, ± 0.008 of as many


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_shipped_weights_are_small(name):
    assert weights_path(name).stat().st_size < 1_200_000


def test_digits_use_all_grey_levels():
    images, _ = classifiers.labelled_digits()
    assert np.array_equal(np.unique(images), np.rint(np.arange(17) * 255 / 16))


def test_mnist_gets_a_margin(tmp_path):
    pixels = np.full((3, 28, 28), 7, np.uint8)
    folder = write_mnist(tmp_path, pixels, np.array([4, 0, 9]))
    images, labels = classifiers.labelled("mnist", str(folder), held_out=False)
    assert images.shape == (3, 32, 32, 1)
    assert labels.tolist() == [4, 0, 9]
    assert images.sum() == pixels.sum()
    assert images[:, 2:-2, 2:-2, 0].tolist() == pixels.tolist()


def test_absent_weights_and_images_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m training.classifiers digits"):
        load_forward("digits", tmp_path / "absent.npz")
    with pytest.raises(ValueError, match=rf"number of images in {tmp_path} must be at least 1"):
        classifiers.labelled("mnist", str(tmp_path), held_out=False)
    np.savez(tmp_path / "mine.npz", images=np.zeros((2, 32, 32, 3), np.uint8), labels=np.zeros(2, int))
    with pytest.raises(ValueError, match=r"config.data.path must be a data set with held-out images"):
        classifiers.labelled("cifar10", str(tmp_path / "mine.npz"), held_out=True)


@pytest.mark.slow
def test_training_again_gives_the_shipped_accuracy():
    images, labels = classifiers.labelled_digits()
    trained, held_out = classifiers.split_digits()
    params = classifiers.train("digits", images[trained], labels[trained])
    forward = jax.tree_util.Partial(CLASSIFIERS["digits"].apply, {"params": params})
    assert classifiers.accuracy(forward, images[held_out], labels[held_out]) >= 0.98
