"""The three diffusion processes of Song et al. (arXiv 2011.13456): VE, VP and sub-VP.

Each solves dx = f(x, t) dt + g(t) dw from data at t = 0 to noise at t = T. Its marginals are Gaussian,
x(t) | x(0) ~ N(alpha(t) x(0), sigma(t)^2 I). The log-SNR is lambda(t) = log(alpha/sigma) throughout
(Lu et al., arXiv 2206.00927, section 2.3), half of the logarithm of the power ratio.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from sde_lib.checks import is_known, require, require_number, require_positive
from sde_lib.pytrees import register_dataclass

Scalar = float | Float[Array, ""]
Sample = Float[Array, "*shape"]

# The score of a batch: (x [batch, ...], t [batch]) -> [batch, ...]; where samples have conditions, of
# (x, t, condition), a pytree of arrays with one row a sample
ScoreFn = Callable[..., Float[Array, "batch *shape"]]


# The prior of VP and sub-VP, N(0, I), leaves out alpha(T) times the data. At this limit, it misses a mean of
# 1 by a twentieth of the noise's deviation. The probability flow turns that into a twentieth of the data's
# deviation, which is the standard error of the mean of 400 samples. The published processes have 0.0066.
LARGEST_ALPHA = 0.05


@runtime_checkable
class SDE(Protocol):
    """A diffusion process, as solvers, models and training use it; all functions act on one sample."""

    @property
    def eps(self) -> Any:
        """Time at which sampling ends."""
        ...

    @property
    def T(self) -> Any:
        """Time at which sampling begins."""
        ...

    def drift(self, x: Sample, t: Scalar) -> Sample:
        """f(x, t) of the forward SDE."""
        ...

    def diffusion(self, t: Scalar) -> Scalar:
        """g(t) of the forward SDE."""
        ...

    def marginal(self, t: Scalar) -> tuple[Scalar, Scalar]:
        """(alpha, sigma) of x(t) | x(0) ~ N(alpha x(0), sigma^2 I)."""
        ...

    def log_snr(self, t: Scalar) -> Scalar:
        """lambda(t) = log(alpha/sigma), strictly decreasing in t."""
        ...

    def inverse_log_snr(self, log_snr: Scalar) -> Scalar:
        """The t at which ``log_snr(t)`` has this value."""
        ...

    def prior(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Sample:
        """A draw from the distribution that sampling starts from, about the marginal at t = T."""
        ...

    def network_time(self, t: Scalar) -> Scalar:
        """The time label on which the published continuous networks are conditioned."""
        ...

    def score(self, output: Sample, t: Scalar) -> Sample:
        """The score, given a network's output."""
        ...


