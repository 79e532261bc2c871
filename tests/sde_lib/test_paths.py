"""Compares the other processes with their own moment equations and with the chains that they continue."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import (
    CosineVP,
    DiscreteVP,
    EDMProcess,
    RectifiedFlow,
    probability_flow_drift,
    reverse_drift,
)
from sde_lib.paths import monotone_slopes
from solvers import (
    DDIM,
    Adaptive,
    AdaptiveExponential,
    AncestralSampling,
    DPMSolverPP,
    UniformLogSNR,
    sample,
)
from solvers.noise import standard_normal
from tests.problems import PATHS, SDES, Gaussian
from tests.sde_lib.closed_forms import check_denoising, check_moment_equations
from tests.solvers.moments import exact_moments, final_moments

DDPM_BETAS = np.linspace(1e-4, 0.02, 1000)
# The published cosine chain (arXiv 2102.09672): alpha^2 at 0 … N, and betas clipped at 0.999.
COSINES = np.cos(0.5 * np.pi * (np.arange(1001) / 1000 + 0.008) / 1.008) ** 2
COSINE_BETAS = np.minimum(1 - COSINES[1:] / COSINES[:-1], 0.999)


def times_of(sde, number=60) -> Any:
    """Times from eps to T, even in log-SNR, and T itself; in float64."""
    with jax.enable_x64(True):
        begin, end = (float(sde.log_snr(float(t))) for t in (sde.eps, sde.T))
        log_snrs = np.linspace(begin, end, number)
        return np.clip(jax.vmap(sde.inverse_log_snr)(log_snrs), sde.eps, sde.T)


@pytest.fixture(params=PATHS.values(), ids=list(PATHS))
def sde(request):
    return request.param


@pytest.mark.usefixtures("double_precision")
def test_the_marginal_solves_the_moment_equations(sde):
    check_moment_equations(sde, times_of(sde))


@pytest.mark.usefixtures("double_precision")
def test_the_diffusion_is_that_of_the_log_snr(sde):
    """g^2 = −2 sigma^2 d lambda/dt, where lambda is log_snr itself and not log(alpha/sigma)."""
    for t in times_of(sde):
        expected = -2 * sde.marginal(t)[1] ** 2 * jax.grad(sde.log_snr)(t)
        np.testing.assert_allclose(sde.diffusion(t) ** 2, expected, rtol=1e-9)


def test_log_snr_is_that_of_the_marginal_and_falls(sde):
    times = times_of(sde).astype(np.float32)
    alpha, sigma = jax.vmap(sde.marginal)(times)
    log_snr = jax.vmap(sde.log_snr)(times)
    # float32: lambda reaches 10, and its last bits are 1e-6
    np.testing.assert_allclose(log_snr, jnp.log(alpha / sigma), rtol=1e-5, atol=4e-6)
    assert np.all(np.diff(log_snr) < 0)


def test_inverse_log_snr_inverts(sde):
    times = times_of(sde, 2000)
    back = jax.vmap(lambda t: sde.inverse_log_snr(sde.log_snr(t)))(times.astype(np.float32))
    assert back.dtype == np.float32
    # the rounding of lambda, 1e-6, over its slope by log t, which is at least 0.4
    np.testing.assert_allclose(back, times, rtol=3e-6)
    with jax.enable_x64(True):
        back = jax.vmap(lambda t: sde.inverse_log_snr(sde.log_snr(t)))(times)
        np.testing.assert_allclose(back, times, rtol=1e-13)


@pytest.mark.usefixtures("double_precision")
def test_the_reverse_of_gaussian_data_has_the_right_moments_at_every_t(sde):
    """As in test_processes.py: the equations of mean and variance, for the reverse SDE and for the ODE."""
    problem = Gaussian(mean=2.0, std=0.5)
    for t in times_of(sde, 20):
        (mean, std), (mean_rate, std_rate) = jax.jvp(lambda t: problem.marginal(sde, t), (t,), (1.0,))
        for drift_of, noise in ((reverse_drift, sde.diffusion(t) ** 2), (probability_flow_drift, 0.0)):

            def drift(x, t=t, drift_of=drift_of):
                return drift_of(sde, x, t, problem.score(sde, x, t))

            value, slope = jax.jvp(drift, (mean,), (1.0,))
            # differences of terms as large as g^2
            atol = 1e-12 * float(sde.diffusion(t)) ** 2
            np.testing.assert_allclose(mean_rate, value, rtol=1e-7, atol=1e-10 + atol)
            expected = 2 * slope * std**2 - noise
            np.testing.assert_allclose(2 * std * std_rate, expected, rtol=1e-7, atol=1e-9 + 4 * atol)


@pytest.mark.usefixtures("double_precision")
def test_denoising_is_the_posterior_mean_of_gaussian_data(sde):
    check_denoising(sde, times_of(sde, 20))


def test_the_prior_is_the_last_marginal_of_data_that_are_0(sde):
    x = sde.prior(jax.random.key(0), (100_000,))
    # sigma(T) differs from 1 by 2e-5 for the table: less than a hundredth of the bound, which one run in two
    # million exceeds
    assert abs(np.std(x) / float(sde.marginal(sde.T)[1]) - 1) < 5 * 0.0022
    assert abs(np.mean(x)) < 5 * float(sde.T) / np.sqrt(100_000)


# The mean of data ~ N(2, 0.5^2) that the probability flow gives is short by alpha(T)/sigma(T) 2 × 0.5.
SHARE_LEFT_OUT = {"edm": 0.0125, "flow": 2.0**-12, "cosine": 4.93e-5, "table": 6.35e-3}


@pytest.mark.parametrize("name", PATHS)
def test_the_prior_costs_the_mean_what_the_docstring_says(name):
    """From the prior, by a solver with so many steps that its own error is below that of the prior."""
    sde, problem = PATHS[name], Gaussian(mean=2.0, std=0.5)
    alpha_T, sigma_T = (float(value) for value in sde.marginal(sde.T))
    mean, std = (float(value) for value in problem.marginal(sde, sde.eps))
    assert alpha_T / sigma_T == pytest.approx(SHARE_LEFT_OUT[name], rel=3e-3)
    variance = sigma_T**2 if name in ("edm", "flow") else 1.0
    solver = DPMSolverPP(num_steps=1000, grid=UniformLogSNR())
    found, found_variance = final_moments(solver, sde, problem, mean=0.0, variance=variance, num_noises=0)
    # the solver is of second order: with 1,000 steps it is within 3e-6 of the ODE
    assert mean - found == pytest.approx(SHARE_LEFT_OUT[name], rel=5e-3, abs=1e-5)
    assert np.sqrt(found_variance) == pytest.approx(std, rel=2e-4)
    # the reverse SDE forgets its start
    sde_mean, sde_variance = exact_moments(sde, problem, mean=0.0, variance=variance)
    assert mean - sde_mean == pytest.approx(SHARE_LEFT_OUT[name] ** 2 * 0.5, rel=0.05, abs=1e-6)
    assert np.sqrt(sde_variance) == pytest.approx(std, rel=1e-5)


SOLVERS = {
    "ours": AdaptiveExponential(),
    "the paper's": Adaptive(eps_abs=2 / 256, noise_on_rejection="bridge"),
}
SLOW = [(name, "the paper's") for name in PATHS if name != "table"]


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        pytest.param(*pair, marks=pytest.mark.slow if pair in SLOW else ())
        for pair in itertools.product(PATHS, SOLVERS)
    ],
)
def test_the_adaptive_solvers_draw_a_gaussian(name, solver):
    sde, problem, n = PATHS[name], Gaussian(mean=2.0, std=0.5), 1024
    score_fn = problem.score_fn(sde)
    key = jax.random.key(0)
    solution = sample(score_fn, sde, SOLVERS[solver], key=key, shape=(4,), num_samples=n, denoise=False)
    assert solution.failed == 0
    mean, std = (float(value) for value in problem.marginal(sde, sde.eps))
    # Statistical errors: std/√(4n) of the mean and a share of 1/√(8n) of the deviation, each at five times,
    # which one run in two million exceeds. On top, 2 % of the deviation for the solver, its eps_rel.
    assert abs(solution.x.mean() - mean) < 5 * std / np.sqrt(4 * n) + 0.02 * std
    assert abs(solution.x.std() / std - 1) < 5 / np.sqrt(8 * n) + 0.02


def test_the_default_T_of_the_flow_balances_the_prior_and_rounding():
    """alpha + 2^−24/alpha is least there; and T is exact in float32."""
    sde = RectifiedFlow()
    assert np.float32(sde.T) == sde.T
    shares = 2.0 ** np.arange(-20, -4)
    assert shares[np.argmin(shares + 2.0**-24 / shares)] == 1 - sde.T


def test_the_cosines_default_T_is_where_the_clipped_chain_ends():
    chain = np.prod(1 - COSINE_BETAS)
    assert np.sum(1 - COSINES[1:] / COSINES[:-1] > 0.999) == 1  # the clip changes the last step alone
    with jax.enable_x64(True):
        assert float(CosineVP().marginal(np.float64(CosineVP().T))[0]) ** 2 == pytest.approx(chain, rel=1e-3)
        alpha, _ = jax.vmap(CosineVP().marginal)(jnp.arange(1, 1000) / 1000)
        np.testing.assert_allclose(alpha**2, np.cumprod(1 - COSINE_BETAS)[:-1], rtol=1e-9)


@pytest.mark.parametrize("betas", [DDPM_BETAS, COSINE_BETAS], ids=["ddpm", "cosine"])
@pytest.mark.usefixtures("double_precision")
def test_the_table_is_met_at_its_levels(betas):
    sde, levels = DiscreteVP.from_betas(betas), np.cumprod(1 - betas)
    t = (jnp.arange(1000) + 1) / 1000
    alpha, sigma = jax.vmap(sde.marginal)(t)
    np.testing.assert_allclose(alpha**2, levels, rtol=1e-9)
    np.testing.assert_allclose(sigma**2, 1 - levels, rtol=1e-9)
    np.testing.assert_allclose(jax.vmap(sde.network_time)(t), np.arange(1000), atol=1e-9)
    assert (sde.eps, sde.T, sde.num_levels) == (1e-3, 1.0, 1000)


def test_the_index_is_that_of_the_level_in_float32():
    t = ((np.arange(1000) + 1) / 1000).astype(np.float32)
    index = jax.vmap(PATHS["table"].network_time)(t)
    np.testing.assert_allclose(index, np.arange(1000), rtol=2e-7, atol=2e-7)


@pytest.mark.parametrize("solver", [DDIM(num_steps=49, eta=1.0), AncestralSampling(num_steps=49)])
@pytest.mark.usefixtures("double_precision")
def test_ancestral_sampling_has_the_mean_and_variance_of_the_discrete_posterior(solver):
    """q(x_{i−1} | x_i, x0) of Ho et al. (arXiv 2006.11239, eq. 6 and 7), through a table of 50."""
    betas = np.linspace(0.002, 0.4, 50)
    levels, sde = np.cumprod(1 - betas), DiscreteVP.from_betas(betas)
    x, x0 = 0.7, -1.3
    state = solver.init(sde, jax.random.key(0), (100,), jnp.float64)
    for i in range(49, 0, -1):
        state = dataclasses.replace(state, x=jnp.full(100, x))
        _, t = solver.ask(state)
        assert float(sde.network_time(t)) == pytest.approx(i, abs=1e-9)
        alpha, sigma = sde.marginal(t)
        state = solver.tell(sde, state, (alpha * x0 - state.x) / sigma**2)
        rest = 1 - levels[i]
        mean = (
            np.sqrt(levels[i - 1]) * betas[i] / rest * x0
            + np.sqrt(1 - betas[i]) * (1 - levels[i - 1]) / rest * x
        )
        variance = (1 - levels[i - 1]) / rest * betas[i]
        # the state is affine in its noise z: shift and scale of z are found exactly, from z itself
        z = np.asarray(standard_normal(state.key, state.accepted, state.x.shape, jnp.float64))
        scale, shift = np.polyfit(z, np.asarray(state.x), 1)
        assert shift == pytest.approx(mean, rel=1e-9)
        assert scale**2 == pytest.approx(variance, rel=1e-9)
    assert int(state.status) == 0
    assert float(state.t) == sde.eps


def test_an_abrupt_table_falls_strictly_and_is_inverted():
    generator = np.random.default_rng(0)
    for _ in range(10):
        betas = 10 ** generator.uniform(-4, -0.3, 12)
        sde = DiscreteVP.from_betas([*betas, 0.999])
        with jax.enable_x64(True):
            t: Any = np.linspace(sde.eps, sde.T, 3001)
            log_snr = jax.vmap(sde.log_snr)(t)
            assert np.all(np.diff(log_snr) < 0)
            assert np.all(np.asarray(jax.vmap(sde.diffusion)(t)) > 0)
            back = jax.vmap(sde.inverse_log_snr)(log_snr)
            # where the slope nearly vanishes, t is determined less sharply than the log-SNR
            np.testing.assert_allclose(jax.vmap(sde.log_snr)(back), log_snr, atol=1e-9)


def test_a_parabola_is_its_own_interpolation():
    index = np.arange(6.0)
    np.testing.assert_allclose(monotone_slopes(-1 - index - 0.1 * index**2), -1 - 0.2 * index)
    # a jump after small differences: at most twice the smaller, at the end at least a third
    np.testing.assert_allclose(monotone_slopes(np.array([0.0, -1.0, -11.0, -12.0])), [-1 / 3, -2, -2, -1 / 3])


def linear_log_alpha(table, t):
    """g^2 of DPM-Solver's interpolation, with log alpha linear between levels."""
    interval = np.clip(np.floor(len(table) * t - 1), 0, len(table) - 2).astype(int)
    return -len(table) * np.diff(np.log(table))[interval]


