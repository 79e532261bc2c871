"""From what a network predicts to the score.

With x = alpha x0 + sigma e, of data x0 and noise e, networks predict E[· | x] of one of these:

    epsilon     e                                        arXiv 2006.11239
    denoised    x0                                       arXiv 2206.00364
    v           alpha e − sigma x0                       arXiv 2202.00512, appendix D
    velocity    alpha' x0 + sigma' e, with d/dt; e − x0 for the flow       arXiv 2209.03003
    score       −e/sigma                                 arXiv 2011.13456
    edm         the raw network F of EDM, D = c_skip y + c_out F(c_in y), y = x/alpha      arXiv 2206.00364
    published   what the networks published for the process predict: see the process's ``score``

Each of the first five is linear in (x0, e), and so is x. Two equations give E[e | x], and the score is
−E[e | x]/sigma.

The functions below act on one sample, or on a batch with numbers that broadcast. They collect terms that
would cancel at small sigma. A denoised image is the exception: its difference from x is the noise, and the
digits that its rounding took are lost. In float32 at sigma = 1e-4 that is 1e-3 of the noise, for data of
size 1.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from sde_lib.checks import require, require_choice, require_positive
from sde_lib.paths import CosineVP, DiscreteVP
from sde_lib.processes import SDE, VPSDE, Sample, Scalar, SubVPSDE
from sde_lib.pytrees import STATIC, as_partial, register_dataclass, require_takes

Coefficient = float | Float[Array, "..."]  # one number, or one a sample, shaped to multiply the batch
Prediction = Literal["score", "epsilon", "denoised", "v", "velocity", "edm", "published"]
TimeLabel = Literal["t", "log_sigma", "index", "published"]
# (x [batch, ...], label [batch]) -> [batch, ...]
Network = Callable[[Float[Array, "batch *shape"], Float[Array, " batch"]], Float[Array, "batch *shape"]]


def score_from_epsilon(epsilon: Sample, sigma: Coefficient) -> Sample:
    """−e/sigma."""
    return -epsilon / sigma


def score_from_denoised(denoised: Sample, x: Sample, alpha: Coefficient, sigma: Coefficient) -> Sample:
    """(alpha D − x)/sigma^2, Tweedie's formula."""
    return (alpha * denoised - x) / sigma**2


def score_from_v(v: Sample, x: Sample, alpha: Coefficient, sigma: Coefficient) -> Sample:
    """−(alpha v + sigma x)/(sigma (alpha^2 + sigma^2)); the sum of squares is 1 for VP."""
    return -(alpha * v + sigma * x) / (sigma * (alpha**2 + sigma**2))


def score_from_velocity(
    velocity: Sample,
    x: Sample,
    alpha: Coefficient,
    sigma: Coefficient,
    alpha_rate: Coefficient,
    sigma_rate: Coefficient,
) -> Sample:
    """−(alpha u − alpha' x)/(sigma (alpha sigma' − alpha' sigma)), with alpha' and sigma' by time.

    For the rectified flow it is −((1 − t) u + x)/t.
    """
    return -(alpha * velocity - alpha_rate * x) / (sigma * (alpha * sigma_rate - alpha_rate * sigma))


def score_from_edm(
    raw: Callable[[Sample], Sample],
    x: Sample,
    alpha: Coefficient,
    sigma: Coefficient,
    sigma_data: Coefficient,
) -> Sample:
    """The score for EDM's raw network F, a function of c_in y.

    With y = x/alpha, S = sigma/alpha and r^2 = S^2 + sigma_data^2, D − y = S sigma_data/r F − S^2/r^2 y, and
    hence score = (sigma_data/r F − S/r^2 y)/sigma, without the difference of D and y.
    """
    y, level = x / alpha, sigma / alpha
    r = jnp.sqrt(level**2 + sigma_data**2)
    return (sigma_data / r * raw(y / r) - level / r**2 * y) / sigma