def _standard_normal(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Sample:
    return jax.random.normal(key, shape, dtype)


def require_interval(eps: Any, T: Any) -> None:
    """Raises ValueError unless 0 < eps < T."""
    require_positive(T=T)
    if is_known(T):
        below = f"a time above zero and below T = {T}"
        require_number("eps", eps, lambda eps: 0 < eps < float(T), below, "change eps or T")


def require_only_noise(alpha: float, T: Any, fix: str = "raise T") -> None:
    """Raises ValueError if the marginal at T still shows the data, which the prior leaves out."""
    allowed = f"a time at which only noise is left, with alpha(T) <= {LARGEST_ALPHA}"
    reason = f"since alpha(T) = {alpha:.2g} and the prior has none of the data"
    require(alpha <= LARGEST_ALPHA, "T", T, allowed, f"{fix}, {reason}")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class VESDE:
    """Variance exploding: dx = sigma(t) sqrt(2 log(sigma_max/sigma_min)) dw (arXiv 2011.13456, eq. 30).

    sigma(t) = sigma_min (sigma_max/sigma_min)^t, in data units; data lie in [0, 1].

    The prior is N(0, sigma(T)^2 I), the marginal at T of data that are 0. It leaves out the mean and the
    spread of the data, which is fair only if sigma(T) is large against both.

    Attributes:
        sigma_min: noise level at t = 0.
        sigma_max: noise level at t = 1; about the largest distance between two data points.
        eps: end time of sampling.
        T: start time of sampling.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max and 0 < eps < T.

    Example:
        >>> from sde_lib import VESDE
        >>> alpha, sigma = VESDE(sigma_max=380.0).marginal(1.0)
        >>> print(alpha, sigma)
        1.0 380.0
    """

    sigma_min: Scalar = 0.01
    sigma_max: Scalar = 50.0
    eps: Scalar = 1e-5
    T: Scalar = 1.0

    def __post_init__(self) -> None:
        require_positive(sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        if is_known(self.sigma_min, self.sigma_max):
            require(
                float(self.sigma_min) < float(self.sigma_max),
                "sigma_min",
                self.sigma_min,
                f"a level below sigma_max = {self.sigma_max}",
                "lower sigma_min or raise sigma_max",
            )
        require_interval(self.eps, self.T)

    def drift(self, x: Sample, t: Scalar) -> Sample:
        return jnp.zeros_like(x)

    def diffusion(self, t: Scalar) -> Scalar:
        return self._sigma(t) * jnp.sqrt(2 * self._log_ratio())

    def marginal(self, t: Scalar) -> tuple[Scalar, Scalar]:
        sigma = self._sigma(t)
        return jnp.ones_like(sigma), sigma

    def log_snr(self, t: Scalar) -> Scalar:
        return -jnp.log(self.sigma_min) - t * self._log_ratio()

    def inverse_log_snr(self, log_snr: Scalar) -> Scalar:
        return (-log_snr - jnp.log(self.sigma_min)) / self._log_ratio()

    @property
    def prior_std(self) -> Scalar:
        # sigma(T), in a form that is sigma_max to the bit at T = 1
        return self.sigma_max * jnp.power(self.sigma_max / self.sigma_min, self.T - 1)

    def prior(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Sample:
        return (self.prior_std * _standard_normal(key, shape, dtype)).astype(dtype)

    def network_time(self, t: Scalar) -> Scalar:
        return self._sigma(t)

    def score(self, output: Sample, t: Scalar) -> Sample:
        return output

    def _log_ratio(self) -> Scalar:
        return jnp.log(self.sigma_max / self.sigma_min)

    def _sigma(self, t: Scalar) -> Scalar:
        # exp(t log ratio) is three bits less precise, which matters for tolerances at sigma_max = 380
        return self.sigma_min * jnp.power(self.sigma_max / self.sigma_min, t)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _LinearBeta:
    """beta(t) = beta_min + t (beta_max − beta_min), for VP and sub-VP."""

    beta_min: Scalar
    beta_max: Scalar

    def __call__(self, t: Scalar) -> Scalar:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, t: Scalar) -> Scalar:
        """B(t), the integral of beta from 0 to t; alpha(t) = exp(−B(t)/2)."""
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def inverse_integral(self, integral: Scalar) -> Scalar:
        """The positive root of the quadratic, in the form that does not cancel near t = 0."""
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * slope * integral))


def _require_betas(beta_min: Any, beta_max: Any) -> None:
    require_positive(beta_min=beta_min, beta_max=beta_max)
    if is_known(beta_min, beta_max):
        require(
            float(beta_min) <= float(beta_max),
            "beta_min",
            beta_min,
            f"a rate up to beta_max = {beta_max}",
            "lower beta_min or raise beta_max",
        )


