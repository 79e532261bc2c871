"""Inverse problems on Gaussian data, whose posterior is known: its score, and samples of it."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from benchmarks.posterior import Gaussian
from sde_lib import VPSDE
from sde_lib.guidance import classifier_free, evaluations_of
from sde_lib.inverse import Observation, colorization, inpainting, moment_matching, pseudoinverse_guidance
from sde_lib.operators import Blur, BoxDownsample, Grey, Mask, Matrix
from sde_lib.pytrees import register_dataclass
from solvers import AdaptiveExponential, EulerMaruyama, UniformLogSNR, sample
from tests.problems import PATHS, SDES

VP = VPSDE()
SHAPE = (2, 4, 2)
SIZE = 16
NOISE, DEVIATION = 0.2, 0.6
RNG = np.random.default_rng(0)
MASK = np.broadcast_to(np.arange(4)[:, None] < 2, SHAPE)  # the left half
OPERATORS: dict[str, Any] = {
    "mask": Mask(MASK),
    "box": BoxDownsample(2),
    "grey": Grey(2),
    "blur": Blur(np.array([[0.2, 0.5, 0.1], [0.1, 0.1, 0.0]])),
    "matrix": Matrix(RNG.standard_normal((3, SIZE)) / 4),
}


FACTOR = np.random.default_rng(1).standard_normal((SIZE, SIZE)) / 6
MEAN = np.random.default_rng(2).standard_normal(SIZE) / 2
ANY = Gaussian(mean=MEAN, covariance=FACTOR @ FACTOR.T + 0.02 * np.eye(SIZE))
ROUND = Gaussian(mean=MEAN, covariance=DEVIATION**2 * np.eye(SIZE))
# the left half and the right one, or grey and colour, do not depend on each other
PAIR = np.array([[1.0, 0.4], [0.4, 1.0]]) / 4  # of two channels: its eigenvectors are (1, ±1)
HALVES = Gaussian(
    mean=MEAN, covariance=np.where(np.equal.outer(MASK.ravel(), MASK.ravel()), ANY.covariance, 0)
)
COLOURS = Gaussian(mean=MEAN, covariance=np.kron(ANY.covariance[:8, :8], PAIR))


def by_moments(problem: Gaussian, sde: Any, operator: Any, iterations: int = SIZE) -> Partial:
    return moment_matching(problem.score_fn(sde), sde, operator, noise=NOISE, iterations=iterations)


def by_pseudoinverse(problem: Gaussian, sde: Any, operator: Any) -> Partial:
    settings: Any = {"noise": NOISE, "data_deviation": DEVIATION}
    return pseudoinverse_guidance(problem.score_fn(sde), sde, operator, **settings)


def matrix_of(operator: Any) -> np.ndarray:
    units = jnp.eye(SIZE).reshape(SIZE, *SHAPE)
    return np.asarray(jax.jit(jax.vmap(operator))(units)).reshape(SIZE, -1).T


def observed(operator: Any, number: int, noise: float = NOISE) -> tuple[np.ndarray, np.ndarray]:
    """A and observations of any data at all, of the form that A gives them."""
    a = matrix_of(operator)
    y = RNG.standard_normal((number, SIZE)) @ a.T
    return a, y + noise * RNG.standard_normal(y.shape) * (np.abs(a).sum(axis=1) > 0)


@jax.jit
def called(score_fn: Any, *given: Any) -> Any:
    return score_fn(*given)


def check_posterior_score(
    score_fn: Partial, sde: Any, posterior: Gaussian, observation: Observation, rtol: float = 1e-6
) -> None:
    """In float64, from eps to T."""
    number = len(observation.y)
    t = jnp.linspace(sde.eps, sde.T, number)
    alpha, sigma = (np.asarray(value) for value in jax.vmap(sde.marginal)(t))
    x = alpha[:, None] * MEAN + np.hypot(alpha, sigma)[:, None] * RNG.standard_normal((number, SIZE))
    x = jnp.asarray(x.reshape(number, *SHAPE))
    expected = called(posterior.score_fn(sde), x, t)
    size = jnp.abs(expected).max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(called(score_fn, x, t, observation) / size, expected / size, atol=rtol)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(
    ("make", "problem"), [(by_moments, ANY), (by_pseudoinverse, ROUND)], ids=["moments", "pseudoinverse"]
)
@pytest.mark.usefixtures("double_precision")
def test_the_methods_are_exact_for_the_gaussians_that_they_claim(make, problem, name):
    """Any for moment matching; those of one deviation for pseudoinverse guidance."""
    operator = OPERATORS[name]
    a, y = observed(operator, 6)
    observation = Observation(y=jnp.asarray(y).reshape(6, *operator(jnp.zeros(SHAPE)).shape))
    # conjugate gradients lose digits where A V A^T has eigenvalues from 1e-2 to 1, as the blur's does
    check_posterior_score(make(problem, VP, operator), VP, problem.given(a, y, NOISE), observation, rtol=1e-4)


@pytest.mark.parametrize("name", ["ve", "subvp", "flow"])
@pytest.mark.usefixtures("double_precision")
def test_the_methods_are_exact_for_every_process(name):
    sde, operator = {**SDES, **PATHS}[name], OPERATORS["matrix"]
    a, y = observed(operator, 6)
    for make, problem in ((by_moments, ANY), (by_pseudoinverse, ROUND)):
        posterior, observation = problem.given(a, y, NOISE), Observation(y=jnp.asarray(y))
        # at sigma = 50, J = V/sigma^2 is the difference of two terms that are 1e4 times as large
        check_posterior_score(make(problem, sde, operator), sde, posterior, observation, rtol=1e-6)


@pytest.mark.parametrize("name", ["box", "grey"])
@pytest.mark.usefixtures("double_precision")
def test_one_iteration_is_enough_for_one_eigenvalue(name):
    operator = OPERATORS[name]
    a, y = observed(operator, 6)
    observation = Observation(y=jnp.asarray(y).reshape(6, *operator(jnp.zeros(SHAPE)).shape))
    score_fn = by_moments(ROUND, VP, operator, iterations=1)
    check_posterior_score(score_fn, VP, ROUND.given(a, y, NOISE), observation)


@pytest.mark.parametrize(
    ("make", "problem", "other", "operator"),
    [(inpainting, HALVES, ANY, Mask(MASK)), (colorization, COLOURS, ANY, Grey(2))],
    ids=["inpainting", "colorization"],
)
@pytest.mark.usefixtures("double_precision")
def test_replacement_is_exact_where_the_unknown_does_not_depend_on_the_known_and_only_there(
    make, problem, other, operator
):
    a, y = observed(operator, 6, noise=0.0)
    mask = jnp.broadcast_to(MASK, (6, *SHAPE)) if make is inpainting else None
    observation = Observation(
        y=jnp.asarray(y).reshape(6, *operator(jnp.zeros(SHAPE)).shape),
        mask=mask,
    )
    score_fn = make(problem.score_fn(VP), VP)
    check_posterior_score(score_fn, VP, problem.given(a, y, 0.0), observation)
    score_fn, posterior = make(other.score_fn(VP), VP), other.given(a, y, 0.0)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_posterior_score(score_fn, VP, posterior, observation, rtol=0.1)


def test_what_a_mask_hides_does_not_matter():
    x, t = jnp.asarray(RNG.standard_normal((3, *SHAPE)), jnp.float32), jnp.full(3, 0.4)
    y = RNG.standard_normal((3, *SHAPE)).astype(np.float32)
    hidden = np.where(MASK, y, np.nan)
    operator, mask = Mask(MASK), np.broadcast_to(MASK, y.shape)
    for score_fn in (by_moments(ANY, VP, operator, 2), by_pseudoinverse(ANY, VP, operator)):
        found = [called(score_fn, x, t, Observation(y=each)) for each in (y, hidden)]
        np.testing.assert_array_equal(*found)
    score_fn = inpainting(ANY.score_fn(VP), VP)
    found = [called(score_fn, x, t, Observation(y=each, mask=mask)) for each in (y, hidden)]
    np.testing.assert_array_equal(*found)


def drawn(score_fn: Partial, solver: Any, observation: Observation) -> Any:
    solution = sample(
        score_fn,
        VP,
        solver,
        key=jax.random.key(0),
        shape=SHAPE,
        conditions=observation,
        num_samples=len(observation.y),
        batch_size=256,
        denoise=False,
    )
    assert solution.failed == 0
    return solution


@pytest.mark.parametrize(
    ("make", "problem", "name"),
    [(functools.partial(by_moments, iterations=4), ANY, "box"), (by_pseudoinverse, ROUND, "mask")],
    ids=["moments", "pseudoinverse"],
)
def test_samples_have_the_moments_of_their_own_posterior(make, problem, name):
    """Every lane has an observation of its own, of a sample of the data."""
    number, operator = 1024, OPERATORS[name]
    solver = EulerMaruyama(num_steps=300, grid=UniformLogSNR())
    a = matrix_of(operator)
    data = MEAN + RNG.standard_normal((number, SIZE)) @ np.linalg.cholesky(problem.covariance).T
    y = data @ a.T + NOISE * RNG.standard_normal((number, len(a)))
    observation = Observation(y=y.reshape(number, *operator(jnp.zeros(SHAPE)).shape).astype(np.float32))
    solution = drawn(make(problem, VP, operator), solver, observation)
    z = problem.given(a, y, NOISE).scaled(VP, solution.x)
    # 4.5 standard errors of each of 16 means, of 120 correlations, and of the mean of all variances
    second = z.T @ z / number
    assert np.abs(z.mean(axis=0)).max() < 4.5 / math.sqrt(number)
    assert np.abs(second - np.diag(np.diag(second))).max() < 4.5 / math.sqrt(number)
    assert abs(np.trace(second) / SIZE - 1) < 4.5 * math.sqrt(2 / (number * SIZE))


def test_every_row_has_a_mask_of_its_own():
    """What it knows has the exact score of a point, (alpha y − x)/sigma^2, and the rest the network's."""
    x, y = (jnp.asarray(RNG.standard_normal((8, *SHAPE)), jnp.float32) for _ in range(2))
    masks, t = RNG.random((8, *SHAPE)) < 0.5, jnp.linspace(0.1, 1, 8)
    inner = ANY.score_fn(VP)
    score = called(inpainting(inner, VP), x, t, Observation(y=y, mask=masks))
    levels: Any = jax.vmap(VP.marginal)(t)
    alpha, sigma = (level.reshape(-1, 1, 1, 1) for level in levels)
    expected = np.where(masks, (alpha * y - x) / sigma**2, called(inner, x, t))
    np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-4)


