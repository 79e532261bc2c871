"""The original U-Net of DDPM (Ho et al., arXiv 2006.11239, appendix B)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from models import layers
from models.layers import AnyArray
from models.ncsnpp import check_classes, check_common, check_images, check_num_classes
from sde_lib.checks import require, require_count, require_positive


class DDPM(nn.Module):
    """The U-Net of DDPM: the ancestor of DDPM++, with 32 groups per normalisation and plain residual sums.

    The defaults are those of the published score_sde checkpoint. That of Ho et al. differs in
    ``attn_every_up_block``; networks of the library diffusers may differ in all of the fields below.

    Attributes:
        norm_groups, norm_epsilon: groups of channels of a normalisation, and what is added to the variance.
        attn_every_up_block: whether attention follows every block on the way up at the ``attn_resolutions``,
            as it does on the way down, or only the last one of each size.
        attn_head_dim: channels of an attention head; None for one head of all channels.
        downsample_padding: where a downsampling convolution pads with a zero: 0 for right and below, 1 for
            all sides.
        freq_shift: whether the last frequency of the time embedding is 1e-4 (1), or the one after it (0).

    The other fields mean the same as in ``NCSNpp``, whose other options this network does not have.
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
    norm_groups: int = 32
    norm_epsilon: float = 1e-6
    attn_every_up_block: bool = False
    attn_head_dim: int | None = None
    downsample_padding: int = 0
    freq_shift: int = 1
    num_classes: int = 0
    image_width: int | None = None
    dtype: Any = jnp.float32

    def check(self) -> None:
        """Refuses options that are out of range.

        Raises:
            ValueError: naming the field.
        """
        check_common(self)
        check_num_classes(self)
        require_count(norm_groups=self.norm_groups)
        require_positive(norm_epsilon=self.norm_epsilon)
        if self.attn_head_dim is not None:
            require_count(attn_head_dim=self.attn_head_dim)
        require(
            self.downsample_padding in (0, 1),
            "downsample_padding",
            self.downsample_padding,
            "0 for zeros to the right and below, or 1 for zeros on all sides",
            "set it to 0",
        )
        allowed = "1 for a last frequency of 1e-4, or 0 for one that would come after the last"
        require(self.freq_shift in (0, 1), "freq_shift", self.freq_shift, allowed, "set it to 1")
        require(
            self.nf % self.norm_groups == 0,
            "nf",
            self.nf,
            f"a multiple of {self.norm_groups} for DDPM, which normalises so many groups of channels",
            "set it to 128, or choose NCSN++",
        )

    @nn.compact
    def __call__(
        self,
        x: Float[AnyArray, "b h w c"],
        label: Float[AnyArray, " b"],
        classes: Int[AnyArray, " b"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        """The network's output for images x at time labels: 999 t for VP and sub-VP, sigma for VE.

        Args and errors are those of ``NCSNpp``.
        """
        self.check()
        check_images(self, x)
        check_classes(self, classes)
        x, label = jnp.asarray(x), jnp.asarray(label)
        blocks = attentions = 0
        common: dict[str, Any] = {
            "skip_rescale": False,
            "groups": self.norm_groups,
            "epsilon": self.norm_epsilon,
            "dtype": self.dtype,
        }

        # The blocks are those of NCSN++ with other settings, under this network's own published names.
        def block(h: Array, features: int | None = None) -> Array:
            nonlocal blocks
            name, blocks = f"ResnetBlockDDPM_{blocks}", blocks + 1
            module = layers.ResnetBlockDDPMpp(self.dropout, features=features, name=name, **common)
            return module(h, embedding, train)

        def attend(h: Array) -> Array:
            nonlocal attentions
            name, attentions = f"AttnBlock_{attentions}", attentions + 1
            return layers.AttnBlockpp(head_dim=self.attn_head_dim, name=name, **common)(h)

        def resampling_features(h: Array) -> int | None:
            return h.shape[-1] if self.resamp_with_conv else None

        embedding = None
        if self.conditional:
            embedding = layers.positional_embedding(label, self.nf, self.freq_shift)
            if classes is not None:
                embedding += layers.ClassEmbedding(self.nf, self.num_classes)(jnp.asarray(classes))
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
                padding = self.downsample_padding or "SAME"
                skips.append(layers.Downsample(resampling_features(h), None, self.dtype, padding)(h))

        # At the smallest size
        h = block(attend(block(skips[-1])))

        # Up, joining the kept outputs
        for level in reversed(levels):
            attention = h.shape[1] in self.attn_resolutions
            for blocks_left in reversed(range(self.num_res_blocks + 1)):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), self.nf * self.ch_mult[level])
                if attention and (self.attn_every_up_block or blocks_left == 0):
                    h = attend(h)
            if level > 0:
                h = layers.Upsample(resampling_features(h), None, self.dtype)(h)

        h = layers.swish(layers.group_norm(h.shape[-1], self.norm_groups, self.norm_epsilon)(h))
        return layers.Conv(self.num_channels, init_scale=0.0, dtype=jnp.float32)(h)
