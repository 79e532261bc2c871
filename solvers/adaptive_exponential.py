"""An adaptive exponential multistep solver of the reverse SDE and ODE: one evaluation a step, no rejections.

For every (α, σ), with y = x/α, ς = σ/α = e^(−λ) and the denoiser D, the reverse process of noise share η is

    dy = −(1 + η²) (y − D) dλ + η ς √2 dw                                   λ = log(α/σ) rising

An exponential integrator (Lu et al., arXiv 2211.01095) solves it exactly while D is constant. At noise below
the width b of a mode of the data, D follows y instead: D = c + b²/(b² + ς²) (y − c), and it is c that is
constant. So let

    G = D − b²/ς² (y − D)        μ = −½ log(b² + ς²)        dy = −(1 + η²) (y − G) dμ + η e^(−μ) √2 dw

which is the same equation for any b; with b = 0 it is the first form. Along the reverse SDE (η = 1), D and
the score are martingales, and therefore so is G: it has no slope to extrapolate, and all that it moves in a
step is due to the noise. With less noise it drifts, at 1 − η² of its slope along the ODE. The steps are:

    1.  D_n at the predicted y                                               the step's one evaluation
    2.  y ← y + w (G_n − P),  no further than rms(y − D_n)                   corrector
    3.  e = v rms(G_n − P)/δ,   δ = ½ ε_rel s (1 + ς²/(4 d s²))^((1+η₁²)/2)  error of the corrected value
    4.  h ← min(h clip(0.9 e^(−(1+η²)/4), 0.3, 2), ½), and to the end        or (λ_end − λ)/(steps left)
    5.  η² = η₁² (1 + 3/(1 + (ς/ς_m)⁴))/4,   ς_m = ½ √d s_data               times (½/h)² where h > ½
    6.  b² ← max(0, ⟨ΔD, ΔE⟩/⟨ΔE, ΔE⟩),  E = (y − D)/ς²,  Δ = since the last evaluation
    7.  y' = e^(−(1+η²) Δμ) y + ∫ P dμ + e^(−μ') √(1 − e^(−2 η² Δμ)) z       predictor

    P = G_n + (1 − η²) (what the polynomial through the latest three G adds),  all G made with the new b;
        with a number of evaluations, 1 − η² is the factor of the curvature only, and with h > 1, P is G_n in
        the last step and has no curvature in the one before it
    w = (1 − η²) w_ODE + η² w_SDE
    v = 64^((1−η)⁴) ((1 − η²) v_ODE + η² w_SDE/√3)

In 3, s = max(rms D, ε_abs/ε_rel), ς and, in 4, η are those of the last evaluation, and d is the number of
elements. η₁ is the setting ``eta``. In 2 and 3, P is its value at λ_n. The weight w_ODE turns the integral of
P into that of the polynomial that also passes through G_n; at b = 0 and η = 0, this predictor and corrector
are those of UniPC (arXiv 2302.04867). v_ODE is Milne's device: the fraction of predictor minus corrector that
estimates the error of the corrector of the same order; the corrector that is kept has one order more. w_SDE
is the regression of the integral on G_n − P where noise drives G, and w_SDE/√3 is the standard deviation of
the residual. These errors are independent from step to step and partly cancel. Those of the ODE add up, hence
the factor 64. The last prediction is not corrected. The final step ends exactly at eps.

Any η that depends on the time alone keeps the marginals. Noise makes up for the errors of a network, but it
also makes long steps inexact where the modes of the data part, at a noise ς of up to about half the norm
√d s_data of an image. Hence 5: all of the noise far below ς_m, and half of it (η = ½) far above.

docs/adaptive_exponential.md gives the derivation and the alternatives that were tried.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from sde_lib import SDE, denoise
from sde_lib.checks import is_known, require, require_count, require_number, require_positive
from sde_lib.processes import Scalar
from sde_lib.pytrees import register_dataclass
from solvers.exponential import (
    Number,
    divided_differences,
    fewer_at_the_end,
    moments,
    newton_moments,
    newton_products,
)
from solvers.interface import Count, Flag, Sample, Status, Time
from solvers.noise import prior_key, standard_normal
from solvers.review import unsuited
from solvers.sums import inner_product, root_mean_square, sum_of_squares

# The longest step in log-SNR under a tolerance, and the first, which has no error estimate. While the noise
# is far above the data, D stands still, which is no evidence about the step in which the modes part. The
# length also bounds the damage of a wrong b², which has no bound of its own: at eta 1 the mean of a step does
# not depend on b², and its noise is between those of b² = 0 and infinity, a factor e^h apart.
LONGEST = 0.5
# With longer steps, which only a small number of evaluations makes, the order falls at the end.
LONG = 1.0
# For an eps_rel below FIRST_AT, the first step shrinks as the square root: the error of this low-order step
# then falls faster than that of the others.
FIRST_AT = 0.02
SAFETY, SHRINK, GROW = 0.9, 0.3, 2.0
SHARE = 0.5  # of the tolerance, for the error of one step
ORDER = 3  # of the polynomial
FAR_ABOVE = 0.25  # η² at noise far above that where modes part, over that far below
STEPS = 64.0  # of the ODE: the number of steps whose errors are assumed to add up
FAR_ABOVE_DEVIATION = 5.0  # size of samples, over data_deviation, at which a network may lack the noise


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """D at the point y = x/α at log-SNR λ."""

    log_snr: Number
    point: Sample
    denoised: Sample

    def slope(self) -> Sample:
        """E = (y − D)/ς², minus the score with respect to y."""
        return jnp.exp(2 * self.log_snr) * (self.point - self.denoised)


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveExponentialState:
    x: Sample  # predicted
    t: Time
    key: PRNGKeyArray
    h: Number  # the step in log-SNR that led here
    e: Number  # of the step before it
    history: tuple[Evaluation, ...]  # newest first; as many as the order needs
    # of the step that led here: b², the polynomial's value here, and the weights w and v
    variance: Number
    expected: Sample
    correction: Number
    error: Number
    status: Count
    accepted: Count
    rejected: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """P over the next step in Newton's form, in the share s of the step in μ, from 0 to 1."""

    step: Number  # Δμ
    nodes: list[Number]  # s_i of the latest evaluations
    differences: list[Sample]  # the coefficients: divided differences of G
    integrals: list[Number]  # of Newton's polynomials ∏ (s − s_i), with the exponential weight
    products: list[Number]  # ∏ (1 − s_i), their values at the end of the step

    def combine(self, weights: list[Number]) -> Any:
        """P with these numbers in the place of Newton's polynomials."""
        return sum(weight * d for weight, d in zip(weights, self.differences, strict=False))


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveExponential:
    """The solver of this module; one tolerance, relative to the data, or a number of evaluations.

    Attributes:
        eps_rel: tolerance relative to the root mean square of the final image.
        eps_abs: the least tolerance, in data units, for images that are nearly 0. It should be far below the
            data's deviation; for 8 bits, one grey level is 1/256 for data in [0, 1], 2/256 for [−1, 1].
        num_evaluations: number of steps, all of one length in log-SNR, in place of a tolerance. A final
            denoising takes one evaluation more. Another number does not recompile.
        eta: η in [0, 1], the share of the reverse SDE's noise at noise levels below those where the modes of
            the data part; above them it is half as much. 0 is for the probability flow, 1 for all of the
            noise, which compensates for errors of the network.
        data_deviation: standard deviation of the data's elements, which says where modes part. A factor of
            two changes little. It is about 0.5 for images in [−1, 1] and 0.25 for images in [0, 1]. For data
            that are far from 0, such as 7.1 ± 0.4, take the root mean square: a network may need the noise
            at the levels where it finds the offset. A very large number keeps all of the noise everywhere.

    Raises:
        ValueError: for a setting out of range, or an eps_rel together with num_evaluations.

    Example:
        >>> from solvers import AdaptiveExponential
        >>> AdaptiveExponential(eta=0.0)
        AdaptiveExponential(eps_rel=0.02, eps_abs=0.0001, num_evaluations=None, eta=0.0, data_deviation=0.5)
    """

    eps_rel: Scalar = 0.02
    eps_abs: Scalar = 1e-4
    num_evaluations: int | Count | None = None
    eta: Scalar = 1.0
    data_deviation: Scalar = 0.5

    evaluations_per_step: ClassVar[int] = 1
    # of the method, part of what identifies samples: revision 1 had longer steps, revision 2 more noise,
    # revision 3 the full order in long last steps, and revision 4 smaller slopes with a number of evaluations
    revision: ClassVar[int] = 5

    def __post_init__(self) -> None:
        require_positive(eps_rel=self.eps_rel, eps_abs=self.eps_abs, data_deviation=self.data_deviation)
        fix = "set eta to 0 for the ODE or to 1 for the SDE"
        require_number("eta", self.eta, lambda eta: 0 <= eta <= 1, "a number in [0, 1]", fix)
        if self.num_evaluations is not None:
            require_count(num_evaluations=self.num_evaluations)
            unused = is_known(self.eps_rel) and self.eps_rel != AdaptiveExponential.eps_rel
            fix = "give a tolerance or a number of evaluations, not both"
            require(not unused, "eps_rel", self.eps_rel, "left out with num_evaluations", fix)

    def init(
        self, sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any
    ) -> AdaptiveExponentialState:
        x = sde.prior(prior_key(key), shape, dtype)
        zero = jnp.zeros((), dtype)
        # at T itself: from any fixed log-SNR, the distance in μ rounds to infinity if T has enough noise
        begin = jnp.asarray(sde.log_snr(sde.T), dtype)
        nothing = Evaluation(log_snr=begin, point=jnp.zeros_like(x), denoised=jnp.zeros_like(x))
        return AdaptiveExponentialState(
            x=x,
            t=jnp.asarray(sde.T, dtype),
            key=key,
            h=jnp.asarray(LONGEST * jnp.minimum(1, jnp.sqrt(self.eps_rel / FIRST_AT)), dtype),
            e=zero,
            history=(nothing,) * (ORDER - 1),
            variance=zero,
            expected=jnp.zeros_like(x),
            correction=zero,  # the prior sample is not a prediction: there is nothing to correct
            error=zero,
            status=jnp.int32(Status.RUNNING),
            accepted=jnp.int32(0),
            rejected=jnp.int32(0),
        )

    def ask(self, state: AdaptiveExponentialState) -> tuple[Sample, Time]:
        return state.x, state.t

    def tell(self, sde: SDE, state: AdaptiveExponentialState, score: Sample) -> AdaptiveExponentialState:
        t, n, dtype = state.t, state.accepted, state.x.dtype
        # 1. D_n at the predicted y
        alpha, _ = sde.marginal(t)
        now = Evaluation(
            log_snr=jnp.asarray(sde.log_snr(t), dtype),
            point=(state.x / alpha).astype(dtype),
            denoised=denoise(sde, state.x, t, score).astype(dtype),
        )
        # 2. y ← y + w (G_n − P)
        residual = now.denoised - state.variance * now.slope() - state.expected
        y = now.point + limited(state.correction * residual, root_mean_square(now.point - now.denoised))
        # 3. e
        e = self._error(state, now, residual)
        # 4. h
        h, t_next, last = self._next_step(sde, state, now, e)
        # 5. η
        eta = self.noise_share(now.log_snr, h, now.point.size)
        # 6. b²
        variance = jnp.where(n > 0, fitted_variance(now, state.history[0]), 0).astype(dtype)
        # 7. y'
        evaluations = (now, *state.history)
        back = self._steps_back(n, h)
        ahead = self._extrapolation(evaluations, variance, h, back, eta)
        x_next = self._predicted(sde, state, y, t_next, variance, ahead, eta)
        # what the next evaluation is compared with
        expected = ahead.combine(ahead.products)
        correction, error = weights(ahead, back, eta)

        stuck = ~(t_next < t)  # NaN included
        status = jnp.where(last, Status.COMPLETED, jnp.where(stuck, Status.STEP_TOO_SMALL, Status.RUNNING))
        return AdaptiveExponentialState(
            x=x_next.astype(dtype),
            t=t_next,
            key=state.key,
            h=h,
            e=e,
            history=evaluations[:-1],
            variance=variance,
            expected=jnp.asarray(expected, dtype),
            correction=correction.astype(dtype),
            error=error.astype(dtype),
            status=status.astype(jnp.int32),
            accepted=n + 1,
            rejected=state.rejected,
        )

    def review(self, size: float) -> str | None:
        """A message if samples of this root mean square are far larger than ``data_deviation`` says."""
        if self.eta == 0 or size <= FAR_ABOVE_DEVIATION * self.data_deviation:
            return None
        fix = "raise it, since a network may need the noise that is left out at high noise levels"
        return unsuited("data_deviation", self.data_deviation, "about", size, fix)

    def noise_share(self, log_snr: Number, h: Number, size: int) -> Number:
        """η of a step of length h from this log-SNR, for a sample of ``size`` elements."""
        ratio = 2 * jnp.exp(-log_snr) / (self.data_deviation * math.sqrt(size))
        share = self.eta * jnp.sqrt(FAR_ABOVE + (1 - FAR_ABOVE) / (1 + ratio**4))
        return share * jnp.minimum(1, LONGEST / h)

    def _error(self, state: AdaptiveExponentialState, now: Evaluation, residual: Sample) -> Number:
        """Step 3. It may be 0, and NaN passes through to the status."""
        before = state.history[0]
        s = jnp.maximum(root_mean_square(now.denoised), root_mean_square(before.denoised))
        s = jnp.maximum(s, self.eps_abs / self.eps_rel)
        # Two images of norm |D| = √d s are at most 2 |D| apart. While the noise ς is wider than that, nothing
        # is decided, and an error shrinks with it before anything is.
        noise = jnp.exp(-before.log_snr) / (2 * s * math.sqrt(now.point.size))
        delta = SHARE * self.eps_rel * s * (1 + noise**2) ** ((1 + self.eta**2) / 2)
        return state.error * root_mean_square(residual) / delta

    def _next_step(
        self, sde: SDE, state: AdaptiveExponentialState, now: Evaluation, e: Number
    ) -> tuple[Number, Time, Flag]:
        """Step 4: h, the time at the end of the step, and whether the step is the last."""
        n, dtype = state.accepted, state.x.dtype
        end = jnp.asarray(sde.log_snr(sde.eps), dtype)
        rest = end - now.log_snr
        if self.num_evaluations is not None:
            left = self.num_evaluations - n
            h = jnp.where(left > 1, rest / left, rest).astype(dtype)
        else:
            # e scales as h^4, and as h^(3/2) where noise causes it: more than 1/2 would follow each draw
            eta = self.noise_share(state.history[0].log_snr, state.h, now.point.size)
            factor = jnp.clip(SAFETY * jnp.maximum(e, 1e-12) ** (-(1 + eta**2) / 4), SHRINK, GROW)
            h = jnp.where(n == 0, state.h, jnp.minimum(state.h * factor, LONGEST))
            # two steps of half the rest instead of a long one and a short one
            h = jnp.where(h >= rest, rest, jnp.where(2 * h > rest, rest / 2, h)).astype(dtype)
        last = h >= rest
        t_next = jnp.where(last, sde.eps, sde.inverse_log_snr(now.log_snr + h)).astype(dtype)
        return h, t_next, last

    def _steps_back(self, n: Count, h: Number) -> Count:
        """The number of evaluations before the newest that P uses: fewer where long steps end.

        A polynomial reaches too far there: G moves most at noise of the data's width, which long steps pass
        in the last one or two.
        """
        if self.num_evaluations is None:
            return n
        return fewer_at_the_end(n, self.num_evaluations, where=h > LONG)

    def _extrapolation(
        self, evaluations: tuple[Evaluation, ...], variance: Number, h: Number, back: Count, eta: Number
    ) -> Extrapolation:
        now = evaluations[0]
        odds = variance * jnp.exp(2 * now.log_snr)  # b²/ς²

        def change_of_mu(distance: Number) -> Number:
            """From λ_n to λ_n + distance: −½ log((b² + ς'²)/(b² + ς²)), without cancellation."""
            change = jnp.expm1(-2 * distance) / (1 + odds)
            long = jnp.log(odds + jnp.exp(-2 * distance)) - jnp.log1p(odds)
            return -0.5 * jnp.where(change < -0.5, long, jnp.log1p(change))

        step = change_of_mu(h)
        nodes = [change_of_mu(each.log_snr - now.log_snr) / step for each in evaluations]
        values = [each.denoised - variance * each.slope() for each in evaluations]
        newest, slope, curvature = divided_differences(values, nodes, back)
        drift = drift_of(eta)
        # An exact G drifts by this share. That of a network drifts by more, and without an error estimate
        # nothing else would notice: so the slope counts as it was seen. A curvature is mostly noise.
        of_slope = drift if self.num_evaluations is None else 1
        return Extrapolation(
            step=step,
            nodes=nodes,
            differences=[newest, of_slope * slope, drift * curvature],
            integrals=newton_moments(nodes, moments((1 + eta**2) * step, ORDER + 1)),
            products=newton_products(nodes),
        )

    def _predicted(
        self,
        sde: SDE,
        state: AdaptiveExponentialState,
        y: Sample,
        t_next: Time,
        variance: Number,
        ahead: Extrapolation,
        eta: Number,
    ) -> Sample:
        """Step 7: x at the end of the step."""
        alpha_next, sigma_next = sde.marginal(t_next)
        z = standard_normal(state.key, state.accepted + 1, y.shape, y.dtype)
        deviation = jnp.sqrt(variance + (sigma_next / alpha_next) ** 2)  # e^(−μ')
        y_next = (
            jnp.exp(-(1 + eta**2) * ahead.step) * y
            + ahead.combine(ahead.integrals)
            + deviation * jnp.sqrt(-jnp.expm1(-2 * eta**2 * ahead.step)) * z
        )
        return alpha_next * y_next