def test_evaluations_are_counted_and_conditions_handed_on():
    """Inside is classifier-free guidance, of two evaluations: 1 + 3 calls of it, or 1 + 1."""
    seen = []

    def network(x, t, classes):
        seen.append(classes)
        return -x

    inner = classifier_free(network, VP, null=-1, scale=2.0)
    observation = Observation(y=jnp.zeros((2, 16)), condition=jnp.array([3, 4]))
    settings: Any = {"noise": 0.1}
    functions = {
        8: moment_matching(inner, VP, jnp.ravel, **settings),
        4: pseudoinverse_guidance(inner, VP, Matrix(np.eye(16)), data_deviation=1.0, **settings),
        2: inpainting(inner, VP),
    }
    assert [evaluations_of(function) for function in functions.values()] == list(functions)
    functions[8](jnp.zeros((2, *SHAPE)), jnp.ones(2), observation)
    assert len(seen) == 1  # the products with the Jacobian do not call it again
    np.testing.assert_array_equal(seen[0], [-1, -1, 3, 4])


@pytest.mark.parametrize("make", [by_moments, by_pseudoinverse])
def test_a_row_does_not_depend_on_its_neighbours(make):
    """To the bit: whatever the other rows hold, and wherever it stands."""
    score_fn = jax.jit(make(ANY, VP, OPERATORS["matrix"]))
    x = jnp.asarray(RNG.standard_normal((16, *SHAPE)), jnp.float32)
    t, y = jnp.linspace(0.1, 1, 16), jnp.asarray(RNG.standard_normal((16, 3)), jnp.float32)
    whole = score_fn(x, t, Observation(y=y))
    reverse = score_fn(x[::-1], t[::-1], Observation(y=y[::-1]))
    np.testing.assert_array_equal(reverse[::-1], whole)
    others = x.at[1:].add(3.0), t.at[1:].mul(0.5), Observation(y=y.at[1:].mul(-1))
    np.testing.assert_array_equal(score_fn(*others)[0], whole[0])


