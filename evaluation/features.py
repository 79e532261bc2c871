"""The one door through which FID and the Inception Score get features and classes of images.

A feature network is a frozen record: what it is called, the SHA-256 of its weights, the images it takes, and
a pure function of uint8 images. Numbers made with different networks cannot be compared, so name, hash and
preprocessing go into the identity of the moments (see evaluation/fid.py).
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float32, UInt8

from evaluation import digits_classifier
from sde_lib.checks import require, require_choice

NAMES = ("digits", "inception")


@jax.jit
def _forward(forward: Partial, images: UInt8[Array, "b h w c"]) -> tuple[Array, Array]:
    # the weights are leaves of `forward`: arguments of the compiled program, not constants in it
    return forward(images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureNetwork:
    """A frozen network that turns images into features (for FID, KID, …) and class logits (for IS).

    Attributes:
        name: as in ``config.eval.features``.
        sha256: of the file with the weights.
        preprocessing: what happens to the uint8 images first, in words; part of the moments' identity.
        num_features: length d of a feature vector.
        num_classes: number k of logits.
        image_shape: the (h, w, c) taken; None stands for any size.
        forward: uint8 images [b, h, w, c] -> (features [b, d], logits [b, k]), both float; jit-able, with the
            weights as pytree leaves, so that it can also be called inside a larger compiled program.
        batch_size: images a call of the compiled program.
    """

    name: str
    sha256: str
    preprocessing: str
    num_features: int
    num_classes: int
    image_shape: tuple[int | None, int | None, int]
    forward: Partial
    batch_size: int = 256

    def __call__(
        self, images: UInt8[np.ndarray, "n h w c"]
    ) -> tuple[Float32[np.ndarray, "n d"], Float32[np.ndarray, "n k"]]:
        """Features [n, d] and logits [n, k] of any number of images, one batch on the device at a time.

        The last batch is filled up with copies of an image, so that one compiled program serves all.

        Raises:
            ValueError: for images that are not uint8, or not of the shape that the network takes.
        """
        self.check(images)
        features = np.empty((len(images), self.num_features), np.float32)
        logits = np.empty((len(images), self.num_classes), np.float32)
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            count = len(batch)
            if count < self.batch_size:
                batch = np.concatenate([batch, np.repeat(batch[:1], self.batch_size - count, axis=0)])
            batch_features, batch_logits = _forward(self.forward, batch)
            features[start : start + count] = np.asarray(batch_features, np.float32)[:count]
            logits[start : start + count] = np.asarray(batch_logits, np.float32)[:count]
        return features, logits

    def check(self, images: np.ndarray) -> None:
        """Raises ValueError for images that are not uint8 of the shape that the network takes."""
        require(
            images.dtype == np.uint8,
            "images.dtype",
            str(images.dtype),
            "uint8, grey levels 0 to 255",
            "convert floats with evaluation.samples.to_uint8",
        )
        taken = tuple("any" if side is None else side for side in self.image_shape)
        matches = images.ndim == 4 and all(
            side is None or side == given
            for side, given in zip(self.image_shape, images.shape[1:], strict=True)
        )
        require(
            matches,
            "images.shape",
            images.shape,
            f"(n, {', '.join(map(str, taken))}) for the feature network {self.name!r}",
            "choose features made for these images by config.eval.features",
        )


def load_features(name: str) -> FeatureNetwork:
    """The feature network that ``config.eval.features`` names, with its weights.

    Raises:
        ValueError: for a name that is unknown, or of a network that is not there.
        FileNotFoundError: where the weights are absent.
    """
    require_choice("config.eval.features", name, NAMES)
    require(
        name != "inception",
        "config.eval.features",
        name,
        "'digits' in this version, which does not hold the TF Inception network yet",
        "set config.eval.features = 'digits' for 8x8 digits, or --mode=sample for samples without FID",
    )
    forward, sha256 = digits_classifier.load_forward()
    return FeatureNetwork(
        name=name,
        sha256=sha256,
        preprocessing=digits_classifier.PREPROCESSING,
        num_features=digits_classifier.NUM_FEATURES,
        num_classes=digits_classifier.NUM_CLASSES,
        image_shape=digits_classifier.IMAGE_SHAPE,
        forward=forward,
    )
