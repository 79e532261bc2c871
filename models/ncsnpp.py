"""NCSN++ and DDPM++ (Song et al., arXiv 2011.13456, appendix H): one U-Net with different options.

NCSN++ (VE): FIR resampling, Fourier embedding of log sigma, progressive input. DDPM++ (VP, sub-VP): plain
resampling, positional embedding of 999 t, nothing progressive. EDM (Karras et al., arXiv 2206.00364) trained
both with its own preconditioning and label, on classes, too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from configs import image_shape
from models import layers
from models.layers import AnyArray
from sde_lib.checks import (
    is_number,
    require,
    require_choice,
    require_count,
    require_number,
    require_positive,
)


class NCSNpp(nn.Module):
    """The U-Net; its fields have the names of the published configs' model group.

    Attributes:
        image_size, num_channels: height of the images in pixels, and their number of colours.
        image_width: their width in pixels; None for squares.
        centered: whether images have values in [−1, 1]; otherwise they are scaled there from [0, 1].
        patch_size: side of the squares of pixels that the network sees as one, with all of their colours as
            its channels; 1 for pixels. A patch of 2 halves a small network's time ("simple diffusion",
            arXiv 2301.11093, section 3.2). All sizes below are then those of the image of patches.
        nf, ch_mult: channels at the first resolution, and at each resolution as multiples of ``nf``.
        num_res_blocks: residual blocks at each resolution.
        attn_resolutions: image heights with attention; the smallest size always has it.
        dropout: dropout rate in training.
        resamp_with_conv: whether resampling includes a convolution, for DDPM blocks.
        conditional: whether the blocks depend on the time.
        fir, fir_kernel: whether to resample with a filter, and its taps.
        skip_rescale: whether to divide residual sums by √2.
        resblock_type: biggan or ddpm.
        progressive: output from all resolutions: none, output_skip (images summed) or residual (features).
        progressive_input: input to all resolutions: none, input_skip (images) or residual (features).
        progressive_combine: sum or cat, for input_skip.
        embedding_type, fourier_scale: of the label: positional; fourier, of its logarithm, as published for
            VE; or fourier_of_label, for labels that are logarithms already, as EDM's. With this scale of the
            frequencies.
        init_scale: scale of the initial weights that end a block; at 0 the block starts as the identity.
        scale_by_sigma: whether to divide the output by the label.
        num_classes: of images that belong to one class each; 0 for a network without classes.
        dtype: type of the computation; parameters, normalisation, embedding and output are float32.

    Example:
        >>> import jax
        >>> network = NCSNpp(8, 1, True, nf=4, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,))
        >>> x, sigma = jnp.zeros((2, 8, 8, 1)), jnp.ones(2)
        >>> output, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), x, sigma)
        >>> output.shape, sorted(variables["params"])[:2]
        ((2, 8, 8, 1), ['AttnBlockpp_0', 'AttnBlockpp_1'])
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
    fir: bool = False
    fir_kernel: tuple[float | int, ...] = (1, 3, 3, 1)
    skip_rescale: bool = True
    resblock_type: str = "biggan"
    progressive: str = "none"
    progressive_input: str = "none"
    progressive_combine: str = "sum"
    embedding_type: str = "positional"
    fourier_scale: float = 16.0
    init_scale: float = 0.0
    scale_by_sigma: bool = False
    num_classes: int = 0
    image_width: int | None = None
    patch_size: int = 1
    dtype: Any = jnp.float32

    def check(self) -> None:
        """Refuses options that are out of range or do not go together.

        Raises:
            ValueError: naming the field.
        """
        require_count(patch_size=self.patch_size)
        check_common(self, self.patch_size)
        require_positive(fourier_scale=self.fourier_scale)
        require_number(
            "init_scale", self.init_scale, lambda s: 0 <= s < float("inf"), "a number >= 0", "set it to 0"
        )
        require_choice("resblock_type", self.resblock_type, ("biggan", "ddpm"))
        require_choice("progressive", self.progressive, ("none", "output_skip", "residual"))
        require_choice("progressive_input", self.progressive_input, ("none", "input_skip", "residual"))
        require_choice("progressive_combine", self.progressive_combine, ("sum", "cat"))
        require_choice("embedding_type", self.embedding_type, ("fourier", "fourier_of_label", "positional"))
        check_num_classes(self)
        require(
            not self.fir or (len(self.fir_kernel) >= 2 and 0 < sum(self.fir_kernel) < float("inf")),
            "fir_kernel",
            self.fir_kernel,
            "at least two taps with a sum above zero",
            "set it to (1, 3, 3, 1), or set fir=False",
        )
        require(
            not self.scale_by_sigma or self.embedding_type == "fourier",
            "scale_by_sigma",
            self.scale_by_sigma,
            f"False with embedding_type={self.embedding_type!r}, whose label is not a noise level",
            "set embedding_type='fourier' (VE), or scale_by_sigma=False (VP, sub-VP)",
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
        """The network's output for images x at time labels: sigma for VE, 999 t for VP and sub-VP.

        Args:
            x: the images.
            label: their time labels.
            classes: their classes 0 … num_classes − 1, or −1 for none; given if there are any.
            train: whether dropout acts, which needs ``rngs={"dropout": key}``.

        Raises:
            ValueError: for options that ``check`` refuses, for images of another size, or for classes that
                are missing or that the network does not have.
        """
        self.check()
        check_images(self, x)
        check_classes(self, classes)
        x, label = layers.patched(jnp.asarray(x), self.patch_size), jnp.asarray(label)
        # The layers, with the settings that all of a kind share
        fir_kernel = self.fir_kernel if self.fir else None
        conv = partial(layers.Conv, dtype=self.dtype)
        image_conv = partial(layers.Conv, dtype=jnp.float32)  # float32 is cheap for few channels
        attend = partial(
            layers.AttnBlockpp, skip_rescale=self.skip_rescale, init_scale=self.init_scale, dtype=self.dtype
        )
        common: dict[str, Any] = {
            "dropout": self.dropout,
            "skip_rescale": self.skip_rescale,
            "init_scale": self.init_scale,
            "dtype": self.dtype,
        }
        biggan = self.resblock_type == "biggan"
        block = partial(layers.ResnetBlockBigGANpp if biggan else layers.ResnetBlockDDPMpp, **common)
        resampling_block = partial(layers.ResnetBlockBigGANpp, fir_kernel=fir_kernel, **common)
        up = partial(layers.Upsample, fir_kernel=fir_kernel, dtype=self.dtype)
        down = partial(layers.Downsample, fir_kernel=fir_kernel, dtype=self.dtype)

        def activated(h: Array) -> Array:
            return layers.swish(layers.group_norm(h.shape[-1], None)(h))

        def resampling_features(h: Array) -> int | None:
            return h.shape[-1] if self.resamp_with_conv else None

        # Time and class
        if self.embedding_type == "positional":
            embedding = layers.positional_embedding(label, self.nf)
        else:
            value = jnp.log(label) if self.embedding_type == "fourier" else label
            embedding = layers.GaussianFourierProjection(self.nf, self.fourier_scale)(value)
        if classes is not None:
            embedding += layers.ClassEmbedding(embedding.shape[-1], self.num_classes)(jnp.asarray(classes))
        if self.conditional:
            embedding = layers.dense(4 * self.nf)(embedding)
            embedding = layers.dense(4 * self.nf)(layers.swish(embedding))
        else:
            embedding = None

        # Down, keeping every output
        pyramid = x if self.centered else 2 * x - 1
        skips = [image_conv(self.nf)(pyramid)]
        levels = range(len(self.ch_mult))
        for level in levels:
            for _ in range(self.num_res_blocks):
                h = block(features=self.nf * self.ch_mult[level])(skips[-1], embedding, train)
                if h.shape[1] in self.attn_resolutions:
                    h = attend()(h)
                skips.append(h)
            if level == levels[-1]:
                break
            h = skips[-1]
            if biggan:
                h = resampling_block(resample="down")(h, embedding, train)
            else:
                h = down(resampling_features(h))(h)
            if self.progressive_input == "input_skip":
                pyramid = down(None)(pyramid)
                h = layers.Combine(self.progressive_combine, self.dtype)(pyramid, h)
            elif self.progressive_input == "residual":
                h = pyramid = layers.residual_sum(down(h.shape[-1])(pyramid), h, self.skip_rescale)
            skips.append(h)

        # At the smallest size
        h = block()(skips[-1], embedding, train)
        h = attend()(h)
        h = block()(h, embedding, train)

        # Up, joining the kept outputs
        for level in reversed(levels):
            for _ in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(features=self.nf * self.ch_mult[level])(h, embedding, train)
            if h.shape[1] in self.attn_resolutions:
                h = attend()(h)
            first = level == levels[-1]
            if self.progressive == "output_skip":
                image = image_conv(x.shape[-1], init_scale=self.init_scale)(activated(h))
                pyramid = image if first else up(None)(pyramid) + image
            elif self.progressive == "residual":
                if first:
                    pyramid = conv(h.shape[-1])(activated(h))
                else:
                    h = pyramid = layers.residual_sum(up(h.shape[-1])(pyramid), h, self.skip_rescale)
            if level > 0:
                if biggan:
                    h = resampling_block(resample="up")(h, embedding, train)
                else:
                    h = up(resampling_features(h))(h)

        if self.progressive == "output_skip":
            h = pyramid
        else:
            h = image_conv(x.shape[-1], init_scale=self.init_scale)(activated(h))
        h = layers.unpatched(h, self.patch_size)
        return h / label[:, None, None, None] if self.scale_by_sigma else h


def check_common(module: Any, patch_size: int = 1) -> None:
    """Refuses fields of NCSN++ and DDPM that are out of range; raises ValueError naming the field."""
    require_count(num_res_blocks=module.num_res_blocks, num_channels=module.num_channels)
    require(_is_whole(module.nf, 4), "nf", module.nf, "a whole number >= 4", "set it to 4 or more")
    require(
        isinstance(module.ch_mult, tuple) and module.ch_mult and all(_is_whole(m, 1) for m in module.ch_mult),
        "ch_mult",
        module.ch_mult,
        "one whole number >= 1 for each resolution",
        "set it, for example, to (1, 2, 2, 2)",
    )
    require_number(
        "dropout", module.dropout, lambda p: 0 <= p < 1, "a rate in [0, 1)", "set it to 0 for none"
    )
    levels = len(module.ch_mult)
    factor = patch_size * 2 ** (levels - 1)
    patches = f" and patches take {patch_size} pixels a side" if patch_size > 1 else ""
    for name, side in zip(("image_size", "image_width"), image_shape(module)[:2], strict=True):
        require(
            _is_whole(side, factor) and side % factor == 0,
            name,
            side,
            f"a multiple of {factor}, since {levels} resolutions halve it {levels - 1} times{patches}",
            f"shorten ch_mult, or choose another {name}",
        )
    sizes = [module.image_size // patch_size // 2**level for level in range(levels)]
    require(
        all(size in sizes for size in module.attn_resolutions),
        "attn_resolutions",
        module.attn_resolutions,
        f"among {', '.join(map(str, sizes))}, the sizes at which the network computes",
        "leave the others out; with () only the smallest size has attention",
    )
    require(
        module.dtype in (jnp.float32, jnp.bfloat16),
        "dtype",
        str(module.dtype),
        "float32 or bfloat16",
        "set it to float32",
    )


def _is_whole(value: Any, least: int) -> bool:
    return is_number(value, whole=True) and bool(value >= least)


def check_images(module: Any, x: AnyArray) -> None:
    """Raises ValueError unless x has the size and the channels that the network was built for."""
    expected = image_shape(module)
    require(
        x.shape[1:] == expected,
        "x.shape",
        x.shape,
        f"(batch, {', '.join(map(str, expected))})",
        "set image_size, image_width and num_channels to those of the images",
    )


def check_num_classes(module: Any) -> None:
    """Refuses a number of classes that is none, or classes without an embedding to be added to.

    Raises:
        ValueError: naming the field.
    """
    fix = "set it to 0 for a network without classes"
    require(_is_whole(module.num_classes, 0), "num_classes", module.num_classes, "a whole number >= 0", fix)
    require(
        module.conditional or module.num_classes == 0,
        "num_classes",
        module.num_classes,
        "0 with conditional=False, since classes are added to the embedding of the time",
        "set conditional=True",
    )


def check_classes(module: Any, classes: Int[AnyArray, " b"] | None) -> None:
    """Raises ValueError unless classes are given exactly if the network has them."""
    given = None if classes is None else f"shape {classes.shape}"
    if module.num_classes:
        allowed = f"one class from 0 to {module.num_classes - 1} for every image, or -1 for none"
        require(classes is not None, "classes", given, allowed, "give them as the score's condition")
    else:
        allowed = "None for a network without classes"
        fix = "leave them out, or set num_classes to that of the network's training"
        require(classes is None, "classes", given, allowed, fix)
