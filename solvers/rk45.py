"""Dormand and Prince's RK45 on the probability-flow ODE (Song et al., arXiv 2011.13456, section 4.3).

The pair of orders 5 and 4 (J. Comput. Appl. Math. 6, 1980, table 2) in backward time, f the drift of the ODE:

    1.  K_i = f(x − h Σ_j a_ij K_j, t − c_i h),  i = 1 … 6;      x' = x − h Σ_i b_i K_i
    2.  K_7 = f(x', t − h);                                      E = h Σ_i (b_i − b*_i) K_i
    3.  e = √mean((E/(atol + rtol max(|x|, |x'|)))²)
    4.  if e < 1:  x ← x';  t ← t − h;  K_1 ← K_7
    5.  h ← h · min(max(0.9 e^(−1/5), 0.2), 10 or, right after a rejection, 1)

The first step is chosen as by Hairer, Nørsett and Wanner (Solving Ordinary Differential Equations I, section
II.4), which takes one more evaluation. Steps, evaluations and results are those of
``scipy.integrate.solve_ivp`` with ``method="RK45"`` on the sample alone.

Departure from the published code: the code hands scipy the flattened batch as one system. All samples of a
batch then share one step size, so that a sample depends on its neighbours and pays for the hardest of them.
Here each sample has its own step size.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from sde_lib import SDE, probability_flow_drift
from sde_lib.checks import require_positive
from sde_lib.processes import Scalar
from sde_lib.pytrees import register_dataclass
from solvers.interface import Count, Flag, Sample, Status, Time
from solvers.noise import prior_key
from solvers.review import not_far_below
from solvers.sums import root_mean_square

SAFETY, MIN_FACTOR, MAX_FACTOR = 0.9, 0.2, 10.0
MIN_STEP = 10  # spacings of floating-point numbers at t

# A stage has the number of the row of K that its score is for, counted from 0. One further stage tries an
# Euler step: the first step size is chosen from the change of f along it.
LAST, TRIAL = 6, 7
A = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0],
        [1 / 5, 0, 0, 0, 0, 0, 0],
        [3 / 40, 9 / 40, 0, 0, 0, 0, 0],
        [44 / 45, -56 / 15, 32 / 9, 0, 0, 0, 0],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0, 0],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0, 0],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0],  # b: the last stage is at x' itself
        [1, 0, 0, 0, 0, 0, 0],
    ]
)
C = np.array([0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1, 1])
B_LOWER = np.array([5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40])
B_DIFFERENCE = A[LAST] - B_LOWER


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RK45State:
    x: Sample
    t: Time
    h: Time  # the step being tried
    e: Time  # of the last step tried
    t_proposed: Time  # the time at its end: t − h, or eps itself
    K: Float[Array, "7 *shape"]  # rows before the current stage are valid; later ones are left over
    stage: Count
    retried: Flag  # whether the last try was rejected
    status: Count
    accepted: Count
    rejected: Count


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RK45:
    """RK45 on the probability-flow ODE: six evaluations a step, accepted or not, and two at the start.

    Attributes:
        rtol, atol: the error allowed per step is atol + rtol·|x|, in data units; 1e-5 in the paper's tables.
            A float32 state has only 7 digits: use a float64 one for an rtol below 1e-6.

    Raises:
        ValueError: for a tolerance that is not above zero.

    Example:
        >>> from solvers import RK45
        >>> RK45(rtol=1e-3)
        RK45(rtol=0.001, atol=1e-05)
    """

    rtol: Scalar = 1e-5
    atol: Scalar = 1e-5

    evaluations_per_step: ClassVar[int] = 6

    def __post_init__(self) -> None:
        require_positive(rtol=self.rtol, atol=self.atol)

    def review(self, size: float) -> str | None:
        """A message if ``atol`` is large for samples of this root mean square."""
        return not_far_below("atol", self.atol, size)

    def init(self, sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> RK45State:
        t = jnp.asarray(sde.T, dtype)
        return RK45State(
            x=sde.prior(prior_key(key), shape, dtype),
            t=t,
            h=jnp.zeros_like(t),
            e=jnp.zeros_like(t),
            t_proposed=t,
            K=jnp.zeros((LAST + 1, *shape), dtype),
            stage=jnp.int32(0),
            retried=jnp.bool_(False),
            status=jnp.int32(Status.RUNNING),
            accepted=jnp.int32(0),
            rejected=jnp.int32(0),
        )

    def ask(self, state: RK45State) -> tuple[Sample, Time]:
        weights, c = jnp.asarray(A, state.x.dtype)[state.stage], jnp.asarray(C, state.t.dtype)[state.stage]
        x = state.x - state.h * _combine(weights, state.K)
        return x, jnp.where(c == 1, state.t_proposed, state.t - c * state.h)

    def tell(self, sde: SDE, state: RK45State, score: Sample) -> RK45State:
        x, t = self.ask(state)
        k = probability_flow_drift(sde, x, t, score).astype(x.dtype)
        row = jnp.arange(LAST + 1).reshape(-1, *(1,) * x.ndim)
        state = dataclasses.replace(state, K=jnp.where(row == state.stage, k, state.K))
        which = jnp.select([state.stage == 0, state.stage == TRIAL, state.stage == LAST], [0, 1, 3], 2)
        return jax.lax.switch(
            which,
            [
                lambda: self._try_euler(sde, state),
                lambda: self._choose_first_step(sde, state, k),
                lambda: dataclasses.replace(state, stage=state.stage + 1),
                lambda: self._judge(sde, state, x),
            ],
        )

    def _try_euler(self, sde: SDE, state: RK45State) -> RK45State:
        """Hairer's h_0, for which Euler's step changes x by a hundredth of itself."""
        d_0, d_1 = (
            root_mean_square(state.x / self._scale(state.x)),
            root_mean_square(state.K[0] / self._scale(state.x)),
        )
        h_0 = jnp.where((d_0 < 1e-5) | (d_1 < 1e-5), 1e-6, 0.01 * d_0 / d_1)
        h_0 = jnp.minimum(h_0, sde.T - sde.eps)
        return dataclasses.replace(
            state,
            h=h_0.astype(state.h.dtype),
            t_proposed=jnp.maximum(state.t - h_0, sde.eps).astype(state.t.dtype),
            stage=jnp.int32(TRIAL),
        )

    def _choose_first_step(self, sde: SDE, state: RK45State, k: Sample) -> RK45State:
        """Hairer's h_1, for which a method of order 4 has an error of a hundredth of the tolerance."""
        h_0, scale = state.h, self._scale(state.x)
        d_1, d_2 = root_mean_square(state.K[0] / scale), root_mean_square((k - state.K[0]) / scale) / h_0
        still = (d_1 <= 1e-15) & (d_2 <= 1e-15)
        h_1 = jnp.where(still, jnp.maximum(1e-6, h_0 * 1e-3), (0.01 / jnp.maximum(d_1, d_2)) ** (1 / 5))
        h = jnp.maximum(jnp.minimum(100 * h_0, h_1), _min_step(state.t))
        return self._propose(sde, state, h)

    def _judge(self, sde: SDE, state: RK45State, x_proposed: Sample) -> RK45State:
        """Steps 3 to 5, when K is complete."""
        # 3. the error in units of the tolerance
        error = state.h * _combine(jnp.asarray(B_DIFFERENCE, state.x.dtype), state.K)
        e = root_mean_square(error / self._scale(jnp.maximum(jnp.abs(state.x), jnp.abs(x_proposed))))

        # 4. accept or reject; a rejected step keeps K_1, which is still valid
        accept = e < 1
        x, t, k_1 = jax.tree.map(
            lambda a, b: jnp.where(accept, a, b),
            (x_proposed, state.t_proposed, state.K[LAST]),
            (state.x, state.t, state.K[0]),
        )

        # 5. the next step
        largest = jnp.where(state.retried, 1.0, MAX_FACTOR)
        h = state.h * jnp.clip(SAFETY * e ** (-1 / 5), MIN_FACTOR, largest)
        # only a rejection makes a step too small, NaN included; after an accepted step h has a minimum
        stuck = ~accept & ~(h >= _min_step(t))
        h = jnp.where(accept, jnp.maximum(h, _min_step(t)), h)
        arrived = t <= sde.eps
        status = jnp.where(arrived, Status.COMPLETED, jnp.where(stuck, Status.STEP_TOO_SMALL, Status.RUNNING))
        judged = dataclasses.replace(
            state,
            x=x,
            t=t,
            e=e,
            K=state.K.at[0].set(k_1),
            retried=~accept,
            status=status.astype(jnp.int32),
            accepted=state.accepted + accept,
            rejected=state.rejected + ~accept,
        )
        return self._propose(sde, judged, h)

    def _propose(self, sde: SDE, state: RK45State, h: Time) -> RK45State:
        """Starts a step of size h, or to eps if that is nearer."""
        t_proposed = jnp.maximum(state.t - h, sde.eps).astype(state.t.dtype)
        # the exact change of t: t − h may be rounded
        return dataclasses.replace(state, h=state.t - t_proposed, t_proposed=t_proposed, stage=jnp.int32(1))

    def _scale(self, magnitude: Sample) -> Sample:
        """The allowed error."""
        return self.atol + self.rtol * jnp.abs(magnitude)


def _combine(weights: Float[Array, " 7"], K: Float[Array, "7 *shape"]) -> Sample:
    """Σ_j w_j K_j, term by term: how the compiler orders a sum over an axis depends on the batch size."""
    return sum((w * k for w, k in zip(weights, K, strict=True)), start=jnp.zeros_like(K[0]))


def _min_step(t: Time) -> Time:
    return MIN_STEP * (t - jnp.nextafter(t, jnp.zeros_like(t)))
