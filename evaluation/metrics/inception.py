"""The Inception network of 2015-12-05 with which published FIDs and Inception Scores are computed, in JAX.

The original graph (``classify_image_graph_def.pb``, after Szegedy et al., arXiv 1512.00567) differs from the
Inception v3 of today's model collections, and so do their FIDs:

- images are resized to 299×299 as in TensorFlow 1, from the corners instead of the pixels' centres;
- average pooling does not count the padding;
- the last block has maximum pooling where all others have average pooling;
- there are 1008 classes, of which 1000 are in use;
- pixels become (x − 128)/128, never quite 1.

Layers have the names in the PyTorch file of these weights. Batch normalisation is part of the convolutions
here: evaluation/metrics/inception_weights.py multiplies it in.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.tree_util import Partial
from jaxtyping import Array, Float, Float32, UInt8

from evaluation.metrics import inception_weights

IMAGE_SHAPE = (None, None, 3)
PREPROCESSING = "uint8 RGB, TF1 bilinear to 299x299 from the corners, (x - 128) / 128"
SIDE = 299
NUM_CLASSES = 1008
FEATURES = {"inception": 2048, "inception_768": 768, "inception_192": 192, "inception_64": 64}


def load_forward(name: str, weights: str | None = None) -> tuple[Partial, str]:
    """The network with its weights.

    Args:
        name: one of FEATURES.
        weights: the .pth file with the weights; by default the one in the cache folder, or a download.

    Returns:
        forward: uint8 images [b, h, w, 3] of any size -> (features [b, FEATURES[name]], logits [b, 1008]);
            the weights are its pytree leaves.
        sha256: SHA-256 of the weights themselves, the same for the same weights in another file.

    Raises:
        FileNotFoundError, ValueError: as ``inception_weights.load``.
    """
    network = Inception(num_features=FEATURES[name])
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.uint8)
    expected = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    params, sha256 = inception_weights.load(weights, expected)
    return Partial(network.apply, {"params": params}), sha256


def batch_size() -> int:
    """Images a call. A CPU's caches hold what the first layers make of a few images, but not of 64."""
    return 4 if jax.default_backend() == "cpu" else 64


