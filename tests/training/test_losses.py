"""For Gaussian data N(mu, s^2) the exact score is known, and its loss is alpha^2 s^2/(alpha^2 s^2 + sigma^2).

Statistics are held to five standard errors: a false alarm in about two million.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import models
from sde_lib import VESDE, VPSDE, CosineVP, DiscreteVP, EDMProcess, RectifiedFlow, SubVPSDE
from sde_lib.predictions import Reading
from training.losses import EPS_TRAIN, draw, loss_at, score_matching_loss, times, weight_named

SDES = [VESDE(sigma_max=5.0), VPSDE(), SubVPSDE()]
IDS = ["ve", "vp", "subvp"]
MEAN, STD, IMAGES = 0.3, 0.4, 20_000


class Silent(nn.Module):
    def __call__(self, x, label):
        return jnp.zeros_like(x)


def _gaussian_score(sde):
    def score(x, t):
        alpha, sigma = jax.vmap(sde.marginal)(t)
        variance = alpha**2 * STD**2 + sigma**2
        return -(x - alpha[:, None] * MEAN) / variance[:, None]

    return score


def _losses(sde, t, score, **options):
    data_key, noise_key = jax.random.split(jax.random.key(1))
    images = MEAN + STD * jax.random.normal(data_key, (IMAGES, 2))
    noise = jax.random.normal(noise_key, images.shape)
    return np.asarray(loss_at(score, sde, images, jnp.full(IMAGES, t), noise, **options), np.float64)


def _assert_mean(values, expected):
    assert abs(values.mean() - expected) < 5 * values.std() / np.sqrt(len(values))


@pytest.mark.parametrize("t", [0.01, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("sde", SDES, ids=IDS)
def test_exact_score_has_its_known_loss_and_any_other_a_larger_one(sde, t):
    alpha, sigma = map(float, sde.marginal(t))
    variance = alpha**2 * STD**2 + sigma**2
    exact = _gaussian_score(sde)
    losses = _losses(sde, t, exact)
    _assert_mean(losses, alpha**2 * STD**2 / variance)
    for factor in (0.8, 1.2):
        scaled = _losses(sde, t, lambda x, t, factor=factor: factor * exact(x, t))
        _assert_mean(scaled - losses, (1 - factor) ** 2 * sigma**2 / variance)
    shifted = _losses(sde, t, lambda x, t: exact(x, t) + 0.3 / sigma)
    _assert_mean(shifted - losses, 0.09)


@pytest.mark.parametrize("name", ["sigma", "likelihood", "edm"])
@pytest.mark.parametrize("sde", SDES, ids=IDS)
def test_weightings_change_the_weight_alone(sde, name):
    t, sigma_data = 0.3, 0.5
    alpha, sigma = map(float, sde.marginal(t))
    s = sigma / alpha  # EDM's noise level, whose weight of the denoised image's error is (s^2 + d^2)/(s d)^2
    expected = {
        "sigma": 1,
        "likelihood": float(sde.diffusion(t)) ** 2 / sigma**2,
        "edm": (s**2 + sigma_data**2) / (s * sigma_data) ** 2 * s**2,
    }[name]
    score = _gaussian_score(sde)
    weighted = _losses(sde, t, score, weight=weight_named(name, sde, sigma_data))
    np.testing.assert_allclose(weighted, expected * _losses(sde, t, score), rtol=1e-5)  # float32 rounding


@pytest.mark.parametrize("t", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("sde", SDES, ids=IDS)
def test_a_wrapped_silent_network_starts_with_loss_one_at_all_times(sde, t):
    """Centred data of deviation sigma_data: the wrap's own guess is right, and every time weighs the same."""
    reading = Reading(prediction="edm", time="published", sigma_data=STD)
    network = models.Network(Silent(), reading)  # pyright: ignore[reportArgumentType]
    data_key, noise_key = jax.random.split(jax.random.key(1))
    images = STD * jax.random.normal(data_key, (IMAGES, 2, 1, 1))
    noise = jax.random.normal(noise_key, images.shape)
    losses = loss_at(
        lambda x, t: network.score(sde, {}, x, t),
        sde,
        images,
        jnp.full(IMAGES, t),
        noise,
        weight=weight_named("edm", sde, STD),
    )
    _assert_mean(np.asarray(losses, np.float64), 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("edn", r"^weighting must be one of .* \(got 'edn'\): did you mean 'edm'\?"),
        (
            "edm",
            r"^weighting must be .* without sigma_data \(got 'edm'\): set config.model.sigma_data",
        ),
    ],
)
def test_weightings_that_do_not_exist_or_fit_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        weight_named(name, VPSDE(), None)


