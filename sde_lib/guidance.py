"""Guidance: score functions made of conditional ones, which every solver takes like any other.

A conditional score function is score_fn(x [b, ...], t [b], condition), where the condition is a pytree of
arrays with one row a sample. With the score s(x | c) for a condition c:

    classifier-free   s(x) + w (s(x | c) − s(x))         arXiv 2207.12598, with the scale w of 2205.11487
    classifier        s(x) + w ∇ log p(c | x)            arXiv 2011.13456, eq. 14; 2105.05233

At w = 1 both are the score for the condition. At any other w they are the score of no noisy data: the samples
follow the condition more closely, but have no distribution in closed form, and depend on the solver.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, Float

from sde_lib.checks import is_known, is_number, require, require_number
from sde_lib.processes import SDE, Sample, Scalar
from sde_lib.pytrees import as_partial, call
from sde_lib.reverse import denoise

# (x [batch, ...], t [batch], condition) -> log p(condition | x) [batch]
LogProbability = Callable[[Float[Array, "batch *shape"], Float[Array, " batch"], Any], Float[Array, " batch"]]


def evaluations_of(score_fn: Callable[..., Any]) -> int:
    """How many evaluations of a network one call of a score function makes for each sample.

    A score function says so by the attribute ``evaluations`` of the function that its
    ``jax.tree_util.Partial`` holds; one that says nothing makes 1.

    Example:
        >>> from jax.tree_util import Partial
        >>> from sde_lib import VPSDE
        >>> from sde_lib.guidance import classifier_free, evaluations_of
        >>> network = Partial(lambda x, t, classes: -x)
        >>> evaluations_of(network), evaluations_of(classifier_free(network, VPSDE(), null=-1, scale=2.0))
        (1, 2)
    """
    partial = as_partial(score_fn)
    function = partial.args[0] if partial.func is call else partial.func
    return int(getattr(function, "evaluations", 1))


def classifier_free(
    score_fn: Callable[..., Any],
    sde: SDE,
    *,
    null: Any,
    scale: Scalar,
    interval: tuple[Scalar, Scalar] | None = None,
    rescale: Scalar = 0.0,
) -> Partial:
    """Classifier-free guidance, s_null + scale (s_condition − s_null) (arXiv 2207.12598).

    Both scores come from one call of ``score_fn``, on a batch of twice the size.

    Args:
        score_fn: (x [b, ...], t [b], condition) -> score [b, ...]; its network knows a condition for "none".
        sde: the process that the score belongs to.
        null: the condition for "none", of one sample: −1 for the classes of this project's networks.
        scale: w; 0 ignores the condition, 1 is the conditional score alone, more than 1 exaggerates it.
        interval: (low, high), the noise levels sigma/alpha above low and up to high at which guidance acts
            (arXiv 2404.07724). Elsewhere, the result is the conditional score alone, at the same cost. None
            for all levels.
        rescale: phi in [0, 1]. The denoised image gets the standard deviation over its own elements that it
            has without guidance, at phi = 1, or part of the way there (arXiv 2305.08891, section 3.4). There
            it is done with the output of a network of v-prediction, which at the highest noise levels,
            where guidance overexposes, is the denoised image with its sign changed.

    Returns:
        (x [b, ...], t [b], condition) -> score [b, ...], of two evaluations; a pytree.

    Raises:
        ValueError: for a scale that is not a finite number, an interval without a level in it, or a rescale
            outside [0, 1]; when called, for a ``null`` that is not like one row of the condition.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sde_lib import VPSDE
        >>> from sde_lib.guidance import classifier_free
        >>> sde = VPSDE()
        >>> def score_fn(x, t, classes):  # data are 0 in class 0, 1 in class 1, and 1/2 for none
        ...     alpha, sigma = jax.vmap(sde.marginal)(t)
        ...     mean = jnp.where(classes < 0, 0.5, classes)
        ...     return ((alpha * mean)[:, None] - x) / sigma[:, None] ** 2
        >>> guided = classifier_free(score_fn, sde, null=-1, scale=3.0)
        >>> alpha, sigma = sde.marginal(0.5)
        >>> score = guided(jnp.zeros((2, 1)), jnp.full(2, 0.5), jnp.array([0, 1]))
        >>> print((score * sigma**2 / alpha).ravel().round(3))  # 1/2 ± 3/2
        [-1.  2.]
    """
    fix = "give 1 for the conditional score, more to exaggerate the condition"
    require_number("scale", scale, math.isfinite, "a finite number", fix)
    fix = "give 0 for guidance as it is, 1 for the deviation of the conditional image"
    require_number("rescale", rescale, lambda phi: 0 <= phi <= 1, "a number in [0, 1]", fix)
    if interval is not None and is_known(*jax.tree.leaves(interval)):
        pair = isinstance(interval, tuple | list) and len(interval) == 2 and all(map(is_number, interval))
        levels = pair and 0 <= float(interval[0]) < float(interval[1])
        allowed = "two noise levels sigma/alpha (low, high) with 0 <= low < high"
        require(levels, "interval", interval, allowed, "leave it out to guide at all levels")
    # without it, no deviation is computed: where it is 0, it has no derivative, which other methods take
    phi = None if is_known(rescale) and float(rescale) == 0 else rescale
    guided = _ClassifierFree(evaluations=2 * evaluations_of(score_fn))
    return Partial(guided, as_partial(score_fn), sde, null, scale, interval, phi)


def classifier(
    score_fn: Callable[..., Any], log_probability: LogProbability, *, scale: Scalar, conditional: bool = False
) -> Partial:
    """Classifier guidance, s + scale ∇ log p(condition | x) (arXiv 2011.13456, eq. 14; 2105.05233).

    At scale 1, with the true score and probability, it is exactly the score for the condition.

    Args:
        score_fn: (x [b, ...], t [b]) -> score [b, ...]; with ``conditional``, (x, t, condition) -> score.
        log_probability: (x [b, ...], t [b], condition) -> [b], the logarithm of the probability that a noisy
            image x at time t has this condition, up to terms without x. Each row may depend on its own
            sample alone. As a ``jax.tree_util.Partial``, its weights are arguments of compiled programs.
        scale: w, the weight of the gradient.
        conditional: whether the score function takes the condition as well.

    Returns:
        (x [b, ...], t [b], condition) -> score [b, ...]; a pytree. Its evaluations are those of
        ``score_fn``: the classifier's are not counted.

    Raises:
        ValueError: for a scale that is not a finite number; when called, for a log-probability that is not
            one number a sample.

    Example:
        >>> import jax.numpy as jnp
        >>> from sde_lib.guidance import classifier
        >>> guided = classifier(
        ...     lambda x, t: -x, lambda x, t, target: -((x[:, 0] - target) ** 2) / 2, scale=1.0
        ... )
        >>> print(guided(jnp.zeros((2, 1)), jnp.ones(2), jnp.array([3.0, -1.0])).ravel())
        [ 3. -1.]
    """
    require_number("scale", scale, math.isfinite, "a finite number", "give 1 for the conditional score")
    guided = _Classifier(evaluations=evaluations_of(score_fn), conditional=bool(conditional))
    return Partial(guided, as_partial(score_fn), as_partial(log_probability), scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ClassifierFree:
    evaluations: int

    def __call__(
        self,
        score_fn: Partial,
        sde: SDE,
        null: Any,
        scale: Any,
        interval: Any,
        phi: Any,
        x: Any,
        t: Any,
        condition: Any,
    ) -> Any:
        nulls = _like_rows(null, condition)
        doubled = jax.tree.map(lambda *halves: jnp.concatenate(halves), (x, t, nulls), (x, t, condition))
        both = score_fn(*doubled)
        without = jax.tree.map(lambda scores: scores[: len(t)], both)
        given = jax.tree.map(lambda scores: scores[len(t) :], both)

        def guided(x: Any, t: Scalar, without: Any, given: Any) -> Any:
            (x, _), (without, _), (given, tree) = map(ravel_pytree, (x, without, given))
            score = without + scale * (given - without)
            if phi is not None:
                score = _rescaled(sde, x, t, score, given, phi)
            if interval is not None:
                low, high = interval
                alpha, sigma = sde.marginal(t)
                score = jnp.where((low < sigma / alpha) & (sigma / alpha <= high), score, given)
            return tree(score)

        return jax.vmap(guided)(x, t, without, given)


def _rescaled(sde: SDE, x: Sample, t: Scalar, score: Sample, given: Sample, phi: Scalar) -> Sample:
    """The score whose denoised image is c D: c D = D + (c − 1) D, without a difference of D and x."""
    alpha, sigma = sde.marginal(t)
    denoised = denoise(sde, x, t, score)
    own, wanted = jnp.std(denoised), jnp.std(denoise(sde, x, t, given))
    c = 1 + phi * (jnp.where(own > 0, wanted / jnp.where(own > 0, own, 1), 1) - 1)
    return score + (c - 1) * alpha * denoised / sigma**2


def _like_rows(null: Any, condition: Any) -> Any:
    """The null condition once for each row of the condition."""
    found, wanted = jax.tree.structure(null), jax.tree.structure(condition)
    fix = "give the condition of one sample that stands for none"
    require(found == wanted, "null", found, f"a tree like that of the condition, {wanted}", fix)

    def rows(null: Any, condition: Any) -> Array:
        null, condition = jnp.asarray(null), jnp.asarray(condition)
        described = f"shape {null.shape} and type {null.dtype}"
        allowed = f"like one row of the condition, of shape {condition.shape[1:]} and type {condition.dtype}"
        is_float, takes_float = (jnp.issubdtype(a.dtype, jnp.floating) for a in (null, condition))
        fits = null.shape == condition.shape[1:] and (takes_float or not is_float)
        require(fits, "null", described, allowed, fix)
        return jnp.broadcast_to(null, condition.shape).astype(condition.dtype)

    return jax.tree.map(rows, null, condition)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Classifier:
    evaluations: int
    conditional: bool

    def __call__(
        self, score_fn: Partial, log_probability: Partial, scale: Any, x: Any, t: Any, condition: Any
    ) -> Any:
        def total(x: Any) -> Any:
            found = log_probability(x, t, condition)
            require(
                jnp.shape(found) == t.shape,
                "log_probability(x, t, condition)",
                f"shape {jnp.shape(found)}",
                f"one number a sample, of shape {t.shape}",
                "return log p(condition | x) of each sample",
            )
            return jnp.sum(found)

        score = score_fn(x, t, condition) if self.conditional else score_fn(x, t)
        return jax.tree.map(lambda score, gradient: score + scale * gradient, score, jax.grad(total)(x))
