"""Settings are checked whatever makes them: Python, numpy or JAX; only traced ones have no value yet."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VESDE, VPSDE
from sde_lib.checks import is_known, is_number, require_count, require_number, require_positive, require_seed
from solvers import DDIM, EDM, UniPC
from solvers.adaptive import Adaptive

KINDS = [float, np.float32, np.float64, np.asarray, jnp.float32, jnp.asarray, jnp.bfloat16]


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_number_is_refused_of_every_kind(kind):
    with pytest.raises(
        ValueError, match=r"^eps_rel must be a number > 0 \(got .*\): set eps_rel above zero$"
    ):
        Adaptive(eps_rel=kind(-1.0))
    with pytest.raises(ValueError, match=r"^safety must be"):
        Adaptive(safety=kind(1.5))
    with pytest.raises(ValueError, match=r"^eta must be"):
        DDIM(eta=kind(2.0))
    with pytest.raises(ValueError, match=r"^churn must be"):
        EDM(churn=kind(-1.0))
    with pytest.raises(ValueError, match=r"^churn_max must be"):
        EDM(churn_max=kind(-1.0))
    with pytest.raises(ValueError, match=r"^churn_min must be"):
        EDM(churn_min=kind(3.0), churn_max=kind(2.0))
    with pytest.raises(ValueError, match=r"^sigma_min must be a level below"):
        VESDE(sigma_min=kind(64.0))
    with pytest.raises(ValueError, match=r"^eps must be a time"):
        VESDE(eps=kind(2.0))
    with pytest.raises(ValueError, match=r"^beta_min must be a rate"):
        VPSDE(beta_min=kind(32.0))
    Adaptive(eps_rel=kind(0.5), safety=kind(0.5))
    EDM(churn=kind(0.0), churn_max=kind(float("inf")))


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("value", [None, "0.02", True, np.True_, jnp.bool_(True), 1j, [0.02], np.ones(1)])
def test_what_is_no_number_is_refused(value):
    assert not is_number(value)
    for make in (lambda: Adaptive(eps_rel=value), lambda: DDIM(eta=value), lambda: VESDE(T=value)):
        with pytest.raises(ValueError, match=r" must be .*number"):
            make()
    with pytest.raises(ValueError, match=r"^count must be a whole number >= 1"):
        require_count(count=value)
    with pytest.raises(ValueError, match=r"^seed must be a whole number"):
        require_seed("seed", value)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("value", [0, 0.5, 2.0, np.float32(2), np.int64(0), np.array(-1), jnp.int32(0)])
def test_what_is_no_count_is_refused(value):
    for make in (lambda: DDIM(num_steps=value), lambda: UniPC(num_steps=value)):
        with pytest.raises(ValueError, match=r"^num_steps must be a whole number >= 1"):
            make()


@pytest.mark.usefixtures("as_users_run_it")
def test_counts_of_every_kind_are_taken():
    counts: list[Any] = [4, np.int64(4), np.array(4), jnp.int32(4)]
    for value in counts:
        require_count(count=value)
        UniPC(num_steps=value)
    with pytest.raises(ValueError, match=r"^num_steps must be at least 3"):
        UniPC(num_steps=np.int64(2))  # pyright: ignore[reportArgumentType]


def test_traced_settings_pass_and_concrete_ones_are_checked_even_while_tracing():
    array = jnp.float32(-1.0)

    def program(traced):
        assert not is_known(traced)
        require_positive(setting=traced)
        require_count(setting=traced)
        require_number("setting", traced, lambda _: False, "never", "never")
        with pytest.raises(ValueError, match=r"^eps_rel must be"):
            Adaptive(eps_rel=array)
        Adaptive(eps_rel=-array)
        return VPSDE(beta_min=traced).T * DDIM(num_steps=traced, eta=traced).eta

    jax.jit(program)(-1.0)
    jax.vmap(program)(-jnp.ones(2))
    jax.grad(program)(-1.0)
