"""The layers of the networks, on NHWC images.

Parameters have the names, shapes and initial distributions of the published score_sde networks, so their
checkpoints fit unchanged.

Convolutions and attention compute in ``dtype``. Parameters, normalisation with its activation, residual sums,
and everything that depends on time alone are float32: XLA fuses or hides their cost, and the error of a
bfloat16 network is a third smaller for it.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax
from jaxtyping import Array, Float, Int

from sde_lib.checks import require

AnyArray = Array | np.ndarray
Images = Float[Array, "b h w c"]
NewImages = Float[Array, "b new_h new_w new_c"]  # as many images, of any size


def uniform_init(scale: float = 1.0) -> Any:
    """Uniform weights of variance scale/mean(fan in, fan out) (arXiv 2006.11239); scale 0 means 1e-10."""
    return nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


def _convolve(
    x: Images, kernel: Array, *, stride: int = 1, dilation: int = 1, padding: int | str = 0
) -> NewImages:
    """A convolution of images with zeros between the pixels (dilation) and around (padding, or SAME)."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding if isinstance(padding, str) else [(padding, padding)] * 2,
        lhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _mixed(x: Float[Array, "*b c"], weight: Float[Array, "c d"]) -> Float[Array, "*b d"]:
    """Channels times a matrix, as one product of two matrices.

    XLA's CPU compiler has fast code for two matrices only. The gradient of a product with images is a sum
    over several axes, and there takes up to ten times as long.
    """
    return (x.reshape(-1, x.shape[-1]) @ weight).reshape(*x.shape[:-1], -1)


class Conv(nn.Module):
    """A convolution with bias that keeps the image size, or divides it by ``stride``; named as flax.linen's.

    With size 1 it is a matrix product over channels, which on a CPU takes half the time of the convolution.
    """

    features: int
    size: int = 3
    stride: int = 1
    init_scale: float = 1.0
    padding: int | str = "SAME"  # of a size above 1; SAME puts an odd zero to the right and below
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images) -> NewImages:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", uniform_init(self.init_scale), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        if self.size == 1:
            return _mixed(x[:, :: self.stride, :: self.stride], kernel[0, 0]) + bias
        return _convolve(x, kernel, stride=self.stride, padding=self.padding) + bias


def dense(features: int) -> nn.Dense:
    """A dense layer in float32 with the published initial distribution."""
    return nn.Dense(features, kernel_init=uniform_init(), dtype=jnp.float32)


@jax.custom_jvp
def swish(x: Array) -> Array:
    """x · sigmoid(x), as one division.

    XLA computes a division once, but a product again for each of its uses, with everything that leads to it.
    The taps of the resampling filters are many uses.
    """
    return x / (1 + jnp.exp(-x))


@swish.defjvp
def _swish_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return jax.jvp(nn.swish, primals, tangents)  # the quotient's own would be inf/inf below x = -88


