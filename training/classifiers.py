"""Trains the classifiers of models/classifier.py, whose features give the FID of small images.

    python -m training.classifiers digits
    python -m training.classifiers mnist --path=downloads/mnist
    python -m training.classifiers cifar10 [--path=train.npz --held_out=test.npz]

Without --path the images are those of tensorflow-datasets; docs/data.md says what else it may name. Training
takes a minute (digits), some minutes (mnist) or half an hour (cifar10) on two cores, prints the accuracy on
held-out images, and writes assets/NAME_classifier.npz. Every random number comes from SEED: the same command
on the same kind of machine, with as many cores, gives the same file to the last bit.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax.tree_util import Partial
from jaxtyping import Array, Int, UInt8
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import trange

import configs
from data import datasets
from evaluation.store.files import atomic_file
from models.classifier import CLASSIFIERS, NUM_CLASSES, load_forward, weights_path

SEED = 0
HELD_OUT = 360  # of 1797 digits, drawn with equal shares of each class
BATCH_SIZE = 64
LEARNING_RATE = 3e-3  # peak of a cosine
WEIGHT_DECAY = 1e-2
LABEL_SMOOTHING = 0.05

CONFIGS = {"mnist": "ve/mnist_adaptive", "cifar10": "vp/cifar10_small_adaptive"}

Images = UInt8[np.ndarray, "n h w c"]
Labels = Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a classifier is trained.

    Attributes:
        num_steps: number of optimizer steps.
        largest_shift: pixels by which images are shifted at most along each axis, as augmentation.
        mirrored: whether half of the images are mirrored, too.
    """

    num_steps: int
    largest_shift: int
    mirrored: bool = False


RECIPES = {
    "digits": Recipe(num_steps=3000, largest_shift=1),
    "mnist": Recipe(num_steps=5000, largest_shift=2),
    "cifar10": Recipe(num_steps=10_000, largest_shift=3, mirrored=True),
}


def labelled_digits() -> tuple[Images, Labels]:
    """scikit-learn's 1797 digits, 8x8, with their 17 grey levels spread over 0..255; and their classes."""
    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(np.reshape(pixels, (-1, 8, 8, 1)) * (255 / 16)).astype(np.uint8)
    return images, np.asarray(labels)


def split_digits() -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " h"]]:
    """Indices of the digits for training, and of those held out."""
    _, labels = labelled_digits()
    trained, held_out = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=SEED
    )
    return np.asarray(trained), np.asarray(held_out)


def labelled(name: str, path: str | None, *, held_out: bool) -> tuple[Images, Labels]:
    """The images of MNIST or CIFAR-10, as its config brings them to 32x32, and their classes.

    Args:
        name: "mnist" or "cifar10".
        path: as ``config.data.path``; None for prepared tensorflow-datasets.
        held_out: whether to read the images that a training leaves out.

    Raises:
        ValueError, FileNotFoundError: as ``data.datasets.open_images``; and for held-out images of a path
            that has no such split.
    """
    data = configs.load(CONFIGS[name]).data
    data.path = path
    images = datasets.open_images(datasets.held_out(data) if held_out else data, NUM_CLASSES)
    images = datasets.held(images)
    return cast(Any, images.array), cast(Any, images.labels)


def accuracy(forward: Partial, images: Images, labels: Labels) -> float:
    """The share of ``images`` that the classifier gives their label.

    Args:
        forward: images -> (features, logits), from ``load_forward``.
        images: uint8 [n, h, w, c].
        labels: [n].
    """
    predict = jax.jit(forward)
    pieces = np.array_split(images, max(len(images) // 1000, 1))
    classes = np.concatenate([np.argmax(predict(piece)[1], axis=1) for piece in pieces])
    return float((classes == labels).mean())


def train(name: str, images: Images, labels: Labels) -> Any:
    """Trains a classifier with AdamW on smoothed labels and randomly shifted images; returns its weights.

    Args:
        name: a key of ``RECIPES``.
        images: uint8 [n, h, w, c].
        labels: [n].
    """
    network, recipe = CLASSIFIERS[name], RECIPES[name]
    schedule = optax.cosine_onecycle_schedule(recipe.num_steps, LEARNING_RATE)
    optimizer = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
    root = jax.random.key(SEED)
    margin = (recipe.largest_shift, recipe.largest_shift)
    padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)))
    targets = optax.smooth_labels(jax.nn.one_hot(labels, NUM_CLASSES), LABEL_SMOOTHING)

    def shifted(position: Array, image: Array) -> Array:
        return jax.lax.dynamic_slice(image, (position[0], position[1], 0), network.image_shape)

    def loss(params: Any, batch: Array, target: Array) -> Array:
        logits = cast(Array, network.apply({"params": params}, batch)[1])
        return optax.softmax_cross_entropy(logits, target).mean()

    @jax.jit
    def step(params: Any, state: Any, padded: Array, targets: Array, number: Array) -> tuple[Any, Any, Array]:
        chosen, moved = jax.random.split(jax.random.fold_in(root, number))
        rows = jax.random.randint(chosen, (BATCH_SIZE,), 0, len(padded))
        positions = jax.random.randint(moved, (BATCH_SIZE, 2), 0, 2 * recipe.largest_shift + 1)
        batch = jax.vmap(shifted)(positions, padded[rows])
        if recipe.mirrored:
            mirror = jax.random.bernoulli(jax.random.fold_in(chosen, 1), shape=(BATCH_SIZE, 1, 1, 1))
            batch = jnp.where(mirror, batch[:, :, ::-1], batch)
        value, gradient = jax.value_and_grad(loss)(params, batch, targets[rows])
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    params = network.init(root, jnp.asarray(images[:1]))["params"]
    state = optimizer.init(params)
    with trange(recipe.num_steps, unit="step") as bar:
        for number in bar:
            params, state, value = step(params, state, padded, targets, jnp.asarray(number))
            if number % 500 == 499:
                bar.set_postfix_str(f"loss {value:.4f}")
    return params


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=CLASSIFIERS)
    parser.add_argument("--path", help="images to train on, as config.data.path")
    parser.add_argument("--held_out", help="images to test on, if those at --path have no such split")
    arguments = parser.parse_args()
    if arguments.name == "digits":
        images, labels = labelled_digits()
        trained, held_out = ((images[rows], labels[rows]) for rows in split_digits())
    else:
        trained = labelled(arguments.name, arguments.path, held_out=False)
        if arguments.held_out is None:
            held_out = labelled(arguments.name, arguments.path, held_out=True)
        else:
            held_out = labelled(arguments.name, arguments.held_out, held_out=False)

    params = train(arguments.name, *trained)
    path = weights_path(arguments.name)
    arrays = {name: np.asarray(value) for name, value in traverse_util.flatten_dict(params, sep="/").items()}
    with atomic_file(path) as file:
        np.savez(file, allow_pickle=False, **arrays)
    forward, sha256 = load_forward(arguments.name)
    share = accuracy(forward, *held_out)
    print(f"{share:.2%} of {len(held_out[1])} held-out images classified correctly; {path} sha256 {sha256}")


if __name__ == "__main__":
    main()
