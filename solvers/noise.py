"""Random numbers that belong to a sample, not to a batch.

Sample i draws its n-th noise from fold_in(fold_in(root, i), n). The noise therefore does not depend on lanes,
batches, devices or the order of the samples.
"""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

PRIOR = 0  # index of the prior's draw; steps count from 1


def sample_key(root: PRNGKeyArray, sample_id: UInt32[Array, ""]) -> PRNGKeyArray:
    """The key of one sample."""
    return jax.random.fold_in(root, sample_id)


def prior_key(key: PRNGKeyArray) -> PRNGKeyArray:
    """The key of a sample's prior draw."""
    return jax.random.fold_in(key, PRIOR)


def standard_normal(
    key: PRNGKeyArray, index: Int[Array, ""], shape: tuple[int, ...], dtype: Any
) -> Float[Array, "*shape"]:
    """The draw number ``index`` >= 1 of a sample from N(0, I)."""
    return jax.random.normal(jax.random.fold_in(key, index), shape, dtype)
