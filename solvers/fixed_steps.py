"""The state of solvers with a fixed number of steps, one evaluation per step and no history."""

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
class FixedStepState:
    x: Sample
    t: Time
    key: PRNGKeyArray
    status: Count
    accepted: Count
    rejected: Count


def first_state(sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> FixedStepState:
    """A sample of the prior at t = T."""
    return FixedStepState(
        x=sde.prior(prior_key(key), shape, dtype),
        t=jnp.asarray(sde.T, dtype),
        key=key,
        status=jnp.int32(Status.RUNNING),
        accepted=jnp.int32(0),
        rejected=jnp.int32(0),
    )


def stepped(state: FixedStepState, x: Sample, t: Time, num_steps: int | Count) -> FixedStepState:
    """The state after a step to ``x`` at ``t``; completed after the last step."""
    done = (state.accepted + 1).astype(jnp.int32)
    return dataclasses.replace(
        state, x=x.astype(state.x.dtype), t=t, status=status_after(done, num_steps), accepted=done
    )


def status_after(done: Count, num_steps: int | Count) -> Count:
    """RUNNING until ``num_steps`` steps are done, then COMPLETED."""
    return jnp.where(done >= num_steps, jnp.int32(Status.COMPLETED), jnp.int32(Status.RUNNING))
