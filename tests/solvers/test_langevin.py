"""Langevin dynamics: the step, the levels, and the stationary density."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VESDE
from solvers import PredictorCorrector, Status
from solvers.grids import Rho, grid_time
from solvers.langevin import AnnealedLangevin, langevin_step
from tests.problems import SDES, Gaussian
from tests.solvers.moments import final_samples


@pytest.mark.parametrize("name", SDES)
def test_the_step_has_the_ratio_of_signal_to_noise_that_was_asked_for(name):
    """‖ε g‖/‖√(2ε) z‖ = √(ε/2) ‖g‖/‖z‖ is r √α, and √α is the ratio of alpha over the grid's next step."""
    with jax.enable_x64(True):
        sde = SDES[name]
        x, score, z = jax.random.normal(jax.random.key(0), (3, 4, 4), jnp.float64)
        t, t_next = jnp.float64(0.7), jnp.float64(0.5)
        # the two parts of the update, by the sign of the noise
        step_with = jax.jit(lambda z: langevin_step(sde, x, t, t_next, score, z, 0.16))
        forward, backward = step_with(z), step_with(-z)
        signal, noise = (forward + backward) / 2 - x, (forward - backward) / 2
        step = np.asarray(signal / score)
        np.testing.assert_allclose(step, step[0, 0], rtol=1e-12)
        np.testing.assert_allclose(noise, np.sqrt(2 * step) * z, rtol=1e-12)
        drop = 1.0 if name == "ve" else sde.marginal(t)[0] / sde.marginal(t_next)[0]
        ratio = jnp.linalg.norm(signal) / jnp.linalg.norm(noise)
        np.testing.assert_allclose(ratio, 0.16 * drop, rtol=1e-12)


