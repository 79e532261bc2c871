"""The exponential integrators: their orders, the problems they solve exactly, the settings they refuse."""

import dataclasses
import functools
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import ddim, dpm_solver, er_sde, sa_solver
from solvers.ddim import DDIM
from solvers.deis import DEIS, Polynomial
from solvers.dpm_solver import DPMSolverPP, SDEDPMSolverPP
from solvers.er_sde import ERSDE
from solvers.exponential import moments, steps_back
from solvers.fixed_steps import Correction
from solvers.grids import Rho, UniformLogSNR, UniformTime
from solvers.interface import Status
from solvers.noise import standard_normal
from solvers.sa_solver import SASolver
from solvers.unipc import UniPC
from tests.problems import SDES, Gaussian

# The steps of Rho vary both in log-SNR and in t, which reveals a coefficient that is right for equal steps
# only. Uniform steps in log-SNR flatter 3M: on Gaussian data the third-order terms of its error nearly
# cancel.
ODE_SOLVERS = {  # and the order of the global error
    "ddim": (DDIM(grid=Rho()), 1),
    "dpm_solver_pp_2m": (DPMSolverPP(grid=Rho(), order=2), 2),
    "dpm_solver_pp_3m": (DPMSolverPP(grid=Rho(), order=3), 3),
    "unipc_2": (UniPC(grid=Rho(), order=2), 3),  # the corrector's order: p + 1
    "unipc_3": (UniPC(grid=Rho(), order=3), 4),
    "deis": (DEIS(grid=Rho()), 3),
    "deis_log_rho": (DEIS(grid=Rho(), polynomial="log_rho"), 3),
    # the corrector's order, as the predictor's is one less
    "sa_solver_2": (SASolver(grid=Rho(), tau=0.0, predictor_order=1, corrector_order=2), 2),
    "sa_solver_3": (SASolver(grid=Rho(), tau=0.0, predictor_order=2, corrector_order=3), 3),
    "sa_solver_4": (SASolver(grid=Rho(), tau=0.0), 4),
}


def log_noise_scale(log_rho):
    """log φ of ER-SDE-Solver."""
    return log_rho + jnp.log(jnp.exp(jnp.exp(0.3 * log_rho)) + 10)


def er_sde_eta(log_rho):
    return jnp.sqrt(jax.vmap(jax.grad(log_noise_scale))(log_rho) - 1)


SDE_SOLVERS: dict[str, Any] = {  # the order of the weak error, and the share η of the reverse SDE's noise
    "ddim_eta_1": (DDIM(grid=Rho(), eta=1.0), 1, 1.0),
    "ddim_eta_half": (DDIM(grid=Rho(), eta=0.5), 1, 0.5),
    # The order of the variance is 2 at most, since the noise of the last steps is seen too late. At order 3
    # that error is small, and shows from 640 steps on. On Rho(7), other terms of the error cancel here.
    "er_sde_1": (ERSDE(grid=Rho(rho=30.0), order=1), 1, er_sde_eta),
    "er_sde_2": (ERSDE(grid=Rho(rho=30.0), order=2), 2, er_sde_eta),
    "er_sde_3": (ERSDE(grid=Rho(rho=30.0), order=3), 3, er_sde_eta),
    "sa_solver": (SASolver(grid=Rho(rho=30.0)), 2, 1.0),
    # The noise of a step reaches D one step later and is then extrapolated by half a step, the mean time
    # since it arose. The variance lacks only the response to the noise of the last step within that step: one
    # error of h² in all, not one per step.
    "sde_dpm_solver_pp_2m": (SDEDPMSolverPP(grid=Rho()), 2, 1.0),
}


@pytest.fixture(autouse=True)
def in_float64():
    """Errors of order 4 are below the rounding of float32."""
    with jax.enable_x64(True):
        yield


def solve(solver, sde, mean, std, num_steps, x):
    """The state after all the steps from x at T, with the exact score of N(mean, std² I)."""
    problem = Gaussian(mean, std)
    solver = dataclasses.replace(solver, num_steps=num_steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(sde), "prior", lambda *_: x)
        state = solver.init(sde, jax.random.key(0), x.shape, x.dtype)

    def step(_, state):
        return solver.tell(sde, state, problem.score(sde, *solver.ask(state)))

    return jax.lax.fori_loop(0, num_steps, step, state)


