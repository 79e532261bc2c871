"""Feature networks, which give FID, KID and the Inception Score the features and classes of images.

A feature network is a frozen record: its name, the SHA-256 of its weights, the images it takes, and a pure
function of uint8 images. Figures of different networks cannot be compared, so feature statistics keep the
name, hash and preprocessing of their network (see evaluation/metrics/fid.py). Beside the known networks, any
function of one's own will do (evaluation/metrics/own_features.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial
from jaxtyping import Array, Float32, UInt8

from evaluation.metrics import inception, own_features
from models import classifier
from sde_lib.checks import require, require_choice

Features = tuple[Float32[np.ndarray, "n d"], Float32[np.ndarray, "n k"]]  # features and logits
NAMES = (*classifier.CLASSIFIERS, *inception.FEATURES)
OWN_BATCH = 64  # images that a function of one's own gets at a time


@jax.jit
def _call(forward: Partial, images: UInt8[Array, "b h w c"]) -> tuple[Array, Array]:
    # the weights are leaves of `forward`: arguments of the compiled program, not constants in it
    return forward(images)


def compiled(forward: Partial) -> Partial:
    """The same function, compiled; its pytree leaves are the weights."""
    return Partial(_call, forward)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureNetwork:
    """A frozen network that turns images into features (for FID, KID, …) and class logits (for IS).

    Attributes:
        name: one of NAMES, or MODULE:FUNCTION.
        sha256: SHA-256 of the weights; of a function of one's own, that of its files.
        preprocessing: what happens to the uint8 images first, in words.
        num_features: length d of a feature vector.
        num_classes: number k of logits; 0 for a network without any, which gives no Inception Score.
        image_shape: (h, w, c) of the images; None stands for any size.
        forward: uint8 images [b, h, w, c] on the devices -> (features [b, d], logits [b, k]), both float.
        batch_size: number of images per call of ``forward``, rounded up to equal numbers per device.

    Example:
        >>> network = load_features("digits")
        >>> features, logits = network(np.zeros((3, 8, 8, 1), np.uint8))
        >>> features.shape, logits.shape
        ((3, 48), (3, 10))
    """

    name: str
    sha256: str
    preprocessing: str
    num_features: int
    num_classes: int
    image_shape: tuple[int | None, int | None, int]
    forward: Callable[[Array], tuple[Any, Any]]
    batch_size: int = 256

    def __call__(
        self,
        images: UInt8[np.ndarray, "n h w c"] | UInt8[Array, "n h w c"],
        *,
        after_batch: Callable[[int], object] | None = None,
    ) -> Features:
        """Features [n, d] and logits [n, k] of any number of images, one batch at a time.

        Each batch is split over this process's devices. Images that are already on a device do not return to
        the host. The last batch is filled up with copies of an image, so that one compiled program serves all
        images of a size.

        Args:
            images: on the host or on a device.
            after_batch: called after each batch with its number of images.

        Raises:
            ValueError: for images that are not uint8, or not of the shape that the network takes.
        """
        self.check(images)
        features = np.empty((len(images), self.num_features), np.float32)
        logits = np.empty((len(images), self.num_classes), np.float32)
        backend = jnp if isinstance(images, jax.Array) else np
        batch_size = _shared(self.batch_size)
        for start in range(0, len(images), batch_size):
            # a copy: JAX keeps its argument until its next call, and a view would keep all images
            batch = backend.array(images[start : start + batch_size])
            count = len(batch)
            if count < batch_size:
                batch = backend.concatenate([batch, backend.repeat(batch[:1], batch_size - count, axis=0)])
            batch = _put(batch)
            batch_features, batch_logits = self.forward(batch)
            features[start : start + count] = np.asarray(batch_features, np.float32)[:count]
            logits[start : start + count] = np.asarray(batch_logits, np.float32)[:count]
            if after_batch is not None:
                after_batch(count)
        return features, logits

    def check(self, images: np.ndarray | Array) -> None:
        """Raises ValueError for images that are not uint8 of the shape that the network takes."""
        require(
            images.dtype == np.uint8,
            "images.dtype",
            str(images.dtype),
            "uint8 with grey levels 0 to 255",
            "convert floats with evaluation.store.samples.to_uint8",
        )
        fix = "choose a feature network made for these images"
        if self.image_shape[-1] == 3 and images.ndim == 4 and images.shape[-1] in (1, 4):
            fix = {
                1: "make grey images RGB with np.repeat(images, 3, axis=-1)",
                4: "drop the alpha channel with images[..., :3]",
            }[images.shape[-1]]
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
            fix,
        )


def _over_devices(spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.local_devices()), ("device",)), spec)


def _put(images: np.ndarray | Array) -> UInt8[Array, "b h w c"]:
    return jax.device_put(images, _over_devices(PartitionSpec("device")))


def _shared(batch_size: int) -> int:
    """A batch size, rounded up to equal numbers for each device."""
    devices = jax.local_device_count()
    return -(-batch_size // devices) * devices


def load_features(
    features: str,
    inception_weights: str | None = None,
    *,
    image_shape: tuple[int, int, int] | None = None,
) -> FeatureNetwork:
    """A feature network, with its weights on each of this process's devices.

    Args:
        features: its name, one of NAMES, or MODULE:FUNCTION for a function of one's own.
        inception_weights: the .pth file with the Inception network's weights; by default the one in the cache
            folder, which is downloaded if it is absent.
        image_shape: (h, w, c) of the images with which a function of one's own is tried; known networks take
            no notice of it.

    Raises:
        ValueError: for an unknown name, for weights of another network, or that the features do not use, or
            for a function that is not there or does not give features.
        FileNotFoundError: for absent weights, saying where to get them.
    """
    used = inception_weights is None or features in inception.FEATURES
    fix = f"leave it out, or set features to one of {', '.join(inception.FEATURES)}"
    require(used, "inception_weights", inception_weights, f"None with the features {features!r}", fix)
    if ":" in features:
        return _own(features, image_shape)
    require_choice("features", features, (*NAMES, own_features.FORM))
    if features in inception.FEATURES:
        forward, sha256 = inception.load_forward(features, inception_weights)
        return FeatureNetwork(
            name=features,
            sha256=sha256,
            preprocessing=inception.PREPROCESSING,
            num_features=inception.FEATURES[features],
            num_classes=inception.NUM_CLASSES,
            image_shape=inception.IMAGE_SHAPE,
            # copied to each device once, not with each batch
            forward=compiled(jax.device_put(forward, _over_devices(PartitionSpec()))),
            batch_size=inception.batch_size(),
        )
    forward, sha256 = classifier.load_forward(features)
    network = classifier.CLASSIFIERS[features]
    return FeatureNetwork(
        name=features,
        sha256=sha256,
        preprocessing=classifier.PREPROCESSING,
        num_features=network.num_features,
        num_classes=classifier.NUM_CLASSES,
        image_shape=network.image_shape,
        forward=compiled(jax.device_put(forward, _over_devices(PartitionSpec()))),
    )


def _own(features: str, image_shape: tuple[int, int, int] | None) -> FeatureNetwork:
    """The feature network of a function of one's own, after trying the function."""
    allowed, fix = "the (h, w, c) of the images", "state it, because the function is tried with such images"
    require(image_shape is not None, "image_shape", image_shape, allowed, fix)
    assert image_shape is not None
    function, sha256 = own_features.load(features)
    forward = own_features.Checked(name=features, function=function)
    batch_size = _shared(OWN_BATCH)
    num_features, num_classes = own_features.sizes(forward, (batch_size, *image_shape), put=_put)
    return FeatureNetwork(
        name=features,
        sha256=sha256,
        preprocessing=own_features.PREPROCESSING,
        num_features=num_features,
        num_classes=num_classes,
        image_shape=image_shape,
        forward=forward,
        batch_size=batch_size,
    )
