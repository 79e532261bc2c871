"""The state of solvers with a fixed number of steps and one evaluation a step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from sde_lib import SDE
from sde_lib.pytrees import register_dataclass
from solvers.interface import Count, Sample, Status, Time
from solvers.noise import prior_key


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Correction:
    """How the next prediction D corrects x, to ``without`` + ``weight`` D (UniPC, SA-Solver)."""

    without: Sample
    weight: Time


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedStepState:
    x: Sample
    t: Time
    key: PRNGKeyArray
    history: tuple[Sample, ...]  # earlier predictions, the latest first; as many as a step needs
    correction: Correction | None
    status: Count
    accepted: Count
    rejected: Count


def first_state(
    sde: SDE,
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    dtype: Any,
    *,
    history: int = 0,
    corrected: bool = False,
) -> FixedStepState:
    """A sample of the prior at t = T.

    Args:
        sde, key, shape, dtype: as for a solver's ``init``.
        history: number of earlier predictions that a step uses; zeros until they are there.
        corrected: whether an evaluation corrects x.
    """
    x = sde.prior(prior_key(key), shape, dtype)
    # the prior sample is not a prediction: there is nothing to correct
    unchanged = Correction(without=x, weight=jnp.zeros((), dtype))
    return FixedStepState(
        x=x,
        t=jnp.asarray(sde.T, dtype),
        key=key,
        history=(jnp.zeros_like(x),) * history,
        correction=unchanged if corrected else None,
        status=jnp.int32(Status.RUNNING),
        accepted=jnp.int32(0),
        rejected=jnp.int32(0),
    )


def stepped(
    state: FixedStepState,
    x: Sample,
    t: Time,
    num_steps: int | Count,
    *,
    predictions: tuple[Sample, ...] = (),
    correction: Correction | None = None,
) -> FixedStepState:
    """The state after a step to ``x`` at ``t``; completed after the last step.

    Args:
        state: before the step.
        x, t: after it.
        num_steps: number of steps in all.
        predictions: this step's and the earlier ones, of which the state keeps as many as before.
        correction: of the next evaluation.
    """
    done = (state.accepted + 1).astype(jnp.int32)
    return dataclasses.replace(
        state,
        x=x.astype(state.x.dtype),
        t=t,
        history=predictions[: len(state.history)],
        correction=correction,
        status=status_after(done, num_steps),
        accepted=done,
    )


def corrected(state: FixedStepState, prediction: Sample) -> Sample:
    """x, corrected by the prediction there if the solver corrects."""
    if state.correction is None:
        return state.x
    return state.correction.without + state.correction.weight * prediction


def status_after(done: Count, num_steps: int | Count) -> Count:
    """RUNNING until ``num_steps`` steps are done, then COMPLETED."""
    return jnp.where(done >= num_steps, jnp.int32(Status.COMPLETED), jnp.int32(Status.RUNNING))
