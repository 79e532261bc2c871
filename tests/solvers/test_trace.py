"""Traces: the samples are those of the driver, and every recorded step follows the solver's own rule."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sde_lib import denoise
from sde_lib.guidance import classifier_free
from solvers import (
    EDM,
    RK45,
    Adaptive,
    AdaptiveExponential,
    EulerMaruyama,
    Start,
    Status,
    sample,
    trace,
)
from tests.problems import ADAPTIVE, SDES, Gaussian

SHAPE = (4, 4, 1)
IDS = [5, 3, 9]  # not in order
SETTINGS: dict[str, Any] = {"key": jax.random.key(0), "shape": SHAPE, "sample_ids": IDS}
SOLVERS = {
    "adaptive": (ADAPTIVE["ve"], "ve"),
    "rk45": (RK45(rtol=1e-2, atol=1e-2), "vp"),
    "adaptive_exponential": (AdaptiveExponential(), "vp"),
    "euler_maruyama": (EulerMaruyama(num_steps=5), "ve"),
    "edm": (EDM(num_steps=5), "subvp"),
}


@functools.cache
def whole(name):
    return traced(name)


def traced(name, **settings):
    solver, sde = SOLVERS[name]
    return trace(Gaussian().score_fn(SDES[sde]), SDES[sde], solver, **{**SETTINGS, **settings})


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("rk45", "euler_maruyama", "edm") else ())
        for name in SOLVERS
    ],
)
def test_the_samples_are_those_of_the_driver_and_the_steps_lead_to_them(name):
    solver, sde = SOLVERS[name]
    found = whole(name)
    drawn = sample(Gaussian().score_fn(SDES[sde]), SDES[sde], solver, **SETTINGS)
    np.testing.assert_array_equal(found.sample_ids, IDS)
    for field in ("x", "nfe", "status"):
        np.testing.assert_array_equal(getattr(found, field), getattr(drawn, field), field)
    for field in ("accepted", "rejected"):
        np.testing.assert_array_equal(getattr(found, field).sum(1), getattr(drawn, field), field)
    np.testing.assert_array_equal(np.isfinite(found.t).sum(1), drawn.nfe)
    np.testing.assert_array_equal(np.isfinite(found.h), found.accepted | found.rejected)
    for row, evaluations in enumerate(drawn.nfe):
        begin, h = found.begin[row][found.accepted[row]], found.h[row][found.accepted[row]]
        np.testing.assert_allclose(begin[0], SDES[sde].T, rtol=1e-6)
        # each step begins where the one before it ended, up to the rounding of t − h
        np.testing.assert_allclose(begin[:-1] - h[:-1], begin[1:], atol=1e-6)
        np.testing.assert_allclose(begin[-1] - h[-1], SDES[sde].eps, atol=1e-6)
        last = evaluations - 1  # the denoising, whose image is the sample
        np.testing.assert_allclose(found.t[row, last], SDES[sde].eps, rtol=1e-6)
        np.testing.assert_allclose(found.denoised[row, last], found.x[row], atol=1e-6)
        np.testing.assert_array_equal(found.kept[row, :evaluations], np.arange(evaluations))
        assert (found.kept[row, evaluations:] == -1).all()


def test_the_adaptive_solvers_errors_decide_its_steps():
    """Accepted if e <= 1, and the next step is θ h e^(−r) (Algorithm 1, lines 4 and 5)."""
    found, solver = whole("adaptive"), ADAPTIVE["ve"]
    decided = found.accepted | found.rejected
    assert found.rejected.any()
    np.testing.assert_array_equal(found.accepted[decided], found.error[decided] <= 1)
    for h, error, steps in zip(found.h, found.error, decided, strict=True):
        h, error = h[steps], error[steps]
        # but for the last step, which is cut to end at eps; h is a difference of times
        expected = solver.safety * h[:-2] * error[:-2] ** -solver.exponent
        np.testing.assert_allclose(h[1:-1], expected, rtol=1e-4, atol=1e-6)


def test_rk45_accepts_below_a_tolerance():
    found = whole("rk45")
    decided = found.accepted | found.rejected
    assert found.rejected.any()
    np.testing.assert_array_equal(found.accepted[decided], found.error[decided] < 1)


def test_a_denoised_image_is_the_posterior_mean_at_its_point():
    found, sde = whole("euler_maruyama"), SDES["ve"]
    np.testing.assert_allclose(found.h[:, :5], np.full((3, 5), (sde.T - sde.eps) / 5), rtol=1e-5)
    for row in range(3):
        for t, point, image in zip(found.t[row], found.points[row], found.denoised[row], strict=True):
            t, point = jnp.asarray(t), jnp.asarray(point)
            expected = denoise(sde, point, t, Gaussian().score(sde, point, t))
            # D = x + sigma^2 s loses the digits by which x is larger
            atol = 1e-6 * float(jnp.abs(point).max())
            np.testing.assert_allclose(image, expected, rtol=1e-5, atol=atol)


def test_images_at_some_log_snrs_are_those_of_the_first_evaluation_beyond():
    sde, levels = SDES["vp"], np.array([-2.0, 0.0, 2.0, 99.0])
    every, some = whole("rk45"), traced("rk45", log_snrs=levels)
    np.testing.assert_array_equal(some.t, every.t)
    assert some.points.shape == (3, 4, *SHAPE)
    for row in range(3):
        np.testing.assert_array_equal(some.denoised[row], every.denoised[row][some.kept[row]])
        np.testing.assert_array_equal(some.points[row], every.points[row][some.kept[row]])
        log_snrs = np.asarray(jax.vmap(sde.log_snr)(every.t[row, : every.nfe[row]]))
        first = [int(np.argmax(log_snrs >= level)) for level in levels[:3]]
        np.testing.assert_array_equal(some.kept[row], [*first, every.nfe[row] - 1])  # or the last


def test_conditions_and_starts_are_those_of_the_driver():
    """And guidance, whose calls take two evaluations of the network."""
    sde = SDES["vp"]
    towards = Partial(lambda x, t, label: label.reshape(-1, 1, 1, 1) - x)
    guided = classifier_free(towards, sde, null=np.float32(0), scale=2.0)
    settings = {
        **SETTINGS,
        "conditions": np.array([0.5, -1.0, 0.0], np.float32),
        "start": Start(np.full((3, *SHAPE), 0.1, np.float32), np.array([0.9, 0.5, 0.2])),
    }
    found = trace(guided, sde, ADAPTIVE["vp"], **settings)
    drawn = sample(guided, sde, ADAPTIVE["vp"], **settings)
    for field in ("x", "nfe", "status"):
        np.testing.assert_array_equal(getattr(found, field), getattr(drawn, field), field)
    np.testing.assert_array_equal(np.isfinite(found.t).sum(1), drawn.nfe // 2)
    np.testing.assert_allclose(found.begin[:, 0], [0.9, 0.5, 0.2], rtol=1e-6)
    np.testing.assert_allclose(found.points[:, 0], 0.1, rtol=1e-6)


def broken(x, t):
    return jnp.where(t < 0.5, jnp.nan, -1.0).reshape(-1, 1, 1, 1) * x


def test_a_sample_that_fails_is_traced_to_its_end():
    found = trace(Partial(broken), SDES["vp"], EulerMaruyama(num_steps=4), **SETTINGS)
    np.testing.assert_array_equal(found.status, Status.NON_FINITE)
    np.testing.assert_array_equal(found.nfe, 4)  # at t = 1, 3/4, 1/2 and 1/4
    assert np.isfinite(found.x).all()

    capped = traced("adaptive", max_evaluations=7)
    np.testing.assert_array_equal(capped.status, Status.MAX_EVALUATIONS)
    assert capped.t.shape == (3, 7)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_ids": None}, r"num_samples must be a whole number >= 1 \(got None\)"),
        ({"max_evaluations": 0}, r"max_evaluations must be a whole number >= 1 \(got 0\)"),
        ({"shape": 4}, r"shape must be a tuple of whole numbers >= 1 \(got 4\)"),
        ({"key": 0}, r"key must be one key of JAX \(got 0\)"),
    ],
)
def test_bad_input_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        trace(lambda x, t: -x, SDES["vp"], Adaptive(), **{**SETTINGS, **settings})
