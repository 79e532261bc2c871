"""More processes: EDM's, the rectified flow, the cosine schedule, and a table of noise levels.

A Gaussian path is given by its marginals alone, x(t) | x(0) ~ N(alpha(t) x(0), sigma(t)^2 I). The SDE
dx = f dt + g dw with these marginals follows from them (Kingma et al., arXiv 2107.00630). For f = a x,
d alpha/dt = a alpha and d sigma^2/dt = 2 a sigma^2 + g^2. With lambda = log(alpha/sigma) this gives

    f = (d log alpha/dt) x,        g^2 = d sigma^2/dt − 2 sigma^2 d log alpha/dt = −2 sigma^2 d lambda/dt

Where alpha^2 + sigma^2 = 1, moreover d log alpha/dt = sigma^2 d lambda/dt, so that f = −g^2 x/2.

``score`` of each process here takes a network that predicts the noise. For other predictions see
``sde_lib.as_score``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from sde_lib.checks import (
    is_known,
    require,
    require_choice,
    require_count,
    require_number,
    require_positive,
)
from sde_lib.processes import Sample, Scalar, require_interval, require_only_noise
from sde_lib.pytrees import register_dataclass

# Both errors that T = 1 − alpha leaves in a rectified flow are smallest in sum here: the prior leaves out
# alpha times the data, and a denoised image loses the rounding of x (2^−24 in float32) over alpha.
FLOW_ALPHA = 2.0**-12

# The published schedule clips beta at 0.999 in a chain of 1,000 steps. This concerns the last step alone: it
# multiplies alpha^2 by 0.001, where the cosine gives 0. Near t = 1, alpha is proportional to 1 − t, so the
# level that the chain ends at is that of 1 − t = 0.001^(1/2)/1000.
COSINE_REST = 10.0**-4.5

COSINE_OFFSET = 0.008  # as published

# A table belongs to a network, and cannot be changed. That of Stable Diffusion ends at alpha = 0.068.
LARGEST_ALPHA_OF_TABLE = 0.1

# The settings of ``DiscreteVP.from_schedule`` and their defaults: DDPM's own (arXiv 2006.11239, section 4)
SCHEDULE: dict[str, Any] = {"schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_levels": 1000}
LARGEST_BETA = 0.999  # of the cosine chain, as published

# Newton's iterations for a cubic on [0, 1]. On the tables of DDPM and of the cosine, four reach the rounding
# of float64. An abrupt table can have a slope near zero at one end, where each iteration halves the distance.
ITERATIONS = 16


def _require_before_end(T: Any) -> None:
    """Raises ValueError unless T is below 1, where alpha is 0."""
    allowed = "a time above 0 and below 1, where alpha is 0"
    require_number("T", T, lambda T: 0 < T < 1, allowed, "leave T at its default, close to that time")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class EDMProcess:
    """The process of EDM: dx = sqrt(2t) dw, with alpha = 1 and sigma = t (arXiv 2206.00364, table 1).

    Time is the noise level itself, in data units; the published data have a deviation of 0.5. T is the
    paper's sigma_max and eps its sigma_min. The paper's sampler is the solver ``solvers.EDM``; the process
    has another name because a program that samples with EDM imports both.

    The prior is N(0, T^2 I), the marginal at T of data that are 0, as for ``VESDE``: it leaves out the mean
    and the spread of the data, one eightieth of the noise for data of size 1.

    Attributes:
        eps, T: end and start time of sampling.

    Raises:
        ValueError: unless 0 < eps < T.

    Example:
        >>> from sde_lib import EDMProcess
        >>> alpha, sigma = EDMProcess().marginal(80.0)
        >>> print(alpha, sigma)
        1.0 80.0
    """

    eps: Scalar = 0.002
    T: Scalar = 80.0

    def __post_init__(self) -> None:
        require_interval(self.eps, self.T)

    def drift(self, x: Sample, t: Scalar) -> Sample:
        return jnp.zeros_like(x)

    def diffusion(self, t: Scalar) -> Scalar:
        return jnp.sqrt(2 * jnp.asarray(t))

    def marginal(self, t: Scalar) -> tuple[Scalar, Scalar]:
        sigma = jnp.asarray(t)
        return jnp.ones_like(sigma), sigma

    def log_snr(self, t: Scalar) -> Scalar:
        return -jnp.log(t)

    def inverse_log_snr(self, log_snr: Scalar) -> Scalar:
        return jnp.exp(-log_snr)

    @property
    def prior_std(self) -> Scalar:
        return self.T

    def prior(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Sample:
        return (self.T * jax.random.normal(key, shape, dtype)).astype(dtype)

    def network_time(self, t: Scalar) -> Scalar:
        return 0.25 * jnp.log(t)

    def score(self, output: Sample, t: Scalar) -> Sample:
        return -output / t


@register_dataclass
@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
    """Straight paths: alpha = 1 − t and sigma = t (Liu et al., arXiv 2209.03003).

        f = −x/(1 − t),        g^2 = 2t/(1 − t)

    Time is that of a diffusion, from data at t = 0 to noise at t = 1; the paper counts the other way.

    At t = 1 the log-SNR and the drift are infinite, and x tells nothing of the data. There the score is −x
    for any data, so that no solver that sees scores can take the first step from t = 1 to data with the right
    mean: the velocity knows the mean, the score does not. Sampling therefore starts at a T below 1, from
    N(0, sigma(T)^2 I). This is the marginal at T but for alpha(T) times the data:

    - The probability flow keeps this error: data of mean m and deviation s come out with a mean that is wrong
      by alpha(T) m s. The reverse SDE forgets it, down to alpha(T)^2 m s^2.
    - On the other hand a denoised image, (x + sigma^2 score)/alpha, carries the rounding of x over alpha, as
      does the probability flow's drift, a difference of two terms of size 1/alpha.

    In float32 the sum of the two, alpha + 2^−24/alpha, is least at alpha = 2^−12, and so T = 1 − 2^−12 by
    default, which float32 holds exactly. Both errors are then 0.00024; EDM's own prior leaves out 0.0125.

    The reverse SDE has a time scale of 1 − t near T. Solvers that take fixed steps should take them uniform
    in log-SNR; the steps of a uniform grid in t are longer than 1 − T.

    Attributes:
        eps, T: end and start time of sampling.

    Raises:
        ValueError: unless 0 < eps < T < 1, and for an alpha(T) above 0.05.

    Example:
        >>> from sde_lib import RectifiedFlow
        >>> alpha, sigma = RectifiedFlow().marginal(0.25)
        >>> print(alpha, sigma)
        0.75 0.25
    """

    eps: Scalar = 1e-3
    T: Scalar = 1 - FLOW_ALPHA

    def __post_init__(self) -> None:
        _require_before_end(self.T)
        require_interval(self.eps, self.T)
        if is_known(self.T):
            require_only_noise(1 - float(self.T), self.T)

    def drift(self, x: Sample, t: Scalar) -> Sample:
        return -x / (1 - t)

    def diffusion(self, t: Scalar) -> Scalar:
        return jnp.sqrt(2 * t / (1 - t))

    def marginal(self, t: Scalar) -> tuple[Scalar, Scalar]:
        sigma = jnp.asarray(t)
        return 1 - sigma, sigma

    def log_snr(self, t: Scalar) -> Scalar:
        return jnp.log1p(-jnp.asarray(t)) - jnp.log(t)

    def inverse_log_snr(self, log_snr: Scalar) -> Scalar:
        return jax.nn.sigmoid(-jnp.asarray(log_snr))

    @property
    def prior_std(self) -> Scalar:
        return self.T

    def prior(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Sample:
        return (self.T * jax.random.normal(key, shape, dtype)).astype(dtype)

    def network_time(self, t: Scalar) -> Scalar:
        return t

    def score(self, output: Sample, t: Scalar) -> Sample:
        return -output / t


@register_dataclass
@dataclasses.dataclass(frozen=True)
class CosineVP:
    """Variance preserving with the cosine schedule (Nichol & Dhariwal, arXiv 2102.09672, eq. 17), for any t.

        alpha = cos(theta)/cos(theta_0),   theta = pi/2 (t + s)/(1 + s),   theta_0 = theta(0)
        beta = pi/(1 + s) tan(theta),      f = −beta x/2,   g^2 = beta

    At t = 1, alpha is 0 and beta infinite. The published chain of 1,000 steps clips its betas at 0.999, which
    changes its last step alone: it ends at the alpha^2 = 2.4e-9 of t = 1 − 10^−4.5 = 0.999968, here the
    default T. There lambda is −9.9. The prior N(0, I) leaves out 5e-5 times the data.

    A network that was trained on the chain belongs to ``DiscreteVP.from_betas`` with the clipped betas. Its
    levels are those of this process at t = 1/1000 … 999/1000 and T, and its label is an index.

    Attributes:
        s: offset, which keeps the first steps from being too short; 0.008 in the paper.
        eps, T: end and start time of sampling.

    Raises:
        ValueError: unless s > 0 and 0 < eps < T < 1, and for an alpha(T) above 0.05.

    Example:
        >>> from sde_lib import CosineVP
        >>> alpha, sigma = CosineVP().marginal(0.5)
        >>> print(f"{alpha:.4f} {sigma:.4f}")
        0.7027 0.7114
    """

    s: Scalar = COSINE_OFFSET
    eps: Scalar = 1e-3
    T: Scalar = 1 - COSINE_REST

    def __post_init__(self) -> None:
        require_positive(s=self.s)
        _require_before_end(self.T)
        require_interval(self.eps, self.T)
        if is_known(self.s, self.T):
            s, T = float(self.s), float(self.T)
            end, begin = (math.cos(0.5 * math.pi * (t + s) / (1 + s)) for t in (T, 0.0))
            require_only_noise(end / begin, self.T)

    def drift(self, x: Sample, t: Scalar) -> Sample:
        return -0.5 * self._beta(t) * x

    def diffusion(self, t: Scalar) -> Scalar:
        return jnp.sqrt(self._beta(t))

    def marginal(self, t: Scalar) -> tuple[Scalar, Scalar]:
        cos_0 = jnp.cos(self._angle(0.0))
        return self._cosine(t) / cos_0, jnp.sqrt(self._fall(t)) / cos_0

    def log_snr(self, t: Scalar) -> Scalar:
        return jnp.log(self._cosine(t)) - 0.5 * jnp.log(self._fall(t))

    def inverse_log_snr(self, log_snr: Scalar) -> Scalar:
        # cos^2(theta) = alpha^2 cos^2(theta_0), and its rest without the cancellation of 1 − alpha^2
        theta_0 = self._angle(0.0)
        alpha, sigma = _of_log_snr(log_snr)
        rest = jnp.sqrt(jnp.sin(theta_0) ** 2 + (jnp.cos(theta_0) * sigma) ** 2)
        theta = jnp.arctan2(rest, jnp.cos(theta_0) * alpha)
        return (theta - theta_0) / (0.5 * jnp.pi) * (1 + self.s)

    @property
    def prior_std(self) -> Scalar:
        return 1.0

    def prior(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Sample:
        return jax.random.normal(key, shape, dtype)

    def network_time(self, t: Scalar) -> Scalar:
        return 999.0 * t

    def score(self, output: Sample, t: Scalar) -> Sample:
        return -output / self.marginal(t)[1]

    def _angle(self, t: Scalar) -> Scalar:
        return 0.5 * jnp.pi * (t + self.s) / (1 + self.s)

    def _from_end(self, t: Scalar) -> Scalar:
        """pi/2 − theta, to full relative precision near t = 1."""
        return 0.5 * jnp.pi * (1 - t) / (1 + self.s)

    def _cosine(self, t: Scalar) -> Scalar:
        return jnp.sin(self._from_end(t))

    def _fall(self, t: Scalar) -> Scalar:
        """cos^2(theta_0) − cos^2(theta), as a product, which does not cancel near t = 0."""
        return jnp.sin(0.5 * jnp.pi * t / (1 + self.s)) * jnp.sin(self._angle(t) + self._angle(0.0))

    def _beta(self, t: Scalar) -> Scalar:
        return jnp.pi / (1 + self.s) / jnp.tan(self._from_end(t))


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DiscreteVP:
    """A table of N noise levels, as discrete DDPM networks have it, made continuous (arXiv 2006.11239).

    Level i = 0 … N − 1 has alpha^2 = alphas_cumprod[i], sigma^2 = 1 − alpha^2, and the time t = (i + 1)/N.
    Sampling goes from T = 1 to eps = 1/N, and ``network_time`` is N t − 1, the index, with fractions in
    between. A uniform grid of N − 1 steps visits exactly the levels: ``DDIM(num_steps=N - 1, eta=1.0)`` takes
    the steps of the discrete ancestral sampler, with the posterior's mean and variance. The driver's
    denoising is step N.

    Between levels, log alpha is a monotone cubic in t (Fritsch & Carlson 1980), which gives

        beta = −2 d log alpha/dt,   f = −beta x/2,   g^2 = beta

    Drift and diffusion are therefore continuous, and beta is above zero. A linear beta is met exactly.
    DPM-Solver (arXiv 2206.00927) interpolates log alpha linearly. Then beta is constant between
    levels and jumps at each, by up to a fifth in DDPM's own table, where the noise is lowest. A cubic in the
    log-SNR itself would miss beta by 15 % in the first interval, because the log-SNR bends like −log t there.

    The prior is N(0, I), which leaves out alpha(T) times the data.

    Args:
        alphas_cumprod: alpha^2 at the N levels, falling, [N]. Read in float64, outside of ``jax.jit``.

    Attributes:
        log_alphas: log alpha at the levels, [N].
        slopes: d log alpha/d index there, [N].

    Raises:
        ValueError: unless the table has at least three levels, which fall strictly inside (0, 1), the last
            with alpha <= 0.1.

    Example:
        >>> import numpy as np
        >>> from sde_lib import DiscreteVP
        >>> sde = DiscreteVP.from_betas(np.linspace(1e-4, 0.02, 1000))
        >>> alpha, sigma = sde.marginal(0.001)
        >>> print(f"{alpha**2:.4f} {sde.network_time(0.001):.1f} {sde.network_time(1.0):.1f}")
        0.9999 0.0 999.0
    """

    alphas_cumprod: dataclasses.InitVar[Any]
    log_alphas: Float[Array | np.ndarray, " N"] = dataclasses.field(init=False, repr=False)
    slopes: Float[Array | np.ndarray, " N"] = dataclasses.field(init=False, repr=False)

    def __post_init__(self, alphas_cumprod: Any) -> None:
        table = np.asarray(alphas_cumprod, np.float64)
        require(
            table.ndim == 1 and len(table) >= 3,
            "alphas_cumprod",
            f"shape {table.shape}",
            "a vector of at least three levels",
            "give the product of 1 - beta up to each step",
        )
        inside = bool(np.all((table > 0) & (table < 1)) and np.all(np.diff(table) < 0))
        ends = f"{table[0]:.4g} … {table[-1]:.4g}"
        fix = "give alpha^2 of each level, from data to noise, and leave out levels at which it is 1 or 0"
        require(inside, "alphas_cumprod", ends, "numbers that fall strictly, all above 0 and below 1", fix)
        last = math.sqrt(table[-1])
        allowed = f"a table whose last alpha is <= {LARGEST_ALPHA_OF_TABLE}, with only noise left"
        fix = (
            f"give all levels up to the noisiest, since the last alpha = {last:.2g} and the prior has no data"
        )
        require(last <= LARGEST_ALPHA_OF_TABLE, "alphas_cumprod", ends, allowed, fix)
        log_alphas = 0.5 * np.log(table)
        object.__setattr__(self, "log_alphas", log_alphas)
        object.__setattr__(self, "slopes", monotone_slopes(log_alphas))

    @classmethod
    def from_betas(cls, betas: Any) -> DiscreteVP:
        """The table with alphas_cumprod[i] = (1 − beta_0) … (1 − beta_i), for ``betas`` of shape [N]."""
        return cls(np.cumprod(1 - np.asarray(betas, np.float64)))

    @classmethod
    def from_schedule(
        cls,
        schedule: str = SCHEDULE["schedule"],
        beta_start: float = SCHEDULE["beta_start"],
        beta_end: float = SCHEDULE["beta_end"],
        num_levels: int = SCHEDULE["num_levels"],
    ) -> DiscreteVP:
        """The table of a schedule by the name that diffusers gives it, with its roundings.

        These are of float32: they change sigma by up to 3e-4 of its value at the first levels, and a network
        was trained with them. ``from_betas`` takes betas as they are.

        Args:
            schedule: "linear", betas in equal steps (arXiv 2006.11239); "scaled_linear", their square roots
                in equal steps (arXiv 2112.10752); or "squaredcos_cap_v2", the cosine with betas up to 0.999
                (arXiv 2102.09672, eq. 17).
            beta_start, beta_end: the first and last beta; the cosine does not use them.
            num_levels: N.

        Raises:
            ValueError: for an unknown name, a beta outside (0, 1), or a table that is refused.

        Example:
            >>> from sde_lib import DiscreteVP
            >>> DiscreteVP.from_schedule("squaredcos_cap_v2").num_levels
            1000
        """
        require_choice("schedule", schedule, ("linear", "scaled_linear", "squaredcos_cap_v2"))
        require_count(num_levels=num_levels)
        for name, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
            fix = "give the share of the variance that a step replaces by noise"
            require_number(name, beta, lambda beta: 0 < beta < 1, "a number above 0 and below 1", fix)
        if schedule == "linear":
            betas = _equal_steps(beta_start, beta_end, num_levels)
        elif schedule == "scaled_linear":
            betas = _equal_steps(beta_start**0.5, beta_end**0.5, num_levels) ** 2
        else:
            angles = (np.linspace(0, 1, num_levels + 1) + COSINE_OFFSET) / (1 + COSINE_OFFSET) * np.pi / 2
            powers = np.cos(angles) ** 2
            betas = np.minimum(1 - powers[1:] / powers[:-1], LARGEST_BETA).astype(np.float32)
        return cls(np.cumprod(1 - betas, dtype=np.float64).astype(np.float32))

    @property
    def num_levels(self) -> int:
        """N."""
        return len(self.log_alphas)

    @property
    def eps(self) -> float:
        """1/N, the time of level 0."""
        return 1 / self.num_levels

    @property
    def T(self) -> float:
        """1, the time of level N − 1."""
        return 1.0

    def drift(self, x: Sample, t: Scalar) -> Sample:
        return -0.5 * self._beta(t) * x

    def diffusion(self, t: Scalar) -> Scalar:
        return jnp.sqrt(self._beta(t))

    def marginal(self, t: Scalar) -> tuple[Scalar, Scalar]:
        log_alpha = self._log_alpha(t)
        return jnp.exp(log_alpha), jnp.sqrt(-jnp.expm1(2 * log_alpha))

    def log_snr(self, t: Scalar) -> Scalar:
        return -0.5 * jnp.log(jnp.expm1(-2 * self._log_alpha(t)))

    def inverse_log_snr(self, log_snr: Scalar) -> Scalar:
        log_alpha = -0.5 * jnp.logaddexp(0.0, -2 * jnp.asarray(log_snr))
        interval = jnp.searchsorted(-jnp.asarray(self.log_alphas), -log_alpha, side="right") - 1
        interval = jnp.clip(interval, 0, self.num_levels - 2)
        begin, fall, *slopes = self._interval(interval)
        share = _inverse_cubic((log_alpha - begin) / fall, *slopes)
        return ((interval + share + 1) / self.num_levels).astype(log_alpha.dtype)

    @property
    def prior_std(self) -> Scalar:
        return 1.0

    def prior(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Sample:
        return jax.random.normal(key, shape, dtype)

    def network_time(self, t: Scalar) -> Scalar:
        return self._index(t)

    def score(self, output: Sample, t: Scalar) -> Sample:
        return -output / self.marginal(t)[1]

    def _log_alpha(self, t: Scalar) -> Array:
        share, begin, fall, *slopes = self._at(t)
        return (begin + fall * _cubic(share, *slopes)).astype(share.dtype)

    def _beta(self, t: Scalar) -> Array:
        share, _, fall, *slopes = self._at(t)
        return (-2 * self.num_levels * fall * _cubic_slope(share, *slopes)).astype(share.dtype)

    def _index(self, t: Scalar) -> Array:
        return self.num_levels * jnp.asarray(t, jnp.result_type(float, t)) - 1

    def _at(self, t: Scalar) -> tuple[Array, ...]:
        """The share of its interval between two levels that t has passed, and ``_interval``'s numbers."""
        index = self._index(t)
        interval = jnp.clip(jnp.floor(index), 0, self.num_levels - 2).astype(jnp.int32)
        return index - interval, *self._interval(interval)

    def _interval(self, i: Array) -> tuple[Array, ...]:
        """log alpha of level i, the fall from there to level i + 1, and the slopes at both over the fall."""
        log_alphas, slopes = jnp.asarray(self.log_alphas), jnp.asarray(self.slopes)
        fall = log_alphas[i + 1] - log_alphas[i]
        return log_alphas[i], fall, slopes[i] / fall, slopes[i + 1] / fall