def test_a_jacobian_that_is_no_covariance_makes_no_nan():
    """That of a network need not be positive: the iterations then stop where they are."""
    score_fn = moment_matching(lambda x, t: -1e3 * x, VP, jnp.ravel, noise=0.1)
    score = score_fn(jnp.ones((1, 3)), jnp.ones(1), Observation(y=jnp.zeros((1, 3))))
    np.testing.assert_allclose(score, -1e3)


def test_equal_problems_share_a_compiled_program():
    structures = {
        jax.tree.structure(by_moments(ANY, VP, Matrix(factor * np.eye(SIZE)))) for factor in (1.0, 2.0)
    }
    assert len(structures) == 1


@pytest.mark.parametrize("setting", ["noise", "data_deviation"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, "1", None])
@pytest.mark.usefixtures("as_users_run_it")
def test_deviations_are_above_zero(setting, value):
    settings: Any = {"noise": 0.1, "data_deviation": 0.5, setting: value}
    with pytest.raises(ValueError, match=f"{setting} must be a number > 0"):
        pseudoinverse_guidance(ANY.score_fn(VP), VP, OPERATORS["grey"], **settings)
    if setting == "noise":
        with pytest.raises(ValueError, match="noise must be a number > 0"):
            moment_matching(ANY.score_fn(VP), VP, OPERATORS["grey"], noise=value)


