"""The closed forms of benchmarks/step_control.py against simulation, quadrature and the solver itself."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from benchmarks import step_control
from benchmarks.exact_score import SDES
from benchmarks.step_control import (
    DEVIATION,
    KEPT,
    MEAN,
    error_parts,
    errors_in_tolerance,
    exponent,
    gaussian,
    limit,
    main,
    mean_after_one,
    measure,
    noise_factors,
    on_gaussian,
    rejected_share,
    samples_at,
    second_moment_after_one,
    simulated_after_one,
    simulated_factors,
    step_error,
)
from solvers import Adaptive


@pytest.mark.parametrize("process", ["ve", "vp"])
def test_the_error_of_a_step_grows_as_h_to_3_over_2_by_noise_and_as_h_squared_by_drift(process):
    """The next orders, h^(5/2) and h³, change the slopes by about the largest h over the scale of t, 0.1."""
    sde = SDES[process]
    steps = np.geomspace(1e-4, 2e-3, 4)
    parts = np.array(
        [
            error_parts(gaussian(2), sde, jnp.float32(0.4), jnp.float32(h), jax.random.key(0), num_samples=64)
            for h in steps
        ]
    )
    assert exponent(steps, parts[:, 0]) == pytest.approx(1.5, abs=0.02)
    assert exponent(steps, parts[:, 1]) == pytest.approx(2.0, abs=0.02)


def test_the_error_is_that_of_the_solver():
    """With a tolerance of 1 everywhere, e is the root mean square of E."""
    sde, mixture, n = SDES["vp"], gaussian(2), 4096
    t, h, key = jnp.float32(0.3), jnp.float32(0.01), jax.random.key(0)
    e = errors_in_tolerance(mixture, sde, Adaptive(eps_rel=1e-9, eps_abs=1.0), t, h, key, num_samples=n)
    x = samples_at(mixture, sde, t, key, n)
    error = jax.jit(step_error)(mixture.score_fn(sde), sde, x, t, h, jax.random.normal(key, x.shape))
    # e² has a mean over 2 elements, so that its relative deviation is about 1; five times that of both means
    np.testing.assert_allclose(jnp.mean(error**2), jnp.mean(e**2), rtol=5 * math.sqrt(2 / n))


@pytest.mark.parametrize("policy", KEPT)
def test_the_moments_after_one_rejection_are_those_of_simulation(policy):
    """Within five standard errors, exceeded once in 1.7 million runs."""
    kept, num = KEPT[policy], 100_000
    for d in (1, 3):
        squares = simulated_after_one(kept, d, 1.0, 0.0, num, seed=d) ** 2
        error = squares.std() / math.sqrt(num)
        assert squares.mean() == pytest.approx(second_moment_after_one(kept, d, 1.0), abs=5 * error)
    moved = simulated_after_one(kept, 1, 0.8, 0.5, num, seed=0)
    error = moved.std() / math.sqrt(num)
    assert moved.mean() == pytest.approx(mean_after_one(kept, 0.8, 0.5), abs=5 * error)


def test_redrawing_loses_most_and_a_bridge_nothing():
    moments = [second_moment_after_one(kept, 2, 1.0) for kept in sorted(KEPT.values())]
    assert moments == sorted(moments)
    assert moments[0] < 0.75
    assert moments[-1] == 1
    # in one dimension, E[z²; |z| < 1] is 1 − 2 φ(1) less the probability of the rest
    normal = scipy.stats.norm
    assert second_moment_after_one(0, 1, 1.0) == pytest.approx(1 - 2 * normal.pdf(1), rel=1e-12)


@pytest.mark.parametrize("policy", ["redraw", "hold"])
@pytest.mark.parametrize("d", [2, 8])
def test_the_long_run_is_that_of_simulated_chains(policy, d):
    """At r = 2/3. What the simulation's finite s adds is of second order, below 0.001."""
    found = simulated_factors(policy, d, 2 / 3, chains=4000, tries=130)
    for name, expected in zip(("kappa", "mu"), noise_factors(policy, d), strict=True):
        value, error = found[name]
        assert error < 0.02
        assert value == pytest.approx(expected, abs=5 * error + 0.001)


def test_a_bridge_changes_neither_noise_nor_drift():
    assert noise_factors("bridge", 2) == (1, 0)
    # with many dimensions the others agree with it: a sample's noise then always has the same size
    for policy in ("redraw", "hold"):
        kappa, mu = noise_factors(policy, 100_000)
        assert kappa == pytest.approx(1, abs=1e-6)
        assert mu == pytest.approx(0, abs=1e-6)


def test_the_share_of_rejections_is_that_of_a_simulated_controller():
    random = np.random.default_rng(0)
    log_h, rejected = np.zeros(20_000), []
    for _ in range(60):
        log_e = 1.25 * log_h + 0.15 * random.standard_normal(len(log_h))
        rejected.append(np.mean(log_e > 0))
        log_h += math.log(0.9) - 0.9 * log_e
    # 40 × 20,000 tries, correlated in a chain by at most a few
    assert np.mean(rejected[20:]) == pytest.approx(rejected_share(0.9, 1.25, 0.15), abs=0.003)


def test_without_changes_the_limit_is_the_data():
    """The prior leaves out 0.0066 of the mean of 2 and the end adds α(eps) and σ(eps), below 0.001."""
    mean, deviation = limit(SDES["vp"], 1.0, 0.0)
    assert mean == pytest.approx(MEAN, abs=1e-3)
    assert deviation == pytest.approx(DEVIATION, abs=1e-3)


@pytest.mark.parametrize("policy", ["bridge", pytest.param("redraw", marks=pytest.mark.slow)])
def test_the_solver_converges_to_the_limit_of_its_policy(policy):
    """8,192 numbers; five standard errors, and the rest of the way from this tolerance to zero.

    The way is at most 0.005 of the mean and 0.008 of the deviation in the table of docs/step_control.md. The
    limit of redrawing is off by 0.09 and 0.07.
    """
    record = measure(on_gaussian(2, 0.003, 2 / 3, policy, 8192))
    mean, deviation = limit(SDES["vp"], *noise_factors(policy, 2))
    assert record["mean"] == pytest.approx(mean, abs=5 * 0.55 / math.sqrt(8192) + 0.005)
    assert record["deviation"] == pytest.approx(deviation, abs=5 * 0.55 / math.sqrt(2 * 8192) + 0.008)


def test_a_run_is_kept_and_read_again(tmp_path, monkeypatch):
    path, calls = tmp_path / "step_control.jsonl", []
    monkeypatch.setattr(step_control, "measure", lambda run: calls.append(run) or {"nfe": 1.0})
    runs = [on_gaussian(1, delta, 2 / 3, "bridge", 64) for delta in (0.1, 0.2)]
    first = step_control.records(runs, path)
    assert calls == runs
    kept, last = path.read_text().splitlines()
    path.write_text(f"{kept}\n{last[:30]}\n")  # killed while it wrote the last line
    assert step_control.records(runs, path) == first
    assert calls == [*runs, runs[1]]


@pytest.mark.slow
def test_the_quick_run_prints_its_tables_and_draws(tmp_path, capsys):
    main(["--quick", "--workdir", str(tmp_path), "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert figures["scaling.vp.0.6.noise"] == pytest.approx(1.5, abs=0.02)
    assert "| redraw" in capsys.readouterr().out
    assert (tmp_path / "step_control.png").stat().st_size > 10_000
