"""Samples whose size does not suit the settings come with a warning."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sde_lib import VESDE, VPSDE
from solvers import RK45, Adaptive, AdaptiveExponential, EulerMaruyama, Status, sample
from solvers.review import review

VP = VPSDE()
VE = VESDE(sigma_min=1e-5, sigma_max=5.0)


def gaussian_score(mean, deviation, sde, x, t):
    alpha, sigma = (part[:, None] for part in jax.vmap(sde.marginal)(t))
    return (mean * alpha - x) / ((deviation * alpha) ** 2 + sigma**2)


def draw(sde, solver, *, mean=0.0, deviation=0.5):
    score_fn = Partial(gaussian_score, jnp.float32(mean), jnp.float32(deviation), sde)
    return sample(
        score_fn, sde, solver, key=jax.random.key(0), shape=(8,), num_samples=64, max_evaluations=900
    )


@pytest.mark.parametrize(
    ("sde", "solver", "data", "message"),
    [
        (VP, AdaptiveExponential(), {"mean": 7.0}, r"data_deviation must be about .* square 7 \(got 0.5\)"),
        (
            VE,
            Adaptive(),
            {"deviation": 0.01},
            r"eps_abs must be far below .* 0.0097 \(got 0.0039\): lower eps_abs",
        ),
        (
            VE,
            RK45(atol=0.01),
            {"deviation": 0.05},
            r"atol must be far below the samples' root mean square 0.049",
        ),
        (VP, EulerMaruyama(num_steps=20), {"deviation": 1e-4}, r"the noise that is left at eps must be far"),
    ],
)
def test_samples_that_do_not_suit_the_settings_come_with_a_warning(sde, solver, data, message):
    with pytest.warns(UserWarning, match=message):
        draw(sde, solver, **data)


@pytest.mark.parametrize(
    ("sde", "solver", "data"),
    [
        (VP, AdaptiveExponential(), {}),
        (VP, AdaptiveExponential(), {"mean": 2.0}),
        (VP, AdaptiveExponential(data_deviation=7.0), {"mean": 7.0}),
        (VP, AdaptiveExponential(eta=0.0), {"mean": 7.0}),
        (VE, AdaptiveExponential(), {"deviation": 1e-3}),
        (VE, Adaptive(eps_abs=1e-4), {"deviation": 0.01}),
        (VE, RK45(), {"deviation": 0.01}),
    ],
)
def test_samples_that_suit_them_come_without(sde, solver, data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(sde, solver, **data)


def test_no_samples_and_zeros_say_nothing_about_size():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        review(VP, Adaptive(), np.zeros((0, 8)), np.zeros(0, np.int32))
        review(VP, Adaptive(), {"a": np.zeros((3, 8)), "b": np.zeros(3)}, np.zeros(3, np.int32))


def test_samples_that_failed_do_not_count():
    def score_fn(x, t):  # of N(0, 0.5²), without a value for half of the samples at the noise 5
        return jnp.where(x[:, :1] > 0, jnp.nan, gaussian_score(0.0, 0.5, VE, x, t))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        key = jax.random.key(0)
        solution = sample(score_fn, VE, AdaptiveExponential(), key=key, shape=(8,), num_samples=64)
    failed = solution.status != Status.COMPLETED
    assert 0 < failed.sum() < 64
    assert np.sqrt(np.mean(solution.x[failed] ** 2)) > 2.5
