"""The networks in plain float64 NumPy, as a reference for the fast ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray


def swish(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def convolve(x: Array, weight: Array, stride: int = 1, padding: tuple[int, int] | None = None) -> Array:
    """Correlation of [b, h, w, c] with [k, k, c, d]; padded for a size of ceil(h/stride)."""
    k = weight.shape[0]
    if padding is None:
        total = max(k - stride, 0) if x.shape[1] % stride == 0 else k - 1
        padding = (total // 2, total - total // 2)
    x = np.pad(x, [(0, 0), padding, padding, (0, 0)])
    out_h, out_w = ((n - k) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((len(x), out_h, out_w, weight.shape[3]))
    for i in range(out_h):
        for j in range(out_w):
            window = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
            out[:, i, j] = np.einsum("bklc,klcd->bd", window, weight)
    return out


def filter_each_channel(x: Array, kernel: tuple[float, ...], padding: tuple[int, int], gain: float) -> Array:
    """True convolution (with the flipped kernel) of every channel with the kernel's outer square."""
    square = np.outer(kernel, kernel) / np.sum(kernel) ** 2 * gain
    channels = np.eye(x.shape[-1])
    return convolve(x, square[::-1, ::-1, None, None] * channels, padding=padding)


def insert_zeros(x: Array) -> Array:
    b, h, w, c = x.shape
    out = np.zeros((b, 2 * h, 2 * w, c))
    out[:, ::2, ::2] = x
    return out