def test_every_level_is_asked_for_and_the_last_is_eps():
    sde, shape = SDES["vp"], (2, 2)
    solver = AnnealedLangevin(num_steps=4, corrector_steps=3, grid=Rho(), snr=0.05)
    with jax.enable_x64(True):
        tell = jax.jit(functools.partial(solver.tell, sde))
        state = solver.init(sde, jax.random.key(0), shape, jnp.float32)
        assert state.t == jnp.float32(sde.T)
        levels = [grid_time(solver.grid, sde, jnp.int32(k), 4, jnp.float32) for k in (0, 1, 2, 3, 4)]
        for k in range(12):
            assert state.status == Status.RUNNING
            x, t = solver.ask(state)
            # compiled or not, an inner time is the same up to a few rounding errors of 6e-8
            np.testing.assert_allclose(t, levels[k // 3 + 1], rtol=1e-6)
            np.testing.assert_allclose(state.t, levels[k // 3], rtol=1e-6)
            state = tell(state, Gaussian().score(sde, x, t))
            assert state.x.dtype == state.t.dtype == jnp.float32
        assert state.status == Status.COMPLETED
        assert state.t == jnp.float32(sde.eps)
        assert state.accepted == 12


def settled(dimension, number, snr, steps):
    """(x − mean)/std after this many steps at eps, starting from exact draws, [number, dimension]."""
    sde, problem = VESDE(), Gaussian()
    mean, std = problem.marginal(sde, sde.eps)
    begin = mean + std * jax.random.normal(jax.random.key(9), (number, dimension))
    solver = AnnealedLangevin(num_steps=1, corrector_steps=steps, snr=snr)
    x = final_samples(solver, sde, problem, number=number, shape=(dimension,), begin=begin)
    return (x - np.asarray(mean)) / np.asarray(std)


def test_the_exact_density_is_stationary_up_to_the_known_bias():
    """With the 3,072 dimensions of an image, after enough steps to forget the start.

    With q = snr², R² = |(x − mean)/std|² goes to R² − 2κR² + κ²R² + 2κ|z|² + noise that averages out, where
    κ = 2q|z|²/R² is the step over the variance: on average to R² − 4qd + 4q(1 + q) d(d + 2)/R². It settles
    near (1 + q)(d + 2), and (1 + q)(1 + 2/d)² is the variance to order 1/d²: 1.0270 here. A deviation from
    it shrinks by 1 − 4q per step: in 60 steps to 0.2 % of the initial 2.7 %.

    16 × 3,072 numbers give a mean with an error of 1/√49152 = 0.0045 and a variance with one of
    √(2/49152) = 0.0064; five times these are exceeded once in 1.7 million runs.
    """
    d, q = 3072, 0.16**2
    residual = settled(d, number=16, snr=0.16, steps=60)
    assert abs(residual.mean()) < 5 * 0.0045 * np.sqrt(1.027)
    assert abs(residual.var() - (1 + q) * (1 + 2 / d) ** 2) < 5 * 0.0064 * 1.027


def test_the_stationary_law_has_the_exact_bias_of_norms_per_sample():
    """E[1/R²] = 1/((1 + q)(d + 2)) exactly where R² is stationary on average (see the test above).

    In 8 dimensions it is therefore 0.0975, where the Gaussian has 1/6. After 80 steps, at 1 − 4q per step,
    0.02 % of the start is left. The error of the mean is estimated from the samples themselves; five times
    that is exceeded once in 1.7 million runs.
    """
    d, q, number = 8, 0.16**2, 10_000
    residual = settled(d, number, snr=0.16, steps=80)
    inverse = 1 / np.sum(residual.astype(np.float64) ** 2, axis=1)
    exact = 1 / ((1 + q) * (d + 2))
    error = inverse.std() / np.sqrt(number)
    assert error < 0.01 * exact  # small enough to distinguish it from the Gaussian's 1/6 and from 1/d
    assert abs(inverse.mean() - exact) < 5 * error


def test_falling_levels_lead_from_the_prior_to_the_data():
    """VE from 50 to 0.01 in 60 levels of 12 steps, 16 samples of 512 dimensions.

    A level lowers log σ² by 0.28, and its steps can lower log V by up to 12 × 0.2² = 0.48: x follows. Below
    σ = std there are 21 levels at which the target hardly changes, where a deviation shrinks by 1 − 4 × 0.2²
    per step: nothing of it is left. The mean has an error of std/√8192, the variance a relative one of
    √(2/8192) = 0.0156; five times these are exceeded once in 1.7 million runs. The bias of (1 + q)(1 + 2/d)²
    is known.
    """
    d, q = 512, 0.2**2
    solver = AnnealedLangevin(num_steps=60, corrector_steps=12, snr=0.2)
    x = final_samples(solver, VESDE(), Gaussian(), number=16, shape=(d,))
    mean, std = Gaussian().marginal(VESDE(), VESDE().eps)
    bias = (1 + q) * (1 + 2 / d) ** 2
    assert abs(x.mean() - mean) < 5 * 0.2 * np.sqrt(bias / 8192)
    assert abs(x.var() / std**2 - bias) < 5 * 0.0156 * bias


def test_levels_that_fall_too_fast_leave_the_samples_noisy():
    """With 5 steps per level, the steps lower log V by at most 5 × 0.2² = 0.20, and the level falls by 0.28.

    x lags by at least 0.08 per level over the 39 levels above σ = std: a factor of 20 in the variance, of
    which less than 0.2 per level can be recovered over the 21 levels below.
    """
    solver = AnnealedLangevin(num_steps=60, corrector_steps=5, snr=0.2)
    x = final_samples(solver, VESDE(), Gaussian(), number=16, shape=(512,))
    assert x.var() > 2 * Gaussian().std ** 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, r"num_steps must be a whole number >= 1 \(got 0\): set num_steps to 1 or more"),
        ({"corrector_steps": 0}, r"corrector_steps must be a whole number >= 1 \(got 0\)"),
        ({"corrector_steps": 1.5}, r"corrector_steps must be a whole number >= 1 \(got 1.5\)"),
        ({"snr": 0.0}, r"snr must be a number > 0 \(got 0.0\): set snr above zero"),
        ({"snr": -0.1}, r"snr must be a number > 0 \(got -0.1\)"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AnnealedLangevin(**settings)


@pytest.mark.parametrize("solver", [AnnealedLangevin(), PredictorCorrector()], ids=["annealed", "corrector"])
def test_samples_of_few_elements_are_warned_of(solver):
    init = functools.partial(solver.init, VESDE(), jax.random.key(0))
    with pytest.warns(UserWarning, match=r"many elements \(got 3\): .* comes out about 2\.8 times too large"):
        init(shape=(3,), dtype=jnp.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        init(shape=(8, 8), dtype=jnp.float32)