def _require_noise(beta_min: Any, beta_max: Any, T: Any) -> None:
    if is_known(beta_min, beta_max, T):
        alpha = math.exp(-0.5 * _LinearBeta(float(beta_min), float(beta_max)).integral(float(T)))
        require_only_noise(alpha, T, "raise T or the betas")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class VPSDE:
    """Variance preserving: dx = −beta(t) x/2 dt + sqrt(beta(t)) dw (arXiv 2011.13456, eq. 32).

    alpha = exp(−B/2), sigma^2 = 1 − alpha^2, with B the integral of the linear beta; data lie in [−1, 1].

    Attributes:
        beta_min, beta_max: beta at t = 0 and t = 1, per unit of time.
        eps, T: end and start time of sampling.

    Raises:
        ValueError: unless 0 < beta_min <= beta_max and 0 < eps < T, and for an alpha(T) above 0.05, where
            the marginal is not yet the prior N(0, I).

    Example:
        >>> from sde_lib import VPSDE
        >>> alpha, sigma = VPSDE().marginal(1.0)
        >>> print(f"{alpha:.4f} {sigma:.4f}")
        0.0066 1.0000
    """

    beta_min: Scalar = 0.1
    beta_max: Scalar = 20.0
    eps: Scalar = 1e-3
    T: Scalar = 1.0

    def __post_init__(self) -> None:
        _require_betas(self.beta_min, self.beta_max)
        require_interval(self.eps, self.T)
        _require_noise(self.beta_min, self.beta_max, self.T)

    def drift(self, x: Sample, t: Scalar) -> Sample:
        return -0.5 * self._beta(t) * x

    def diffusion(self, t: Scalar) -> Scalar:
        return jnp.sqrt(self._beta(t))

    def marginal(self, t: Scalar) -> tuple[Scalar, Scalar]:
        integral = self._beta.integral(t)
        return jnp.exp(-0.5 * integral), jnp.sqrt(-jnp.expm1(-integral))

    def log_snr(self, t: Scalar) -> Scalar:
        # alpha^2/sigma^2 = 1/(exp(B) − 1)
        return -0.5 * jnp.log(jnp.expm1(self._beta.integral(t)))

    def inverse_log_snr(self, log_snr: Scalar) -> Scalar:
        return self._beta.inverse_integral(jnp.logaddexp(0.0, -2 * log_snr))

    @property
    def prior_std(self) -> Scalar:
        return 1.0

    def prior(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Sample:
        return _standard_normal(key, shape, dtype)

    def network_time(self, t: Scalar) -> Scalar:
        return 999.0 * t

    def score(self, output: Sample, t: Scalar) -> Sample:
        return -output / self.marginal(t)[1]

    @property
    def _beta(self) -> _LinearBeta:
        return _LinearBeta(self.beta_min, self.beta_max)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class SubVPSDE:
    """Sub-VP: dx = −beta(t) x/2 dt + sqrt(beta(t) (1 − exp(−2 B(t)))) dw (arXiv 2011.13456, eq. 33).

    alpha = exp(−B/2), sigma = 1 − alpha^2, with B the integral of the linear beta; data lie in [−1, 1].

    Attributes:
        beta_min, beta_max: beta at t = 0 and t = 1, per unit of time.
        eps, T: end and start time of sampling.

    Raises:
        ValueError: unless 0 < beta_min <= beta_max and 0 < eps < T, and for an alpha(T) above 0.05, where
            the marginal is not yet the prior N(0, I).

    Example:
        >>> from sde_lib import SubVPSDE
        >>> alpha, sigma = SubVPSDE().marginal(1.0)
        >>> print(f"{alpha:.4f} {sigma:.4f}")
        0.0066 1.0000
    """

    beta_min: Scalar = 0.1
    beta_max: Scalar = 20.0
    eps: Scalar = 1e-3
    T: Scalar = 1.0

    def __post_init__(self) -> None:
        _require_betas(self.beta_min, self.beta_max)
        require_interval(self.eps, self.T)
        _require_noise(self.beta_min, self.beta_max, self.T)

    def drift(self, x: Sample, t: Scalar) -> Sample:
        return -0.5 * self._beta(t) * x

    def diffusion(self, t: Scalar) -> Scalar:
        return jnp.sqrt(self._beta(t) * -jnp.expm1(-2 * self._beta.integral(t)))

    def marginal(self, t: Scalar) -> tuple[Scalar, Scalar]:
        integral = self._beta.integral(t)
        return jnp.exp(-0.5 * integral), -jnp.expm1(-integral)

    def log_snr(self, t: Scalar) -> Scalar:
        integral = self._beta.integral(t)
        return -0.5 * integral - jnp.log(-jnp.expm1(-integral))

    def inverse_log_snr(self, log_snr: Scalar) -> Scalar:
        # alpha/(1 − alpha^2) = e^lambda is 1/(2 sinh(B/2)) = e^lambda
        return self._beta.inverse_integral(2 * jnp.arcsinh(0.5 * jnp.exp(-log_snr)))

    @property
    def prior_std(self) -> Scalar:
        return 1.0

    def prior(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Sample:
        return _standard_normal(key, shape, dtype)

    def network_time(self, t: Scalar) -> Scalar:
        return 999.0 * t

    def score(self, output: Sample, t: Scalar) -> Sample:
        # As published: 1 − exp(−B) without expm1, whose rounding in float32 is 2.4e-4 of sigma at t = 1e-3.
        # That is less than the error of the network, and reproduces the published scores.
        return -output / (1 - jnp.exp(-self._beta.integral(t)))

    @property
    def _beta(self) -> _LinearBeta:
        return _LinearBeta(self.beta_min, self.beta_max)
