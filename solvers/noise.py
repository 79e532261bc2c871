"""Random numbers that belong to a sample, not to a batch.

Sample i draws its n-th noise from fold_in(fold_in(root, i), n). The noise therefore does not depend on lanes,
batches, devices or the order of the samples.

This holds for keys of threefry, JAX's default. Of a batch of "rbg" keys, JAX takes the first alone, so that a
sample's noise would depend on its neighbours. A root of any other implementation is therefore turned into one
of threefry.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

PRIOR = 0  # index of the prior's draw; steps count from 1
THREEFRY = "threefry2x32"


def sample_key(root: PRNGKeyArray, sample_id: UInt32[Array, ""]) -> PRNGKeyArray:
    """The key of one sample; always one of threefry."""
    return jax.random.fold_in(_of_threefry(root), sample_id)


def _of_threefry(root: PRNGKeyArray) -> PRNGKeyArray:
    """The key itself if it is one of threefry, otherwise one that is made of all its bits."""
    if str(jax.random.key_impl(root)) == THREEFRY:
        return root
    key = jax.random.key(0, impl=THREEFRY)
    for word in jnp.ravel(jax.random.key_data(root)):
        key = jax.random.fold_in(key, word)
    return key


def prior_key(key: PRNGKeyArray) -> PRNGKeyArray:
    """The key of a sample's prior draw."""
    return jax.random.fold_in(key, PRIOR)


def standard_normal(
    key: PRNGKeyArray, index: Int[Array, ""], shape: tuple[int, ...], dtype: Any
) -> Float[Array, "*shape"]:
    """The draw number ``index`` >= 1 of a sample from N(0, I)."""
    return jax.random.normal(jax.random.fold_in(key, index), shape, dtype)