solve_compiled = jax.jit(solve)


def global_error(solver, sde, num_steps, mean=0.3, std=0.2):
    """The error at eps in standard deviations: the flow of Gaussian data keeps every sample's z-score."""
    problem = Gaussian(mean, std)
    begin, end = problem.marginal(sde, sde.T), problem.marginal(sde, sde.eps)
    z = jnp.array([-2.0, -0.5, 0.0, 1.5])
    x = begin[0] + z * begin[1]
    state = solve_compiled(solver, sde, mean, std, num_steps, x)
    assert state.t == sde.eps
    assert state.status == Status.COMPLETED
    return float(jnp.max(jnp.abs((state.x - end[0]) / end[1] - z)))


MOST_STEPS = 160


def one_noise_each(key, index, shape, dtype):
    """Replaces the random numbers: element n is 1 in the n-th draw and 0 otherwise."""
    return (jnp.arange(*shape) == index).astype(dtype)


@jax.jit
def responses(solver, sde, mean, std, num_steps):
    """The final x without noise, for unit noise in each step, and for a unit more at T: shape [most + 2].

    For Gaussian data every step is affine in x and in the noise, and acts on each element separately.
    """
    start, _ = Gaussian(mean, std).marginal(sde, sde.T)
    x = jnp.full(MOST_STEPS + 2, start).at[-1].add(1.0)
    with pytest.MonkeyPatch.context() as patch:
        for module in (ddim, dpm_solver, er_sde, sa_solver):
            patch.setattr(module, "standard_normal", one_noise_each)
        return solve(solver, sde, mean, std, num_steps, x).x


def weak_errors(solver, sde, num_steps, eta, mean=0.3, std=0.2):
    """Errors: of the mean, in true deviations; of the rest of a shift at T, and of the variance, relative.

    In log-SNR λ and with v the variance, a shift y from the true mean follows
    dy/dλ = (d log v/dλ − 2 η² σ²/v) y/2, whose solution is y ∝ √v exp(−∫ η² σ²/v dλ).
    """
    problem = Gaussian(mean, std)
    (_, begin), (true_mean, end) = (problem.marginal(sde, t) for t in (sde.T, sde.eps))
    nodes, weights = np.polynomial.legendre.leggauss(400)
    first, last = sde.log_snr(sde.T), sde.log_snr(sde.eps)
    log_rho = -(first + (last - first) * (1 + nodes) / 2)
    share: Any = eta(log_rho) if callable(eta) else eta
    rho = jnp.exp(log_rho)
    lost = jnp.sum(weights * share**2 * rho**2 / (std**2 + rho**2)) * (last - first) / 2
    x = responses(solver, sde, mean, std, num_steps)
    shift, noise = x[-1] - x[0], x[1:-1] - x[0]
    variance = jnp.sum(noise**2) + (shift * begin) ** 2
    errors = (x[0] - true_mean) / end, shift / (end / begin * jnp.exp(-lost)) - 1, variance / end**2 - 1
    return tuple(abs(float(error)) for error in errors)


def fitted_order(steps, errors):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def in_turn(names):
    """All pairs with the three processes; one process for each name is quick, the others are slow."""
    return [
        pytest.param(name, sde, marks=() if i % 3 == j else pytest.mark.slow, id=f"{name}-{sde}")
        for i, name in enumerate(names)
        for j, sde in enumerate(SDES)
    ]


@pytest.mark.parametrize(("name", "sde"), in_turn(ODE_SOLVERS))
def test_the_global_error_has_its_order(name, sde):
    solver, order = ODE_SOLVERS[name]
    steps = (80, 160, 320)
    errors = [global_error(solver, SDES[sde], n) for n in steps]
    # 0.3 is far less than the distance to the next order; at these steps all are within 0.16
    assert abs(fitted_order(steps, errors) - order) < 0.3
    assert errors[-1] < 0.05


@pytest.mark.parametrize(
    ("sde", "grid", "factor"),
    [
        ("vp", UniformLogSNR(), 14.2),
        ("vp", Rho(), 11.2),
        ("vp", UniformTime(), 0.57),
        ("ve", UniformLogSNR(), 1.0),  # where log σ is linear in t
    ],
)
def test_the_polynomial_of_deis_that_is_closer_depends_on_the_grid(sde, grid, factor):
    """The error with polynomials in t over that with log ρ, as docs/solvers.md states it."""
    of_t, of_log_rho = (
        global_error(DEIS(grid=grid, polynomial=polynomial), SDES[sde], 20)
        for polynomial in get_args(Polynomial)
    )
    assert of_t / of_log_rho == pytest.approx(factor, rel=0.02)  # 0.57 has two digits


