"""A small classifier of scikit-learn's 8x8 digits: its features give FID, its classes the Inception Score.

    python -m evaluation.digits_classifier

trains it (about a minute on one core), prints its accuracy on the held-out digits and writes
assets/digits_classifier.npz.

Whoever samples digits needs a network that knows digits: Inception's features of an 8x8 image, enlarged to
299x299, say little about it. Every random number comes from SEED: the same command on the same kind
of machine, with as many cores, gives the same file to the last bit.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, UInt8
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from evaluation.files import atomic_file

WEIGHTS = Path(__file__).resolve().parent.parent / "assets" / "digits_classifier.npz"
IMAGE_SHAPE = (8, 8, 1)
NUM_FEATURES = 48
NUM_CLASSES = 10
PREPROCESSING = "uint8 / 255"

SEED = 0
HELD_OUT = 360  # of 1797 digits, drawn with equal shares of each class
NUM_STEPS = 3000
BATCH_SIZE = 64
LEARNING_RATE = 3e-3  # peak of a cosine
WEIGHT_DECAY = 1e-2
LABEL_SMOOTHING = 0.05


class DigitsClassifier(nn.Module):
    """Two convolutions at 8x8, one at 4x4, their features averaged over the image, then the classes."""

    @nn.compact
    def __call__(self, images: UInt8[Array, "b 8 8 1"]) -> tuple[Float[Array, "b d"], Float[Array, "b k"]]:
        x = images.astype(jnp.float32) / 255
        x = nn.relu(nn.Conv(24, (3, 3))(x))
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(48, (3, 3))(x))
        features = nn.relu(nn.Dense(NUM_FEATURES)(x.reshape(len(x), -1)))
        return features, nn.Dense(NUM_CLASSES)(features)


def load_forward(path: Path = WEIGHTS) -> tuple[Partial, str]:
    """The trained network.

    Returns:
        forward: uint8 images [b, 8, 8, 1] -> (features [b, 48], logits [b, 10]), its weights pytree leaves.
        sha256: of the file with the weights.

    Raises:
        FileNotFoundError: where the weights are absent, with the command that makes them.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} not found: the digits classifier's weights; `python -m evaluation.digits_classifier` "
            "makes them, `git checkout assets` brings back those that ship"
        )
    with np.load(path, allow_pickle=False) as file:
        params = traverse_util.unflatten_dict({name: jnp.asarray(file[name]) for name in file.files}, sep="/")
    return Partial(DigitsClassifier().apply, {"params": params}), hashlib.sha256(
        path.read_bytes()
    ).hexdigest()


def labelled_digits() -> tuple[UInt8[np.ndarray, "n 8 8 1"], Int[np.ndarray, " n"]]:
    """The 1797 digits, their 17 grey levels spread over 0..255, and their classes."""
    pixels, labels = load_digits(return_X_y=True)
    return np.rint(np.reshape(pixels, (-1, *IMAGE_SHAPE)) * (255 / 16)).astype(np.uint8), np.asarray(labels)


def split() -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " h"]]:
    """Positions of the digits trained on, and of those held out."""
    _, labels = labelled_digits()
    trained, held_out = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=SEED
    )
    return np.asarray(trained), np.asarray(held_out)


def accuracy(forward: Partial, images: UInt8[np.ndarray, "n 8 8 1"], labels: Int[np.ndarray, " n"]) -> float:
    """The share of ``images`` given their label."""
    _, logits = jax.jit(forward)(images)
    return float((np.argmax(logits, axis=1) == labels).mean())


def train(images: UInt8[np.ndarray, "n 8 8 1"], labels: Int[np.ndarray, " n"]) -> Any:
    """AdamW on smoothed labels, the digits moved by up to a pixel each way; returns the params."""
    network = DigitsClassifier()
    optimizer = optax.adamw(
        optax.cosine_onecycle_schedule(NUM_STEPS, LEARNING_RATE), weight_decay=WEIGHT_DECAY
    )
    root = jax.random.key(SEED)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    targets = optax.smooth_labels(jax.nn.one_hot(labels, NUM_CLASSES), LABEL_SMOOTHING)

    def shifted(position: Array, image: Array) -> Array:
        return jax.lax.dynamic_slice(image, (position[0], position[1], 0), IMAGE_SHAPE)

    def loss(params: Any, batch: Array, target: Array) -> Array:
        logits = cast(Array, network.apply({"params": params}, batch)[1])
        return optax.softmax_cross_entropy(logits, target).mean()

    @jax.jit
    def step(params: Any, state: Any, number: Array) -> tuple[Any, Any, Array]:
        chosen, moved = jax.random.split(jax.random.fold_in(root, number))
        rows = jax.random.randint(chosen, (BATCH_SIZE,), 0, len(images))
        batch = jax.vmap(shifted)(jax.random.randint(moved, (BATCH_SIZE, 2), 0, 3), padded[rows])
        value, gradient = jax.value_and_grad(loss)(params, batch, targets[rows])
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    params = network.init(root, jnp.asarray(images[:1]))["params"]
    state = optimizer.init(params)
    for number in range(NUM_STEPS):
        params, state, value = step(params, state, jnp.asarray(number))
        if number % 500 == 499:
            print(f"step {number + 1}: loss {value:.4f}", file=sys.stderr)
    return params


def main() -> None:
    images, labels = labelled_digits()
    trained, held_out = split()
    params = train(images[trained], labels[trained])
    arrays = {name: np.asarray(value) for name, value in traverse_util.flatten_dict(params, sep="/").items()}
    with atomic_file(WEIGHTS) as file:
        np.savez(file, allow_pickle=False, **arrays)
    forward, sha256 = load_forward()
    share = accuracy(forward, images[held_out], labels[held_out])
    print(f"{share:.2%} of {len(held_out)} held-out digits right; {WEIGHTS} sha256 {sha256}")


if __name__ == "__main__":
    main()