@pytest.mark.usefixtures("as_users_run_it")
def test_iterations_are_counted():
    with pytest.raises(ValueError, match="iterations must be a whole number >= 1"):
        moment_matching(ANY.score_fn(VP), VP, OPERATORS["grey"], noise=0.1, iterations=0)


@pytest.mark.usefixtures("as_users_run_it")
def test_a_pseudoinverse_needs_solve():
    with pytest.raises(TypeError, match="use Matrix, or moment_matching"):
        by_pseudoinverse(ANY, VP, lambda x: x[:1])


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Saturating:
    """An operator that is not linear, whose numbers are arguments of the program."""

    factor: Any

    def __call__(self, x: Any) -> Any:
        return jnp.tanh(self.factor * x)

    def solve(self, y: Any, v: Any, w: Any) -> Any:
        return y / (v + w)


@pytest.mark.parametrize(
    ("make", "operator"),
    [
        (by_moments, jnp.tanh),
        (by_moments, Partial(jnp.add, 1.0)),
        (by_moments, Saturating(jnp.ones(()))),
        (by_pseudoinverse, Saturating(jnp.ones(()))),
    ],
)
def test_an_operator_that_is_not_linear_is_refused_before_any_work(make, operator):
    with pytest.raises(ValueError, match="operator must be a linear function of a sample"):
        drawn(make(ANY, VP, operator), AdaptiveExponential(), Observation(y=np.zeros((4, *SHAPE))))


@pytest.mark.parametrize(
    ("score_fn", "observation", "message"),
    [
        (
            by_moments(ANY, VP, BoxDownsample(2)),
            Observation(y=np.zeros((2, 1, 1, 2))),
            "of shape (2, 1, 2, 2)",
        ),
        (
            by_moments(ANY, VP, BoxDownsample(4)),
            Observation(y=np.zeros((2, 1, 1, 2))),
            "factor must be a divisor",
        ),
        (
            by_moments(ANY, VP, Grey(2)),
            np.zeros((2, 2, 4, 1)),
            "the condition must be an Observation",
        ),
        (
            inpainting(ANY.score_fn(VP), VP),
            Observation(y=np.zeros((2, *SHAPE))),
            "the observation's mask must be",
        ),
        (
            inpainting(ANY.score_fn(VP), VP),
            Observation(y=np.zeros((2, *SHAPE)), mask=np.ones((2, 2, 4, 1))),
            "the observation's mask must be of shape (2, 2, 4, 2) (got 'shape (2, 2, 4, 1)')",
        ),
        (colorization(ANY.score_fn(VP), VP), Observation(y=np.zeros((2, *SHAPE))), "of shape (2, 2, 4, 1)"),
        (
            by_moments(ANY, VP, Mask(MASK)),
            Observation(y=np.zeros((2, *SHAPE)), mask=np.ones((2, *SHAPE))),
            "the observation's mask must be None, except for inpainting",
        ),
    ],
)
def test_shapes_that_do_not_match_are_refused_before_any_work(score_fn, observation, message):
    rows = jax.tree.map(jnp.asarray, observation)
    with pytest.raises(ValueError, match=re.escape(message)):
        score_fn(jnp.zeros((2, *SHAPE)), jnp.ones(2), rows)


def test_a_mask_is_0_or_1():
    with pytest.raises(ValueError, match=re.escape("mask must be 0 or 1 everywhere (got [0.5])")):
        Observation(y=np.zeros((1, 2)), mask=np.array([[0.5, 1.0]]))