def _equal_steps(begin: float, end: float, number: int) -> Float[np.ndarray, " N"]:
    """Equal steps in float32 as PyTorch rounds them: from the nearer end, with one rounding of a sum."""
    first, last = np.float32(begin), np.float32(end)
    step = float((last - first) / np.float32(max(number - 1, 1)))
    i = np.arange(number)
    return np.where(i < number // 2, first + step * i, last - step * (number - 1 - i)).astype(np.float32)


def monotone_slopes(values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """The slopes at 0 … N − 1 of a monotone cubic through strictly falling values (N >= 3).

    They are those of the parabola through three neighbouring values, kept to at most twice the smaller of the
    two differences (van Leer 1977); at the ends also to at least a third of the difference there. A cubic
    with slopes above 0 and up to 3 times the difference is monotone (Fritsch & Carlson, SIAM J. Numer. Anal.
    17, 1980).
    """
    steps = -np.diff(values)
    inside = np.minimum((steps[:-1] + steps[1:]) / 2, 2 * np.minimum(steps[:-1], steps[1:]))

    def end(step: float, other: float) -> float:
        return float(np.clip((3 * step - other) / 2, step / 3, 2 * step))

    return -np.array([end(steps[0], steps[1]), *inside, end(steps[-1], steps[-2])])


def _of_log_snr(log_snr: Scalar) -> tuple[Array, Array]:
    """(alpha, sigma) with alpha^2 + sigma^2 = 1."""
    power = 2 * jnp.asarray(log_snr)
    return jnp.sqrt(jax.nn.sigmoid(power)), jnp.sqrt(jax.nn.sigmoid(-power))


def _cubic(s: Array, begin: Array, end: Array) -> Array:
    """The cubic from 0 at s = 0 to 1 at s = 1 with these slopes at the ends."""
    return s * (begin + s * (3 - 2 * begin - end + s * (begin + end - 2)))


def _cubic_slope(s: Array, begin: Array, end: Array) -> Array:
    return begin + s * (2 * (3 - 2 * begin - end) + s * 3 * (begin + end - 2))


def _inverse_cubic(value: Array, begin: Array, end: Array) -> Array:
    """The s in [0, 1] at which the rising cubic has this value, by Newton's method in a shrinking bracket."""

    def improve(_: Any, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, s = state
        excess = _cubic(s, begin, end) - value
        low, high = jnp.where(excess <= 0, s, low), jnp.where(excess >= 0, s, high)
        s = s - excess / _cubic_slope(s, begin, end)
        return low, high, jnp.where((s >= low) & (s <= high), s, 0.5 * (low + high))

    value = jnp.clip(value, 0, 1)
    return jax.lax.fori_loop(0, ITERATIONS, improve, (jnp.zeros_like(value), jnp.ones_like(value), value))[2]
