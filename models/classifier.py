"""Small classifiers of handwritten digits: their features give FID, their classes the Inception Score.

Whoever samples digits needs a network that knows digits: Inception's features of an 8x8 image, enlarged to
299x299, say little about it. training/classifiers.py made the weights that ship.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.tree_util import Partial
from jaxtyping import Array, Float, UInt8

ASSETS = Path(__file__).resolve().parent.parent / "assets"
NUM_CLASSES = 10
PREPROCESSING = "uint8 / 255"


class Classifier(nn.Module):
    """Convolutions with max pooling between the sizes, a layer of features, then the classes.

    Attributes:
        image_size: pixels a side of the grey images taken.
        channels: of the convolutions at each size, from the images' own down by halves.
        num_features: that FID is computed with.
    """

    image_size: int
    channels: tuple[tuple[int, ...], ...]
    num_features: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of an image."""
        return self.image_size, self.image_size, 1

    @nn.compact
    def __call__(self, images: UInt8[Array, "b h w 1"]) -> tuple[Float[Array, "b d"], Float[Array, "b k"]]:
        """Features [b, num_features] and logits [b, 10] of grey levels 0..255."""
        x = images.astype(jnp.float32) / 255
        for level, channels in enumerate(self.channels):
            if level > 0:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            for features in channels:
                x = nn.relu(nn.Conv(features, (3, 3))(x))
        features = nn.relu(nn.Dense(self.num_features)(x.reshape(len(x), -1)))
        return features, nn.Dense(NUM_CLASSES)(features)


CLASSIFIERS = {
    "digits": Classifier(image_size=8, channels=((24, 32), (48,)), num_features=48),
    "mnist": Classifier(image_size=32, channels=((16,), (32,), (48,), (64,)), num_features=64),
}


def weights_path(name: str) -> Path:
    """Where the weights of a classifier ship."""
    return ASSETS / f"{name}_classifier.npz"


def load_forward(name: str, path: Path | None = None) -> tuple[Partial, str]:
    """A trained classifier of ``CLASSIFIERS``, from the weights that ship or those in a file.

    Returns:
        forward: uint8 images [b, h, w, 1] -> (features [b, d], logits [b, 10]), its weights pytree leaves.
        sha256: of the file with the weights.

    Raises:
        FileNotFoundError: where the weights are absent, with the command that makes them.
    """
    path = path or weights_path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} not found: the weights of the {name} classifier; `git checkout assets` brings back "
            f"those that ship, `python -m training.classifiers {name}` makes them"
        )
    with np.load(path, allow_pickle=False) as file:
        params = traverse_util.unflatten_dict({name: jnp.asarray(file[name]) for name in file.files}, sep="/")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Partial(CLASSIFIERS[name].apply, {"params": params}), sha256
