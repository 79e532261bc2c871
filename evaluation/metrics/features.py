"""The one door through which FID and the Inception Score get features and classes of images.

A feature network is a frozen record: what it is called, the SHA-256 of its weights, the images it takes, and
a pure function of uint8 images. Numbers made with different networks cannot be compared, so name, hash and
preprocessing go into the identity of the moments (see evaluation/metrics/fid.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial
from jaxtyping import Array, Float32, UInt8

from evaluation.metrics import inception
from models import classifier
from sde_lib.checks import require, require_choice

Features = tuple[Float32[np.ndarray, "n d"], Float32[np.ndarray, "n k"]]  # and logits
NAMES = (*classifier.CLASSIFIERS, *inception.FEATURES)


@jax.jit
def _forward(forward: Partial, images: UInt8[Array, "b h w c"]) -> tuple[Array, Array]:
    # the weights are leaves of `forward`: arguments of the compiled program, not constants in it
    return forward(images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureNetwork:
    """A frozen network that turns images into features (for FID, KID, …) and class logits (for IS).

    Attributes:
        name: as in ``config.eval.features``.
        sha256: of the weights.
        preprocessing: what happens to the uint8 images first, in words; part of the moments' identity.
        num_features: length d of a feature vector.
        num_classes: number k of logits.
        image_shape: the (h, w, c) taken; None stands for any size.
        forward: uint8 images [b, h, w, c] -> (features [b, d], logits [b, k]), both float; jit-able, with the
            weights as pytree leaves, so that it can also be called inside a larger compiled program.
        batch_size: images a call of the compiled program, rounded up to as many on each device.
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
        self,
        images: UInt8[np.ndarray, "n h w c"] | UInt8[Array, "n h w c"],
        *,
        after_batch: Callable[[int], object] | None = None,
    ) -> Features:
        """Features [n, d] and logits [n, k] of any number of images, one batch at a time.

        A batch is spread over this process's devices. Images that are on a device already do not come back
        to the host. The last batch is filled up with copies of an image, so that one compiled program serves
        all images of a size.

        Args:
            images: on the host or on a device.
            after_batch: called with the number of images in each batch that is done.

        Raises:
            ValueError: for images that are not uint8, or not of the shape that the network takes.
        """
        self.check(images)
        features = np.empty((len(images), self.num_features), np.float32)
        logits = np.empty((len(images), self.num_classes), np.float32)
        backend = jnp if isinstance(images, jax.Array) else np
        devices = jax.local_device_count()
        batch_size = -(-self.batch_size // devices) * devices
        for start in range(0, len(images), batch_size):
            # a copy: JAX keeps what it was given until its next call, and that would be all of the images
            batch = backend.array(images[start : start + batch_size])
            count = len(batch)
            if count < batch_size:
                batch = backend.concatenate([batch, backend.repeat(batch[:1], batch_size - count, axis=0)])
            batch = jax.device_put(batch, _over_devices(PartitionSpec("device")))
            batch_features, batch_logits = _forward(self.forward, batch)
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
            "uint8, grey levels 0 to 255",
            "convert floats with evaluation.store.samples.to_uint8",
        )
        fix = "choose features made for these images by config.eval.features"
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


def load_features(name: str, inception_weights: str | None = None) -> FeatureNetwork:
    """The feature network that ``config.eval.features`` names, with its weights on this process's devices.

    Args:
        name: one of NAMES.
        inception_weights: as ``config.eval.inception_weights``: a file or folder, or None for the cache
            folder or the public address.

    Raises:
        ValueError: for a name that is unknown, or weights that are not those of that network.
        FileNotFoundError: where the weights are absent, saying where to get them.
    """
    require_choice("config.eval.features", name, NAMES)
    if name in inception.FEATURES:
        forward, sha256 = inception.load_forward(name, inception_weights)
        return FeatureNetwork(
            name=name,
            sha256=sha256,
            preprocessing=inception.PREPROCESSING,
            num_features=inception.FEATURES[name],
            num_classes=inception.NUM_CLASSES,
            image_shape=inception.IMAGE_SHAPE,
            # a copy on each device, once, and not anew with each batch
            forward=jax.device_put(forward, _over_devices(PartitionSpec())),
            batch_size=64,
        )
    forward, sha256 = classifier.load_forward(name)
    network = classifier.CLASSIFIERS[name]
    return FeatureNetwork(
        name=name,
        sha256=sha256,
        preprocessing=classifier.PREPROCESSING,
        num_features=network.num_features,
        num_classes=classifier.NUM_CLASSES,
        image_shape=network.image_shape,
        forward=jax.device_put(forward, _over_devices(PartitionSpec())),
    )