@pytest.mark.parametrize("sde", SDES, ids=IDS)
def test_times_are_uniform_from_the_training_eps(sde):
    times = np.linspace(EPS_TRAIN, 1, 10_001)
    alpha, sigma = jax.vmap(sde.marginal)(jnp.asarray(times))
    expected = np.mean(alpha**2 * STD**2 / (alpha**2 * STD**2 + sigma**2))
    seen = []

    def score(x, t):
        seen.append(t)
        return _gaussian_score(sde)(x, t)

    images = MEAN + STD * jax.random.normal(jax.random.key(2), (IMAGES, 2))
    loss = score_matching_loss(score, sde, jax.random.key(3), images)
    # The variance of a loss is at most 2/pixels at one time (a chi square's), and of its mean 1/4 over times.
    assert abs(loss - expected) < 5 * np.sqrt((1 + 0.25) / IMAGES)
    (t,) = seen
    assert t.min() >= EPS_TRAIN
    assert t.max() <= 1
    np.testing.assert_allclose(np.histogram(t, 10, (0, 1))[0] / IMAGES, 0.1, atol=5 * 0.3 / np.sqrt(IMAGES))


@pytest.mark.parametrize(
    ("sde", "first"),
    [
        *[(sde, EPS_TRAIN) for sde in (*SDES, CosineVP(), RectifiedFlow())],
        (DiscreteVP.from_schedule(), 1e-3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_times_are_uniform_between_the_ends_of_the_process(sde, first):
    t = np.asarray(times(sde, jax.random.key(4), IMAGES), np.float64)
    assert first <= t.min() < first + 20 / IMAGES  # beyond which all draws lie with a chance of e^-20
    assert sde.T - 20 / IMAGES < t.max() <= sde.T
    counts = np.histogram(t, 10, (first, sde.T))[0]
    np.testing.assert_allclose(counts / IMAGES, 0.1, atol=5 * 0.3 / np.sqrt(IMAGES))


def test_the_times_of_edm_are_log_normal_and_stay_within_the_process():
    logs = np.log(times(EDMProcess(), jax.random.key(4), IMAGES), dtype=np.float64)
    # The standard errors of a normal's mean and deviation are s/sqrt(n) and s/sqrt(2n).
    assert abs(logs.mean() + 1.2) < 5 * 1.2 / np.sqrt(IMAGES)
    assert abs(logs.std() - 1.2) < 5 * 1.2 / np.sqrt(2 * IMAGES)
    short = times(EDMProcess(T=0.1), jax.random.key(4), IMAGES)
    np.testing.assert_array_equal(short, np.minimum(np.exp(logs), 0.1).astype(np.float32))


@pytest.mark.parametrize("sde", SDES, ids=IDS)
def test_the_published_processes_draw_what_they_always_drew(sde):
    time_key, noise_key = jax.random.split(jax.random.key(5))
    t, noise = draw(sde, jax.random.key(5), jnp.zeros((4, 2)))
    np.testing.assert_array_equal(t, jax.random.uniform(time_key, (4,), minval=EPS_TRAIN, maxval=sde.T))
    np.testing.assert_array_equal(noise, jax.random.normal(noise_key, (4, 2)))


@pytest.mark.parametrize("shape", [(3, 8, 8, 1), (3, 32, 32, 3)])
def test_a_silent_network_has_loss_one_for_every_image_size(shape):
    loss = loss_at(
        lambda x, t: jnp.zeros_like(x), VPSDE(), jnp.zeros(shape), jnp.array([0.1, 0.5, 1.0]), jnp.ones(shape)
    )
    np.testing.assert_allclose(loss, 1, rtol=1e-6)
