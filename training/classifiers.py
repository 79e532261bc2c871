"""Trains the classifiers of models/classifier.py, whose features give the FID of digits.

    python -m training.classifiers digits
    python -m training.classifiers mnist --path=downloads/mnist

The folder holds MNIST's four original files (train-images-idx3-ubyte.gz and so on). Training takes a minute
(digits) or some minutes (mnist) on two cores, prints the accuracy on held-out images, and writes
assets/NAME_classifier.npz. Every random number comes from SEED: the same command on the same kind of machine,
with as many cores, gives the same file to the last bit.
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

from data import sources
from evaluation.store.files import atomic_file
from models.classifier import CLASSIFIERS, NUM_CLASSES, load_forward, weights_path
from sde_lib.checks import refusal

SEED = 0
HELD_OUT = 360  # of 1797 digits, drawn with equal shares of each class
BATCH_SIZE = 64
LEARNING_RATE = 3e-3  # peak of a cosine
WEIGHT_DECAY = 1e-2
LABEL_SMOOTHING = 0.05

Images = UInt8[np.ndarray, "n h w 1"]
Labels = Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a classifier is trained.

    Attributes:
        num_steps: number of optimizer steps.
        largest_shift: pixels by which images are shifted at most along each axis, as augmentation.
    """

    num_steps: int
    largest_shift: int


RECIPES = {
    "digits": Recipe(num_steps=3000, largest_shift=1),
    "mnist": Recipe(num_steps=5000, largest_shift=2),
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


def labelled_mnist(path: str, split: str) -> tuple[Images, Labels]:
    """A split of MNIST, padded with zeros to 32x32, and its classes.

    Args:
        path: folder with MNIST's four original files.
        split: "train" or "test".

    Raises:
        ValueError: for a folder without these files, or a damaged file.
    """
    files = sources.idx_files(path, split)
    if files is None:
        allowed = f"a folder with MNIST's four files, {sources.IDX['train'][0]}.gz and so on"
        raise ValueError(refusal("path", path, allowed, "download them from a mirror of MNIST"))
    images, labels = map(sources.read_idx, files)
    return np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None], labels.astype(np.int64)


def accuracy(forward: Partial, images: Images, labels: Labels) -> float:
    """The share of ``images`` that the classifier gives their label.

    Args:
        forward: images -> (features, logits), from ``load_forward``.
        images: uint8 [n, h, w, 1].
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
        images: uint8 [n, h, w, 1].
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
    parser.add_argument("--path", default="downloads/mnist", help="folder with MNIST's four files")
    arguments = parser.parse_args()
    if arguments.name == "digits":
        images, labels = labelled_digits()
        trained, held_out = ((images[rows], labels[rows]) for rows in split_digits())
    else:
        trained, held_out = (labelled_mnist(arguments.path, split) for split in ("train", "test"))

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
