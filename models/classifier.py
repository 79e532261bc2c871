"""Small classifiers of small images: FID uses their features, the Inception Score their classes.

Samples of digits need a network that knows digits: Inception's features of an 8x8 image, enlarged to 299x299,
say little about it. training/classifiers.py made the weights that ship. That of CIFAR-10 is there so that
its samples can be measured, and their classes checked, without a download.
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

from sde_lib.checks import refusal

ASSETS = Path(__file__).resolve().parent.parent / "assets"
NUM_CLASSES = 10
PREPROCESSING = "uint8 / 255"


class Classifier(nn.Module):
    """Convolutions with max pooling between the sizes, then a layer of features, then the classes.

    Attributes:
        image_size: side of the images, in pixels.
        channels: channels of the convolutions at each size, which halves from the images' own.
        num_features: number of features for FID.
        num_channels: of the images: 1 for grey, 3 for colour.
    """

    image_size: int
    channels: tuple[tuple[int, ...], ...]
    num_features: int
    num_channels: int = 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of an image."""
        return self.image_size, self.image_size, self.num_channels

    @nn.compact
    def __call__(self, images: UInt8[Array, "b h w c"]) -> tuple[Float[Array, "b d"], Float[Array, "b k"]]:
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
    "cifar10": Classifier(
        image_size=32, channels=((24,), (48, 48), (72,), (96,)), num_features=96, num_channels=3
    ),
}


def weights_path(name: str) -> Path:
    """The file with the shipped weights of a classifier."""
    return ASSETS / f"{name}_classifier.npz"


def load_forward(name: str, path: Path | None = None) -> tuple[Partial, str]:
    """A trained classifier.

    Args:
        name: one of ``CLASSIFIERS``.
        path: file with the weights; by default the shipped one.

    Returns:
        forward: uint8 images [b, h, w, c] -> (features [b, d], logits [b, 10]); the weights are its pytree
            leaves.
        sha256: SHA-256 of the file with the weights.

    Raises:
        FileNotFoundError: for absent weights, with the command that makes them.
    """
    path = path or weights_path(name)
    if not path.is_file():
        fix = (
            "bring back the shipped ones with `git checkout assets`, or make them with "
            f"`python -m training.classifiers {name}`"
        )
        allowed = f"a file with the weights of the {name} classifier"
        raise FileNotFoundError(refusal("path", str(path), allowed, fix))
    with np.load(path, allow_pickle=False) as file:
        params = traverse_util.unflatten_dict({name: jnp.asarray(file[name]) for name in file.files}, sep="/")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Partial(CLASSIFIERS[name].apply, {"params": params}), sha256