@pytest.mark.parametrize(("name", "sde"), in_turn(SDE_SOLVERS))
def test_the_weak_error_has_its_order(name, sde):
    solver, order, eta = SDE_SOLVERS[name]
    steps = (40, 80, MOST_STEPS)
    errors = np.array([weak_errors(solver, SDES[sde], n, eta) for n in steps])
    of_mean, of_shift, of_variance = errors.T
    assert of_mean.max() < 1e-12  # the true mean is kept to rounding, since D is exact there
    assert abs(fitted_order(steps, of_variance) - order) < 0.3
    if eta != 1:
        assert abs(fitted_order(steps, of_shift) - order) < 0.3
    else:
        # D is a martingale of the full reverse SDE: the D of a step is right in the mean for all later steps.
        # The shift has shrunk to 1e-5, relative to which float64's 1e-16 becomes 1e-11.
        assert of_shift.max() < 1e-9


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("name", ODE_SOLVERS)
def test_a_single_point_of_data_is_solved_exactly_in_any_number_of_steps(name, sde):
    """The denoised prediction is then that point, and the noise prediction keeps its first value.

    sigma(eps) is as small as 1e-4 of the terms it is computed from, hence 1e-9 with float64's 1e-16.
    """
    for num_steps in (3, 7):
        assert global_error(ODE_SOLVERS[name][0], SDES[sde], num_steps, std=0.0) < 1e-9


@pytest.mark.parametrize(("name", "sde"), in_turn(SDE_SOLVERS))
def test_a_single_point_of_data_gives_the_exact_moments_in_any_number_of_steps(name, sde):
    solver, _, eta = SDE_SOLVERS[name]
    of_mean, _, of_variance = weak_errors(solver, SDES[sde], 3, eta, std=0.0)
    assert max(of_mean, of_variance) < 1e-9


@pytest.mark.parametrize(
    ("solver", "first_order"),
    [
        (DPMSolverPP(order=2), DDIM(eta=0.0)),
        (DPMSolverPP(order=3), DDIM(eta=0.0)),
        (UniPC(order=3), DDIM(eta=0.0)),
        (DEIS(), DDIM(eta=0.0)),
        (DEIS(polynomial="log_rho"), DDIM(eta=0.0)),
        (SDEDPMSolverPP(), DDIM(eta=1.0)),
        (SASolver(tau=0.0), DDIM(eta=0.0)),
        (SASolver(tau=1.0), DDIM(eta=1.0)),
    ],
)
def test_the_first_step_is_one_of_ddim(solver, first_order):
    sde = SDES["subvp"]
    x = []
    for chosen in (solver, first_order):
        chosen = dataclasses.replace(chosen, num_steps=5, grid=UniformLogSNR())

        @functools.partial(jax.jit, static_argnums=0)
        def first(shape, chosen=chosen):
            state = chosen.init(sde, jax.random.key(3), shape, jnp.float64)
            return chosen.tell(sde, state, Gaussian().score(sde, *chosen.ask(state))).x

        x.append(first((8,)))
    np.testing.assert_allclose(*x, rtol=1e-12)


def test_the_first_step_of_er_sde_is_the_papers():
    """Of x/α, with ρ: from y to r y + (1 − r) D + √(ρ'² − r² ρ²) z, where r = φ(ρ')/φ(ρ)."""
    sde, solver, key = SDES["subvp"], ERSDE(num_steps=5), jax.random.key(3)
    state = jax.jit(solver.init, static_argnums=(2, 3))(sde, key, (8,), jnp.float64)
    told = jax.jit(solver.tell)(sde, state, Gaussian().score(sde, state.x, state.t))
    (alpha, sigma), (alpha_next, sigma_next) = (sde.marginal(t) for t in (state.t, told.t))
    rho, rho_next = sigma / alpha, sigma_next / alpha_next
    r = jnp.exp(log_noise_scale(jnp.log(rho_next)) - log_noise_scale(jnp.log(rho)))
    denoised = (state.x + sigma**2 * Gaussian().score(sde, state.x, state.t)) / alpha
    noise = jnp.sqrt(rho_next**2 - r**2 * rho**2) * standard_normal(key, jnp.int32(1), (8,), jnp.float64)
    y = r * state.x / alpha + (1 - r) * denoised + noise
    np.testing.assert_allclose(told.x, alpha_next * y, rtol=1e-11)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-7), (np.float32, 1e-5)])
