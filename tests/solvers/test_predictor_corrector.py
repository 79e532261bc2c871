"""The formulas and orders of the predictors, and their alternation with the corrector."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VESDE, VPSDE, SubVPSDE, reverse_drift
from solvers import Adaptive, EulerMaruyama, Status, sample
from solvers.grids import Rho, UniformTime
from solvers.noise import standard_normal
from solvers.predictor_corrector import AncestralSampling, PredictorCorrector, ReverseDiffusion, transition
from tests.problems import SDES, Gaussian
from tests.solvers.moments import exact_moments, final_moments, final_samples, fitted_order

# mild enough for the leading error to dominate from 32 steps on
MILD = {
    "ve": VESDE(0.1, 2.0),
    "vp": VPSDE(0.1, 4.0, eps=0.02, T=2.0),
    "subvp": SubVPSDE(0.1, 4.0, eps=0.02, T=2.0),
}
PRIOR_VARIANCE = {"ve": 4.0, "vp": 1.0, "subvp": 1.0}
STEPS = [32, 64, 128, 256]
# all pairs but ancestral sampling on sub-VP, and EDM's grid for two of them
CASES = [
    (EulerMaruyama, "ve", UniformTime()),
    (EulerMaruyama, "vp", UniformTime()),
    (EulerMaruyama, "subvp", UniformTime()),
    (ReverseDiffusion, "ve", UniformTime()),
    (ReverseDiffusion, "vp", UniformTime()),
    (ReverseDiffusion, "vp", Rho()),
    (ReverseDiffusion, "subvp", UniformTime()),
    (AncestralSampling, "ve", UniformTime()),
    (AncestralSampling, "ve", Rho()),
    (AncestralSampling, "vp", UniformTime()),
]


@pytest.mark.parametrize(("predictor", "name", "grid"), CASES)
def test_weak_order_one(predictor, name, grid):
    """Each step's law differs from the reverse SDE's by O(h²) in its mean and in its variance, or not at all.

    The mean of ancestral sampling is exact, since E[x(t') | x(t)] is affine in the denoised x(0). For VE,
    that of reverse diffusion is the same and also exact. Only rounding is left in these.
    """
    sde, problem, begin = MILD[name], Gaussian(), {"mean": 0.0, "variance": PRIOR_VARIANCE[name]}
    exact = exact_moments(sde, problem, **begin)
    found = [
        final_moments(predictor(num_steps=n, grid=grid), sde, problem, num_noises=max(STEPS), **begin)
        for n in STEPS
    ]
    in_mean, in_variance = np.transpose(np.subtract(found, exact))
    assert abs(fitted_order(STEPS, in_variance) - 1) < 0.3
    if predictor is AncestralSampling or (predictor is ReverseDiffusion and name == "ve"):
        # 256 steps that round a number below 1 by 1.1e-16
        assert np.abs(in_mean).max() < 256 * 1.1e-16
    else:
        assert abs(fitted_order(STEPS, in_mean) - 1) < 0.3


def levels(sde, t, t_next):
    """((alpha, alpha'), (sigma, sigma')) at the two times."""
    return np.transpose([[float(part) for part in sde.marginal(time)] for time in (t, t_next)])


def by_hand(predictor, name, alphas, sigmas, x, score, z):
    """The published update from t to t'."""
    (alpha, alpha_next), (sigma, sigma_next) = alphas, sigmas
    beta = 1 - (alpha / alpha_next) ** 2
    match predictor, name:
        case "reverse", "ve":
            return x + (sigma**2 - sigma_next**2) * score + np.sqrt(sigma**2 - sigma_next**2) * z
        case "reverse", "vp":
            return (2 - np.sqrt(1 - beta)) * x + beta * score + np.sqrt(beta) * z
        case "ancestral", "ve":
            difference = sigma**2 - sigma_next**2
            return x + difference * score + np.sqrt(sigma_next**2 * difference / sigma**2) * z
        case _:
            # Ho et al.'s "beta tilde", their alpha bar being alpha²
            tilde = (1 - alpha_next**2) / (1 - alpha**2) * beta
            return (x + beta * score) / np.sqrt(1 - beta) + np.sqrt(tilde) * z


def state_after(solver, sde, done):
    """A float64 state after ``done`` steps, and a score for it."""
    state = solver.init(sde, jax.random.key(1), (5,), jnp.float64)
    t = solver.grid.time(sde, jnp.float64(done / solver.num_steps))
    state = dataclasses.replace(state, t=t, accepted=jnp.int32(done))
    return state, jnp.asarray([-2.0, -0.1, 0.0, 0.3, 5.0], jnp.float64)


@pytest.mark.parametrize("name", ["ve", "vp"])
@pytest.mark.parametrize("predictor", ["reverse", "ancestral"])
def test_a_step_is_the_published_formula(predictor, name):
    with jax.enable_x64(True):
        sde = SDES[name]
        solver = {"reverse": ReverseDiffusion, "ancestral": AncestralSampling}[predictor](num_steps=10)
        state, score = state_after(solver, sde, done=3)
        after = solver.tell(sde, state, score)
        alphas, sigmas = levels(sde, *(jnp.float64(sde.T - k / 10 * (sde.T - sde.eps)) for k in (3, 4)))
        z = standard_normal(state.key, jnp.int32(4), (5,), jnp.float64)
        expected = by_hand(predictor, name, alphas, sigmas, state.x, score, z)
        # differences of variances lose a digit or two of sixteen
        np.testing.assert_allclose(after.x, expected, rtol=1e-13, atol=1e-13)
        assert after.accepted == 4


def test_reverse_diffusion_has_the_published_chain():
    """β_i = 1 − r² is b − b²/2 + … with b = β h in the middle of the step; b < 0.02 at 1,000."""
    with jax.enable_x64(True):
        sde = SDES["vp"]
        times = jnp.linspace(sde.eps, sde.T, 1001)
        _, beta = jax.vmap(transition, (None, 0, 0))(sde, times[1:], times[:-1])
        h = (sde.T - sde.eps) / 1000
        b = np.asarray(jax.vmap(sde.diffusion)((times[1:] + times[:-1]) / 2)) ** 2 * h
    assert b.max() < 0.02
    np.testing.assert_allclose(beta, b - b**2 / 2, rtol=0.02**2 / 5)  # the next term, b³/6, and more


def test_sub_vp_is_discretized_as_by_euler():
    with jax.enable_x64(True):
        sde = SDES["subvp"]
        state, score = state_after(ReverseDiffusion(num_steps=10), sde, done=3)
        after = ReverseDiffusion(num_steps=10).tell(sde, state, score)
        expected = EulerMaruyama(num_steps=10).tell(sde, state, score)
        np.testing.assert_allclose(after.x, expected.x, rtol=1e-14)


def spelt_out(predictor, sde, score, key, shape, num_steps, corrector_steps, snr):
    """Predictor–corrector sampling as a plain loop, in which the corrector's noise has its own key."""
    times = [jnp.float64(sde.T - k / num_steps * (sde.T - sde.eps)) for k in range(num_steps)]
    times.append(jnp.float64(sde.eps))
    x = sde.prior(jax.random.fold_in(key, 0), shape, jnp.float64)
    corrections = 0
    for i, (t, t_next) in enumerate(itertools.pairwise(times)):
        alphas, sigmas = levels(sde, t, t_next)
        for _ in range(corrector_steps):
            corrections += 1
            z = standard_normal(
                jax.random.fold_in(key, 2**32 - 1), jnp.int32(corrections), shape, jnp.float64
            )
            g = score(x, t)
            alpha = 1.0 if isinstance(sde, VESDE) else (alphas[0] / alphas[1]) ** 2
            step = 2 * alpha * (snr * np.linalg.norm(z) / np.linalg.norm(g)) ** 2
            x = x + step * g + np.sqrt(2 * step) * z
        z = standard_normal(key, jnp.int32(i + 1), shape, jnp.float64)
        if predictor == "euler":
            h = t - t_next
            x = x - h * reverse_drift(sde, x, t, score(x, t)) + sde.diffusion(t) * np.sqrt(h) * z
        else:
            x = by_hand(
                predictor, "ve" if isinstance(sde, VESDE) else "vp", alphas, sigmas, x, score(x, t), z
            )
    return x


@pytest.mark.parametrize(
    ("predictor", "name"),
    [("reverse", "ve"), ("ancestral", "vp"), ("euler", "subvp")],
)
def test_correctors_and_predictors_alternate(predictor, name):
    chosen = {"reverse": ReverseDiffusion, "ancestral": AncestralSampling, "euler": EulerMaruyama}[predictor]
    with jax.enable_x64(True):
        sde, key, shape = MILD[name], jax.random.key(5), (3, 2)
        solver = PredictorCorrector(predictor=chosen(num_steps=4), snr=0.2, corrector_steps=2)

        def score(x, t):
            return Gaussian().score(sde, x, t)

        evaluate = jax.jit(lambda state: solver.tell(sde, state, score(*solver.ask(state))))
        state = solver.init(sde, key, shape, jnp.float64)
        for evaluations in range(1, 13):
            state = evaluate(state)
            assert state.accepted == evaluations
            assert state.status == (Status.COMPLETED if evaluations == 12 else Status.RUNNING)
        assert state.t == jnp.float64(sde.eps)
        expected = spelt_out(predictor, sde, score, key, shape, 4, 2, 0.2)
    # twelve steps, each rounded to sixteen digits; the differences in ``by_hand`` lose one or two
    np.testing.assert_allclose(state.x, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def drawn():
    """Draws predictor–corrector samples with given ids from the driver, on EDM's grid and in 16 lanes."""
    sde = SDES["vp"]
    score_fn = Gaussian().score_fn(sde)

    def draw(ids, **settings):
        solver = PredictorCorrector(predictor=ReverseDiffusion(num_steps=20, grid=Rho()), snr=0.1)
        solver = dataclasses.replace(solver, **settings)
        return sample(
            score_fn, sde, solver, key=jax.random.key(0), shape=(2, 2), sample_ids=ids, batch_size=16
        )

    return draw


def test_the_driver_counts_every_evaluation_and_never_compiles_again(drawn):
    found = drawn(range(16))
    np.testing.assert_array_equal(found.nfe, 20 * 2 + 1)
    np.testing.assert_array_equal(found.accepted, 20 * 2)
    assert found.failed == 0
    other = drawn(
        range(16),
        predictor=ReverseDiffusion(num_steps=7, grid=Rho(rho=5.0)),
        corrector_steps=3,
        snr=0.05,
    )
    np.testing.assert_array_equal(other.nfe, 7 * 4 + 1)
    assert other.seconds_compile < 0.5  # a look-up takes about 0.01 s; compiling takes seconds


def test_other_samples_in_the_batch_change_no_bit(drawn):
    np.testing.assert_array_equal(drawn(range(16)).x[8:], drawn(range(8, 24)).x[:8])


def test_the_samples_have_the_moments_of_the_data():
    """16 samples of 512 numbers: the mean has an error of std/√8192, the variance a relative one of 0.0156.

    0.0156 is √(2/8192); five times these are exceeded once in 1.7 million runs. The bias is added: that of
    the predictor alone is known, and that of the corrector is (1 + snr²)(1 + 2/512)² − 1 = 1.8 % of the
    variance. Both are above zero, and the corrector reduces that of the predictor, also in the mean.
    """
    sde, problem, begin = MILD["vp"], Gaussian(), {"mean": 0.0, "variance": 1.0}
    predictor = ReverseDiffusion(num_steps=100)
    alone = final_moments(predictor, sde, problem, num_noises=max(STEPS), **begin)
    exact = exact_moments(sde, problem, **begin)
    x = final_samples(PredictorCorrector(predictor=predictor, snr=0.1), sde, problem, number=16, shape=(512,))
    # if the prior's mean is forgotten, the mean is that of the data, 0.002 from that of the exact reverse
    data_mean = float(problem.marginal(sde, sde.eps)[0])
    slack = abs(alone[0] - exact[0]) + abs(data_mean - exact[0])
    assert abs(x.mean() - exact[0]) < 5 * np.sqrt(exact[1] / 8192) + slack
    share = x.var() / exact[1] - 1
    assert -5 * 0.0156 < share < 5 * 0.0156 + (alone[1] / exact[1] - 1) + 0.018


def test_ancestral_sampling_refuses_sub_vp():
    message = (
        r"sde must be VESDE, VPSDE or DiscreteVP for AncestralSampling \(got 'SubVPSDE'\): "
        r"use ReverseDiffusion or Euler"
    )
    for solver in (AncestralSampling(), PredictorCorrector(predictor=AncestralSampling())):
        with pytest.raises(ValueError, match=message):
            solver.init(SDES["subvp"], jax.random.key(0), (2,), jnp.float32)


BAD: list[tuple[Any, dict[str, Any], str]] = [
    (
        ReverseDiffusion,
        {"num_steps": 0},
        r"num_steps must be a whole number >= 1 \(got 0\): set num_steps to 1 or more",
    ),
    (AncestralSampling, {"num_steps": 2.5}, r"num_steps must be a whole number >= 1 \(got 2.5\)"),
    (PredictorCorrector, {"corrector_steps": 0}, r"corrector_steps must be a whole number >= 1 \(got 0\)"),
    (PredictorCorrector, {"snr": 0.0}, r"snr must be a number > 0 \(got 0.0\): set snr above zero"),
    (PredictorCorrector, {"snr": float("nan")}, r"snr must be a number > 0 \(got nan\)"),
    (
        PredictorCorrector,
        {"predictor": Adaptive()},
        r"predictor must be EulerMaruyama, ReverseDiffusion or AncestralSampling \(got 'Adaptive'\): use one",
    ),
    (
        PredictorCorrector,
        {"predictor": PredictorCorrector()},
        r"predictor must be .* \(got 'PredictorCorrector'\)",
    ),
]


@pytest.mark.parametrize(("solver", "settings", "message"), BAD)
def test_bad_settings_are_refused(solver, settings, message):
    with pytest.raises(ValueError, match=message):
        solver(**settings)