def resize(images: UInt8[Array, "b h w c"], side: int = SIDE) -> Float32[Array, "b {side} {side} c"]:
    """Bilinear resizing as in TensorFlow 1: pixel i of the result lies at i·(size/side) of the image.

    There are no half-pixel centres and no filter for smaller sizes; the last row and column repeat past the
    edge.
    """

    def positions(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # float32, as there: its rounding decides which two pixels are interpolated
        place = np.arange(side, dtype=np.float32) * (np.float32(size) / np.float32(side))
        first = np.floor(place).astype(np.int32)
        return first, np.minimum(first + 1, size - 1), place - first

    top, bottom, down = positions(images.shape[1])
    left, right, along = positions(images.shape[2])
    x = images.astype(jnp.float32)
    x = x[:, :, left] + (x[:, :, right] - x[:, :, left]) * along[:, None]
    return x[:, top] + (x[:, bottom] - x[:, top]) * down[:, None, None]


class Inception(nn.Module):
    """uint8 images [b, h, w, 3] of any size -> (features [b, num_features], logits [b, 1008]).

    Features are averages over the image: 64 after the first max pooling, 192 after the second, 768 before
    Mixed_7a, 2048 at the end. Logits lack the bias, as in the published Inception Scores (arXiv 1606.03498).

    Attributes:
        num_features: 64, 192, 768 or 2048.
    """

    num_features: int = 2048

    def __call__(self, images: UInt8[Array, "b h w 3"]) -> tuple[Float[Array, "b d"], Float[Array, "b 1008"]]:
        averages, logits = self.of_resized(resize(images))
        return averages[self.num_features], logits

    @nn.compact
    def of_resized(
        self, x: Float32[Array, "b 299 299 3"]
    ) -> tuple[dict[int, Float[Array, "b d"]], Float[Array, "b 1008"]]:
        """The averages of every length, by length, and the logits of images with values 0 to 255."""
        x = (x - 128) / 128

        x = convolution("Conv2d_1a_3x3", x, 32, (3, 3), stride=2, border=False)  # 149
        x = convolution("Conv2d_2a_3x3", x, 32, (3, 3), border=False)  # 147
        x = convolution("Conv2d_2b_3x3", x, 64, (3, 3))
        x = maximum(x)  # 73
        averages = {64: x.mean((1, 2))}

        x = convolution("Conv2d_3b_1x1", x, 80, (1, 1))
        x = convolution("Conv2d_4a_3x3", x, 192, (3, 3), border=False)  # 71
        x = maximum(x)  # 35
        averages[192] = x.mean((1, 2))

        x = block_35("Mixed_5b", x, pooled=32)
        x = block_35("Mixed_5c", x, pooled=64)
        x = block_35("Mixed_5d", x, pooled=64)
        x = from_35_to_17("Mixed_6a", x)
        x = block_17("Mixed_6b", x, inner=128)
        x = block_17("Mixed_6c", x, inner=160)
        x = block_17("Mixed_6d", x, inner=160)
        x = block_17("Mixed_6e", x, inner=192)
        averages[768] = x.mean((1, 2))

        x = from_17_to_8("Mixed_7a", x)
        x = block_8("Mixed_7b", x, average_around)
        x = block_8("Mixed_7c", x, maximum_around)
        averages[2048] = x.mean((1, 2))

        logits = nn.Dense(NUM_CLASSES, use_bias=False, precision=PRECISION, name="fc")(averages[2048])
        return averages, logits


# float32 on every device: by default a TPU multiplies in bfloat16 and a GPU in TF32, which changes FID
PRECISION = jax.lax.Precision.HIGHEST


def convolution(
    name: str, x: Array, channels: int, window: tuple[int, int], *, stride: int = 1, border: bool = True
) -> Array:
    """A convolution and its ReLU; without a border, only where the window lies within the image."""
    # At stride 1 the border is cut off afterwards. That gives the same numbers, and on CPUs XLA's convolution
    # without padding is only a third as fast
    padding = "SAME" if border or stride == 1 else "VALID"
    x = nn.Conv(channels, window, stride, padding, precision=PRECISION, name=name)(x)
    if not border and stride == 1:
        x = x[:, 1:-1, 1:-1]
    return nn.relu(x)


# Pooling along one axis after the other, as sums and maxima of shifted images: on CPUs at least twice as fast
# as XLA's windowed reductions


def maximum(x: Array) -> Array:
    """Maximum over windows of 3×3 pixels, two apart, that lie in the image."""
    for axis in (1, 2):
        end = x.shape[axis]
        first, second, third = (jax.lax.slice_in_dim(x, k, end - 2 + k, 2, axis) for k in range(3))
        x = jnp.maximum(jnp.maximum(first, second), third)
    return x


def maximum_around(x: Array) -> Array:
    """Maximum over the 3×3 pixels around each one, as far as they lie in the image."""
    for axis in (1, 2):
        before, after = _neighbours(x, axis, beyond=-jnp.inf)
        x = jnp.maximum(jnp.maximum(before, x), after)
    return x


def average_around(x: Array) -> Array:
    """Average over the 3×3 pixels around each one, as far as they lie in the image."""
    for axis in (1, 2):
        before, after = _neighbours(x, axis, beyond=0.0)
        count = np.full(x.shape[axis], 3, np.float32)
        count[[0, -1]] = 2  # at the border
        x = (before + x + after) / np.expand_dims(count, [other for other in range(4) if other != axis])
    return x


def _neighbours(x: Array, axis: int, *, beyond: float) -> tuple[Array, Array]:
    """The pixels before and after each one along an axis."""
    size = x.shape[axis]
    padded = jnp.pad(x, [(1, 1) if other == axis else (0, 0) for other in range(4)], constant_values=beyond)
    before, after = (jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k in (0, 2))
    return before, after


def block_35(name: str, x: Array, *, pooled: int) -> Array:
    one = convolution(f"{name}.branch1x1", x, 64, (1, 1))

    five = convolution(f"{name}.branch5x5_1", x, 48, (1, 1))
    five = convolution(f"{name}.branch5x5_2", five, 64, (5, 5))

    three = convolution(f"{name}.branch3x3dbl_1", x, 64, (1, 1))
    three = convolution(f"{name}.branch3x3dbl_2", three, 96, (3, 3))
    three = convolution(f"{name}.branch3x3dbl_3", three, 96, (3, 3))

    pool = convolution(f"{name}.branch_pool", average_around(x), pooled, (1, 1))
    return jnp.concatenate([one, five, three, pool], axis=-1)


def from_35_to_17(name: str, x: Array) -> Array:
    three = convolution(f"{name}.branch3x3", x, 384, (3, 3), stride=2, border=False)

    double = convolution(f"{name}.branch3x3dbl_1", x, 64, (1, 1))
    double = convolution(f"{name}.branch3x3dbl_2", double, 96, (3, 3))
    double = convolution(f"{name}.branch3x3dbl_3", double, 96, (3, 3), stride=2, border=False)

    return jnp.concatenate([three, double, maximum(x)], axis=-1)


def block_17(name: str, x: Array, *, inner: int) -> Array:
    one = convolution(f"{name}.branch1x1", x, 192, (1, 1))

    seven = convolution(f"{name}.branch7x7_1", x, inner, (1, 1))
    seven = convolution(f"{name}.branch7x7_2", seven, inner, (1, 7))
    seven = convolution(f"{name}.branch7x7_3", seven, 192, (7, 1))

    double = convolution(f"{name}.branch7x7dbl_1", x, inner, (1, 1))
    double = convolution(f"{name}.branch7x7dbl_2", double, inner, (7, 1))
    double = convolution(f"{name}.branch7x7dbl_3", double, inner, (1, 7))
    double = convolution(f"{name}.branch7x7dbl_4", double, inner, (7, 1))
    double = convolution(f"{name}.branch7x7dbl_5", double, 192, (1, 7))

    pool = convolution(f"{name}.branch_pool", average_around(x), 192, (1, 1))
    return jnp.concatenate([one, seven, double, pool], axis=-1)


def from_17_to_8(name: str, x: Array) -> Array:
    three = convolution(f"{name}.branch3x3_1", x, 192, (1, 1))
    three = convolution(f"{name}.branch3x3_2", three, 320, (3, 3), stride=2, border=False)

    seven = convolution(f"{name}.branch7x7x3_1", x, 192, (1, 1))
    seven = convolution(f"{name}.branch7x7x3_2", seven, 192, (1, 7))
    seven = convolution(f"{name}.branch7x7x3_3", seven, 192, (7, 1))
    seven = convolution(f"{name}.branch7x7x3_4", seven, 192, (3, 3), stride=2, border=False)

    return jnp.concatenate([three, seven, maximum(x)], axis=-1)


def block_8(name: str, x: Array, pooling: Callable[[Array], Array]) -> Array:
    one = convolution(f"{name}.branch1x1", x, 320, (1, 1))

    three = convolution(f"{name}.branch3x3_1", x, 384, (1, 1))
    wide = convolution(f"{name}.branch3x3_2a", three, 384, (1, 3))
    high = convolution(f"{name}.branch3x3_2b", three, 384, (3, 1))

    double = convolution(f"{name}.branch3x3dbl_1", x, 448, (1, 1))
    double = convolution(f"{name}.branch3x3dbl_2", double, 384, (3, 3))
    double_wide = convolution(f"{name}.branch3x3dbl_3a", double, 384, (1, 3))
    double_high = convolution(f"{name}.branch3x3dbl_3b", double, 384, (3, 1))

    pool = convolution(f"{name}.branch_pool", pooling(x), 192, (1, 1))
    return jnp.concatenate([one, wide, high, double_wide, double_high, pool], axis=-1)