def test_the_integrals_of_er_sde_have_their_digits(dtype, tolerance):
    """φ(ρ') ∫ s^k dφ/φ² against 100 Gauss–Legendre nodes in ρ, after integration by parts, in float64.

    In float64, eight nodes lose eight digits at h = 4; the tolerance in float32 is a hundred roundings.
    """
    rho, h = np.meshgrid(np.geomspace(1e-3, 1e4, 40), [0.1, 0.5, 1.0, 2.0, 4.0])
    end, h = (h - np.log(rho)).ravel().astype(dtype), h.ravel().astype(dtype)
    found = np.asarray(jax.vmap(lambda end, h: jnp.stack(er_sde.er_moments(end, h, 3)))(end, h))
    assert found.dtype == dtype
    end, h = end.astype(float)[:, None], h.astype(float)[:, None]
    nodes, weights = np.polynomial.legendre.leggauss(100)
    s = (1 + nodes) / 2
    log_rho = h - end + np.log1p(s * np.expm1(-h))
    ratio = np.exp(log_noise_scale(-end) - log_noise_scale(log_rho))  # φ(ρ')/φ(ρ)
    exact = [1 - np.sum(ratio * k * s ** (k - 1) * weights / 2, axis=1) for k in (1, 2)]
    np.testing.assert_allclose(found[:, 1:].T, exact, rtol=tolerance)
    start = np.exp(log_noise_scale(-end) - log_noise_scale(h - end))[:, 0]
    np.testing.assert_allclose(found[:, 0], 1 - start, rtol=tolerance)


