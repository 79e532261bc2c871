"""The samplers of benchmarks/peers.py that are told again there; and a small table."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.tree_util import Partial

import solvers
from benchmarks.lanes import gaussian_score
from benchmarks.peers import EPS_ABS, EXACT, FIRST_STEP, MIN_STEPS, Tries, in_tries, measure, mixture
from sde_lib import VPSDE

N, SHAPE = 512, (4, 4, 1)
SDE = VPSDE()
SCORE = Partial(gaussian_score, SDE)  # of data ~ N(0.3, 0.2² I)


def by_tries(**settings):
    sampler = Tries(eps_rel=0.05, **settings)
    key = jax.random.key(0)
    return in_tries(SCORE, SDE, sampler, key=key, shape=SHAPE, num_samples=N, batch_size=128, denoise=True)


@pytest.fixture(scope="module")
def lockstep():
    return by_tries()


def test_lockstep_makes_the_steps_of_the_paper_s_solver(lockstep):
    """Both draw the same law, with other noise: means are 5 standard errors apart once in 500,000."""
    solver = solvers.Adaptive(
        eps_rel=0.05, eps_abs=EPS_ABS, first_step=FIRST_STEP, noise_on_rejection="redraw"
    )
    ours = solvers.sample(
        SCORE, SDE, solver, key=jax.random.key(1), shape=SHAPE, num_samples=N, batch_size=128
    )
    for name in ("accepted", "rejected"):
        first, second = getattr(ours, name), getattr(lockstep, name)
        error = np.sqrt((first.var() + second.var()) / N)
        assert abs(first.mean() - second.mean()) < 5 * error, name
    samples = [solution.x.reshape(N, -1).mean(axis=1) for solution in (ours, lockstep)]
    error = np.sqrt(sum(means.var() for means in samples) / N)
    assert abs(samples[0].mean() - samples[1].mean()) < 5 * error


def test_a_batch_waits_for_its_slowest_sample_and_a_try_costs_two(lockstep):
    assert np.array_equal(lockstep.nfe, 2 * (lockstep.accepted + lockstep.rejected) + 1)
    slowest = [lockstep.nfe[start : start + 128].max() for start in range(0, N, 128)]
    assert lockstep.network_calls == sum(slowest)
    assert lockstep.lane_evaluations == 128 * sum(slowest)
    assert lockstep.failed == 0


def test_with_one_step_size_every_sample_of_a_batch_makes_the_same_steps(lockstep):
    together = by_tries(one_step_size=True)
    for name in ("accepted", "rejected"):
        batches = getattr(together, name).reshape(-1, 128)
        assert (batches == batches[:, :1]).all()
    assert together.accepted.min() >= MIN_STEPS
    assert together.nfe.min() > lockstep.nfe.max()  # the largest error of 128 samples allows less
    assert abs(together.x.mean() - 0.3) < 0.01  # 0.002 is a standard error; the method has one of its own


def test_the_figures_of_a_small_table():
    problem = dataclasses.replace(mixture(), num_samples=16, batch_size=8)
    names = ("adaptive, 5 %", "lockstep, 5 %")
    figures = measure(problem, names, rounds=2)
    runs = {name.rpartition(".")[0] for name in figures}
    assert runs == {EXACT, *names}
    assert figures["adaptive, 5 %.time"] == 1
    assert figures["lockstep, 5 %.spent"] * 16 == figures["lockstep, 5 %.calls"] * 8
    assert figures["lockstep, 5 %.spent"] >= figures["lockstep, 5 %.nfe"]
    assert {f"{name}.likelihood_sd" for name in runs} < set(figures)
