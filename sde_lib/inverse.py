"""Inverse problems: score functions of samples of which something is observed, which every solver takes.

The condition of such a score function is an ``Observation``. With the denoised image D(x) = E[x0 | x] and its
Jacobian J, which gives the covariance of x0, V = Cov[x0 | x] = (sigma^2/alpha) J:

    inpainting, colorization   the known part has its exact score, whatever the rest is: the replacement
                               method                                             arXiv 2011.13456, appendix I
    pseudoinverse_guidance     y = A x0 + n as if x0 | x ~ N(D, r^2 I)            OpenReview 9_gsMA8MRKQ, 2023
    moment_matching            y = A x0 + n as if x0 | x ~ N(D, V)                arXiv 2310.06721, 2405.13712

with n ~ N(0, s^2 I). The last two add to the score the gradient of log p(y | x),

    J^T A^T (A C A^T + s^2 I)^-1 (y − A D)        C = r^2 I or V, taken as constant

What they assume of x0 holds for Gaussian data, and at small noise for all. Hence moment matching is exact for
every Gaussian, and pseudoinverse guidance for one of covariance d^2 I, where r^2 = d^2 sigma^2/(alpha^2 d^2 +
sigma^2). The replacement method is not exact for any data whose known and unknown parts depend on each other:
the unknown one is drawn with a look at the noisy known one, instead of at what is known. docs/conditional.md
says by how much each of them is wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from sde_lib.checks import refusal, require, require_count, require_positive
from sde_lib.guidance import evaluations_of
from sde_lib.operators import Mask, Observed, Operator, require_linear, require_mask
from sde_lib.processes import SDE, Sample, Scalar
from sde_lib.pytrees import as_partial, register_dataclass
from sde_lib.reverse import denoise


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """What is known of each sample, the condition of this module's score functions; one row a sample.

    Attributes:
        y: what is observed, [b, ...], in the data units of the process.
        mask: for inpainting, 1 for the elements of y that are known and 0 for the others, of the shape of y.
        condition: the condition of the score function underneath, if it has one.

    Raises:
        ValueError: for a mask with other values.

    Example:
        >>> import numpy as np
        >>> from sde_lib.inverse import Observation
        >>> image = np.full((8, 8, 1), 0.5, np.float32)
        >>> upper_half = np.arange(8)[:, None, None] < 4
        >>> observation = Observation(y=image[None], mask=np.broadcast_to(upper_half, (1, 8, 8, 1)))
    """

    y: Any
    mask: Any = None
    condition: Any = None

    def __post_init__(self) -> None:
        if self.mask is not None:
            require_mask(self.mask)


def inpainting(score_fn: Callable[..., Any], sde: SDE) -> Partial:
    """The replacement method for known elements: (alpha y − x)/sigma^2 there, ``score_fn`` elsewhere.

    The known elements then follow the process from y, as in arXiv 2011.13456, appendix I.2, and end at y.

    Args:
        score_fn: (x [b, ...], t [b]) -> score [b, ...], or with a condition as third argument.
        sde: the process that the score belongs to.

    Returns:
        (x [b, ...], t [b], observation) -> score [b, ...]; a pytree. The observation needs y and a mask, both
        of the shape of x.

    Raises:
        ValueError: when called, for an observation that is none, or of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from sde_lib import VPSDE
        >>> from sde_lib.inverse import Observation, inpainting
        >>> sde = VPSDE()
        >>> score_fn = inpainting(lambda x, t: -x, sde)
        >>> observation = Observation(y=jnp.array([[0.5, 0.0]]), mask=jnp.array([[1, 0]]))
        >>> alpha, sigma = sde.marginal(0.3)
        >>> score = score_fn(jnp.array([[0.5 * alpha, 2.0]]), jnp.array([0.3]), observation)
        >>> print(score + 0.0)
        [[ 0. -2.]]
    """
    return Partial(_Inpainting(evaluations=evaluations_of(score_fn)), as_partial(score_fn), sde)


def colorization(score_fn: Callable[..., Any], sde: SDE) -> Partial:
    """The replacement method for a known grey image, the mean of the channels.

    In an orthonormal basis of the channels whose first direction is grey, the first coefficient is known and
    the others are not (arXiv 2011.13456, appendix I.3). Of the basis, nothing else matters: the score's mean
    over the channels becomes (alpha y − mean of x)/sigma^2.

    Args:
        score_fn: (x [b, ..., c], t [b]) -> score [b, ..., c], or with a condition as third argument.
        sde: the process that the score belongs to.

    Returns:
        (x [b, ..., c], t [b], observation) -> score [b, ..., c]; a pytree. The observation's y is the grey
        image [b, ..., 1].

    Raises:
        ValueError: when called, for an observation that is none, or of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from sde_lib import VESDE
        >>> from sde_lib.inverse import Observation, colorization
        >>> score_fn = colorization(lambda x, t: -x, VESDE())
        >>> observation = Observation(y=jnp.array([[0.5]]))
        >>> score = score_fn(jnp.array([[0.0, 0.5, 1.0]]), jnp.array([0.3]), observation)
        >>> print(score + 0.0)
        [[ 0.5  0.  -0.5]]
    """
    return Partial(_Colorization(evaluations=evaluations_of(score_fn)), as_partial(score_fn), sde)


def pseudoinverse_guidance(
    score_fn: Callable[..., Any], sde: SDE, operator: Operator, *, noise: Scalar, data_deviation: Scalar
) -> Partial:
    """The posterior score for y = A x0 + n, as if x0 | x ~ N(D, r^2 I) (Song et al. 2023, eq. 7).

    r^2 = d^2 sigma^2/(alpha^2 d^2 + sigma^2) is the variance of x0 | x for data of covariance d^2 I, for
    which the samples are exact. The publication has d = 1; it then weights the gradient for the steps of
    DDIM, which no other solver needs.

    Args:
        score_fn: (x [b, ...], t [b]) -> score [b, ...], or with a condition as third argument.
        sde: the process that the score belongs to.
        operator: A, one of ``sde_lib.operators``.
        noise: s, the deviation of n, in the units of y.
        data_deviation: d, in data units: what the elements of a sample have on average.

    Returns:
        (x [b, ...], t [b], observation) -> score [b, ...]; a pytree. The observation's y is A x0 + n. It has
        two evaluations: the network, and one product with its Jacobian, which costs about as much.

    Raises:
        ValueError: for a noise or deviation that is not above zero; when called, for an operator that is not
            linear or does not take a sample, or an observation that is none or has another shape than A x.
        TypeError: for an operator without ``solve``.

    Example:
        >>> import jax.numpy as jnp
        >>> from sde_lib import VPSDE, denoise
        >>> from sde_lib.inverse import Observation, pseudoinverse_guidance
        >>> from sde_lib.operators import Mask
        >>> sde = VPSDE()
        >>> operator = Mask(jnp.array([1, 0]))
        >>> score_fn = pseudoinverse_guidance(lambda x, t: -x, sde, operator, noise=0.5, data_deviation=1.0)
        >>> x, t = jnp.zeros(2), jnp.float32(1.0)
        >>> score = score_fn(x[None], t[None], Observation(y=jnp.array([[1.0, 0.0]])))[0]
        >>> print("{:.2f} {:.2f}".format(*denoise(sde, x, t, score)))  # of data N(0, 1): y/(1 + 0.5^2)
        0.80 0.00
    """
    require_positive(noise=noise, data_deviation=data_deviation)
    if not isinstance(operator, Operator):
        allowed = "one of sde_lib.operators, or an operator with solve"
        raise TypeError(refusal("operator", operator, allowed, "use Matrix, or moment_matching"))
    guided = _PseudoinverseGuidance(evaluations=2 * evaluations_of(score_fn), to_check=operator)
    return Partial(guided, as_partial(score_fn), sde, operator, noise, data_deviation)


def moment_matching(
    score_fn: Callable[..., Any],
    sde: SDE,
    operator: Callable[[Sample], Any],
    *,
    noise: Scalar,
    iterations: int = 3,
) -> Partial:
    """The posterior score for y = A x0 + n, as if x0 | x ~ N(D, V) with the true covariance V of x0 | x.

    V = (sigma^2/alpha) J, Tweedie's formula of second order; TMPD (arXiv 2310.06721). The linear system is
    solved by conjugate gradients with products of J alone (arXiv 2405.13712, section 4.2). The samples are
    exact for every Gaussian once the iterations are as many as there are numbers in y, or as distinct
    eigenvalues of A V A^T.

    Args:
        score_fn: (x [b, ...], t [b]) -> score [b, ...], or with a condition as third argument. It has to be
            differentiable.
        sde: the process that the score belongs to.
        operator: A, one of ``sde_lib.operators`` or any linear function of one sample. The arrays of a
            ``jax.tree_util.Partial`` or a registered dataclass are arguments of compiled programs.
        noise: s, the deviation of n, in the units of y.
        iterations: of conjugate gradients. Fewer underrate what the observation says.

    Returns:
        (x [b, ...], t [b], observation) -> score [b, ...]; a pytree. The observation's y is A x0 + n. Its
        evaluations are 1 + iterations: a product with the Jacobian counts as one.

    Raises:
        ValueError: for a noise that is not above zero, or iterations that are not a whole number >= 1; when
            called, for an operator that is not linear or does not take a sample, or an observation that is
            none or has another shape than A x.

    Example:
        >>> import jax.numpy as jnp
        >>> from sde_lib import VPSDE, denoise
        >>> from sde_lib.inverse import Observation, moment_matching
        >>> sde = VPSDE()
        >>> score_fn = moment_matching(lambda x, t: -x, sde, lambda x: x[:1], noise=0.5, iterations=1)
        >>> x, t = jnp.zeros(2), jnp.float32(1.0)
        >>> score = score_fn(x[None], t[None], Observation(y=jnp.array([[1.0]])))[0]
        >>> print("{:.2f} {:.2f}".format(*denoise(sde, x, t, score)))  # of data N(0, 1): y/(1 + 0.5^2)
        0.80 0.00
    """
    require_positive(noise=noise)
    require_count(iterations=iterations)
    operator = operator if isinstance(operator, Operator) else as_partial(operator)
    guided = _MomentMatching(
        evaluations=(1 + int(iterations)) * evaluations_of(score_fn),
        to_check=operator,
        iterations=int(iterations),  # a static number, which no array can be
    )
    return Partial(guided, as_partial(score_fn), sde, operator, noise)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Inpainting:
    evaluations: int

    def __call__(self, score_fn: Partial, sde: SDE, x: Any, t: Any, observation: Any) -> Any:
        _require_observation(observation, masked=True)
        _require_shape("the observation's y", observation.y, x.shape)
        _require_shape("the observation's mask", observation.mask, x.shape)

        def replaced(x: Sample, t: Scalar, score: Sample, y: Sample, mask: Any) -> Sample:
            alpha, sigma = sde.marginal(t)
            return jnp.where(mask, (alpha * y - x) / sigma**2, score)

        return jax.vmap(replaced)(x, t, _score(score_fn, x, t, observation), observation.y, observation.mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Colorization:
    evaluations: int

    def __call__(self, score_fn: Partial, sde: SDE, x: Any, t: Any, observation: Any) -> Any:
        _require_observation(observation)
        _require_shape("the observation's y", observation.y, (*x.shape[:-1], 1))

        def grey(x: Sample) -> Observed:
            return jnp.mean(x, axis=-1, keepdims=True)

        def replaced(x: Sample, t: Scalar, score: Sample, y: Observed) -> Sample:
            alpha, sigma = sde.marginal(t)
            return score - grey(score) + (alpha * y - grey(x)) / sigma**2

        return jax.vmap(replaced)(x, t, _score(score_fn, x, t, observation), observation.y)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Linearized:
    """At a batch of samples: their score, y − A D, and v -> J^T A^T v."""

    score: Any
    residual: Any
    transposed: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Linear:
    """What the methods for y = A x0 + n have in common."""

    evaluations: int
    # the operator with its numbers, which are traced where it is an argument; no part of the program
    to_check: Callable[[Any], Any] = dataclasses.field(compare=False, repr=False)

    def linearized(
        self, score_fn: Partial, sde: SDE, operator: Callable[[Any], Any], x: Any, t: Any, observation: Any
    ) -> _Linearized:
        _require_observation(observation)
        require_linear(self.to_check, x.shape[1:], x.dtype)

        def observed(x: Any) -> tuple[Any, Any]:
            """A D, and the score."""
            score = _score(score_fn, x, t, observation)
            return jax.vmap(lambda *sample: operator(denoise(sde, *sample)))(x, t, score), score

        predicted, pullback, score = jax.vjp(observed, x, has_aux=True)
        y = observation.y
        _require_shape("the observation's y", y, predicted.shape)
        if isinstance(operator, Mask):
            y = jax.vmap(operator)(y)  # whatever y has where nothing is observed
        return _Linearized(
            score=score,
            residual=(y - predicted).astype(predicted.dtype),
            transposed=lambda v: pullback(v)[0],
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _PseudoinverseGuidance(_Linear):
    def __call__(
        self,
        score_fn: Partial,
        sde: SDE,
        operator: Operator,
        noise: Any,
        data_deviation: Any,
        x: Any,
        t: Any,
        observation: Any,
    ) -> Any:
        linear = self.linearized(score_fn, sde, operator, x, t, observation)

        def solved(residual: Observed, t: Scalar) -> Observed:
            alpha, sigma = sde.marginal(t)
            variance = data_deviation**2 * sigma**2 / ((alpha * data_deviation) ** 2 + sigma**2)  # r^2
            return operator.solve(residual, variance, noise**2)

        return linear.score + linear.transposed(jax.vmap(solved)(linear.residual, t))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _MomentMatching(_Linear):
    iterations: int

    def __call__(
        self,
        score_fn: Partial,
        sde: SDE,
        operator: Callable[[Any], Any],
        noise: Any,
        x: Any,
        t: Any,
        observation: Any,
    ) -> Any:
        linear = self.linearized(score_fn, sde, operator, x, t, observation)

        def observed_variance(step: Sample, t: Scalar) -> Observed:
            """A V A^T p, given J^T A^T p."""
            alpha, sigma = sde.marginal(t)
            return sigma**2 / alpha * operator(step)

        def iterate(_: Any, carry: tuple) -> tuple:
            gradient, residual, direction = carry
            step = linear.transposed(direction)
            product = jax.vmap(observed_variance)(step, t) + noise**2 * direction
            size = _ratio(_inner(residual, residual), _inner(direction, product))
            left = residual - _times(size, product)
            turn = _ratio(_inner(left, left), _inner(residual, residual))
            return gradient + _times(size, step), left, left + _times(turn, direction)

        begin = (jnp.zeros_like(x), linear.residual, linear.residual)
        gradient, *_ = lax.fori_loop(0, self.iterations, iterate, begin)
        return linear.score + gradient


def _score(score_fn: Partial, x: Any, t: Any, observation: Observation) -> Any:
    if observation.condition is None:
        return score_fn(x, t)
    return score_fn(x, t, observation.condition)


def _inner(a: Any, b: Any) -> Any:
    """⟨a, b⟩ of each sample, [b]."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)))


def _times(factor: Any, a: Any) -> Any:
    return factor.reshape(-1, *(1,) * (a.ndim - 1)) * a


def _ratio(a: Any, b: Any) -> Any:
    """a/b; 0 unless b is above zero: solved to the last digit, or a J that is no covariance's."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def _require_observation(observation: Any, *, masked: bool = False) -> None:
    fix = "pass conditions=Observation(y=...), with one row a sample"
    named = type(observation).__name__
    require(isinstance(observation, Observation), "the condition", named, "an Observation", fix)
    if not masked:
        found, allowed = type(observation.mask).__name__, "None, except for inpainting"
        fix = "leave it out; for other methods, use the operator Mask"
        require(observation.mask is None, "the observation's mask", found, allowed, fix)


def _require_shape(name: str, value: Any, shape: tuple[int, ...]) -> None:
    found = "None" if value is None else f"shape {jnp.shape(value)}"
    fix = "give one row for each sample"
    require(value is not None and jnp.shape(value) == shape, name, found, f"of shape {shape}", fix)