def edm_preconditioning(level: Scalar, sigma_data: Scalar) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    """(c_skip, c_out, c_in, c_noise) at the noise level sigma/alpha (arXiv 2206.00364, table 1).

    Example:
        >>> from sde_lib.predictions import edm_preconditioning
        >>> print(*(f"{c:.3f}" for c in edm_preconditioning(0.5, 0.5)))
        0.500 0.354 1.414 -0.173
    """
    r = jnp.sqrt(level**2 + sigma_data**2)
    return (sigma_data / r) ** 2, level * sigma_data / r, 1 / r, 0.25 * jnp.log(level)


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How a network is called and what it predicts; the fields are the arguments of ``as_score``."""

    sigma_data: Scalar | None
    prediction: Prediction = dataclasses.field(metadata=STATIC)
    time: TimeLabel | Callable[[SDE, Scalar], Any] = dataclasses.field(metadata=STATIC)

    def check(self, sde: SDE) -> None:
        """Raises ValueError for an unknown name, or one that does not go with the process or the others."""
        require_choice("prediction", self.prediction, get_args(Prediction))
        if not callable(self.time):
            require_choice("time", self.time, get_args(TimeLabel))
        if self.time == "index":
            require(
                isinstance(sde, VPSDE | SubVPSDE | CosineVP | DiscreteVP),
                "time",
                self.time,
                f"'t', 'log_sigma' or a function of (sde, t) for {type(sde).__name__}, which has no index",
                "give the label as a function, such as lambda sde, t: 1000 * t",
            )
        if self.prediction == "edm":
            fix = "give the data's deviation"
            require(self.sigma_data is not None, "sigma_data", self.sigma_data, "a number > 0", fix)
            require_positive(sigma_data=self.sigma_data)
        else:
            allowed = f"None for prediction {self.prediction!r}"
            fix = "leave it out, or set prediction to 'edm'"
            require(self.sigma_data is None, "sigma_data", self.sigma_data, allowed, fix)

    def label(self, sde: SDE, t: Scalar) -> Any:
        """The label of one time that the network gets."""
        match self.time:
            case "t":
                return t
            case "log_sigma":
                return -0.25 * sde.log_snr(t)
            case "index" | "published":
                return sde.network_time(t)
            case function:
                return function(sde, t)

    def score_of(self, network: Network, sde: SDE, x: Any, t: Any) -> Any:
        """The score of a batch x [b, ...] at times t [b].

        Raises:
            ValueError: for an output of the network whose shape is not that of x.
        """
        x, t = jnp.asarray(x), jnp.asarray(t)
        alpha, sigma = (_per_sample(value, x) for value in jax.vmap(sde.marginal)(t))
        label = jax.vmap(lambda t: self.label(sde, t))(t)
        if self.prediction == "edm":
            assert self.sigma_data is not None
            raw = functools.partial(_called, network, label)
            return score_from_edm(raw, x, alpha, sigma, self.sigma_data)
        output = _called(network, label, x)
        match self.prediction:
            case "score":
                return output
            case "epsilon":
                return score_from_epsilon(output, sigma)
            case "denoised":
                return score_from_denoised(output, x, alpha, sigma)
            case "v":
                return score_from_v(output, x, alpha, sigma)
            case "velocity":
                _, rates = jax.jvp(jax.vmap(sde.marginal), (t,), (jnp.ones_like(t),))
                return score_from_velocity(output, x, alpha, sigma, *(_per_sample(rate, x) for rate in rates))
            case _:
                return jax.vmap(sde.score)(output, t)


def _called(network: Network, label: Any, x: Any) -> Any:
    output = network(x, label)
    shape = getattr(output, "shape", None)
    require(
        shape == x.shape,
        "the network's output",
        type(output).__name__ if shape is None else f"shape {shape}",
        f"of the shape of x, {x.shape}",
        "return only the prediction; cut off channels of a learned variance",
    )
    return output


def _per_sample(values: Any, x: Any) -> Any:
    """One number a sample, shaped to multiply a batch like x."""
    return jnp.expand_dims(values, range(1, x.ndim))


def as_score(
    network: Network,
    sde: SDE,
    *,
    prediction: Prediction,
    time: TimeLabel | Callable[[SDE, Scalar], Any],
    sigma_data: Scalar | None = None,
) -> Partial:
    """The score function of a network, for ``solvers.sample``.

    Args:
        network: (x [b, ...], label [b]) -> [b, ...]; with a third argument, the score gets the conditions of
            its samples as one, too, and hands them on. The leaves of a ``jax.tree_util.Partial``, such as
            weights, are leaves of the result: arguments of compiled programs, so that other weights do not
            recompile. Any other callable is compiled as it stands, with its weights as constants.
        sde: the process that the network was trained for.
        prediction: what the network predicts: "score", "epsilon" (the noise), "denoised" (the image), "v",
            "velocity" (d/dt of alpha x0 + sigma e, in the time of ``sde``), "edm" (EDM's raw network,
            whose input is c_in x/alpha), or "published" (what ``sde.score`` takes).
        time: the label that it gets: "t", the time itself; "log_sigma", log(sigma/alpha)/4, which is EDM's
            c_noise; "index", 0 … N − 1 for ``DiscreteVP``, with fractions in between, and 999 t for the other
            variance-preserving processes; "published", ``sde.network_time``; or a function of (sde, t), for
            one sample.
        sigma_data: standard deviation of the data, for "edm" alone.

    Returns:
        (x [b, ...], t [b]) -> score [b, ...], a ``ScoreFn`` and a pytree; with a network of three arguments,
        (x, t, condition) -> score.

    Raises:
        ValueError: for an unknown name, a ``sigma_data`` that is missing or not used, an index of a process
            that has none; when called, for an output whose shape is not that of x, and for a network that
            takes another number of arguments.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sde_lib import RectifiedFlow, as_score
        >>> def velocity(x, t):  # of data that are 0.5: e − x0 = (x − x0)/t
        ...     return (x - 0.5) / t[:, None]
        >>> score_fn = as_score(velocity, RectifiedFlow(), prediction="velocity", time="t")
        >>> print(score_fn(jnp.ones((1, 2)), jnp.array([0.5])))  # (alpha x0 − x)/sigma^2
        [[-3. -3.]]
    """
    reading = Reading(sigma_data=sigma_data, prediction=prediction, time=time)
    reading.check(sde)
    return Partial(_score, as_partial(network), sde, reading)


def _score(network: Partial, sde: SDE, reading: Reading, x: Any, t: Any, *condition: Any) -> Any:
    require_takes("network", network, (x, t, *condition), "x, label")
    return reading.score_of(lambda x, label: network(x, label, *condition), sde, x, t)