def fir_upsample(x: Array, kernel: tuple[float, ...]) -> Array:
    p = len(kernel) - 2
    return filter_each_channel(insert_zeros(x), kernel, ((p + 1) // 2 + 1, p // 2), gain=4)


def fir_downsample(x: Array, kernel: tuple[float, ...]) -> Array:
    p = len(kernel) - 2
    return filter_each_channel(x, kernel, ((p + 1) // 2, p // 2), gain=1)[:, ::2, ::2]


def fir_upsample_convolve(x: Array, weight: Array, kernel: tuple[float, ...]) -> Array:
    """Zeros between pixels, the 3x3 convolution wherever it touches the image, then the filter."""
    spread = convolve(insert_zeros(x)[:, :-1, :-1], weight, padding=(2, 2))
    p = len(kernel) - 4
    before, after = (p + 1) // 2 + 1, p // 2 + 1
    return filter_each_channel(spread, kernel, (before, after), gain=4)


def fir_convolve_downsample(x: Array, weight: Array, kernel: tuple[float, ...]) -> Array:
    p = len(kernel)
    filtered = filter_each_channel(x, kernel, ((p + 1) // 2, p // 2), gain=1)
    return convolve(filtered, weight, stride=2, padding=(0, 0))


def repeat(x: Array) -> Array:
    return np.kron(x, np.ones((1, 2, 2, 1)))


def patches(x: Array, p: int) -> Array:
    """Every square of pixels as one, row by row."""
    return np.concatenate([x[:, i::p, j::p] for i in range(p) for j in range(p)], axis=-1)


def pixels(x: Array, p: int) -> Array:
    b, h, w, c = x.shape
    out = np.zeros((b, h * p, w * p, c // p**2))
    for n, part in enumerate(np.split(x, p**2, axis=-1)):
        out[:, n // p :: p, n % p :: p] = part
    return out


def means(x: Array) -> Array:
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def normalise(x: Array, scale: Array, bias: Array, groups: int, epsilon: float = 1e-6) -> Array:
    b, h, w, c = x.shape
    parts = x.reshape(b, h, w, groups, c // groups)
    mean = parts.mean((1, 2, 4), keepdims=True)
    variance = parts.var((1, 2, 4), keepdims=True)
    return ((parts - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * scale + bias


def attend(query: Array, key: Array, value: Array) -> Array:
    """Direct softmax over all pixels, for [b, h, w, c]."""
    out = np.zeros_like(value)
    c = query.shape[-1]
    for b in range(len(query)):
        for i in np.ndindex(query.shape[1:3]):
            logits = key[b].reshape(-1, c) @ query[b][i] / math.sqrt(c)
            weights = np.exp(logits - logits.max())
            out[b][i] = weights @ value[b].reshape(-1, c) / weights.sum()
    return out


def attend_by_heads(query: Array, key: Array, value: Array, heads: int) -> Array:
    """``attend`` for each of the parts into which the channels are cut."""
    parts = [np.split(array, heads, axis=-1) for array in (query, key, value)]
    return np.concatenate([attend(*part) for part in zip(*parts, strict=True)], axis=-1)


def positional(y: Array, features: int, freq_shift: int = 1) -> Array:
    half = features // 2
    columns = [y * 10_000 ** (-i / (half - freq_shift)) for i in range(half)]
    parts = [np.sin(c) for c in columns] + [np.cos(c) for c in columns] + [0 * y] * (features % 2)
    return np.stack(parts, axis=1)


class Network:
    """NCSN++, DDPM++ or DDPM, from its parameters and the options in ``config.model`` and ``config.data``.

    ``order`` lists the top-level layers in the order of their use, by which PyTorch files number them.
    """

    def __init__(self, params: dict[str, Any], config: Any) -> None:
        self.params, self.model, self.data = params, config.model, config.data
        self.order: list[str] = []
        self.ddpm = config.model.name == "ddpm"
        self.kernel = config.model.fir_kernel if config.model.fir and not self.ddpm else None

    def __call__(self, x: Array, label: Array) -> Array:
        m, self.order = self.model, []
        x, label = np.asarray(x, np.float64), np.asarray(label, np.float64)
        embedding = self.embed(label)
        x = patches(x if self.data.centered else 2 * x - 1, m.patch_size)
        progressive = "none" if self.ddpm else m.progressive
        progressive_input = "none" if self.ddpm else m.progressive_input
        last = len(m.ch_mult) - 1

        pyramid = x
        hs = [self.conv(self.take("Conv"), x)]
        for level, mult in enumerate(m.ch_mult):
            for _ in range(m.num_res_blocks):
                h = self.block(hs[-1], embedding, m.nf * mult)
                hs.append(self.attention(h) if h.shape[1] in m.attn_resolutions else h)
            if level < last:
                h = self.resample_features(hs[-1], embedding, "down")
                if progressive_input == "input_skip":
                    pyramid = fir_downsample(pyramid, self.kernel) if self.kernel else means(pyramid)
                    projected = self.conv(self.take("Combine")["Conv_0"], pyramid)
                    side_by_side = np.concatenate([projected, h], -1)
                    h = projected + h if m.progressive_combine == "sum" else side_by_side
                elif progressive_input == "residual":
                    h = pyramid = self.add(self.resample_convolved(pyramid, "down"), h)
                hs.append(h)
        h = self.block(hs[-1], embedding)
        h = self.attention(h)
        h = self.block(h, embedding)
        for level, mult in reversed(list(enumerate(m.ch_mult))):
            for _ in range(m.num_res_blocks + 1):
                h = self.block(np.concatenate([h, hs.pop()], -1), embedding, m.nf * mult)
                if h.shape[1] in m.attn_resolutions and m.attn_every_up_block:
                    h = self.attention(h)
            if h.shape[1] in m.attn_resolutions and not m.attn_every_up_block:
                h = self.attention(h)
            if progressive == "output_skip":
                image = self.head(h)
                if level < last:
                    image = image + (fir_upsample(pyramid, self.kernel) if self.kernel else repeat(pyramid))
                pyramid = image
            elif progressive == "residual" and level == last:
                pyramid = self.head(h)
            elif progressive == "residual":
                h = pyramid = self.add(self.resample_convolved(pyramid, "up"), h)
            if level > 0:
                h = self.resample_features(h, embedding, "up")
        assert not hs
        h = pixels(pyramid if progressive == "output_skip" else self.head(h), m.patch_size)
        return h / label[:, None, None, None] if m.scale_by_sigma else h

    def take(self, kind: str) -> dict[str, Any]:
        name = f"{kind}_{sum(other.rpartition('_')[0] == kind for other in self.order)}"
        self.order.append(name)
        return self.params[name]

    def embed(self, label: Array) -> Array | None:
        if not self.ddpm and self.model.embedding_type == "fourier":
            frequencies = np.asarray(self.take("GaussianFourierProjection")["W"], np.float64)
            angles = 2 * np.pi * np.log(label)[:, None] * frequencies
            y = np.concatenate([np.sin(angles), np.cos(angles)], 1)
        else:
            y = positional(label, self.model.nf, self.model.freq_shift if self.ddpm else 1)
        if not self.model.conditional:
            return None
        first, second = self.take("Dense"), self.take("Dense")
        y = y @ first["kernel"] + first["bias"]
        return swish(y) @ second["kernel"] + second["bias"]

    def conv(
        self, p: dict[str, Array], x: Array, stride: int = 1, padding: tuple[int, int] | None = None
    ) -> Array:
        return convolve(x, np.asarray(p["kernel"], np.float64), stride, padding) + p["bias"]

    def norm(self, p: dict[str, Array], x: Array) -> Array:
        c = x.shape[-1]
        groups = self.model.norm_groups if self.ddpm else min(c // 4, 32)
        return normalise(x, p["scale"], p["bias"], groups, self.model.norm_epsilon)

    def head(self, h: Array) -> Array:
        h = swish(self.norm(self.take("GroupNorm"), h))
        return self.conv(self.take("Conv"), h)

    def add(self, x: Array, h: Array) -> Array:
        return (x + h) / math.sqrt(2) if self.model.skip_rescale and not self.ddpm else x + h

    def attention(self, x: Array) -> Array:
        p = self.take("AttnBlock" if self.ddpm else "AttnBlockpp")
        h = self.norm(p["GroupNorm_0"], x)
        q, k, v = (h @ p[f"NIN_{i}"]["W"] + p[f"NIN_{i}"]["b"] for i in range(3))
        heads = x.shape[-1] // (self.model.attn_head_dim or x.shape[-1])
        return self.add(x, attend_by_heads(q, k, v, heads) @ p["NIN_3"]["W"] + p["NIN_3"]["b"])

    def block(self, x: Array, embedding: Array | None, features: int | None = None, way: str = "") -> Array:
        big = not self.ddpm and self.model.resblock_type == "biggan"
        kind = "ResnetBlockBigGANpp" if big else "ResnetBlockDDPMpp"
        p = self.take("ResnetBlockDDPM" if self.ddpm else kind)
        h = swish(self.norm(p["GroupNorm_0"], x))
        if way:
            h, x = (self.resample(y, way) for y in (h, x))
        h = self.conv(p["Conv_0"], h)
        if embedding is not None:
            h = h + (swish(embedding) @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])[:, None, None]
        h = self.conv(p["Conv_1"], swish(self.norm(p["GroupNorm_1"], h)))
        if big and (way or h.shape[-1] != x.shape[-1]):
            x = self.conv(p["Conv_2"], x)
        elif h.shape[-1] != x.shape[-1]:
            x = x @ p["NIN_0"]["W"] + p["NIN_0"]["b"]
        assert features is None or h.shape[-1] == features
        return self.add(x, h)

    def resample(self, x: Array, way: str) -> Array:
        if self.kernel:
            return (fir_upsample if way == "up" else fir_downsample)(x, self.kernel)
        return (repeat if way == "up" else means)(x)

    def resample_features(self, h: Array, embedding: Array | None, way: str) -> Array:
        if not self.ddpm and self.model.resblock_type == "biggan":
            return self.block(h, embedding, way=way)
        return self.resample_convolved(h, way) if self.model.resamp_with_conv else self.resample(h, way)

    def resample_convolved(self, x: Array, way: str) -> Array:
        p = self.take("Upsample" if way == "up" else "Downsample")
        if self.kernel:
            convolved = fir_upsample_convolve if way == "up" else fir_convolve_downsample
            weight = np.asarray(p["Conv2d_0"]["weight"], np.float64)
            return convolved(x, weight, self.kernel) + p["Conv2d_0"]["bias"]
        if way == "up":
            return self.conv(p["Conv_0"], repeat(x))
        return self.conv(p["Conv_0"], x, 2, (1, 1) if self.model.downsample_padding else None)