# process, number of levels; largest error of g^2 between levels: ours, with linear log alpha; the latter's
# largest jump
INTERPOLATIONS = [
    ("vp", 1000, 1e-9, 0.083, 0.153),
    ("vp", 50, 1e-9, 0.41, 0.58),
    ("cosine", 1000, 8e-5, 0.056, 0.105),
    ("cosine", 50, 0.022, 0.36, 0.53),
]


@pytest.mark.parametrize(("name", "number", "ours", "theirs", "jump"), INTERPOLATIONS)
@pytest.mark.usefixtures("double_precision")
def test_the_cubic_has_no_jumps_and_is_nearer_to_a_smooth_schedule(name, number, ours, theirs, jump):
    """Tables of a smooth process's levels, where alpha > 0.1; docs/models.md has the figures."""
    smooth = {**SDES, **PATHS}[name]
    levels = np.append((np.arange(number - 1) + 1) / number, smooth.T)
    alpha, _ = jax.vmap(smooth.marginal)(levels)
    table = np.asarray(alpha) ** 2
    sde = DiscreteVP(table)
    t: Any = np.linspace(sde.eps, np.max(levels[np.asarray(alpha) > 0.1]), 20 * number)
    exact = np.asarray(jax.vmap(smooth.diffusion)(t)) ** 2
    error = np.abs(np.asarray(jax.vmap(sde.diffusion)(t)) ** 2 / exact - 1).max()
    other = np.abs(linear_log_alpha(table, t) / exact - 1).max()
    inside: Any = levels[1:-1][levels[1:-1] < t[-1]]
    before, after = (np.asarray(jax.vmap(sde.diffusion)(inside + side)) ** 2 for side in (-1e-10, 1e-10))
    np.testing.assert_allclose(before, after, rtol=1e-6)
    before, after = (linear_log_alpha(table, inside + side) for side in (-1e-10, 1e-10))
    jumped = np.abs(after / before - 1).max()
    assert error < ours
    assert (other, jumped) == (pytest.approx(theirs, rel=0.03), pytest.approx(jump, rel=0.03))