def test_a_step_of_sa_solver_without_noise_is_one_of_unipc():
    sde, n, random = SDES["vp"], 5, jax.random.normal(jax.random.key(0), (5, 8), jnp.float64)
    grid, x, history = UniformLogSNR(), random[0], (random[1], random[2])
    told = []
    for solver in (UniPC(num_steps=12), SASolver(num_steps=12, tau=0.0)):
        state = solver.init(sde, jax.random.key(0), (8,), jnp.float64)
        state = dataclasses.replace(
            state,
            x=x,
            t=grid.time(sde, n / 12),
            accepted=jnp.int32(n),
            history=history,
            correction=Correction(without=random[3], weight=jnp.float64(0.2)),
        )
        told.append(jax.jit(solver.tell)(sde, state, random[4]))
    of_unipc, of_sa_solver = ((state.x, state.correction.without, state.correction.weight) for state in told)
    for one, other in zip(of_unipc, of_sa_solver, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_short_runs_look_back_less_at_the_end():
    assert [int(steps_back(jnp.int32(n), 5)) for n in range(5)] == [0, 1, 2, 1, 0]
    assert [int(steps_back(jnp.int32(n), 11)) for n in range(11)] == list(range(11))


@pytest.mark.parametrize(
    "solver", [DPMSolverPP(order=2), DPMSolverPP(order=3), UniPC(order=3), ERSDE(), SASolver()]
)
def test_the_last_of_few_steps_is_of_first_order(solver):
    """A modified history does not change it."""
    sde, n = SDES["vp"], 4
    solver = dataclasses.replace(solver, num_steps=n)
    state = solver.init(sde, jax.random.key(0), (3,), jnp.float64)
    state = dataclasses.replace(state, t=UniformLogSNR().time(sde, (n - 1) / n), accepted=jnp.int32(n - 1))
    tampered = dataclasses.replace(state, history=tuple(past + 1.0 for past in state.history))
    tell = jax.jit(lambda state: solver.tell(sde, state, -state.x).x)
    np.testing.assert_array_equal(tell(state), tell(tampered))


def test_moments_keep_their_digits_at_every_step():
    """∫₀¹ h e^(−h(1−s)) s^k ds, in float32, against forty Gauss–Legendre nodes in float64."""
    h = np.geomspace(1e-6, 30.0, 200).astype(np.float32)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    s = (nodes + 1) / 2
    kernel = h[:, None] * np.exp(-h[:, None].astype(float) * (1 - s)) * weights / 2
    found = jax.vmap(lambda h: jnp.stack(moments(h, 4)))(jnp.asarray(h))
    assert found.dtype == jnp.float32
    # at h = 1, where the two recursions meet, the forward one loses two and a half bits at each k
    for k in range(4):
        np.testing.assert_allclose(found[:, k], kernel @ s**k, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("solver", [s for s, *_ in (*ODE_SOLVERS.values(), *SDE_SOLVERS.values())])
def test_a_step_keeps_every_dtype(solver, sde, dtype):
    sde = SDES[sde]
    state = jax.eval_shape(lambda: solver.init(sde, jax.random.key(0), (4, 4, 1), dtype))
    x, t = jax.eval_shape(solver.ask, state)
    told = jax.eval_shape(lambda state, x: solver.tell(sde, state, x), state, x)
    assert x.dtype == t.dtype == dtype
    kinds = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (state, told)]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIM(eta=1.1), r"eta must be a number in \[0, 1\] \(got 1.1\): set eta to 0"),
        (lambda: DDIM(eta=-0.1), r"eta must be a number in \[0, 1\] \(got -0.1\)"),
        (lambda: DDIM(eta=float("nan")), r"eta must be a number in \[0, 1\] \(got nan\)"),
        (lambda: DDIM(num_steps=0), r"num_steps must be a whole number >= 1 \(got 0\)"),
        (lambda: DPMSolverPP(order=1), r"order must be 2 or 3 \(got 1\): use DDIM with eta = 0"),
        (lambda: DPMSolverPP(order=4), r"order must be 2 or 3 \(got 4\)"),
        (
            lambda: DPMSolverPP(num_steps=2),
            r"num_steps must be at least 3 for a solver of order 3 \(got 2\): take more steps or",
        ),
        (
            lambda: DPMSolverPP(num_steps=1, order=2),
            r"num_steps must be at least 2 for a solver of order 2 \(got 1\)",
        ),
        (
            lambda: SDEDPMSolverPP(num_steps=1),
            r"num_steps must be at least 2 for a solver of order 2 \(got 1\)",
        ),
        (lambda: UniPC(order=1), r"order must be 2 or 3 \(got 1\)"),
        (lambda: UniPC(num_steps=2), r"num_steps must be at least 3 for a solver of order 3 \(got 2\)"),
        (lambda: UniPC(num_steps=0), r"num_steps must be a whole number >= 1 \(got 0\)"),
        (lambda: DEIS(num_steps=2), r"num_steps must be at least 3 for a solver of order 3 \(got 2\)"),
        (lambda: DEIS(polynomial="rho"), r"polynomial must be one of 't', 'log_rho' \(got 'rho'\)"),  # pyright: ignore[reportArgumentType]
        (lambda: ERSDE(order=4), r"order must be 1, 2 or 3 \(got 4\)"),
        (lambda: ERSDE(num_steps=2), r"num_steps must be at least 3 for a solver of order 3 \(got 2\)"),
        (lambda: SASolver(tau=-0.1), r"tau must be a finite number >= 0 \(got -0.1\): set tau to 0 for the"),
        (lambda: SASolver(tau=float("inf")), r"tau must be a finite number >= 0 \(got inf\)"),
        (lambda: SASolver(predictor_order=4), r"predictor_order must be 1, 2 or 3 \(got 4\)"),
        (lambda: SASolver(corrector_order=0), r"corrector_order must be 1, 2, 3 or 4 \(got 0\)"),
        (lambda: SASolver(num_steps=2), r"num_steps must be at least 3 for a solver of order 3 \(got 2\)"),
    ],
)
def test_settings_that_a_method_cannot_take_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_smallest_numbers_of_steps_are_accepted():
    for solver in (DDIM(num_steps=1), DPMSolverPP(num_steps=3), UniPC(num_steps=3), DEIS(num_steps=3)):
        assert solver.num_steps <= 3
    assert ERSDE(num_steps=1, order=1).num_steps == SASolver(num_steps=1, predictor_order=1).num_steps == 1
    assert DPMSolverPP(num_steps=2, order=2).grid == UniformLogSNR()
    assert DDIM().grid == UniformTime()
