"""Likelihoods and latents on mixtures of Gaussians, whose densities are known at every time."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.stats import multivariate_normal, norm

from sde_lib.guidance import classifier_free
from solvers import Start, Status, decode, encode, log_likelihood, sample
from solvers.likelihood import stream_log_likelihoods
from solvers.rk45 import RK45
from tests.problems import PATHS, SDES

PROCESSES = SDES | PATHS
D = 3
RNG = np.random.default_rng(0)


def covariance() -> np.ndarray:
    """Of a full rank, with deviations from about 0.1 to 0.6."""
    factor = 0.3 * RNG.normal(size=(D, D))
    return factor @ factor.T + 0.02 * np.eye(D)


MEANS = np.array([[0.3, -0.2, 0.5], [-0.4, 0.3, 0.1]])
COVARIANCES = np.stack([covariance(), covariance()])
# weights of the two components: a Gaussian alone, and a mixture
PROBLEMS = np.array([[1.0, 0.0], [0.4, 0.6]])


def log_density(sde: Any, t: Any, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """log p_t(x) of the mixture in float64."""
    alpha, sigma = (float(value) for value in sde.marginal(jnp.asarray(t)))
    covariances = alpha**2 * COVARIANCES + sigma**2 * np.eye(D)
    parts = [multivariate_normal(alpha * m, c).pdf(x) for m, c in zip(MEANS, covariances, strict=True)]
    return np.log(weights @ np.array(parts))


def draw(sde: Any, weights: np.ndarray, number: int) -> np.ndarray:
    """Samples of p_eps."""
    alpha, sigma = (float(value) for value in sde.marginal(jnp.asarray(sde.eps)))
    which = RNG.choice(2, size=number, p=weights)
    data = [RNG.multivariate_normal(MEANS[k], COVARIANCES[k]) for k in which]
    return (alpha * np.array(data) + sigma * RNG.normal(size=(number, D))).astype(np.float32)


def mixture_score(sde: Any, x: Any, t: Any, weights: Any) -> Any:
    """The exact score of the mixture whose weights are the condition."""

    def log_p(x: Any, t: Any, weights: Any) -> Any:
        alpha, sigma = sde.marginal(t)
        covariances = alpha**2 * jnp.asarray(COVARIANCES, x.dtype) + sigma**2 * jnp.eye(D, dtype=x.dtype)
        away = x - alpha * jnp.asarray(MEANS, x.dtype)
        exponents = -0.5 * jnp.einsum("kd,kde,ke->k", away, jnp.linalg.inv(covariances), away)
        # relative to sigma^2, so that the determinants of VE do not overflow at T
        scale = alpha**2 + sigma**2
        log_dets = jnp.log(jnp.linalg.det(covariances / scale))
        return jax.scipy.special.logsumexp(exponents - 0.5 * log_dets, b=weights)

    return jax.vmap(jax.grad(log_p))(x, t, weights)


def of_problem(weights: np.ndarray, number: int) -> np.ndarray:
    return np.repeat(weights[None].astype(np.float32), number, axis=0)


QUICK = ("ve", "flow")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PROCESSES]
)
def test_it_is_exact_on_a_gaussian_and_a_mixture(name):
    """log p_eps(x) = log p_T(z) + the integral; only the prior, in the place of p_T, differs.

    The tolerance is 1e-5 in x and a step, and 30 steps are taken at most; where p is narrow, by 0.1, an error
    of x counts ten times.
    """
    sde = PROCESSES[name]
    weights = np.concatenate([of_problem(each, 4) for each in PROBLEMS])
    x = np.concatenate([draw(sde, each, 4) for each in PROBLEMS])
    found = log_likelihood(Partial(mixture_score, sde), sde, x, conditions=weights)
    np.testing.assert_array_equal(found.status, Status.COMPLETED)
    np.testing.assert_array_equal(found.standard_error, 0)
    for rows, problem in ((slice(0, 4), PROBLEMS[0]), (slice(4, 8), PROBLEMS[1])):
        z = found.latent[rows]
        prior = norm.logpdf(z, scale=float(sde.prior_std)).sum(1)
        at_data = log_density(sde, sde.eps, problem, x[rows])
        at_noise = log_density(sde, sde.T, problem, z)
        np.testing.assert_allclose(found.log_prob[rows] - prior, at_data - at_noise, atol=1e-3)


@pytest.fixture(scope="module")
def vp():
    """64 samples of the mixture, their conditions, score function and exact likelihoods."""
    sde = SDES["vp"]
    x, weights = draw(sde, PROBLEMS[1], 64), of_problem(PROBLEMS[1], 64)
    score_fn = Partial(mixture_score, sde)
    return sde, x, weights, score_fn, log_likelihood(score_fn, sde, x, conditions=weights)


def test_hutchinsons_estimates_scatter_about_the_exact_value_as_they_say(vp):
    """z = error/(standard error) of 64 samples, with 16 probes each, has Student's distribution.

    Its 15 degrees of freedom give a variance of 15/13, and the mean of 64 a deviation of 0.134; the mean of
    their squares, 1.15, has one of 0.26.
    """
    sde, x, weights, score_fn, exact = vp
    settings: dict[str, Any] = {"divergence": "hutchinson", "num_probes": 16, "key": jax.random.key(0)}
    parts = stream_log_likelihoods(
        score_fn,
        sde,
        lambda ids: x[ids],
        shape=(D,),
        sample_ids=np.arange(64),
        lanes=64,
        conditions=lambda ids: weights[ids],
        **settings,
    )
    parts = list(parts)
    order = np.argsort(np.concatenate([part.sample_ids for part in parts]))
    log_prob, error = (
        np.concatenate([getattr(part, name) for part in parts])[order]
        for name in ("log_prob", "standard_error")
    )
    z = (log_prob - exact.log_prob) / error
    assert (error > 0.01).all()  # far above the tolerance of the steps
    assert abs(z.mean()) < 5 * 0.134
    assert abs((z**2).mean() - 15 / 13) < 5 * 0.26
    # A sample's probes belong to its id, not to its place; another batch shape rounds differently.
    some = [40, 3, 17]
    part = log_likelihood(score_fn, sde, x[some], conditions=weights[some], sample_ids=some, **settings)
    np.testing.assert_allclose(part.log_prob, log_prob[some], atol=1e-5)
    np.testing.assert_allclose(part.standard_error, error[some], atol=1e-5)


def test_encoded_and_decoded_samples_are_the_same():
    """On the Gaussian, where errors of 1e-5 a step shrink on the way back; there are less than 30 steps."""
    sde, x, weights = SDES["vp"], draw(SDES["vp"], PROBLEMS[0], 8), of_problem(PROBLEMS[0], 8)
    score_fn = Partial(mixture_score, sde)
    there = encode(score_fn, sde, x, t=0.4, conditions=weights)
    back = decode(score_fn, sde, there.x, t=0.4, conditions=weights)
    np.testing.assert_array_equal([there.status, back.status], Status.COMPLETED)
    np.testing.assert_allclose(back.x, x, atol=3e-4)
    # RK45 in the time of the process is another way back
    settings: dict[str, Any] = {"conditions": weights, "start": Start(there.x, 0.4), "denoise": False}
    other = sample(
        score_fn, sde, RK45(), key=jax.random.key(0), shape=(D,), sample_ids=np.arange(8), **settings
    )
    np.testing.assert_allclose(other.x, x, atol=3e-4)


def test_the_density_of_the_samplers_own_prior_is_taken():
    """Of VE with little noise, on data that are one point: p(x) is the prior's, shrunk to sigma(eps)."""
    sde, x = SDES["ve"], np.array([[0.0, 0.01]], np.float32)
    found = log_likelihood(lambda x, t: -x / jax.vmap(sde.marginal)(t)[1][:, None] ** 2, sde, x)
    sigma = float(sde.marginal(jnp.float32(sde.eps))[1])
    np.testing.assert_allclose(found.latent, x / sigma * 50.0, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.log_prob, norm.logpdf(x, scale=sigma).sum(1), atol=1e-3)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_priors_deviation_is_that_of_its_draws(name):
    """Of 4,096 numbers, known to a deviation of 1.1 %."""
    draws = PROCESSES[name].prior(jax.random.key(0), (4096,))
    np.testing.assert_allclose(np.std(draws), float(PROCESSES[name].prior_std), rtol=5 * 0.011)