def test_processes_are_pytrees_of_distinct_structure_whose_numbers_are_leaves():
    structures = [jax.tree.structure(sde) for sde in (*SDES.values(), *PATHS.values())]
    assert all(a != b for a, b in itertools.combinations(structures, 2))
    compiled = jax.jit(lambda sde, t: sde.marginal(t))
    for last in (0.02, 0.03):
        compiled(DiscreteVP.from_betas(np.linspace(1e-4, last, 1000)), 0.5)
    assert compiled._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EDMProcess(eps=90.0), r"eps must be a time above zero and below T = 80.0 \(got 90.0\)"),
        (lambda: EDMProcess(T=0.0), r"T must be a number > 0 \(got 0.0\): set T above zero"),
        (lambda: RectifiedFlow(T=1.0), r"T must be a time above 0 and below 1, where alpha is 0 \(got 1.0\)"),
        (lambda: RectifiedFlow(T=0.5), r"T must be .*, with alpha\(T\) <= 0.05 \(got 0.5\): raise T, since"),
        (lambda: CosineVP(T=1.0), r"T must be a time above 0 and below 1, where alpha is 0 \(got 1.0\)"),
        (lambda: CosineVP(T=0.9), r"T must be .*, with alpha\(T\) <= 0.05 \(got 0.9\): raise T"),
        (lambda: CosineVP(s=0.0), r"s must be a number > 0 \(got 0.0\): set s above zero"),
        (lambda: DiscreteVP([0.5, 0.001]), r"alphas_cumprod must be a vector of at least three levels \(got"),
        (lambda: DiscreteVP([0.9, 0.5, 0.0]), r"alphas_cumprod must be numbers that fall strictly.* 1 or 0"),
        (lambda: DiscreteVP([0.001, 0.5, 0.9]), r"alphas_cumprod must be numbers that fall strictly"),
        (lambda: DiscreteVP([0.9, 0.5, 0.1]), r"alphas_cumprod must be a table whose last alpha is <= 0.1"),
        (lambda: DiscreteVP([0.9, np.nan, 0.001]), r"alphas_cumprod must be numbers that fall strictly"),
    ],
)  # fmt: skip
def test_bad_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_stable_diffusions_table_is_taken():
    """sqrt(beta) even from 0.00085 to 0.012: alpha(T) = 0.068, above the bound for VPSDE."""
    sde = DiscreteVP.from_betas(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    assert float(sde.marginal(1.0)[0]) == pytest.approx(0.068, abs=5e-4)
