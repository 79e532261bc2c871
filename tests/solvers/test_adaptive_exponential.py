"""The adaptive exponential solver: its order, the problems it solves exactly, its statistics, its end."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sde_lib import VESDE
from solvers import Status, sample
from solvers.adaptive_exponential import LONGEST, AdaptiveExponential, regression_on_noise
from tests.problems import SDES, Gaussian

STDS = np.array([0.05, 0.1, 0.3, 0.6])  # no single b is right for all of these
MEAN = 0.3
Z = np.array([-2.0, 1.5, -0.5, 1.0])
CAP = 2000


@functools.partial(jax.jit, static_argnames=("mixed",))
def solve(solver, sde, x, stds, mixed=False):
    """The final state and the number of evaluations from x at T, for data ~ N(mean, diag(stds²)).

    With ``mixed``, every element comes from N(±mean, std²) with equal odds, whose flow has no closed form.
    """

    def score(x, t):
        alpha, sigma = sde.marginal(t)
        variance = (alpha * stds) ** 2 + sigma**2
        mean = alpha * MEAN
        if mixed:
            mean = mean * jnp.tanh(jnp.mean(mean * x / variance))
        return (mean - x) / variance

    def step(carry):
        state, calls = carry
        return solver.tell(sde, state, score(*solver.ask(state))), calls + 1

    def goes_on(carry):
        return (carry[0].status == Status.RUNNING) & (carry[1] < CAP)

    state = solver.init(sde, jax.random.key(0), x.shape, x.dtype)
    return lax.while_loop(goes_on, step, (dataclasses.replace(state, x=x), jnp.int32(0)))


def from_scores(sde, z, stds):
    """x at T, and at eps: the flow of Gaussian data keeps the z-scores."""
    points = []
    for t in (sde.T, sde.eps):
        alpha, sigma = sde.marginal(t)
        points.append(alpha * MEAN + z * jnp.sqrt((alpha * stds) ** 2 + sigma**2))
    return points


def fewest_steps(sde):
    """As many as the longest step allows."""
    return float(sde.log_snr(sde.eps) - sde.log_snr(sde.T)) / LONGEST


@pytest.mark.parametrize("sde", SDES)
def test_without_noise_the_error_falls_with_evaluations_to_the_fourth_power(sde):
    """The predictor has order 3, the corrected value one more.

    At looser tolerances, the longest step limits many steps, and the error falls faster. From one tolerance
    to the next the slope was 3.4 to 4.9 here; over all of these, 3.6 to 3.95.
    """
    sde = SDES[sde]
    with jax.enable_x64(True):
        begin, end = from_scores(sde, Z, STDS)
        found = []
        for eps_rel in 10.0 ** np.arange(-4, -7, -0.5):
            solver = AdaptiveExponential(eps_rel=eps_rel, eps_abs=1e-12, eta=0.0)
            state, calls = solve(solver, sde, begin, STDS)
            assert state.status == Status.COMPLETED
            found.append((int(calls), float(jnp.sqrt(jnp.mean(((state.x - end) / end) ** 2)))))
        calls, errors = np.array(found).T
        fitted = -np.polyfit(np.log(calls), np.log(errors), 1)[0]
        assert abs(fitted - 4) < 0.5, found


@pytest.mark.parametrize("std", [0.0, 0.2])
@pytest.mark.parametrize("sde", SDES)
def test_gaussian_data_of_one_width_are_solved_exactly(sde, std):
    """At any tolerance: G is then their mean. Only the first step, which has no b yet, has an error.

    For a single point, D itself is constant, and the first step is exact too.
    """
    sde = SDES[sde]
    with jax.enable_x64(True):
        stds = np.full(4, std)
        begin, end = from_scores(sde, Z, stds)
        state, calls = solve(AdaptiveExponential(eps_rel=0.05, eta=0.0), sde, begin, stds)
        assert state.t == sde.eps
        assert calls <= fewest_steps(sde) + 2
        # sigma(eps) is as small as 1e-4 of the terms it is computed from, hence 1e-9 with float64's 1e-16.
        # Otherwise the first step's D is wrong by std²/ς² of its change: 2e-5 of it at ς = 50 of VE, less for
        # the others.
        deviation = jnp.sqrt((sde.marginal(sde.eps)[0] * stds) ** 2 + sde.marginal(sde.eps)[1] ** 2)
        assert jnp.max(jnp.abs(state.x - end) / deviation) < (1e-9 if std == 0 else 1e-4)


@pytest.mark.parametrize("a", [1e-4, 0.049, 0.051, 0.5, 3.0])
def test_the_correction_is_the_regression_on_the_noise(a):
    """Of c ∫ e^(−c (Δ − u)) N(u) du on N(Δ) for dN = −c N dμ + η e^(−μ) √2 dw from 0, in units of c Δ.

    By quadrature, at η² = 0.6; a = 2 η² Δ. Only the series near 0 has a truncation error, a³/720.
    """
    c, length = 1.6, a / 1.2
    u, w = np.polynomial.legendre.leggauss(40)
    u, w = length * (u + 1) / 2, length * w / 2

    def variance(u):
        return np.exp(-2 * u) * -np.expm1(-1.2 * u)

    covariance = np.exp(-c * (length - u)) * variance(u)
    expected = np.sum(w * c * np.exp(-c * (length - u)) * covariance) / variance(length)
    with jax.enable_x64(True):
        assert abs(regression_on_noise(jnp.float64(a)) - expected / (c * length)) < (
            2e-7 if a < 0.05 else 1e-12
        )


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_with_noise_the_variance_is_the_datas(eta):
    """For Gaussian data of one width, at a loose tolerance: the closed form includes the noise of the step.

    The bound is five deviations of the estimate, exceeded once in 1.7 million runs, and 1 % of bias.
    """
    sde = SDES["vp"]
    solution = sample(
        Gaussian(0.3, 0.2).score_fn(sde),
        sde,
        AdaptiveExponential(eps_rel=0.005, eta=eta),
        key=jax.random.key(2),
        shape=(8, 8, 1),
        num_samples=1000,
        batch_size=1000,
    )
    assert (solution.status == Status.COMPLETED).all()
    assert solution.nfe.max() < 1.5 * solution.nfe.mean()
    assert abs(solution.x.std() / 0.2 - 1) < 5 / (2 * solution.x.size) ** 0.5 + 0.01
    assert abs(solution.x.mean() - 0.3) < 5 * 0.2 / solution.x.size**0.5 + 0.002


def test_a_tighter_tolerance_takes_more_evaluations_and_a_looser_one_fewer():
    sde = SDES["ve"]
    begin = jnp.asarray(from_scores(sde, Z, STDS)[0], jnp.float32)
    calls = []
    for eps_rel in (0.0002, 0.002, 0.02):
        solver = AdaptiveExponential(eps_rel=eps_rel, eps_abs=1e-6, eta=0.0)
        calls.append(int(solve(solver, sde, begin, STDS.astype(np.float32), mixed=True)[1]))
    assert calls[0] > calls[1] > calls[2]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_no_step_is_longer_than_half_in_log_snr(eta):
    """For a single point D never moves, so that nothing else would bound the steps."""
    for sde in SDES.values():
        solver = AdaptiveExponential(eta=eta, eps_rel=10.0)
        x = solver.init(sde, jax.random.key(1), (4,), jnp.float32).x
        state, calls = solve(solver, sde, x, np.zeros(4, np.float32))
        assert state.status == Status.COMPLETED
        assert fewest_steps(sde) <= calls <= fewest_steps(sde) + 2


@pytest.mark.parametrize("num_evaluations", [1, 2, 3, 10, 40])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_number_of_evaluations_is_kept(num_evaluations, eta):
    for sde in SDES.values():
        solver = AdaptiveExponential(num_evaluations=num_evaluations, eta=eta)
        x = solver.init(sde, jax.random.key(1), (4,), jnp.float32).x
        state, calls = solve(solver, sde, x, STDS.astype(np.float32))
        assert state.status == Status.COMPLETED
        assert calls == num_evaluations
        assert state.t == sde.eps
        assert jnp.isfinite(state.x).all()


def _samples_of_modes(centres, shares, width, num_evaluations, *, num_samples):
    """Of a mixture on VP with its exact score: [n, d]."""
    sde, d = SDES["vp"], centres.shape[1]

    def score_fn(x, t):
        alpha, sigma = jax.vmap(sde.marginal)(t)
        alpha, variance = alpha[:, None, None], ((width * alpha) ** 2 + sigma**2)[:, None]
        towards = alpha * centres - x[:, None]
        odds = jnp.log(jnp.asarray(shares)) - jnp.sum(towards**2, axis=2) / (2 * variance)
        return jnp.einsum("bk,bkd->bd", jax.nn.softmax(odds), towards) / variance

    solver = AdaptiveExponential(num_evaluations=num_evaluations)
    return sample(
        score_fn,
        sde,
        solver,
        key=jax.random.key(0),
        shape=(d,),
        num_samples=num_samples,
        batch_size=min(num_samples, 4000),
    ).x


def test_ten_evaluations_draw_modes_as_often_as_they_should():
    """A minority of 0.1 in 16 dimensions. With all of the noise at every level, it came out as 0.053."""
    centres = jnp.stack([jnp.full(16, -0.1), jnp.full(16, 0.9)])
    x = _samples_of_modes(centres, [0.9, 0.1], 0.05, 10, num_samples=20_000)
    assert abs(np.mean(x.mean(axis=1) > 0.4) - 0.1) < 0.015


def test_five_evaluations_keep_the_width_of_narrow_modes():
    """With the full order to the end, the variance around sixteen modes came out eight times too large."""
    centres = jax.random.normal(jax.random.key(1), (16, 64)) / 2
    x = _samples_of_modes(centres, np.full(16, 1 / 16), 0.02, 5, num_samples=1000)
    squares = ((x[:, None] - np.asarray(centres)) ** 2).mean(axis=2).min(axis=1)
    assert 0.7 < np.mean(squares) / 0.02**2 < 1.3


@pytest.mark.parametrize("name", ["ve", "vp"])
def test_equal_steps_follow_a_denoiser_that_drifts_whatever_the_noise(name):
    """D = a λ, as no exact score has it. At η = 1, dy = −2 (y − a λ) dλ + noise has the mean a (λ − 1/2).

    With a slope of (1 − η²), which is 0 there, the mean lagged by 0.013.
    """
    sde, a = SDES[name], 0.1

    def score_fn(x, t):
        (alpha, sigma), log_snr = jax.vmap(sde.marginal)(t), jax.vmap(sde.log_snr)(t)
        return ((alpha * a * log_snr)[:, None] - x) / (sigma**2)[:, None]

    solver = AdaptiveExponential(num_evaluations=20)
    settings: Any = {"key": jax.random.key(0), "shape": (64,), "num_samples": 32, "denoise": False}
    x = sample(score_fn, sde, solver, **settings).x
    # 2,048 elements with a deviation of 0.01
    assert abs(x.mean() - a * (float(sde.log_snr(sde.eps)) - 0.5)) < 5 * 0.01 / 2048**0.5


def test_only_the_noise_of_a_step_depends_on_where_modes_part():
    """Without noise, the setting has no effect."""
    sde = SDES["ve"]
    begin = jnp.asarray(from_scores(sde, Z, STDS)[0], jnp.float32)
    ends = [
        solve(AdaptiveExponential(eta=0.0, data_deviation=deviation), sde, begin, STDS.astype(np.float32))
        for deviation in (0.1, 1.0)
    ]
    np.testing.assert_array_equal(ends[0][0].x, ends[1][0].x)
    assert ends[0][1] == ends[1][1]


def test_the_tolerance_is_relative_to_the_data():
    """Data, process and floor scaled by a power of two: the same steps, and the same samples, scaled."""
    for eta in (0.0, 1.0):
        found = []
        for scale in (1.0, 2.0**-6):
            sde = VESDE(sigma_min=0.01 * scale, sigma_max=50.0 * scale)
            solver = AdaptiveExponential(eta=eta, eps_abs=1e-4 * scale, data_deviation=0.5 * scale)
            data = Gaussian(0.3 * scale, 0.2 * scale)
            solution = sample(
                data.score_fn(sde), sde, solver, key=jax.random.key(0), shape=(8,), num_samples=16
            )
            assert (solution.status == Status.COMPLETED).all()
            found.append((solution.nfe, solution.x / scale))
        np.testing.assert_array_equal(found[0][0], found[1][0])
        # the process computes with logarithms of sigma, which rounds differently
        np.testing.assert_allclose(found[0][1], found[1][1], atol=2e-4)


def test_it_ends_with_a_status_where_steps_no_longer_move_the_time():
    sde = SDES["vp"]
    solver = AdaptiveExponential(eps_rel=0.002)
    state = solver.init(sde, jax.random.key(0), (3,), jnp.float32)
    tell = jax.jit(solver.tell)
    stuck = dataclasses.replace(
        state,
        h=jnp.float32(1e-12),
        accepted=jnp.int32(5),
        history=tuple(
            dataclasses.replace(e, log_snr=jnp.float32(-6.0 - i)) for i, e in enumerate(state.history)
        ),
    )
    assert tell(sde, stuck, -state.x).status == Status.STEP_TOO_SMALL
    # NaN too: the driver sets its own status, and a loop without the driver stops
    assert tell(sde, stuck, jnp.full(3, jnp.nan)).status != Status.RUNNING


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eta": 1.1}, r"eta must be a number in \[0, 1\] \(got 1.1\): set eta to 0 for the ODE"),
        ({"eta": -0.1}, r"eta must be a number in \[0, 1\] \(got -0.1\)"),
        ({"eta": float("nan")}, r"eta must be a number in \[0, 1\] \(got nan\)"),
        ({"eps_rel": 0.0}, r"eps_rel must be a number > 0 \(got 0.0\)"),
        ({"eps_abs": -1.0}, r"eps_abs must be a number > 0 \(got -1.0\)"),
        ({"data_deviation": 0.0}, r"data_deviation must be a number > 0 \(got 0.0\)"),
        ({"num_evaluations": 0}, r"num_evaluations must be a whole number >= 1 \(got 0\)"),
        ({"num_evaluations": 10.0}, r"num_evaluations must be a whole number >= 1 \(got 10.0\)"),
        (
            {"num_evaluations": 10, "eps_rel": 0.05},
            r"eps_rel must be left out with num_evaluations \(got 0.05\): give a tolerance or a number",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveExponential(**settings)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("sde", SDES)
def test_a_step_keeps_every_dtype(sde, dtype):
    sde, solver = SDES[sde], AdaptiveExponential(eta=0.5)
    with jax.enable_x64(True):
        state = jax.eval_shape(lambda: solver.init(sde, jax.random.key(0), (4, 4, 1), dtype))
        x, t = jax.eval_shape(solver.ask, state)
        told = jax.eval_shape(lambda state, x: solver.tell(sde, state, x), state, x)
    assert x.dtype == t.dtype == dtype
    kinds = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (state, told)]
    assert kinds[0] == kinds[1]
