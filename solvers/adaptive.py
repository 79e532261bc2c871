"""The paper's solver, "Gotta Go Fast When Generating Data with Score-Based Models" (arXiv 2105.14080).

Algorithm 1, per sample at (x, t) with the proposed step h, f the drift of the reverse SDE:

    1.  z ~ N(0, I);  K1 = −h f(x, t) + g(t) √h z;        x' = x + K1
    2.  K2 = −h f(x', t − h) + g(t − h) √h z;             E = (K2 − K1)/2;  x'' = x' + E
    3.  δ = max(ε_abs, ε_rel max(|x'_prev|, |x'|));       e = √mean((E/δ)²)
    4.  if e ≤ 1:  x ← x'';  x'_prev ← x';  t ← t − h
    5.  h ← min(t − ε, θ h e^(−r), (1 + d) h),   d the number of elements

Departures from the published code:
- A step is at most 1 + d times as long as the last one that was tried. With a few elements, E is nearly 0 now
  and then by chance (below 1/d with a probability of the order of d^(−d)). Without this bound the solver then
  tries the whole rest of the way, and chance may accept that too. On images the bound has no effect.
- A rejected step keeps the score at (x, t), which is still valid, and evaluates only the second stage again.
- x'_prev is updated as the paper writes it; the code overwrites it with x.
- A step too small to change t stops the sample with a status; the code loops forever.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from sde_lib import SDE, reverse_drift
from sde_lib.checks import require_choice, require_number, require_positive
from sde_lib.processes import Scalar
from sde_lib.pytrees import STATIC, register_dataclass
from solvers.interface import Count, Flag, Sample, Status, Time
from solvers.noise import prior_key, standard_normal
from solvers.review import not_far_below
from solvers.sums import root_mean_square, sum_of_squares

Norm = Literal["l2_scaled", "l2", "linf"]
ErrorEstimate = Literal["heun", "lamba"]
NoiseOnRejection = Literal["redraw", "hold", "bridge"]

# Points of the path that "bridge" keeps. Only many rejections in a row fill all places: on Gaussian data of
# 4 × 4 pixels, at the paper's tolerances, one sample of 2,560 forgot a point.
KNOWN_POINTS = 8


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownPath:
    """The Brownian path below t as far as rejected steps have drawn it: B(s) at distances s below t.

    If all places are taken, a new point replaces the farthest one. The path there is then drawn again, given
    the points that are left.
    """

    distance: Float[Array, " points"]  # s > 0, in no order; infinite if the place is free
    value: Float[Array, "points *shape"]  # B(s), with B(0) = 0

    @classmethod
    def unknown(cls, x: Sample) -> KnownPath:
        return cls(
            distance=jnp.full(KNOWN_POINTS, jnp.inf, x.dtype),
            value=jnp.zeros((KNOWN_POINTS, *x.shape), x.dtype),
        )

    def draw(self, h: Time, z: Sample) -> Sample:
        """B(h) given the known points, from a standard normal z: a bridge between the two nearest points."""
        distance = jnp.pad(self.distance, (1, 0))  # B(0) = 0
        value = jnp.pad(self.value, ((1, 0), *((0, 0) for _ in z.shape)))
        before, after = jnp.where(distance <= h, distance, -1), jnp.where(distance > h, distance, jnp.inf)
        a, b = jnp.max(before), jnp.min(after)
        value_a, value_b = value[jnp.argmax(before)], value[jnp.argmin(after)]
        # if no point is known beyond h, b is infinite: the share is 0 and the increment from a is free
        share = (h - a) / (b - a)
        return value_a + share * (value_b - value_a) + jnp.sqrt((h - a) * (1 - share)) * z

    def with_point(self, h: Time, value: Sample) -> KnownPath:
        """The path with the additional known point B(h) = value."""
        # a free place, or that of the farthest point
        place = jnp.arange(KNOWN_POINTS) == jnp.argmax(self.distance)
        return KnownPath(
            distance=jnp.where(place, h, self.distance),
            value=jnp.where(place.reshape(-1, *(1,) * value.ndim), value, self.value),
        )

    def from_point(self, h: Time, value: Sample) -> KnownPath:
        """The path as seen from distance h, where B(h) = value."""
        return KnownPath(
            distance=jnp.where(self.distance > h, self.distance - h, jnp.inf), value=self.value - value
        )


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveState:
    x: Sample
    t: Time
    h: Time  # the step being tried
    e: Time  # of the last step tried
    x_previous: Sample  # x'_prev
    key: PRNGKeyArray
    # The current stage. First: the score at (x, t) is needed. Second: that score is `score`, and the score at
    # (x_proposed, t_proposed) is needed, a point made with the noise z.
    second_stage: Flag
    score: Sample
    z: Sample
    x_proposed: Sample
    t_proposed: Time
    status: Count
    accepted: Count
    rejected: Count
    path: KnownPath | None  # below t; None unless noise_on_rejection is "bridge"


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Algorithm 1 with every setting of the paper and its appendix.

    Attributes:
        eps_rel: relative tolerance ε_rel, the main setting.
        eps_abs: absolute tolerance ε_abs in data units; one grey level of 8 bits: 1/256 for data in [0, 1],
            2/256 for [−1, 1].
        safety: θ, the fraction of the predicted step that is taken.
        exponent: r, how strongly the step size reacts to the error.
        first_step: h at t = T; 0.01 for VP and 0.5 for VE in the paper.
        norm: of E/δ over a sample: "l2_scaled" (root mean square, as in the paper), "l2" (root of the sum),
            "linf" (largest).
        extrapolate: keep x'' (the higher order); otherwise keep x', and x'' takes its place in δ.
        use_previous: whether δ includes |x'_prev|.
        error_estimate: "heun" as above; or "lamba" (Lamba 2003): E = −(h/2) [f(m, t − h) − f(x, t)] with
            m = x − h f(x, t), the drift alone, and δ from the kept value without its noise.
        noise_on_rejection: "bridge" stays on one Brownian path, like RSwM3 (Rackauckas & Nie 2017): a shorter
            step draws its noise from the bridge to the points that rejected steps have drawn, and so do the
            following steps until they are past these points. The ``KNOWN_POINTS`` nearest points are kept.
            "redraw" draws a new z for the next try (as published), and "hold" keeps the sample's z until a
            step is accepted. Both bias the accepted noise; see below.

    In few dimensions, a step is accepted or rejected for its noise, and "redraw" and "hold" then keep the
    noise that suits the step. On data ~ N(2, 0.5² I) in two dimensions (VP, eps_abs 0.0078, 100,000 samples),
    the mean and the deviation come out as

        eps_rel      redraw            hold              bridge            standard error
        0.1          2.093, 0.489      2.024, 0.475      1.981, 0.498      0.0011, 0.0008
        0.05         2.079, 0.516      2.031, 0.481      1.992, 0.497
        0.02         2.057, 0.546      2.026, 0.486      1.997, 0.498
        0.01         2.041, 0.561      2.015, 0.492      1.998, 0.499

    The bias of "redraw" does not vanish with the tolerance: that of the mean shrinks slowly, and that of the
    deviation grows. What "bridge" leaves is the error of the Heun step itself, which does vanish: at eps_rel
    0.1 and 0.05, fresh noise on the steps of another sample gives means of 1.981 and 1.994 (± 0.002). In one
    dimension it is as large: at 0.05 the mean is 1.992 (± 0.001). With more dimensions the policies agree,
    since the norm of a sample's noise hardly varies: at 0.05, "redraw" and "bridge" have means of 2.045 and
    1.994 in 8 dimensions, 2.003 and 1.995 in 64 (± 0.001), and 1.995 and 1.996 in 1,024 (± 0.0005).

    Raises:
        ValueError: for a number out of range or an unknown choice.

    Example:
        >>> from solvers import Adaptive
        >>> Adaptive(eps_rel=0.05, first_step=0.5).safety
        0.9
        >>> Adaptive(eps_rel=0.0)
        Traceback (most recent call last):
        ValueError: eps_rel must be a number > 0 (got 0.0): set eps_rel above zero
    """

    eps_rel: Scalar = 0.02
    eps_abs: Scalar = 1 / 256
    safety: Scalar = 0.9
    exponent: Scalar = 0.9
    first_step: Scalar = 0.01
    norm: Norm = dataclasses.field(default="l2_scaled", metadata=STATIC)
    extrapolate: bool = dataclasses.field(default=True, metadata=STATIC)
    use_previous: bool = dataclasses.field(default=True, metadata=STATIC)
    error_estimate: ErrorEstimate = dataclasses.field(default="heun", metadata=STATIC)
    noise_on_rejection: NoiseOnRejection = dataclasses.field(default="bridge", metadata=STATIC)

    evaluations_per_step: ClassVar[int] = 2
    revision: ClassVar[int] = 2  # part of what identifies samples: revision 1 let steps grow without a bound

    def __post_init__(self) -> None:
        require_positive(
            eps_rel=self.eps_rel,
            eps_abs=self.eps_abs,
            safety=self.safety,
            exponent=self.exponent,
            first_step=self.first_step,
        )
        fix = "set safety to 0.9, as in the paper"
        require_number("safety", self.safety, lambda safety: safety < 1, "above 0 and below 1", fix)
        require_choice("norm", self.norm, get_args(Norm))
        require_choice("error_estimate", self.error_estimate, get_args(ErrorEstimate))
        require_choice("noise_on_rejection", self.noise_on_rejection, get_args(NoiseOnRejection))

    def review(self, size: float) -> str | None:
        """A message if ``eps_abs`` is large for samples of this root mean square."""
        return not_far_below("eps_abs", self.eps_abs, size)

    def init(self, sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> AdaptiveState:
        x = sde.prior(prior_key(key), shape, dtype)
        return AdaptiveState(
            x=x,
            t=jnp.asarray(sde.T, dtype),
            h=jnp.minimum(self.first_step, sde.T - sde.eps).astype(dtype),
            e=jnp.zeros((), dtype),
            x_previous=x,
            key=key,
            second_stage=jnp.bool_(False),
            score=jnp.zeros_like(x),
            z=jnp.zeros_like(x),
            x_proposed=x,
            t_proposed=jnp.asarray(sde.T, dtype),
            status=jnp.int32(Status.RUNNING),
            accepted=jnp.int32(0),
            rejected=jnp.int32(0),
            path=KnownPath.unknown(x) if self.noise_on_rejection == "bridge" else None,
        )

    def ask(self, state: AdaptiveState) -> tuple[Sample, Time]:
        proposed, current = (state.x_proposed, state.t_proposed), (state.x, state.t)
        return jax.tree.map(lambda a, b: jnp.where(state.second_stage, a, b), proposed, current)

    def tell(self, sde: SDE, state: AdaptiveState, score: Sample) -> AdaptiveState:
        judged, accepted = self._judge(sde, state, score)
        opened = dataclasses.replace(state, score=score)
        state = jax.tree.map(lambda a, b: jnp.where(state.second_stage, a, b), judged, opened)
        # after an accepted step, the score at the new x is needed first; otherwise x' can be proposed at once
        return dataclasses.replace(self._propose(sde, state), second_stage=~accepted)

    def _propose(self, sde: SDE, state: AdaptiveState) -> AdaptiveState:
        # 1. z ~ N(0, I); x' = x + K1
        draw = state.accepted + 1
        if self.noise_on_rejection != "hold":
            draw += state.rejected
        z = standard_normal(state.key, draw, state.x.shape, state.x.dtype)
        if state.path is not None:
            # without the barrier, the compiler may divide by the root in another way for another number of
            # devices, which rounds differently
            z = state.path.draw(state.h, z) / jax.lax.optimization_barrier(jnp.sqrt(state.h))
        x_proposed = state.x - state.h * reverse_drift(sde, state.x, state.t, state.score)
        if self.error_estimate == "heun":
            x_proposed += self._noise(sde, state.t, state.h, z)
        # the last step lands on eps itself, which t − h may miss by a rounding error
        last = state.h >= state.t - sde.eps
        t_proposed = jnp.where(last, sde.eps, state.t - state.h).astype(state.t.dtype)
        return dataclasses.replace(state, z=z, x_proposed=x_proposed, t_proposed=t_proposed)

    def _judge(self, sde: SDE, state: AdaptiveState, score: Sample) -> tuple[AdaptiveState, Flag]:
        """Steps 2 to 5 with ``score`` at (x_proposed, t_proposed); also whether the step was accepted."""
        x, t, h, t_ahead = state.x, state.t, state.h, state.t_proposed
        # 2. E = (K2 − K1)/2 with the same z; x'' = x' + E
        noise = self._noise(sde, t, h, state.z)
        drift = reverse_drift(sde, x, t, state.score)
        drift_ahead = reverse_drift(sde, state.x_proposed, t_ahead, score)
        error = -0.5 * h * (drift_ahead - drift)
        if self.error_estimate == "heun":
            x_lower = state.x_proposed
            error += 0.5 * (self._noise(sde, t_ahead, h, state.z) - noise)
        else:
            x_lower = state.x_proposed + noise
        x_higher = x_lower + error

        kept, other = (x_higher, x_lower) if self.extrapolate else (x_lower, x_higher)
        companion = other if self.error_estimate == "heun" else kept - noise

        # 3. the error in units of the tolerance
        magnitude = jnp.abs(companion)
        if self.use_previous:
            magnitude = jnp.maximum(jnp.abs(state.x_previous), magnitude)
        tolerance = jnp.maximum(self.eps_abs, self.eps_rel * magnitude)
        e = self._norm(error / tolerance)

        # 4. accept or reject
        accept = state.second_stage & (e <= 1)
        t_next = jnp.where(accept, t_ahead, t)

        # 5. the next step
        wanted = jnp.minimum(self.safety * h * e**-self.exponent, (1 + x.size) * h)
        h_next = jnp.minimum(t_next - sde.eps, wanted).astype(h.dtype)
        arrived = t_next <= sde.eps
        stuck = ~(t_next - h_next < t_next)  # NaN included
        status = jnp.where(arrived, Status.COMPLETED, jnp.where(stuck, Status.STEP_TOO_SMALL, Status.RUNNING))
        path = state.path
        if path is not None:
            point = h, jnp.sqrt(h) * state.z  # of the path, as this step has drawn it
            seen = path.from_point(*point), path.with_point(*point)
            path = jax.tree.map(lambda a, b: jnp.where(accept, a, b), *seen)
        judged = dataclasses.replace(
            state,
            x=jnp.where(accept, kept, x),
            t=t_next,
            h=h_next,
            e=e,
            x_previous=jnp.where(accept, companion, state.x_previous),
            status=status.astype(jnp.int32),
            accepted=state.accepted + accept,
            rejected=state.rejected + ~accept,
            path=path,
        )
        return judged, accept

    def _noise(self, sde: SDE, t: Time, h: Time, z: Sample) -> Sample:
        """g(t) √h z."""
        return sde.diffusion(t) * jnp.sqrt(h) * z

    def _norm(self, ratio: Sample) -> Array:
        match self.norm:
            case "l2_scaled":
                return root_mean_square(ratio)
            case "l2":
                return jnp.sqrt(sum_of_squares(ratio))
            case "linf":
                return jnp.max(jnp.abs(ratio))
