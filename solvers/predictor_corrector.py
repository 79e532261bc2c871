"""Predictors and predictor–corrector sampling (Song et al., arXiv 2011.13456, appendices E, F and G).

There are two one-step predictors besides Euler–Maruyama, and the combination of any of the three with
Langevin steps. A step goes from t to t' < t. The predictors take the exact forward transition
x(t) | x(t') ~ N(r x(t'), G² I) with

    r = α(t)/α(t'),    G² = σ(t)² − r² σ(t')² = σ(t)² (1 − e^(2 (λ(t) − λ(t'))))

as one link of the paper's chains: G² = σ_{i+1}² − σ_i² for SMLD; r² = 1 − β_i and G² = β_i for DDPM, where
β_i is β(t)(t − t') to first order but never exceeds 1, however long the step. On a table of N levels, with a
uniform grid of N − 1 steps, they are the chain of the table itself.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from sde_lib import SDE, VESDE, VPSDE, DiscreteVP
from sde_lib.checks import require, require_count, require_positive
from sde_lib.processes import Scalar
from sde_lib.pytrees import register_dataclass
from solvers.euler_maruyama import EulerMaruyama
from solvers.fixed_steps import FixedStepState, first_state, stepped
from solvers.grids import Grid, UniformTime, grid_time
from solvers.interface import Count, Sample, Time
from solvers.langevin import langevin_step, warn_of_few_elements
from solvers.noise import standard_normal
from solvers.rows import process_of

# folded into a sample's key, gives the corrector's key; the predictor's draws are numbered by step
CORRECTOR = 2**32 - 1

CHAINS = VESDE | VPSDE | DiscreteVP  # to which the chains of SMLD and DDPM belong


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReverseDiffusion:
    """The forward SDE's discretization x(t) = x(t') + f + G z, reversed (appendix E).

    x ← x − f + G² s(x, t) + G z, one evaluation a step, with

        VE       f = 0,             G² = σ(t)² − σ(t')²        (algorithm 2)
        VP       f = (r − 1) x,     G² = 1 − r²                (algorithm 3, with β_i = 1 − r²)
        others   f = f(x, t) h,     G² = g(t)² h

    A table of noise levels has the chain of VP. The other processes, such as sub-VP, have none. Their formula
    is the Euler discretization of the SDE, as published, and the same as Euler–Maruyama.

    Attributes:
        num_steps: number of steps; another number does not recompile.
        grid: times at which the steps end; uniform in t in the paper.

    Raises:
        ValueError: for a number of steps that is not a whole number of at least one.

    Example:
        >>> from solvers import ReverseDiffusion
        >>> ReverseDiffusion(num_steps=500)
        ReverseDiffusion(num_steps=500, grid=UniformTime())
    """

    num_steps: int | Count = 1000
    grid: Grid = UniformTime()

    evaluations_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_count(num_steps=self.num_steps)

    def init(self, sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> FixedStepState:
        return first_state(sde, key, shape, dtype)

    def ask(self, state: FixedStepState) -> tuple[Sample, Time]:
        return state.x, state.t

    def tell(self, sde: SDE, state: FixedStepState, score: Sample) -> FixedStepState:
        x, t = state.x, state.t
        t_next = grid_time(self.grid, sde, state.accepted + 1, self.num_steps, t.dtype)
        if isinstance(process_of(sde), CHAINS):
            r, G2 = transition(sde, t, t_next)
            f = (r - 1) * x
        else:
            h = t - t_next
            f, G2 = sde.drift(x, t) * h, sde.diffusion(t) ** 2 * h
        # x ← x − f + G² s(x, t) + G z
        z = standard_normal(state.key, state.accepted + 1, x.shape, x.dtype)
        return stepped(state, x - f + G2 * score + jnp.sqrt(G2) * z, t_next, self.num_steps)


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AncestralSampling:
    """The posterior of x(t') given x(t) and the denoised x(0) (appendix F; Ho et al., arXiv 2006.11239).

    x ← (x + G² s(x, t))/r + (σ(t')/σ(t)) G z, one evaluation a step. For VE, where r = 1, it is the paper's.
    For VP the mean is that of the paper's eq. 4, whose noise is √β_i z: of the two choices of Ho et al., the
    one that suits data ~ N(0, I). The noise used here is their other choice, that of the posterior itself,
    for both processes: it leaves at most σ(t') on the image, however long the last step.

    The mean of x(t') is exact for any data. The variance lacks the contribution of the posterior variance of
    x(0), of order h² per step.

    Attributes:
        num_steps: number of steps; another number does not recompile.
        grid: times at which the steps end; uniform in t in the paper.

    Raises:
        ValueError: for a number of steps that is not a whole number of at least one; from ``init``, for any
            process but VE, VP and a table of noise levels, to which the chains of SMLD and DDPM belong.

    Example:
        >>> from solvers import AncestralSampling
        >>> AncestralSampling(num_steps=500)
        AncestralSampling(num_steps=500, grid=UniformTime())
    """

    num_steps: int | Count = 1000
    grid: Grid = UniformTime()

    evaluations_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_count(num_steps=self.num_steps)

    def init(self, sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> FixedStepState:
        require(
            isinstance(process_of(sde), CHAINS),
            "sde",
            type(sde).__name__,
            "VESDE, VPSDE or DiscreteVP for AncestralSampling",
            "use ReverseDiffusion or EulerMaruyama for this process",
        )
        return first_state(sde, key, shape, dtype)

    def ask(self, state: FixedStepState) -> tuple[Sample, Time]:
        return state.x, state.t

    def tell(self, sde: SDE, state: FixedStepState, score: Sample) -> FixedStepState:
        x, t = state.x, state.t
        t_next = grid_time(self.grid, sde, state.accepted + 1, self.num_steps, t.dtype)
        r, G2 = transition(sde, t, t_next)
        ratio = sde.marginal(t_next)[1] / sde.marginal(t)[1]
        # x ← (x + G² s(x, t))/r + (σ(t')/σ(t)) G z
        z = standard_normal(state.key, state.accepted + 1, x.shape, x.dtype)
        return stepped(state, (x + G2 * score) / r + ratio * jnp.sqrt(G2) * z, t_next, self.num_steps)


Predictor = EulerMaruyama | ReverseDiffusion | AncestralSampling


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorCorrectorState:
    x: Sample
    predictor: FixedStepState  # after its last step; x has been corrected since
    corrector_key: PRNGKeyArray
    corrections: Count  # Langevin steps so far

    # of one sample, or of every lane if the state is a batch
    @property
    def t(self) -> Any:
        return self.predictor.t

    @property
    def status(self) -> Any:
        return self.predictor.status

    @property
    def accepted(self) -> Any:
        """Steps of both kinds, with one evaluation each."""
        return self.predictor.accepted + self.corrections

    @property
    def rejected(self) -> Any:
        return self.predictor.rejected


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorCorrector:
    """Langevin steps and then the predictor's step, at every time of the grid but eps (appendix G).

    The corrector comes first, as in the published code; algorithms 2 and 3 start the same alternation with
    the predictor. Norms are those of the sample alone, where the published code averages over the batch;
    ``solvers.langevin`` gives the reason, and defines α. Each step of either kind takes one evaluation and
    counts as one step: num_steps × (corrector_steps + 1) in all.

    Attributes:
        predictor: EulerMaruyama, ReverseDiffusion or AncestralSampling, with its num_steps and grid.
        snr: r, the corrector's signal-to-noise ratio; 0.16 for CIFAR-10 with VE, 0.01 with VP, 0.075 at
            256².
        corrector_steps: Langevin steps before each predictor step; another number does not recompile.

    Raises:
        ValueError: for any other predictor, an snr that is not above zero, or a number of corrector steps
            that is not a whole number above zero; from ``init``, as the predictor's ``init``.

    Warns:
        UserWarning: from ``init``, for samples of fewer than 40 elements, whose variance comes out too large.

    Example:
        >>> from solvers import PredictorCorrector, ReverseDiffusion
        >>> solver = PredictorCorrector(predictor=ReverseDiffusion(num_steps=500), snr=0.16)
        >>> solver.corrector_steps
        1
    """

    predictor: Predictor = ReverseDiffusion()
    snr: Scalar = 0.16
    corrector_steps: int | Count = 1

    evaluations_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require(
            isinstance(self.predictor, Predictor),
            "predictor",
            type(self.predictor).__name__,
            "EulerMaruyama, ReverseDiffusion or AncestralSampling",
            "use one of these, whose steps end after one evaluation",
        )
        require_positive(snr=self.snr)
        require_count(corrector_steps=self.corrector_steps)

    def init(
        self, sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any
    ) -> PredictorCorrectorState:
        warn_of_few_elements(shape)
        predictor = self.predictor.init(sde, key, shape, dtype)
        return PredictorCorrectorState(
            x=predictor.x,
            predictor=predictor,
            corrector_key=jax.random.fold_in(key, CORRECTOR),
            corrections=jnp.int32(0),
        )

    def ask(self, state: PredictorCorrectorState) -> tuple[Sample, Time]:
        return state.x, state.t

    def tell(self, sde: SDE, state: PredictorCorrectorState, score: Sample) -> PredictorCorrectorState:
        x, t, steps = state.x, state.t, state.predictor.accepted + 1
        # the corrector: Langevin steps at t, until this time has had its number of them
        t_next = grid_time(self.predictor.grid, sde, steps, self.predictor.num_steps, t.dtype)
        corrections = (state.corrections + 1).astype(jnp.int32)
        z = standard_normal(state.corrector_key, corrections, x.shape, x.dtype)
        corrected = dataclasses.replace(
            state, x=langevin_step(sde, x, t, t_next, score, z, self.snr), corrections=corrections
        )
        # the predictor: from t to t'
        ahead = self.predictor.tell(sde, dataclasses.replace(state.predictor, x=x), score)
        predicted = dataclasses.replace(state, x=ahead.x, predictor=ahead)

        correcting = state.corrections < steps * self.corrector_steps
        return jax.tree.map(lambda a, b: jnp.where(correcting, a, b), corrected, predicted)


def transition(sde: SDE, t: Time, t_next: Time) -> tuple[Scalar, Scalar]:
    """(r, G²) of x(t) | x(t_next) ~ N(r x(t_next), G² I)."""
    alpha, sigma = sde.marginal(t)
    alpha_next, _ = sde.marginal(t_next)
    # through the log-SNR, since the difference of the variances loses digits in short steps
    return alpha / alpha_next, sigma**2 * -jnp.expm1(2 * (sde.log_snr(t) - sde.log_snr(t_next)))