def weights(ahead: Extrapolation, back: Count, eta: Number) -> tuple[Number, Number]:
    """(w, v) of the next evaluation."""
    p = jnp.minimum(back + 1, ORDER)
    integral, product = jnp.stack(ahead.integrals), jnp.stack(ahead.products)
    corrector = integral[p] / product[p]
    milne = jnp.abs(integral[p] - (1 - jnp.stack(ahead.nodes)[p - 1]) * integral[p - 1]) / product[p]
    c, drift = 1 + eta**2, drift_of(eta)
    regression = c * ahead.step * regression_on_noise(2 * eta**2 * ahead.step)
    correction = drift * corrector + (1 - drift) * regression
    error = drift * milne + (1 - drift) * regression / math.sqrt(3)
    return correction, error * STEPS ** (1 - eta) ** 4


def limited(x: Sample, most: Number) -> Sample:
    """x, scaled down to this root mean square if it is above."""
    return jnp.minimum(1, most / jnp.maximum(root_mean_square(x), jnp.finfo(x.dtype).tiny)) * x


def drift_of(eta: Number) -> Number:
    """The drift of G relative to its drift along the ODE."""
    return 1 - eta**2


def fitted_variance(now: Evaluation, before: Evaluation) -> Number:
    """The b² for which G changed least between two evaluations."""
    moved, slope = now.denoised - before.denoised, now.slope() - before.slope()
    fitted = inner_product(moved, slope) / jnp.maximum(sum_of_squares(slope), jnp.finfo(moved.dtype).tiny)
    return jnp.maximum(fitted, 0)


def regression_on_noise(a: Number) -> Number:
    """(1 − a/(e^a − 1))/a; by its series 1/2 − a/12 near a = 0, where the difference cancels."""
    safe = jnp.maximum(a, 0.05)
    return jnp.where(a < 0.05, 1 / 2 - a / 12, (1 - safe / jnp.expm1(safe)) / safe)
