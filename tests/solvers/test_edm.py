"""The samplers of Heun and EDM: compared step by step with the paper's algorithms; their orders."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import denoise
from solvers.edm import EDM, Heun
from solvers.grids import UniformTime
from solvers.interface import Status
from solvers.noise import standard_normal
from tests.problems import SDES, Gaussian
from tests.solvers.moments import final_moments, fitted_order

SHAPE = (2, 3)
KEY = jax.random.key(0)


class Run(NamedTuple):
    begin: Any
    end: Any
    nfe: Any
    first: Any  # the first time asked for
    lowest: Any
    highest: Any


@functools.partial(jax.jit, static_argnames="dtype")
def run(solver, sde, dtype):
    """One sample from T to eps with the exact score of ``Gaussian()``."""

    def evaluate(carry):
        state, nfe, lowest, highest = carry
        x, t = solver.ask(state)
        state = solver.tell(sde, state, Gaussian().score(sde, x, t))
        return state, nfe + 1, jnp.minimum(lowest, t), jnp.maximum(highest, t)

    begin = solver.init(sde, KEY, SHAPE, dtype)
    first = solver.ask(begin)[1]
    end, nfe, lowest, highest = jax.lax.while_loop(
        lambda carry: carry[0].status == Status.RUNNING, evaluate, (begin, 0, first, first)
    )
    return Run(begin, end, nfe, first, lowest, highest)


def solve(name, solver, dtype=jnp.float64):
    """Passes settings as arrays, as the driver does."""

    def setting(value):
        return jnp.asarray(value, dtype if isinstance(value, float) else jnp.int32)

    return run(*jax.tree.map(setting, (solver, SDES[name])), dtype=dtype)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def algorithm_2(denoiser, x, noises, *, sigmas, N, S_churn, S_tmin, S_tmax, S_noise):
    """The paper's algorithm in NumPy, with its last step to zero; ``sigmas`` are its t_0 … t_N, t_N = 0."""
    for i in range(len(sigmas) - 1):
        t, t_next = sigmas[i], sigmas[i + 1]
        gamma = min(S_churn / N, math.sqrt(2) - 1) if S_tmin <= t <= S_tmax else 0.0
        if t_next == 0:
            gamma = 0.0  # our departure: no churn before the denoising
        t_hat = min(t + gamma * t, sigmas[0])  # our departure: no more noise than at T
        x_hat = x + np.sqrt(t_hat**2 - t**2) * S_noise * noises(i)
        d = (x_hat - denoiser(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if t_next != 0:
            d_next = (x - denoiser(x, t_next)) / t_next
            x = x_hat + (t_next - t_hat) * (d + d_next) / 2
    return x


NUM_STEPS = 40  # enough for the largest churn to exceed T
CHURNS = {
    "none": {},
    "throughout": {"churn": 2.0},
    "as much as can be": {"churn": 1000.0, "churn_noise": 1.007},
    "between two levels": {"churn": 2.0, "churn_min": 0.05, "churn_max": 1.0, "churn_noise": 1.2},
    "nowhere": {"churn": 2.0, "churn_min": 2e2},
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("churn", CHURNS)
def test_the_paper_s_algorithm_takes_the_same_steps(name, churn):
    """Up to rounding of an x̂ of up to 500 over 80 evaluations; 1e-10 is a hundred times that.

    The paper's algorithm is written in x̂ and σ̂ with the denoiser, ours in x and t with the score.
    """
    sde, problem, num_steps = SDES[name], Gaussian(), NUM_STEPS
    solver = EDM(num_steps=num_steps, **CHURNS[churn])
    ours = solve(name, solver)
    assert ours.end.accepted == num_steps
    assert ours.nfe == 2 * num_steps

    alpha_T, sigma_T = sde.marginal(jnp.float64(sde.T))
    alpha, sigma = sde.marginal(jnp.float64(sde.eps))
    highest, lowest = float(sigma_T / alpha_T), float(sigma / alpha)
    # equation 5, with N = num_steps + 1
    i = np.arange(num_steps + 1)
    sigmas = (highest ** (1 / 7) + i / num_steps * (lowest ** (1 / 7) - highest ** (1 / 7))) ** 7
    paper = algorithm_2(
        lambda x, t: (problem.std**2 * x + t**2 * problem.mean) / (problem.std**2 + t**2),
        np.asarray(ours.begin.x / alpha_T),
        lambda i: np.asarray(standard_normal(KEY, jnp.int32(i), SHAPE, jnp.float64)),
        sigmas=[*sigmas, 0.0],
        N=num_steps,
        S_churn=solver.churn,
        S_tmin=solver.churn_min,
        S_tmax=solver.churn_max,
        S_noise=solver.churn_noise,
    )
    end = ours.end
    denoised = denoise(sde, end.x, end.t, problem.score(sde, end.x, end.t))
    np.testing.assert_allclose(denoised, paper, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SDES)
def test_the_score_is_asked_for_from_T_to_eps_and_nowhere_else(name):
    sde = SDES[name]
    for solver in (
        Heun(num_steps=NUM_STEPS),
        *(EDM(num_steps=NUM_STEPS, **churn) for churn in CHURNS.values()),
    ):
        found = solve(name, solver)
        assert found.end.t == found.lowest == sde.eps
        assert found.first == found.highest == sde.T


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SDES)
def test_heun_has_order_2(name):
    """In the global error: x̂ keeps its z-score."""
    sde = SDES[name]
    (mean, std), (mean_T, std_T) = (Gaussian().marginal(sde, jnp.float64(t)) for t in (sde.eps, sde.T))
    numbers, errors = (64, 128, 256), []
    for num_steps in numbers:
        found = solve(name, Heun(num_steps=num_steps))
        exact = mean + std * (found.begin.x - mean_T) / std_T
        errors.append(float(jnp.abs(found.end.x - exact).max()))
    assert abs(fitted_order(numbers, errors) - 2) < 0.3, errors


@pytest.mark.parametrize("name", SDES)
def test_edm_has_weak_order_2_and_forgets_the_beginning_with_order_1(name):
    """For the variance from the law of x(T), and for a mean one deviation off it; at S_churn = 2.

    Churn takes the law at σ̂ to that at σ̂ + γσ̂ exactly. Only Heun has errors, over steps that are still of
    order 1/N, so that the variance has order 2. A mean that does not belong to x(T) keeps its value in units
    of the deviation √(std² + σ̂²) as the noise falls, and part of it is lost as churn raises the noise. In the
    limit of many steps exp(−S_churn · mean of σ̂²/(std² + σ̂²) over the grid) is left, and a sum of N rises
    differs from that by 1/N.
    """
    sde, problem, churn = SDES[name], Gaussian(), 2.0
    with jax.enable_x64(True):
        (mean, std), (mean_T, std_T) = (
            map(float, problem.marginal(sde, jnp.float64(t))) for t in (sde.eps, sde.T)
        )
        begin, end = (math.exp(-sde.log_snr(jnp.float64(t)) / 7) for t in (sde.T, sde.eps))
    places = (np.arange(10_000) + 0.5) / 10_000  # midpoints: an error of 1e-8
    sigmas = (begin + places * (end - begin)) ** 7
    remembered = math.exp(-churn * np.mean(sigmas**2 / (problem.std**2 + sigmas**2)))

    numbers, mean_errors, variance_errors = (128, 256, 512), [], []
    for num_steps in numbers:
        solver = EDM(num_steps=num_steps, churn=churn)
        found = final_moments(
            solver, sde, problem, mean=mean_T + std_T, variance=std_T**2, num_noises=numbers[-1]
        )
        mean_errors.append((found[0] - mean) / std - remembered)
        variance_errors.append(found[1] / std**2 - 1)
    assert abs(fitted_order(numbers, mean_errors) - 1) < 0.3
    assert abs(fitted_order(numbers, variance_errors) - 2) < 0.3


def test_without_churn_edm_is_heun_bit_for_bit():
    """Operation by operation, since two compiled programs may round differently."""
    sde = SDES["vp"]
    solvers = Heun(num_steps=2), EDM(num_steps=2)
    states = [solver.init(sde, KEY, SHAPE, jnp.float32) for solver in solvers]
    for _ in range(4):
        score = Gaussian().score(sde, *solvers[0].ask(states[0]))
        states = [solver.tell(sde, state, score) for solver, state in zip(solvers, states, strict=True)]
        for name in ("x", "t", "x_proposed", "t_proposed", "status"):
            np.testing.assert_array_equal(getattr(states[0], name), getattr(states[1], name))
    assert states[0].status == Status.COMPLETED


def compiled_programs() -> int:
    return run._cache_size()  # pyright: ignore[reportAttributeAccessIssue]


def test_another_number_of_steps_or_amount_of_churn_does_not_compile():
    solve("vp", EDM(num_steps=3), jnp.float32)
    before = compiled_programs()
    solve("vp", EDM(num_steps=4, churn=1.0, churn_min=0.1, churn_max=2.0, churn_noise=1.1), jnp.float32)
    assert compiled_programs() == before


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("settings", ["numbers", "arrays"])
@pytest.mark.parametrize("solver", [Heun(), Heun(grid=UniformTime()), EDM(churn=10.0)])
def test_the_state_keeps_its_dtype(solver, dtype, settings):
    """With settings as numbers, and as arrays of the dtype, as the driver passes them."""

    def as_given(value):
        return jnp.asarray(value, dtype) if settings == "arrays" and isinstance(value, float) else value

    def once(solver, sde):
        state = solver.init(sde, KEY, SHAPE, dtype)
        x, t = solver.ask(state)
        assert (x.dtype, t.dtype) == (dtype, dtype)
        return state, solver.tell(sde, state, x)

    for sde in SDES.values():
        begin, end = jax.eval_shape(functools.partial(once, *jax.tree.map(as_given, (solver, sde))))
        shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)] for state in (begin, end)]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("solver", "settings", "message"),
    [
        (
            Heun,
            {"num_steps": 0},
            r"num_steps must be a whole number >= 1 \(got 0\): set num_steps to 1 or more",
        ),
        (
            EDM,
            {"num_steps": 0},
            r"num_steps must be a whole number >= 1 \(got 0\): set num_steps to 1 or more",
        ),
        (EDM, {"num_steps": 2.5}, r"num_steps must be a whole number >= 1 \(got 2.5\)"),
        (
            EDM,
            {"churn": -1.0},
            r"churn must be a finite number >= 0 \(got -1.0\): set churn to 0 for no added noise",
        ),
        (EDM, {"churn": math.inf}, r"churn must be a finite number >= 0 \(got inf\)"),
        (EDM, {"churn_min": -0.1}, r"churn_min must be a noise level from 0 to churn_max = inf \(got -0.1\)"),
        (
            EDM,
            {"churn_min": 2.0, "churn_max": 1.0},
            r"churn_min must be a noise level from 0 to churn_max = 1.0 \(got 2.0\): lower churn_min or",
        ),
        (
            EDM,
            {"churn_noise": 0.0},
            r"churn_noise must be a number > 0 \(got 0.0\): set churn_noise above zero",
        ),
    ],
)
def test_bad_settings_are_refused(solver, settings, message):
    with pytest.raises(ValueError, match=message):
        solver(**settings)
