"""An adaptive exponential multistep solver of the reverse SDE and ODE: one evaluation a step, no rejections.

With y = x/α, ς = σ/α = e^(−λ) and the denoiser D, the reverse process of noise share η is for every (α, σ)

    dy = −(1 + η²) (y − D) dλ + η ς √2 dw                                   λ = log(α/σ) rising

Exponential integrators (Lu et al., arXiv 2211.01095) solve it exactly where D stands still. Below the width b
of a mode of the data D follows y instead: D = c + b²/(b² + ς²) (y − c), and c is what stands still. So let

    G = D − b²/ς² (y − D)        μ = −½ log(b² + ς²)        dy = −(1 + η²) (y − G) dμ + η e^(−μ) √2 dw

which is the same equation again, for any b, and b = 0 gives back the first. Along the reverse SDE (η = 1) D
and the score are martingales, hence G: it has no slope to extrapolate, and where it went in a step, the noise
took it. With less noise it drifts, by 1 − η² of its slope along the ODE. A step goes like this:

    1.  D_n at the predicted y                                               the step's one evaluation
    2.  y ← y + w (G_n − P)                                                  corrector
    3.  e = v rms(G_n − P)/δ,   δ = max(ε_abs, ε_rel rms D)/2                error of the corrected value
    4.  h ← h clip(0.9 e^(−(1+η²)/4), 0.3, 2), and to the end
    5.  b² ← max(0, ⟨ΔD, ΔE⟩/⟨ΔE, ΔE⟩),  E = (y − D)/ς²,  Δ = since the last evaluation
    6.  y' = e^(−(1+η²) Δμ) y + ∫ P dμ + e^(−μ') √(1 − e^(−2 η² Δμ)) z       predictor

    P = G_n + (1 − η²) (what the polynomial through the latest three G adds),  all G made with the new b
    w = (1 − η²) w_ODE + η² w_SDE
    v = 64^((1−η)²) ((1 − η²) v_ODE + η² w_SDE/√3)

and P in 2 and 3 is its value at λ_n. w_ODE turns the integral of P into that of the polynomial through G_n,
too (UniC of arXiv 2302.04867, whose predictor and corrector these are at b = 0 and η = 0), and v_ODE is
Milne's device: the share of predictor minus corrector that is the error of the corrector of the same order;
the one kept has an order more. w_SDE is the regression of the integral on G_n − P where noise drives G, and
w_SDE/√3 the deviation that this leaves. Such errors are drawn anew in each step and cancel; those of the ODE
add up, hence its 64. The last prediction stays uncorrected; the end is met exactly.

docs/adaptive_exponential.md has the derivation, and what else was tried.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from sde_lib import SDE, denoise
from sde_lib.checks import is_known, require, require_positive
from sde_lib.processes import Scalar
from sde_lib.pytrees import register_dataclass
from solvers.exponential import Number, divided_differences, moments, newton_moments
from solvers.interface import Count, Sample, Status, Time
from solvers.noise import prior_key, standard_normal
from solvers.sums import inner_product, mean_of_squares, sum_of_squares

# In log-SNR, at eps_rel = FIRST_AT and above. The first step has no error estimate; half as long, it cost the
# benchmark's mixtures an evaluation more, for samples as good. At smaller eps_rel it goes with the root: then
# the error of this step of low order falls faster than that of the others.
FIRST_STEP, FIRST_AT = 1.0, 0.02
SAFETY, SHRINK, GROW = 0.9, 0.3, 2.0
SHARE = 0.5  # of the tolerance, that one step may err by
ORDER = 3  # of the polynomial
STEPS = 64.0  # of the ODE, as many as whose errors are taken to add up


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """D at the point y = x/α at log-SNR λ."""

    log_snr: Number
    point: Sample
    denoised: Sample

    def slope(self) -> Sample:
        """E = (y − D)/ς², minus the score's share of y."""
        return jnp.exp(2 * self.log_snr) * (self.point - self.denoised)


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveExponentialState:
    x: Sample  # predicted
    t: Time
    key: PRNGKeyArray
    h: Number  # the step in log-SNR that led here
    history: tuple[Evaluation, ...]  # the newest first, as far as the order looks back
    # of the step that led here: b², the polynomial's value here, the weights w and v
    variance: Number
    expected: Sample
    correction: Number
    error: Number
    status: Count
    accepted: Count
    rejected: Count


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveExponential:
    """One knob, the same for every process and data range.

    Attributes:
        eps_rel: relative tolerance, of the final image's root mean square.
        eps_abs: absolute tolerance in data units; one grey level of 8 bits: 1/256 for data in [0, 1],
            2/256 for [−1, 1].
        eta: η in [0, 1], the share of the reverse SDE's noise: 0 for the probability flow, with the fewest
            evaluations; 1 for all of the noise, which makes up for a network's errors.

    Raises:
        ValueError: naming the setting, its value, what was allowed and the fix.
    """

    eps_rel: Scalar = 0.02
    eps_abs: Scalar = 1 / 256
    eta: Scalar = 1.0

    evaluations_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_positive(eps_rel=self.eps_rel, eps_abs=self.eps_abs)
        if is_known(self.eta):
            allowed = "a share in [0, 1]"
            require(0 <= self.eta <= 1, "eta", self.eta, allowed, "take 0 for the ODE, 1 for the SDE")

    def init(
        self, sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any
    ) -> AdaptiveExponentialState:
        x = sde.prior(prior_key(key), shape, dtype)
        zero = jnp.zeros((), dtype)
        nothing = Evaluation(log_snr=zero, point=jnp.zeros_like(x), denoised=jnp.zeros_like(x))
        return AdaptiveExponentialState(
            x=x,
            t=jnp.asarray(sde.T, dtype),
            key=key,
            h=jnp.asarray(FIRST_STEP * jnp.minimum(1, jnp.sqrt(self.eps_rel / FIRST_AT)), dtype),
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
        y = now.point + state.correction * residual
        # 3. e; it may be 0, and NaN passes through to the status
        magnitude = jnp.maximum(_rms(now.denoised), _rms(state.history[0].denoised))
        delta = SHARE * jnp.maximum(self.eps_abs, self.eps_rel * magnitude)
        e = state.error * _rms(residual) / delta
        # 4. h
        # e goes with h^4, and with h^(3/2) where noise makes it: more than 1/2 there would follow each draw
        factor = jnp.clip(SAFETY * jnp.maximum(e, 1e-12) ** (-(1 + self.eta**2) / 4), SHRINK, GROW)
        end = jnp.asarray(sde.log_snr(sde.eps), dtype)
        rest = end - now.log_snr
        h = jnp.where(n == 0, state.h, state.h * factor)
        # two steps of half the rest instead of a long and a short one
        h = jnp.where(h >= rest, rest, jnp.where(2 * h > rest, rest / 2, h)).astype(dtype)
        last = h >= rest
        t_next = jnp.where(last, sde.eps, sde.inverse_log_snr(now.log_snr + h)).astype(dtype)
        # 5. b²
        variance = jnp.where(n > 0, fitted_variance(now, state.history[0]), 0).astype(dtype)
        # 6. y'
        evaluations = (now, *state.history)
        share = 1 / (1 + variance * jnp.exp(2 * now.log_snr))  # ς²/(b² + ς²)

        def way(distance: Number) -> Number:
            """How far μ goes while λ goes so far from λ_n; short ways do not cancel."""
            return -0.5 * jnp.log1p(share * jnp.expm1(-2 * distance))

        step = way(h)
        c, drift = 1 + self.eta**2, drift_of(self.eta)
        nodes = [way(each.log_snr - now.log_snr) / step for each in evaluations]
        values = [each.denoised - variance * each.slope() for each in evaluations]
        newest, *slopes = divided_differences(values, nodes, n)
        differences = [newest, *(drift * slope for slope in slopes)]
        integrals = newton_moments(nodes, moments(c * step, ORDER + 1))
        products = [jnp.ones_like(h)]  # of 1 − s_i, where the next G comes in
        for node in nodes:
            products.append(products[-1] * (1 - node))
        alpha_next, sigma_next = sde.marginal(t_next)
        z = standard_normal(state.key, n + 1, y.shape, dtype)
        deviation = jnp.sqrt(variance + (sigma_next / alpha_next) ** 2)  # e^(−μ')
        y_next = (
            jnp.exp(-c * step) * y
            + sum(weight * d for weight, d in zip(integrals, differences, strict=False))
            + deviation * jnp.sqrt(-jnp.expm1(-2 * self.eta**2 * step)) * z
        )
        # and what the next evaluation is compared with
        expected = sum(weight * d for weight, d in zip(products, differences, strict=False))
        p = jnp.minimum(n + 1, ORDER)
        integral, product = jnp.stack(integrals), jnp.stack(products)
        corrector = integral[p] / product[p]
        milne = jnp.abs(integral[p] - (1 - jnp.stack(nodes)[p - 1]) * integral[p - 1]) / product[p]
        regression = c * step * regression_on_noise(2 * self.eta**2 * step)
        correction = drift * corrector + (1 - drift) * regression
        error = drift * milne + (1 - drift) * regression / math.sqrt(3)
        error *= STEPS ** (1 - self.eta) ** 2

        stuck = ~(t_next < t)  # NaN included
        status = jnp.where(last, Status.COMPLETED, jnp.where(stuck, Status.STEP_TOO_SMALL, Status.RUNNING))
        return AdaptiveExponentialState(
            x=(alpha_next * y_next).astype(dtype),
            t=t_next,
            key=state.key,
            h=h,
            history=evaluations[:-1],
            variance=variance,
            expected=jnp.asarray(expected, dtype),
            correction=correction.astype(dtype),
            error=error.astype(dtype),
            status=status.astype(jnp.int32),
            accepted=n + 1,
            rejected=state.rejected,
        )


def drift_of(eta: Scalar) -> Scalar:
    """How far G drifts, over how far it would along the ODE."""
    return 1 - eta**2


def fitted_variance(now: Evaluation, before: Evaluation) -> Number:
    """b², with which G moved least between two evaluations."""
    moved, slope = now.denoised - before.denoised, now.slope() - before.slope()
    fitted = inner_product(moved, slope) / jnp.maximum(sum_of_squares(slope), jnp.finfo(moved.dtype).tiny)
    return jnp.maximum(fitted, 0)


def regression_on_noise(a: Number) -> Number:
    """(1 − a/(e^a − 1))/a, which cancels for a to 0, where it is 1/2 − a/12."""
    safe = jnp.maximum(a, 0.05)
    return jnp.where(a < 0.05, 1 / 2 - a / 12, (1 - safe / jnp.expm1(safe)) / safe)


def _rms(values: Sample) -> Number:
    return jnp.sqrt(mean_of_squares(values))
