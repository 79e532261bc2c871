"""The original U-Net of DDPM (Ho et al., arXiv 2006.11239, appendix B)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from models import layers
from models.layers import AnyArray
from models.ncsnpp import check_common, check_images
from sde_lib.checks import require


class DDPM(nn.Module):
    """The U-Net of DDPM: the ancestor of DDPM++, with 32 groups per normalisation and plain residual sums.

    The fields mean the same as in ``NCSNpp``; this network does not have the other options.
    """

    image_size: int
    num_channels: int
    centered: bool
    nf: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    dropout: float = 0.1
    resamp_with_conv: bool = True
    conditional: bool = True
    dtype: Any = jnp.float32

    def check(self) -> None:
        """Refuses options that are out of range.

        Raises:
            ValueError: naming the field.
        """
        check_common(self)
        require(
            self.nf % 32 == 0,
            "nf",
            self.nf,
            "a multiple of 32 for DDPM, which normalises 32 groups of channels",
            "set it to 128, or choose NCSN++",
        )

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "b h w c"], label: Float[AnyArray, " b"], *, train: bool = False
    ) -> Float[Array, "b h w c"]:
        """The network's output for images x at time labels: 999 t for VP and sub-VP, sigma for VE.

        With ``train``, dropout needs ``rngs={"dropout": key}``.
        """
        self.check()
        check_images(self, x)
        x, label = jnp.asarray(x), jnp.asarray(label)
        blocks = attentions = 0

        # The blocks are those of NCSN++ with other settings, under this network's own published names.
        def block(h: Array, features: int | None = None) -> Array:
            nonlocal blocks
            name, blocks = f"ResnetBlockDDPM_{blocks}", blocks + 1
            module = layers.ResnetBlockDDPMpp(
                self.dropout, skip_rescale=False, features=features, groups=32, dtype=self.dtype, name=name
            )
            return module(h, embedding, train)

        def attend(h: Array) -> Array:
            nonlocal attentions
            name, attentions = f"AttnBlock_{attentions}", attentions + 1
            return layers.AttnBlockpp(skip_rescale=False, groups=32, dtype=self.dtype, name=name)(h)

        def resampling_features(h: Array) -> int | None:
            return h.shape[-1] if self.resamp_with_conv else None

        embedding = None
        if self.conditional:
            embedding = layers.positional_embedding(label, self.nf)
            embedding = layers.dense(4 * self.nf)(embedding)
            embedding = layers.dense(4 * self.nf)(layers.swish(embedding))

        # Down, keeping every output
        x = x if self.centered else 2 * x - 1
        skips = [layers.Conv(self.nf, dtype=jnp.float32)(x)]
        levels = range(len(self.ch_mult))
        for level in levels:
            for _ in range(self.num_res_blocks):
                h = block(skips[-1], self.nf * self.ch_mult[level])
                skips.append(attend(h) if h.shape[1] in self.attn_resolutions else h)
            if level < levels[-1]:
                h = skips[-1]
                skips.append(layers.Downsample(resampling_features(h), None, self.dtype)(h))

        # At the smallest size
        h = block(attend(block(skips[-1])))

        # Up, joining the kept outputs
        for level in reversed(levels):
            for _ in range(self.num_res_blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), self.nf * self.ch_mult[level])
            if h.shape[1] in self.attn_resolutions:
                h = attend(h)
            if level > 0:
                h = layers.Upsample(resampling_features(h), None, self.dtype)(h)

        h = layers.swish(layers.group_norm(h.shape[-1], 32)(h))
        return layers.Conv(self.num_channels, init_scale=0.0, dtype=jnp.float32)(h)