class GroupNorm(nn.Module):
    """Group normalisation over pixels and the channels of a group (Wu & He, arXiv 1803.08494), in float32.

    As flax.linen.GroupNorm, except that it averages channels over pixels first and then joins them to groups.
    This avoids a transposed view of the image, which takes a fifth of a small network's time on a CPU.
    """

    groups: int
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Images) -> Images:
        b, _, _, c = x.shape
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))

        def mean(values: Images) -> Float[Array, "b 1 1 c"]:
            by_group = values.mean((1, 2)).reshape(b, self.groups, -1).mean(-1)
            return by_group.repeat(c // self.groups, axis=-1)[:, None, None]

        x = x.astype(jnp.float32)
        x = x - mean(x)  # first, as E[x²] − E[x]² would lose digits
        return x * (lax.rsqrt(mean(x**2) + self.epsilon) * scale) + bias


def group_norm(channels: int, groups: int | None, epsilon: float = 1e-6) -> GroupNorm:
    """Group normalisation; without ``groups``, in groups of four channels, but at most 32 groups.

    Raises:
        ValueError: if the groups cannot have equally many channels.
    """
    count = groups or min(channels // 4, 32)
    require(
        count > 0 and channels % count == 0,
        "channels",
        channels,
        f"a multiple of the number of groups, {groups or f'min(channels // 4, 32) = {count}'}",
        "choose nf and ch_mult so that all channel counts and their sums are, such as multiples of 32",
    )
    return GroupNorm(count, epsilon)


class NIN(nn.Module):
    """A dense layer over channels ("network in network"), with the published parameter names W and b."""

    features: int
    init_scale: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        weight = self.param("W", uniform_init(self.init_scale), (x.shape[-1], self.features))
        bias = self.param("b", nn.initializers.zeros, (self.features,))
        x, weight, bias = promote_dtype(x, weight, bias, dtype=self.dtype)
        return _mixed(x, weight) + bias


class GaussianFourierProjection(nn.Module):
    """sin and cos of 2π W y for fixed random frequencies W ~ N(0, scale²) (arXiv 2006.10739)."""

    features: int
    scale: float

    @nn.compact
    def __call__(self, y: Float[Array, " b"]) -> Float[Array, "b 2*{self.features}"]:
        frequencies = self.param("W", nn.initializers.normal(self.scale), (self.features,))
        angles = 2 * jnp.pi * y[:, None] * lax.stop_gradient(frequencies)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ClassEmbedding(nn.Module):
    """A dense layer of one-hot classes times √(number of classes), as in EDM (arXiv 2206.00364, appendix).

    A one-hot vector then has the mean square of a standard normal one. Class −1 stands for none: zeros, of
    which the layer makes its bias.
    """

    features: int
    num_classes: int

    @nn.compact
    def __call__(self, classes: Int[Array, " b"]) -> Float[Array, "b {self.features}"]:
        one_hot = jax.nn.one_hot(classes, self.num_classes)
        return dense(self.features)(math.sqrt(self.num_classes) * one_hot)


def positional_embedding(
    y: Float[Array, " b"], features: int, freq_shift: int = 1
) -> Float[Array, "b {features}"]:
    """sin and cos of y at frequencies from 1 down to 1e-4 in geometric steps (arXiv 1706.03762, section 3.5).

    As published, the last frequency is exactly 1e-4 (division by half − 1), and an odd last feature is zero.
    With ``freq_shift`` 0, the frequency after the last would be 1e-4.
    """
    half = features // 2
    frequencies = jnp.exp(-math.log(10_000) / (half - freq_shift) * jnp.arange(half, dtype=jnp.float32))
    angles = y[:, None] * frequencies
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(embedding, [(0, 0), (0, features % 2)])


# Resampling by 2 with a finite-impulse-response filter (arXiv 1912.04958, appendix B; arXiv 1904.11486):
# insert zeros, filter, drop every second pixel. The filters are separable and short, so each axis is a sum
# of a few shifted slices, and only kept pixels and nonzero products are computed. XLA fuses that into one
# pass over the image; on a CPU it is 8 to 100 times faster than the equivalent depthwise convolution.


def _taps(kernel: tuple[float | int, ...], gain: float) -> list[float]:
    """The taps of the filter along one axis as a correlation, with sum ``gain``."""
    taps = np.asarray(kernel, np.float64)[::-1]
    return [float(tap) for tap in taps * gain / taps.sum()]


def _shifted(x: Images, axis: int, start: int, length: int, stride: int = 1) -> NewImages:
    """x[start : start + stride·length : stride] along an axis; pixels outside the image are zero."""
    last = start + stride * (length - 1)
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (-start, last + 1 - x.shape[axis], 0)  # negative padding crops
    padded = lax.pad(x, jnp.zeros((), x.dtype), config)
    return lax.slice_in_dim(padded, 0, None, stride, axis)


def _sum(images: Iterable[Images]) -> NewImages:
    return functools.reduce(operator.add, images)


def filter_images(
    x: Images,
    kernel: tuple[float | int, ...],
    padding: tuple[int, int],
    *,
    stride: int = 1,
    gain: float = 1.0,
) -> NewImages:
    """Pads each axis with zeros (before, after), filters, and keeps each ``stride``-th pixel."""
    before, after = padding
    for axis in (1, 2):
        taps = _taps(kernel, gain)
        length = (x.shape[axis] + before + after - len(taps)) // stride + 1
        x = _sum(tap * _shifted(x, axis, i - before, length, stride) for i, tap in enumerate(taps))
    return x


def fir_downsample(x: Images, kernel: tuple[float | int, ...]) -> NewImages:
    """Half the size: filters and keeps every second pixel; a constant image keeps its value inside."""
    excess = len(kernel) - 2
    return filter_images(x, kernel, ((excess + 1) // 2, excess // 2), stride=2)


def fir_upsample(x: Images, kernel: tuple[float | int, ...]) -> NewImages:
    """Twice the size: inserts zeros after pixels and filters; a constant image keeps its value inside."""
    before = (len(kernel) - 1) // 2 + 1
    taps = _taps(kernel, gain=2.0)
    for axis in (1, 2):
        length = x.shape[axis]
        # In output pixel 2q + r, tap i meets input pixel q + (r + i − before)/2, if that is whole.
        even, odd = (
            _sum(
                tap * _shifted(x, axis, (r + i - before) // 2, length)
                for i, tap in enumerate(taps)
                if (r + i - before) % 2 == 0
            )
            for r in (0, 1)
        )
        shape = (*x.shape[:axis], 2 * length, *x.shape[axis + 1 :])
        x = jnp.stack([even, odd], axis=axis + 1).reshape(shape)
    return x


def patched(x: Images, size: int) -> NewImages:
    """Every square of ``size`` by ``size`` pixels as one pixel, whose channels are all of theirs."""
    b, h, w, c = x.shape
    squares = x.reshape(b, h // size, size, w // size, size, c)
    return squares.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // size, w // size, size * size * c)


def unpatched(x: Images, size: int) -> NewImages:
    """The inverse of ``patched``."""
    b, h, w, c = x.shape
    squares = x.reshape(b, h, w, size, size, c // size**2)
    return squares.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * size, w * size, c // size**2)


def repeat_upsample(x: Images) -> NewImages:
    """Twice the size: every pixel becomes a square of four."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def mean_downsample(x: Images) -> NewImages:
    """Half the size: the mean of squares of four pixels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def upsample(x: Images, fir_kernel: tuple[float | int, ...] | None) -> NewImages:
    """Twice the size, with a filter, or without one by repetition."""
    return fir_upsample(x, fir_kernel) if fir_kernel else repeat_upsample(x)


def downsample(x: Images, fir_kernel: tuple[float | int, ...] | None) -> NewImages:
    """Half the size, with a filter, or without one by means."""
    return fir_downsample(x, fir_kernel) if fir_kernel else mean_downsample(x)


class Conv2d(nn.Module):
    """A 3x3 convolution and FIR resampling by 2, padded once for both; named as published (weight, bias)."""

    features: int
    up: bool
    fir_kernel: tuple[float | int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images) -> NewImages:
        weight = self.param("weight", uniform_init(), (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, weight, bias = promote_dtype(x, weight, bias, dtype=self.dtype)
        length = len(self.fir_kernel)
        if self.up:  # convolve the image with inserted zeros (2n + 1 pixels), then filter
            excess = length - 4
            x = _convolve(x, weight, dilation=2, padding=2)
            x = filter_images(x, self.fir_kernel, ((excess + 1) // 2 + 1, excess // 2 + 1), gain=2.0)
        else:  # filter, then convolve at every second pixel
            x = filter_images(x, self.fir_kernel, ((length + 1) // 2, length // 2))
            x = _convolve(x, weight, stride=2)
        return x + bias


class Upsample(nn.Module):
    """Twice the size, with a 3x3 convolution to ``features`` channels, or without one if that is None."""

    features: int | None
    fir_kernel: tuple[float | int, ...] | None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images) -> NewImages:
        if self.features is None:
            return upsample(x, self.fir_kernel)
        if self.fir_kernel:
            return Conv2d(self.features, up=True, fir_kernel=self.fir_kernel, dtype=self.dtype)(x)
        return Conv(self.features, dtype=self.dtype)(repeat_upsample(x))


class Downsample(nn.Module):
    """Half the size, with a 3x3 convolution to ``features`` channels, or without one if that is None."""

    features: int | None
    fir_kernel: tuple[float | int, ...] | None
    dtype: Any = jnp.float32
    padding: int | str = "SAME"  # of the convolution without a filter

    @nn.compact
    def __call__(self, x: Images) -> NewImages:
        if self.features is None:
            return downsample(x, self.fir_kernel)
        if self.fir_kernel:
            return Conv2d(self.features, up=False, fir_kernel=self.fir_kernel, dtype=self.dtype)(x)
        return Conv(self.features, stride=2, padding=self.padding, dtype=self.dtype)(x)


class Combine(nn.Module):
    """Joins a downsampled input to the features, as their sum or as a concatenation."""

    method: str  # sum or cat
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Images, h: Float[Array, "b h w d"]) -> Float[Array, "b h w e"]:
        projected = Conv(h.shape[-1], 1, dtype=self.dtype)(image)
        return projected + h if self.method == "sum" else jnp.concatenate([projected, h], axis=-1)


def residual_sum(x: Images, h: Images, rescale: bool) -> Images:
    """x + h in float32, with ``rescale`` over √2 to keep the variance (arXiv 1912.04958, section 4.1)."""
    total = x.astype(jnp.float32) + h.astype(jnp.float32)
    return total * (1 / math.sqrt(2)) if rescale else total


class AttnBlockpp(nn.Module):
    """Self-attention between all pixels, with a residual connection."""

    skip_rescale: bool
    init_scale: float = 0.0
    groups: int | None = None
    epsilon: float = 1e-6
    head_dim: int | None = None  # channels of a head; None for one head of all channels
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images) -> Images:
        b, height, width, c = x.shape
        head_dim = self.head_dim or c
        require(
            c % head_dim == 0,
            "channels",
            c,
            f"a multiple of the {head_dim} channels of an attention head",
            "choose nf and ch_mult so that they are wherever there is attention",
        )
        h = group_norm(c, self.groups, self.epsilon)(x).reshape(b, height * width, c)
        heads = (b, height * width, c // head_dim, head_dim)
        query, key, value = (NIN(c, dtype=self.dtype)(h).reshape(heads) for _ in range(3))
        h = jax.nn.dot_product_attention(query, key, value).reshape(h.shape)  # scaled by 1/√(channels a head)
        h = NIN(c, self.init_scale, self.dtype)(h).reshape(x.shape)
        return residual_sum(x, h, self.skip_rescale)


class ResnetBlockDDPMpp(nn.Module):
    """The residual block of DDPM: normalise, activate, convolve, twice, with the time embedding between."""

    dropout: float
    skip_rescale: bool
    features: int | None = None  # None: as many as the input has
    init_scale: float = 0.0
    groups: int | None = None
    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images, embedding: Float[Array, "b e"] | None, train: bool) -> NewImages:
        channels = x.shape[-1]
        features = self.features or channels
        h = swish(group_norm(channels, self.groups, self.epsilon)(x))
        h = Conv(features, dtype=self.dtype)(h)
        if embedding is not None:
            h += dense(features)(swish(embedding))[:, None, None].astype(h.dtype)
        h = swish(group_norm(features, self.groups, self.epsilon)(h))
        h = nn.Dropout(self.dropout)(h, deterministic=not train)
        h = Conv(features, init_scale=self.init_scale, dtype=self.dtype)(h)
        if channels != features:
            x = NIN(features, dtype=self.dtype)(x)
        return residual_sum(x, h, self.skip_rescale)


class ResnetBlockBigGANpp(nn.Module):
    """The residual block of BigGAN (arXiv 1809.11096): that of DDPM, with resampling before convolving."""

    dropout: float
    skip_rescale: bool
    features: int | None = None  # None: as many as the input has
    resample: str | None = None  # up, down, or None for not at all
    fir_kernel: tuple[float | int, ...] | None = None
    init_scale: float = 0.0
    groups: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images, embedding: Float[Array, "b e"] | None, train: bool) -> NewImages:
        channels = x.shape[-1]
        features = self.features or channels
        h = swish(group_norm(channels, self.groups)(x))
        if self.resample:
            resample = upsample if self.resample == "up" else downsample
            h, x = resample(h, self.fir_kernel), resample(x, self.fir_kernel)
        h = Conv(features, dtype=self.dtype)(h)
        if embedding is not None:
            h += dense(features)(swish(embedding))[:, None, None].astype(h.dtype)
        h = swish(group_norm(features, self.groups)(h))
        h = nn.Dropout(self.dropout)(h, deterministic=not train)
        h = Conv(features, init_scale=self.init_scale, dtype=self.dtype)(h)
        if channels != features or self.resample:
            x = Conv(features, 1, dtype=self.dtype)(x)
        return residual_sum(x, h, self.skip_rescale)