def test_bits_per_dim_count_grey_levels():
    """Data uniform over 256 levels, dequantized, have 8 bits a dimension in every range of x."""
    sde, dims = SDES["vp"], 4
    found = log_likelihood(lambda x, t: -x, sde, np.zeros((1, dims), np.float32))
    own = 0.5 * math.log2(2 * math.pi)  # of the standard normal density at 0
    np.testing.assert_allclose(found.bits_per_dim(), own, atol=1e-4)
    np.testing.assert_allclose(found.bits_per_dim(1 / 256), own + 8, atol=1e-4)  # levels in [0, 1]
    np.testing.assert_allclose(found.bits_per_dim(2 / 256), own + 7, atol=1e-4)  # in [−1, 1]


def test_evaluations_are_those_of_the_network():
    """Classifier-free guidance takes two in a call; RK45 makes two calls, and six a step."""
    sde, x = SDES["vp"], np.zeros((2, 2), np.float32)
    guided = classifier_free(Partial(lambda x, t, label: -x), sde, null=-1, scale=1.0)
    found = log_likelihood(guided, sde, x, conditions=np.zeros(2, np.int32))
    np.testing.assert_array_equal(found.nfe % 12, 4)
    np.testing.assert_allclose(found.log_prob, -math.log(2 * math.pi), atol=1e-4)


