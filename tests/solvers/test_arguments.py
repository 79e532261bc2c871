"""Every bad argument of ``sample`` and ``stream`` is refused in one line, before anything is compiled."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sde_lib import VESDE, VPSDE, DiscreteVP, RectifiedFlow
from sde_lib.pytrees import register_dataclass
from solvers import Adaptive, AdaptiveExponential, EulerMaruyama, sample, stream
from tests.compilations import counted
from tests.problems import Gaussian

SDE = VPSDE()
SCORE_FN = Gaussian().score_fn(SDE)


def draw(score_fn: Any = SCORE_FN, sde: Any = SDE, solver: Any = None, **settings):
    settings = {"key": jax.random.key(0), "shape": (2,), "num_samples": 3, "batch_size": 4, **settings}
    return sample(score_fn, sde, solver or EulerMaruyama(num_steps=2), **settings)


@dataclasses.dataclass(frozen=True)
class Unregistered(VPSDE):
    """A subclass is a class of its own for JAX."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnregisteredSolver(EulerMaruyama):
    pass


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Flat(VPSDE):
    def prior(self, key, shape, dtype=jnp.float32):
        return jax.random.normal(key, (4,), dtype)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Single(VPSDE):
    def prior(self, key, shape, dtype=jnp.float32):
        return jax.random.normal(key, shape, jnp.bfloat16)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Nothing(VPSDE):
    def prior(self, key, shape, dtype=jnp.float32) -> Any:
        return None


SIDES = r"^shape must be a tuple of whole numbers >= 1.* \(got .*\): give the shape of one sample"
PYTREE = r": register the class with sde_lib.pytrees.register_dataclass$"
PRIOR = r"^sde.prior\(key, shape, dtype\) must be one array of shape \(2,\) and type float32 \(got '?"
KEY = r"^key must be one key of JAX \(got .*\): pass jax.random.key\(0\), say$"

LAST = "^T must be a time at which the drift is finite, and the log-SNR a number, in "

REFUSED = {
    "zero side": ({"shape": (0,)}, SIDES),
    "negative side": ({"shape": (4, -1)}, SIDES),
    "broken side": ({"shape": (2.5,)}, SIDES),
    "bool side": ({"shape": (True,)}, SIDES),
    "number as shape": ({"shape": 2}, SIDES),
    "text as shape": ({"shape": "ab"}, SIDES),
    "int key": ({"key": 0}, KEY),
    "no key": ({"key": None}, KEY),
    "keys": ({"key": jax.random.split(jax.random.key(0))}, KEY),
    "float key": ({"key": np.zeros(2)}, KEY),
    "no function": ({"score_fn": None}, r"a function of samples must be callable \(got None\)"),
    "not a function": ({"score_fn": np.ones(2)}, r"a function of samples must be callable \(got 'ndarray'\)"),
    "complex": ({"score_fn": lambda x, t: x * 1j}, r"floating-point numbers \(got 'complex64'\)"),
    "whole": ({"score_fn": lambda x, t: x.astype(int)}, r"floating-point numbers \(got 'int32'\)"),
    "prior's shape": ({"sde": Flat()}, PRIOR + r".* of shape \(4,\) and type float32"),
    "prior's type": ({"sde": Single()}, PRIOR + r".* of shape \(2,\) and type bfloat16"),
    "no prior": ({"sde": Nothing()}, PRIOR + "None"),
    "class of sde": ({"sde": Unregistered()}, r"^sde must be of a class .* \(got 'Unregistered'\)" + PYTREE),
    "class of solver": (
        {"solver": UnregisteredSolver(num_steps=2)},
        r"^solver must be of a class .* \(got 'UnregisteredSolver'\)" + PYTREE,
    ),
    "no instance": ({"sde": VPSDE}, r"^sde must be an instance of .* \(got 'VPSDE'\): pass an instance"),
    "no sde": ({"sde": Adaptive()}, r"^sde must be an instance of .* \(got 'Adaptive'\)"),
    "no solver": ({"solver": VPSDE()}, r"^solver must be an instance of .* \(got 'VPSDE'\)"),
    "whole dtype": ({"dtype": jnp.int32}, "^dtype must be a floating-point type"),
    "dtype not enabled": ({"dtype": jnp.float64}, r"^dtype must be .* \(got 'float64'\): .*jax_enable_x64"),
    "T of the flow": ({"sde": RectifiedFlow(T=1 - 1e-9)}, LAST + r"float32 \(got 0.999999999\): lower T"),
    "T in half": ({"sde": RectifiedFlow(), "dtype": jnp.float16}, LAST + r"float16 \(got 0.9997.*\)"),
    "T of a table in half": ({"sde": DiscreteVP.from_schedule(), "dtype": jnp.bfloat16}, LAST + "bfloat16"),
    "cap": ({"max_evaluations": 2**31}, r"^max_evaluations must be below 2\^31 \(got 2147483648\)"),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line(name):
    settings, message = REFUSED[name]
    with counted() as compiled, pytest.raises(ValueError, match=message) as refused:
        draw(**settings)
    assert "\n" not in str(refused.value)
    assert not [program for program in compiled if "run" in str(program)]


HOST = "call sample outside of jax.jit, jax.vmap and jax.grad, since it runs on the host"


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    "transformed",
    [
        lambda: jax.jit(lambda key: draw(key=key).x)(jax.random.key(0)),
        lambda: jax.vmap(lambda key: draw(key=key).x)(jax.random.split(jax.random.key(0))),
        lambda: jax.jit(lambda: draw().x)(),
        lambda: jax.jit(lambda eps_rel: draw(solver=Adaptive(eps_rel=eps_rel)).x)(0.1),
        lambda: jax.grad(lambda w: draw(Partial(lambda w, x, t: w * x, w)).x.mean())(1.0),
        lambda: jax.grad(lambda w: draw(lambda x, t: w * x).x.mean())(1.0),
        lambda: jax.vmap(lambda w: draw(lambda x, t: jax.jit(jnp.multiply)(w, x)).x)(jnp.ones(2)),
    ],
    ids=["jit key", "vmap key", "jit", "jit setting", "grad weights", "grad closure", "vmap closure"],
)
def test_it_is_refused_inside_a_transformation(transformed):
    with pytest.raises(ValueError, match=HOST) as refused:
        transformed()
    first, *_ = str(refused.value).splitlines()  # JAX adds some of its own
    assert re.fullmatch(rf"(every argument|score_fn) must be .* \(got .*Tracer.*\): {HOST}", first)


