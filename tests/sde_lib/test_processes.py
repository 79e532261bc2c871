"""Compares the processes with their own moment equations and closed forms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config
from sde_lib import VESDE, VPSDE, SubVPSDE, from_config, probability_flow_drift, reverse_drift
from tests.problems import SDES, Gaussian
from tests.sde_lib.closed_forms import check_denoising, check_moment_equations

TIMES = np.array([1e-3, 0.01, 0.1, 0.3, 0.7, 1.0], np.float32)


@pytest.fixture(params=SDES.values(), ids=list(SDES))
def sde(request):
    return request.param


@pytest.mark.usefixtures("double_precision")
def test_the_marginal_solves_the_moment_equations(sde):
    check_moment_equations(sde, np.asarray(TIMES, np.float64))


def test_log_snr_is_that_of_the_marginal_and_falls(sde):
    alpha, sigma = jax.vmap(sde.marginal)(TIMES)
    log_snr = jax.vmap(sde.log_snr)(TIMES)
    # float32: lambda reaches 9, and its last bits are 1e-6
    np.testing.assert_allclose(log_snr, jnp.log(alpha / sigma), rtol=1e-5, atol=2e-6)
    assert np.all(np.diff(log_snr) < 0)


def test_inverse_log_snr_inverts(sde):
    back_and_forth = jax.vmap(lambda t: sde.inverse_log_snr(sde.log_snr(t)))(TIMES)
    np.testing.assert_allclose(back_and_forth, TIMES, rtol=3e-5)  # the rounding of lambda over its slope


def test_the_inverse_holds_for_a_constant_beta():
    test_inverse_log_snr_inverts(VPSDE(beta_min=8.0, beta_max=8.0))


@pytest.mark.usefixtures("double_precision")
def test_the_reverse_of_gaussian_data_has_the_right_moments_at_every_t(sde):
    """Under both the reverse SDE and the ODE, the mean and variance follow the marginal back in time.

    With the score of a Gaussian, both drifts are affine in x, b + c x. The equations of the moments are then
    closed: d mean/dt = b + c mean, and d var/dt = 2 c var − g^2 (reverse SDE) or 2 c var (ODE).
    """
    problem = Gaussian()
    for t in np.asarray(TIMES, np.float64):
        (mean, std), (mean_rate, std_rate) = jax.jvp(lambda t: problem.marginal(sde, t), (t,), (1.0,))
        for drift_of, noise in ((reverse_drift, sde.diffusion(t) ** 2), (probability_flow_drift, 0.0)):

            def drift(x, t=t, drift_of=drift_of):
                return drift_of(sde, x, t, problem.score(sde, x, t))

            value, slope = jax.jvp(drift, (mean,), (1.0,))
            np.testing.assert_allclose(mean_rate, value, rtol=1e-7, atol=1e-10)
            np.testing.assert_allclose(2 * std * std_rate, 2 * slope * std**2 - noise, rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("double_precision")
def test_denoising_is_the_posterior_mean_of_gaussian_data(sde):
    check_denoising(sde, np.asarray(TIMES, np.float64))


def test_the_prior_has_the_deviation_of_the_last_marginal(sde):
    x = sde.prior(jax.random.key(0), (100_000,))
    _, sigma = sde.marginal(sde.T)
    # the deviation of 1e5 normals has an error of 0.22 %; five times that is exceeded once in two million
    # runs
    assert abs(np.std(x) / sigma - 1) < 5 * 0.0022


@pytest.mark.parametrize("T", [0.5, 0.8, 1.5])
def test_the_prior_of_ve_is_the_marginal_at_its_own_start(T):
    """The deviation of 1e5 normals has an error of 0.22 %; five times that, once in two million runs."""
    sde = VESDE(T=T)
    x = sde.prior(jax.random.key(0), (100_000,))
    assert abs(np.std(x) / (0.01 * 5000**T) - 1) < 5 * 0.0022


@pytest.mark.parametrize("sigma_max", [5.0, 50.0, 380.0, 1348.0])
def test_the_prior_of_ve_is_the_published_one_to_the_bit(sigma_max):
    sde, key = jax.tree.map(jnp.float32, VESDE(sigma_max=sigma_max)), jax.random.key(0)

    def published(sde, key):
        return sde.sigma_max * jax.random.normal(key, (1000,))

    def found(sde, key):
        return sde.prior(key, (1000,))

    np.testing.assert_array_equal(found(sde, key), published(sde, key))
    # compiled, both are rounded in another way
    np.testing.assert_array_equal(jax.jit(found)(sde, key), jax.jit(published)(sde, key))


@pytest.mark.parametrize("process", [VPSDE, SubVPSDE])
def test_a_start_at_which_the_data_still_show_is_refused(process):
    message = (
        r"^T must be a time at which only noise is left, with alpha\(T\) <= 0.05 \(got .*0.5\)+: "
        r"raise T or the betas, since alpha\(T\) = 0.28 "
    )
    with pytest.raises(ValueError, match=message):
        process(T=0.5)
    with pytest.raises(ValueError, match=message):
        process(T=np.float32(0.5))
    with pytest.raises(ValueError, match=r"alpha\(T\) = 0.36"):
        process(beta_max=4.0)
    # these are noise enough
    assert process(T=0.8).marginal(0.8)[0] < 0.05
    assert process(beta_max=4.0, T=2.0).marginal(2.0)[0] < 0.05


def test_a_config_whose_start_is_not_noise_is_refused():
    config = get_config()
    config.sde.T = 0.5
    ve: Any = from_config(config.sde)
    assert ve.prior(jax.random.key(0), (1000,)).std() < 1
    for name in ("vp", "subvp"):
        config.sde.name = name
        with pytest.raises(ValueError, match=r"^config.sde.T must be .* \(got 0.5\)"):
            from_config(config.sde)


def test_a_network_gets_the_published_time_labels(sde):
    t = 0.25
    expected = sde.marginal(t)[1] if isinstance(sde, VESDE) else 999 * t
    np.testing.assert_allclose(sde.network_time(t), expected, rtol=1e-6)


def test_a_networks_output_gives_the_published_score(sde):
    output, t = jnp.array([1.0, -2.0]), 0.25
    expected = output if isinstance(sde, VESDE) else -output / sde.marginal(t)[1]
    np.testing.assert_allclose(sde.score(output, t), expected, rtol=1e-5)


def test_processes_are_pytrees_and_no_value_recompiles():
    compiled = jax.jit(lambda sde, t: sde.marginal(t))
    for sigma_max in (50.0, 380.0):
        compiled(VESDE(sigma_max=sigma_max), 0.5)
    assert compiled._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: VESDE(sigma_min=60.0),
            r"sigma_min must be a level below sigma_max = 50.0 \(got 60.0\): lower sigma_min or",
        ),
        (
            lambda: VESDE(sigma_min=0.0),
            r"sigma_min must be a number > 0 \(got 0.0\): set sigma_min above zero",
        ),
        (lambda: VPSDE(beta_min=30.0), r"beta_min must be a rate up to beta_max = 20.0 \(got 30.0\): lower"),
        (
            lambda: SubVPSDE(eps=2.0),
            r"eps must be a time above zero and below T = 1.0 \(got 2.0\): change eps or T",
        ),
    ],
)
def test_bad_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_config_error_names_the_key():
    config = get_config()
    config.sde.sigma_max = 0.001
    with pytest.raises(
        ValueError, match=r"config.sde.sigma_min must be a level below sigma_max = 0.001 \(got 0.01\)"
    ):
        from_config(config.sde)
    config.sde.name = "vpp"
    with pytest.raises(
        ValueError, match=r"config.sde.name must be one of .* \(got 'vpp'\): did you mean 'vp'\?"
    ):
        from_config(config.sde)