def test_a_sample_that_fails_has_no_likelihood():
    sde, x = SDES["vp"], np.array([[0.1], [0.2]], np.float32)

    def score_fn(x, t, broken):
        return jnp.where((broken & (t > 0.5))[:, None], jnp.nan, -x)

    found = log_likelihood(score_fn, sde, x, conditions=np.array([True, False]))
    np.testing.assert_array_equal(found.status, [Status.NON_FINITE, Status.COMPLETED])
    np.testing.assert_array_equal(np.isnan(found.log_prob), [True, False])


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"divergence": "exakt"}, r"divergence must be one of .* \(got 'exakt'\): did you mean 'exact'\?"),
        ({"divergence": "hutchinson"}, r"key must be one key of JAX with divergence 'hutchinson' \(got None"),
        ({"key": jax.random.key(0)}, r"key must be None with divergence 'exact'"),
        ({"num_probes": 4}, r"num_probes must be None with divergence 'exact' \(got 4\): leave it out"),
        (
            {"divergence": "hutchinson", "key": jax.random.key(0), "num_probes": 1},
            r"num_probes must be at least 2 \(got 1\): set it to 2 or more",
        ),
        ({"rtol": 0.0}, r"rtol must be a number > 0 \(got 0.0\)"),
        ({"atol": math.nan}, r"atol must be a number > 0 \(got nan\)"),
        ({"x": np.array([[math.nan]])}, r"x must be finite \(got '1 values that are not'\)"),
        ({"x": {"a": np.zeros((1, 1))}}, r"x must be one array \(got 'dict'\)"),
        ({"x": np.array([[1]])}, r"x must be at least one sample, .* floating-point type"),
        ({"x": np.zeros(3)}, r"x must be at least one sample, \[n, \.\.\.\]"),
        ({"sample_ids": [0, 1]}, r"number of sample_ids must be 1, the number of samples \(got 2\)"),
        ({"conditions": np.zeros(3)}, r"conditions must be arrays with a leading axis of 1"),
    ],
)
def test_bad_input_is_refused(settings, message):
    given: dict[str, Any] = {"x": np.zeros((1, 1), np.float32), **settings}
    with pytest.raises(ValueError, match=message):
        log_likelihood(lambda x, t: -x, SDES["vp"], **given)


@pytest.mark.usefixtures("as_users_run_it")
def test_it_is_refused_inside_a_transformation():
    for found in (lambda x: log_likelihood(lambda x, t: -x, SDES["vp"], x).log_prob, _encoded):
        with pytest.raises(ValueError, match=r"^x must be concrete \(got 'traced'\): call sample outside of"):
            jax.jit(found)(jnp.zeros((1, 1)))


def _encoded(x):
    return encode(lambda x, t: -x, SDES["vp"], x).x


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("t", [1e-3, 0.0, 1.5, math.nan, "T"])
def test_a_time_outside_of_the_process_is_refused(t):
    for transport in (encode, decode):
        with pytest.raises(ValueError, match=r"t must be a time above eps = 0.001 and up to T = 1"):
            transport(lambda x, t: -x, SDES["vp"], np.zeros((1, 1), np.float32), t=t)
