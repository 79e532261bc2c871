"""Linear operators of inverse problems: what an observation y = A x0 + n shows of a sample x0.

Every operator acts on one sample without a batch axis. It is called with a sample, and ``solve`` applies
(v A A^T + w I)^-1, which has a closed form for each of them. JAX derives A^T from A.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from sde_lib.checks import is_known, require, require_count
from sde_lib.processes import Sample, Scalar
from sde_lib.pytrees import STATIC, register_dataclass

# Of the check of linearity, relative to the terms. The rounding of float32 is 1e-7 a term; an operator that
# rounds to 8 bits, a common one that is not linear, is off by 1e-3.
TOLERANCE = 1e-4


Observed = Float[Array, "..."]  # what an operator makes of one sample


@runtime_checkable
class Operator(Protocol):
    """A linear operator A whose ``solve`` is known."""

    def __call__(self, x: Sample) -> Observed:
        """A x."""
        ...

    def solve(self, y: Observed, v: Scalar, w: Scalar) -> Observed:
        """(v A A^T + w I)^-1 y, for numbers v, w > 0."""
        ...


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """Some elements of a sample: those that are 1 in the mask. The observation is 0 elsewhere.

    Attributes:
        mask: of the shape of a sample; 0 or 1, or bool.

    Raises:
        ValueError: for a mask with other values; when called, for a sample of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from sde_lib.operators import Mask
        >>> print(Mask(jnp.array([1, 0, 1]))(jnp.array([5.0, 6.0, 7.0])))
        [5. 0. 7.]
    """

    mask: Any

    def __post_init__(self) -> None:
        require_mask(self.mask)
        object.__setattr__(self, "mask", jnp.asarray(self.mask))

    def __call__(self, x: Sample) -> Observed:
        shape = jnp.shape(self.mask)
        require(
            shape == x.shape, "mask", f"shape {shape}", f"of the shape of a sample, {x.shape}", "change it"
        )
        return jnp.where(self.mask, x, 0)

    def solve(self, y: Observed, v: Scalar, w: Scalar) -> Observed:
        return y / (v * self.mask.astype(y.dtype) + w)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class BoxDownsample:
    """The mean of every block of factor × factor pixels: [h, w, ...] -> [h/factor, w/factor, ...].

    Attributes:
        factor: the side of a block.

    Raises:
        ValueError: for a factor that is not a whole number >= 1; when called, for sides that it does not
            divide.

    Example:
        >>> import jax.numpy as jnp
        >>> from sde_lib.operators import BoxDownsample
        >>> print(BoxDownsample(2)(jnp.arange(8.0).reshape(2, 4)))
        [[2.5 4.5]]
    """

    factor: int = dataclasses.field(metadata=STATIC)

    def __post_init__(self) -> None:
        require_count(factor=self.factor)

    def __call__(self, x: Sample) -> Observed:
        k = self.factor
        fits = x.ndim >= 2 and x.shape[0] % k == 0 and x.shape[1] % k == 0
        allowed = f"a divisor of the first two sides of a sample, of shape {x.shape}"
        require(fits, "factor", k, allowed, "choose another, or another shape")
        height, width, *rest = x.shape
        return jnp.mean(x.reshape(height // k, k, width // k, k, *rest), axis=(1, 3))

    def solve(self, y: Observed, v: Scalar, w: Scalar) -> Observed:
        return y / (v / self.factor**2 + w)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Grey:
    """The mean of the channels: [..., c] -> [..., 1].

    Attributes:
        num_channels: c.

    Raises:
        ValueError: for a number of channels that is not a whole number >= 1; when called, for a sample with
            another number.

    Example:
        >>> import jax.numpy as jnp
        >>> from sde_lib.operators import Grey
        >>> print(Grey()(jnp.array([[1.0, 2.0, 6.0]])))
        [[3.]]
    """

    num_channels: int = dataclasses.field(default=3, metadata=STATIC)

    def __post_init__(self) -> None:
        require_count(num_channels=self.num_channels)

    def __call__(self, x: Sample) -> Observed:
        allowed = f"the last side of a sample, of shape {x.shape}"
        require(x.shape[-1:] == (self.num_channels,), "num_channels", self.num_channels, allowed, "change it")
        return jnp.mean(x, axis=-1, keepdims=True)

    def solve(self, y: Observed, v: Scalar, w: Scalar) -> Observed:
        return y / (v / self.num_channels + w)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Blur:
    """The circular convolution of the first two axes with a kernel: [h, w, ...] -> [h, w, ...].

    The image goes on at its opposite side. The kernel's centre is its element (height // 2, width // 2).

    Attributes:
        kernel: [height, width], at most as large as the image.

    Raises:
        ValueError: for a kernel without two axes; when called, for an image that is smaller.

    Example:
        >>> import jax.numpy as jnp
        >>> from sde_lib.operators import Blur
        >>> image = jnp.zeros((3, 4)).at[0, 0].set(4.0)
        >>> print(Blur(jnp.array([[0.25, 0.5, 0.25]]))(image)[0].round(5) + 0.0)
        [2. 1. 0. 1.]
    """

    kernel: Any

    def __post_init__(self) -> None:
        allowed, fix = "of two axes, (height, width)", "give one number for each pixel"
        kernel = jnp.asarray(self.kernel)
        require(kernel.ndim == 2, "kernel", f"shape {kernel.shape}", allowed, fix)
        object.__setattr__(self, "kernel", kernel)

    def __call__(self, x: Sample) -> Observed:
        return self._filtered(x, lambda response: response)

    def solve(self, y: Observed, v: Scalar, w: Scalar) -> Observed:
        return self._filtered(y, lambda response: 1 / (v * jnp.abs(response) ** 2 + w))

    def _filtered(self, x: Sample, change: Callable[[Array], Array]) -> Sample:
        """The image with its Fourier coefficients times what ``change`` makes of the kernel's."""
        height, width = self.kernel.shape
        fits = x.ndim >= 2 and height <= x.shape[0] and width <= x.shape[1]
        allowed = f"at most as large as the first two sides of a sample, of shape {x.shape}"
        require(fits, "kernel", f"shape {(height, width)}", allowed, "cut it off, or choose another shape")
        sides = x.shape[:2]
        kernel = jnp.zeros(sides, x.dtype).at[:height, :width].set(self.kernel)
        kernel = jnp.roll(kernel, (-(height // 2), -(width // 2)), axis=(0, 1))
        response = change(jnp.fft.rfft2(kernel)).reshape(sides[0], -1, *(1,) * (x.ndim - 2))
        return jnp.fft.irfft2(response * jnp.fft.rfft2(x, axes=(0, 1)), s=sides, axes=(0, 1)).astype(x.dtype)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Matrix:
    """Any linear operator, by its matrix: [...] with n elements -> [m].

    Attributes:
        matrix: [m, n], for a sample that is flattened.

    Raises:
        ValueError: for anything but a matrix of finite numbers; when called, for a sample whose number of
            elements is not n.

    Example:
        >>> import jax.numpy as jnp
        >>> from sde_lib.operators import Matrix
        >>> print(Matrix([[1.0, 0.0, -1.0]])(jnp.array([5.0, 6.0, 7.0])))
        [-2.]
    """

    matrix: Any
    # of A A^T, for ``solve``
    eigenvectors: Any = dataclasses.field(init=False, repr=False)
    eigenvalues: Any = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        matrix = np.asarray(self.matrix, np.float64)
        fits = matrix.ndim == 2 and bool(np.isfinite(matrix).all())
        fix = "give one row for each number observed, one column for each element of a sample"
        require(fits, "matrix", f"shape {matrix.shape}", "a matrix of finite numbers", fix)
        values, vectors = np.linalg.eigh(matrix @ matrix.T)
        for name, value in (("matrix", matrix), ("eigenvectors", vectors), ("eigenvalues", values)):
            object.__setattr__(self, name, jnp.asarray(value, float))

    def __call__(self, x: Sample) -> Float[Array, " m"]:
        columns = self.matrix.shape[1]
        allowed = f"of {x.size} columns, for a sample of shape {x.shape}"
        require(columns == x.size, "matrix", f"{columns} columns", allowed, "give one for each element")
        return _product(self.matrix, x.reshape(-1)).astype(x.dtype)

    def solve(self, y: Float[Array, " m"], v: Scalar, w: Scalar) -> Float[Array, " m"]:
        coefficients = _product(self.eigenvectors.T, y) / (v * self.eigenvalues + w)
        return _product(self.eigenvectors, coefficients).astype(y.dtype)


def _product(matrix: Array, vector: Array) -> Array:
    # by default, accelerators would round to three digits
    return jnp.matmul(matrix, vector, precision=lax.Precision.HIGHEST)


def require_mask(mask: Any) -> None:
    """Raises ValueError for a mask with values other than 0 and 1, unless JAX traces it."""
    if is_known(mask):
        other = np.setdiff1d(np.asarray(mask), (0, 1))
        require(not other.size, "mask", other[:3].tolist(), "0 or 1 everywhere", "give 1 for what is known")


def require_linear(operator: Callable[[Any], Any], shape: tuple[int, ...], dtype: Any) -> None:
    """Raises ValueError unless A(0) = 0 and A(a x + b z) = a A(x) + b A(z) for two random samples.

    Nothing is checked while JAX traces what the operator holds.
    """
    if not is_known(*jax.tree.leaves(operator)):
        return
    a, b = 0.6, -1.7
    with jax.ensure_compile_time_eval():
        x, z = jnp.asarray(np.random.default_rng(0).standard_normal((2, *shape)), dtype)
        samples = (jnp.zeros_like(x), x, z, a * x + b * z)
        zero, of_x, of_z, of_sum = (np.asarray(operator(sample)) for sample in samples)
    errors = np.abs(np.stack([zero, of_sum - (a * of_x + b * of_z)]))
    terms = np.abs(np.stack([a * of_x, b * of_z]))
    linear = bool(np.all(errors <= TOLERANCE * terms.max(initial=0)))  # NaN is not
    named = getattr(operator, "__name__", type(operator).__name__)
    allowed, fix = "a linear function of a sample, with A(0) = 0", "subtract A(0), or observe something else"
    require(linear, "operator", named, allowed, fix)