@pytest.mark.usefixtures("as_users_run_it")
def test_a_stream_checks_the_same():
    parts = stream(SCORE_FN, SDE, Adaptive(), key=0, shape=(2,), sample_ids=[0], lanes=4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=KEY):
        next(parts)


def test_a_key_of_the_older_form_draws_the_same():
    np.testing.assert_array_equal(draw(key=jax.random.PRNGKey(7)).x, draw(key=jax.random.key(7)).x)


def test_a_key_of_the_older_form_may_have_another_default():
    typed = draw(key=jax.random.key(7, impl="rbg"))
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(draw(key=jax.random.PRNGKey(7)).x, typed.x)


def test_a_score_of_another_floating_point_type_is_taken():
    def half(x, t):
        return SCORE_FN(x, t).astype(jnp.bfloat16)

    x = draw(half).x
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, draw().x, rtol=0.1, atol=0.1)


def test_settings_of_every_kind_draw_the_same():
    solver = Adaptive(eps_rel=0.25)
    expected = draw(solver=solver).x
    for kind in (np.float32, np.float64, np.array, jnp.float32):
        np.testing.assert_array_equal(
            draw(solver=dataclasses.replace(solver, eps_rel=kind(0.25))).x, expected
        )
    with jax.enable_x64(True):  # a float64 array is a setting of a float32 state like any other
        x = draw(solver=dataclasses.replace(solver, eps_rel=np.array(0.25)), dtype=jnp.float32).x
        assert x.dtype == np.float32


def test_real_settings_may_be_whole_numbers_under_x64():
    with jax.enable_x64(True):
        whole, real = (
            draw(solver=AdaptiveExponential(eta=kind(1), data_deviation=kind(1)), dtype=jnp.float32).x
            for kind in (int, float)
        )
        np.testing.assert_array_equal(whole, real)
        sde = VESDE(sigma_min=1, sigma_max=50)
        solution = draw(Gaussian().score_fn(sde), sde, Adaptive(eps_rel=0.5), dtype=jnp.float32)
    assert solution.x.dtype == whole.dtype == np.float32
    assert solution.failed == 0


@pytest.mark.usefixtures("as_users_run_it")
def test_counts_and_shapes_of_numpy_are_taken():
    kinds: list[Any] = [np.int64, np.array, jnp.int32]
    for kind in kinds:
        x = draw(num_samples=kind(3), batch_size=kind(4), shape=[kind(2)]).x
        np.testing.assert_array_equal(x, draw().x)


def test_a_sample_may_be_a_single_number():
    assert draw(lambda x, t: -x, shape=()).x.shape == (3,)


def test_an_error_of_the_score_function_says_what_the_function_was_called_with():
    with pytest.raises(ValueError, match="Incompatible shapes") as refused:
        draw(lambda x, t: -x / (1 + t))  # made for one sample, whose t has no shape
    note = "This is an error of score_fn, which was called with a batch: float32[3, 2] and float32[3]."
    assert note in refused.value.__notes__
