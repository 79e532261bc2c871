"""Every kind of prediction gives the score of Gaussian data, on every process, to its inputs' rounding."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sde_lib import VESDE, VPSDE, DiscreteVP, EDMProcess, RectifiedFlow, SubVPSDE, as_score
from sde_lib.predictions import (
    edm_preconditioning,
    score_from_denoised,
    score_from_edm,
    score_from_epsilon,
    score_from_v,
    score_from_velocity,
)
from solvers import AdaptiveExponential, sample
from tests.compilations import counted
from tests.problems import PATHS, SDES

ALL = {**SDES, **PATHS}
MEAN, STD, SIGMA_DATA = 0.3, 0.5, 0.6
LEVELS: Any = 10.0 ** np.arange(-4, 3.5, 0.5)  # sigma/alpha
UNIT = 2.0**-24


def predictions(x, alpha, sigma, alpha_rate, sigma_rate) -> tuple[Any, dict[str, Any]]:
    """The exact score for data ~ N(MEAN, STD^2), and for each prediction its function and inputs."""
    score = (alpha * MEAN - x) / ((alpha * STD) ** 2 + sigma**2)
    noise = -sigma * score
    # not (x + sigma^2 score)/alpha, which loses digits
    data = MEAN + alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2) * (x - alpha * MEAN)
    y, level = x / alpha, sigma / alpha
    c_skip, c_out, _, _ = (np.float64(c) for c in edm_preconditioning(level, SIGMA_DATA))
    return score, {
        "epsilon": (score_from_epsilon, noise, sigma),
        "denoised": (score_from_denoised, data, x, alpha, sigma),
        "v": (score_from_v, alpha * noise - sigma * data, x, alpha, sigma),
        "velocity": (
            score_from_velocity,
            *(alpha_rate * data + sigma_rate * noise, x, alpha, sigma, alpha_rate, sigma_rate),
        ),
        "edm": (_edm, (data - c_skip * y) / c_out, x, alpha, sigma, SIGMA_DATA),
    }


def _edm(raw, *others):
    return score_from_edm(lambda _: raw, *others)


def at_level(sde, level):
    """(t, alpha, sigma, alpha', sigma') in float64; None where the process does not have this level."""
    with jax.enable_x64(True):
        t = np.float64(sde.inverse_log_snr(-np.log(level)))
        (alpha, sigma), rates = jax.jvp(sde.marginal, (t,), (1.0,))
        if not 0 < t < 1e4 or abs(np.log(sigma / alpha) - np.log(level)) > 1e-6:
            return None
        return (t, *(np.float64(value) for value in (alpha, sigma, *rates)))


@pytest.mark.parametrize("name", ALL)
def test_all_predictions_give_the_exact_score_to_rounding(name):
    """In float32, at sigma/alpha from 1e-4 to 1e3, wherever the process has it.

    The error is compared with what rounding the inputs alone causes: half a unit in the last place of each of
    them times the derivative by it, four times over for the roundings inside. A difference of large terms
    that could have been collected would exceed this by orders of magnitude.
    """
    seen = 0
    for level in LEVELS:
        if (found := at_level(ALL[name], level)) is None:
            continue
        seen += 1
        _, alpha, sigma, alpha_rate, sigma_rate = found
        for z in (-1.7, 0.4, 2.2):
            x = alpha * MEAN + z * np.hypot(alpha * STD, sigma)
            with jax.enable_x64(True):
                exact, cases = predictions(x, alpha, sigma, alpha_rate, sigma_rate)
            for kind, (function, *inputs) in cases.items():
                with jax.enable_x64(True):
                    arrays = [jnp.float64(value) for value in inputs]
                    assert float(function(*arrays)) == pytest.approx(exact, rel=1e-6, abs=1e-9), kind
                    slopes = jax.grad(function, argnums=tuple(range(len(arrays))))(*arrays)
                    bound = UNIT * sum(abs(float(s) * i) for s, i in zip(slopes, inputs, strict=True))
                got = float(function(*(jnp.float32(value) for value in inputs)))
                assert abs(got - exact) <= 4 * (bound + UNIT * abs(exact)), (kind, level, z)
    assert seen >= 8


def gaussian_network(sde, prediction, mean, x, label):
    """Reads the time from its label, as a network has to; data ~ N(mean, STD^2)."""
    level = jnp.exp(4 * label)

    def one(x, level):
        t = sde.inverse_log_snr(-jnp.log(level))
        (alpha, sigma), rates = jax.jvp(sde.marginal, (t,), (jnp.ones_like(t),))
        c_skip, c_out, c_in, _ = edm_preconditioning(level, SIGMA_DATA)
        x = alpha * x / c_in if prediction == "edm" else x
        variance = (alpha * STD) ** 2 + sigma**2
        noise = sigma * (x - alpha * mean) / variance
        data = mean + alpha * STD**2 / variance * (x - alpha * mean)
        return {
            "score": lambda: -noise / sigma,
            "epsilon": lambda: noise,
            "denoised": lambda: data,
            "v": lambda: alpha * noise - sigma * data,
            "velocity": lambda: rates[0] * data + rates[1] * noise,
            "edm": lambda: (data - c_skip * x / alpha) / c_out,
        }[prediction]()

    return jax.vmap(one)(x, level)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("prediction", ["score", "epsilon", "denoised", "v", "velocity", "edm"])
@pytest.mark.usefixtures("double_precision")
def test_a_network_of_any_prediction_gives_the_score_of_a_batch(name, prediction):
    sde = ALL[name]
    network = Partial(functools.partial(gaussian_network, sde, prediction), jnp.float64(MEAN))
    sigma_data = SIGMA_DATA if prediction == "edm" else None
    score_fn = as_score(network, sde, prediction=prediction, time="log_sigma", sigma_data=sigma_data)
    t = jnp.asarray([sde.eps + share * (sde.T - sde.eps) for share in (0.01, 0.3, 0.9)])
    x = jnp.linspace(-2, 2, 24).reshape(3, 4, 2)
    alpha, sigma = (value[:, None, None] for value in jax.vmap(sde.marginal)(t))
    exact = (alpha * MEAN - x) / ((alpha * STD) ** 2 + sigma**2)
    np.testing.assert_allclose(score_fn(x, t), exact, rtol=1e-6, atol=1e-9)


@pytest.fixture
def double_precision():
    with jax.enable_x64(True):
        yield


def label_of(sde, time, t):
    """What the network sees for its time at t, as a number."""
    seen = as_score(lambda x, label: 0 * x + label[:, None], sde, prediction="score", time=time)
    return float(seen(jnp.zeros((1, 1)), jnp.asarray([t], jnp.float32))[0, 0])


def test_the_labels_are_time_log_noise_index_or_what_a_function_says():
    table = PATHS["table"]
    assert label_of(RectifiedFlow(), "t", 0.25) == 0.25
    assert label_of(RectifiedFlow(), lambda sde, t: 1000 * t, 0.25) == 250
    assert label_of(EDMProcess(), "log_sigma", 2.0) == pytest.approx(np.log(2) / 4)
    alpha, sigma = VPSDE().marginal(0.5)
    assert label_of(VPSDE(), "log_sigma", 0.5) == pytest.approx(float(jnp.log(sigma / alpha)) / 4, rel=1e-5)
    assert label_of(VPSDE(), "index", 0.5) == pytest.approx(499.5)
    assert [label_of(table, "index", t) for t in (1e-3, 0.5, 1.0)] == pytest.approx([0, 499, 999], abs=1e-4)


def velocity_network(mean, x, t):
    """That of a rectified flow whose data are ``mean``."""
    return (x - mean) / t[:, None]


def test_other_weights_do_not_compile_again():
    sde, solver = RectifiedFlow(), AdaptiveExponential()

    def draw(mean):
        network = Partial(velocity_network, jnp.float32(mean))
        score_fn = as_score(network, sde, prediction="velocity", time="t")
        assert len(jax.tree.leaves(network)) == 1
        return sample(score_fn, sde, solver, key=jax.random.key(0), shape=(2,), num_samples=8).x

    np.testing.assert_allclose(draw(0.5), 0.5, atol=1e-4)
    with counted() as compiled:
        np.testing.assert_allclose(draw(-0.25), -0.25, atol=1e-4)
    assert compiled == []


def test_a_plain_function_is_taken_as_it_stands():
    score_fn = as_score(lambda x, t: x, VESDE(), prediction="score", time="t")
    assert len(jax.tree.leaves(score_fn)) == len(jax.tree.leaves(VESDE()))  # the process's numbers alone


def identity(x, label):
    return x


@pytest.mark.parametrize(
    ("sde", "settings", "message"),
    [
        (VPSDE(), {"prediction": "epsilom"}, r"prediction must be one of .* did you mean 'epsilon'\?"),
        (VPSDE(), {"time": "indx"}, r"time must be one of .* \(got 'indx'\): did you mean 'index'"),
        (EDMProcess(), {"time": "index"}, r"time must be .* for EDMProcess, which has no index \(got"),
        (VESDE(), {"time": "index"}, "time must be .* for VESDE, which has no index"),
        (VPSDE(), {"prediction": "edm"}, r"sigma_data must be a number > 0 \(got None\): give"),
        (VPSDE(), {"prediction": "edm", "sigma_data": 0.0}, r"sigma_data must be a number > 0 \(got 0.0\)"),
        (VPSDE(), {"sigma_data": 0.5}, r"sigma_data must be None for prediction 'v' \(got 0.5\)"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("as_users_run_it")
def test_what_does_not_fit_is_refused(sde, settings, message):
    with pytest.raises(ValueError, match=message):
        as_score(identity, sde, **{"prediction": "v", "time": "t", **settings})


def test_an_index_is_known_for_every_variance_preserving_process():
    for sde in (VPSDE(), SubVPSDE(), PATHS["cosine"], DiscreteVP([0.9, 0.5, 0.001])):
        assert label_of(sde, "index", 1.0) == pytest.approx(float(sde.network_time(1.0)))


@pytest.mark.usefixtures("as_users_run_it")
def test_an_output_of_another_shape_is_refused():
    score_fn = as_score(lambda x, t: jnp.concatenate([x, x], -1), VPSDE(), prediction="epsilon", time="index")
    with pytest.raises(
        ValueError, match=r"the network's output must be of the shape of x, \(1, 2, 3\) \(got 'shape"
    ):
        score_fn(jnp.zeros((1, 2, 3)), jnp.ones(1))
    two: Any = lambda x, t: (x, t)  # noqa: E731
    with_more = as_score(two, VPSDE(), prediction="epsilon", time="index")
    with pytest.raises(ValueError, match=r"the network's output must .* \(got 'tuple'\): return only"):
        with_more(jnp.zeros((1, 2, 3)), jnp.ones(1))
