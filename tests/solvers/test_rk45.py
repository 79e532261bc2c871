"""RK45: the steps, evaluations and solution of scipy, and the orders of the pair."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from sde_lib import probability_flow_drift
from solvers import rk45
from solvers.interface import Status
from solvers.rk45 import RK45
from tests.problems import SDES, Gaussian

SHAPE = (2, 3)


def gaussian_score(sde, x, t):
    return Gaussian().score(sde, x, t)


def two_points_score(sde, x, t):
    """For data at +0.5 and −0.5 in every pixel, whose denoiser is a hyperbolic tangent: nonlinear in x."""
    alpha, sigma = sde.marginal(t)
    return (0.5 * alpha * jnp.tanh(0.5 * alpha * x / sigma**2) - x) / sigma**2


@functools.partial(jax.jit, static_argnames="score")
def run(score, solver, sde, state):
    """The final state and the number of evaluations."""

    def evaluate(carry):
        state, nfe = carry
        x, t = solver.ask(state)
        return solver.tell(sde, state, score(sde, x, t)), nfe + 1

    def goes_on(carry):
        state, nfe = carry
        # ten times the number needed, so that no test hangs
        return (state.status == Status.RUNNING) & (nfe < 5000)

    return jax.lax.while_loop(goes_on, evaluate, (state, 0))


@functools.partial(jax.jit, static_argnames="score")
def right_side(score, sde, x, t):
    return probability_flow_drift(sde, x, t, score(sde, x, t))


def compiled_programs() -> int:
    return run._cache_size()  # pyright: ignore[reportAttributeAccessIssue]


class Run(NamedTuple):
    end: Any
    nfe: int
    begin: Any
    sde: Any


def solve(name, score, rtol, atol, dtype=jnp.float64):
    sde = jax.tree.map(functools.partial(jnp.asarray, dtype=dtype), SDES[name])
    solver = RK45(rtol=jnp.asarray(rtol, dtype), atol=jnp.asarray(atol, dtype))
    begin = solver.init(sde, jax.random.key(0), SHAPE, dtype)
    end, nfe = run(score, solver, sde, begin)
    return Run(end, int(nfe), begin, sde)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("score", [gaussian_score, two_points_score])
def test_scipy_takes_the_same_steps_to_the_same_solution(name, score):
    """Up to rounding, which is 1e-11 of the largest value along the path.

    Both sum the same numbers in different orders, with a relative error of 1e-16 each time. In an error
    estimate, the stages cancel down to the tolerance. At the finest tolerance here it keeps 8 digits: the
    next h has a relative error of 1e-8, and so has the step's own error of up to 1e-8. At the coarsest, the
    estimate keeps 13 digits, h has an error of 1e-13, and a step's error of 1e-2 one of 1e-15. The largest
    sum of these found is 7e-13.
    """
    rejections = 0
    for rtol, atol in [(1e-2, 1e-2), (1e-5, 1e-5), (1e-8, 1e-6)]:
        ours, nfe, begin, sde = solve(name, score, rtol, atol)
        scipys = solve_ivp(
            lambda t, x, sde=sde: np.ravel(right_side(score, sde, x.reshape(SHAPE), t)),
            (float(sde.T), float(sde.eps)),
            np.ravel(begin.x),
            method="RK45",
            rtol=rtol,
            atol=atol,
        )
        assert ours.status == Status.COMPLETED
        assert ours.t == sde.eps
        assert ours.accepted == len(scipys.t) - 1
        assert nfe == scipys.nfev
        assert nfe == 2 + 6 * (ours.accepted + ours.rejected)
        largest = np.abs(scipys.y).max()
        np.testing.assert_allclose(np.ravel(ours.x), scipys.y[:, -1], rtol=0, atol=1e-11 * largest)
        rejections += int(ours.rejected)
    assert rejections > 0  # otherwise the step after a rejection was not tested


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SDES)
def test_the_solution_is_the_exact_one(name):
    """x̂ = x/α keeps its z-score. The error of a step is less than atol + rtol |x|.

    Earlier errors are contracted like x itself, so that their sum is less than the number of steps (up to 200
    here) times the error allowed at the end, 1e-8 (1 + |x|).
    """
    ours, _, begin, sde = solve(name, gaussian_score, 1e-8, 1e-8)
    (mean, std), (mean_begin, std_begin) = (Gaussian().marginal(sde, t) for t in (sde.eps, sde.T))
    exact = mean + std * (begin.x - mean_begin) / std_begin
    assert np.abs(ours.x - exact).max() < 200 * 1e-8 * (1 + np.abs(exact).max())


@pytest.mark.usefixtures("x64")
def test_the_error_of_a_step_has_order_6_and_its_estimate_order_5():
    """On dx/dt = cos(t) x², which is neither linear nor autonomous, so that every order condition counts."""
    sde = SDES["vp"]
    solver = RK45(rtol=1e3, atol=1e3)  # every step is accepted

    def score(x, t):
        return 2 * (sde.drift(x, t) - jnp.cos(t) * x**2) / sde.diffusion(t) ** 2

    @jax.jit
    def step(h):
        x, t = jnp.linspace(0.4, 0.9, 6).reshape(SHAPE), jnp.asarray(0.9)
        state = solver.init(sde, jax.random.key(0), SHAPE, jnp.float64)
        k_1 = probability_flow_drift(sde, x, t, score(x, t))
        state = dataclasses.replace(
            state, x=x, t=t, h=h, t_proposed=t - h, K=state.K.at[0].set(k_1), stage=jnp.int32(1)
        )
        for _ in range(5):
            state = solver.tell(sde, state, score(*solver.ask(state)))
        x_proposed, t_proposed = solver.ask(state)
        k_7 = probability_flow_drift(sde, x_proposed, t_proposed, score(x_proposed, t_proposed))
        estimate = h * jnp.tensordot(rk45.B_DIFFERENCE, state.K.at[6].set(k_7), 1)
        end = solver.tell(sde, state, score(x_proposed, t_proposed))
        exact = 1 / (1 / x + jnp.sin(t) - jnp.sin(t - h))
        return end.accepted, jnp.linalg.norm(end.x - exact), jnp.linalg.norm(estimate)

    # errors from 7e-9 to 1e-12: above, higher powers of h matter, and below, rounding does
    steps = 0.2 * 0.7 ** np.arange(5)
    accepted, errors, estimates = zip(*map(step, steps), strict=True)
    assert all(accepted)
    for measured, order in [(errors, 6), (estimates, 5)]:
        slope = np.polyfit(np.log(steps), np.log(np.array(measured)), 1)[0]
        assert abs(slope - order) < 0.3, slope


def test_the_tableau_is_consistent():
    """Rows sum to c, and the weights of both formulas to one; up to rounding of sums of numbers up to 12."""
    np.testing.assert_allclose(rk45.A.sum(axis=1), rk45.C, atol=1e-14)
    np.testing.assert_allclose([rk45.A[6].sum(), rk45.B_LOWER.sum()], 1, atol=1e-14)


def test_another_tolerance_does_not_recompile_and_costs_more():
    loose = solve("vp", gaussian_score, 1e-3, 1e-3, jnp.float32)
    before = compiled_programs()
    tight = solve("vp", gaussian_score, 1e-5, 1e-5, jnp.float32)
    assert compiled_programs() == before
    assert tight.nfe > loose.nfe


def test_a_score_that_demands_ever_smaller_steps_ends_with_a_status():
    def rough(sde, x, t):
        # jumps of 1e6 between neighbouring numbers: no step is small enough
        return gaussian_score(sde, x, t) + 1e6 * jnp.sign(jnp.sin(1e7 * x))

    state, nfe, _, _ = solve("vp", rough, 1e-5, 1e-5, jnp.float32)
    assert state.status == Status.STEP_TOO_SMALL
    assert np.isfinite(state.x).all()
    # about ten rejections take h from 0.01 to the spacing of numbers, after only a few steps
    assert nfe < 200


def test_an_error_that_is_not_a_number_ends_with_a_status():
    def infinite(sde, x, t):
        return jnp.full_like(x, jnp.finfo(x.dtype).max)  # finite, but not after multiplication by g²

    state, nfe, _, _ = solve("vp", infinite, 1e-5, 1e-5, jnp.float32)
    assert state.status == Status.STEP_TOO_SMALL
    assert nfe == 8


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("settings", ["numbers", "arrays"])
def test_the_state_keeps_its_dtype(dtype, settings):
    """With settings as numbers, and as arrays of the dtype, as the driver passes them."""
    as_given = float if settings == "numbers" else functools.partial(jnp.asarray, dtype=dtype)
    for name in SDES:
        sde, solver = jax.tree.map(as_given, (SDES[name], RK45()))

        def once(sde, solver):
            state = solver.init(sde, jax.random.key(0), SHAPE, dtype)
            x, t = solver.ask(state)
            assert (x.dtype, t.dtype) == (dtype, dtype)
            return state, solver.tell(sde, state, x)

        begin, end = jax.eval_shape(functools.partial(once, sde, solver))
        assert jax.tree.map(lambda a: (a.shape, a.dtype), begin) == jax.tree.map(
            lambda a: (a.shape, a.dtype), end
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rtol": 0.0}, r"rtol must be a number > 0 \(got 0.0\): set rtol above zero"),
        ({"atol": -1e-5}, r"atol must be a number > 0 \(got -1e-05\): set atol above zero"),
        ({"rtol": float("nan")}, r"rtol must be a number > 0 \(got nan\)"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RK45(**settings)
