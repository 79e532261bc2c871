"""Solvers from configs: every name builds a solver, and a setting that it does not have is refused."""

from typing import Any

import pytest

from configs.base import get_config
from solvers import (
    Adaptive,
    AdaptiveExponential,
    AncestralSampling,
    PredictorCorrector,
    Rho,
    UniformLogSNR,
    from_config,
)
from solvers.presets import GRIDS, SOLVERS


def made(defaults=None, **settings):
    config = get_config()
    for name, value in settings.items():
        config.solver[name] = value
    return from_config(config.solver, defaults)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_name_gives_its_solver_with_its_own_defaults(name):
    solver = made(name=name)
    assert type(solver) is SOLVERS[name]
    assert solver == SOLVERS[name]()


def test_one_default_tolerance_serves_both_adaptive_solvers():
    """A config may change the solver and keep everything else; experiments on images set eps_abs."""
    assert Adaptive().eps_rel == AdaptiveExponential().eps_rel


def test_an_experiments_defaults_apply_where_the_solver_has_them_and_the_config_is_silent():
    suited: Any = {"first_step": 0.5, "eps_abs": 2 / 256, "noise_on_rejection": "hold"}
    assert made(suited, name="adaptive") == Adaptive(**suited)
    assert made(suited, name="adaptive", first_step=0.1) == Adaptive(**(suited | {"first_step": 0.1}))
    assert made(suited, name="adaptive_exponential") == AdaptiveExponential(eps_abs=2 / 256)
    assert made(suited, name="ddim") == SOLVERS["ddim"]()


@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_has_a_name(grid):
    assert made(name="heun", grid=grid).grid == GRIDS[grid]()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_predictor_gets_its_steps_and_grid():
    solver = made(
        name="predictor_corrector", predictor="ancestral", num_steps=10, grid="edm", rho=5.0, snr=0.1
    )
    predictor = AncestralSampling(num_steps=10, grid=Rho(rho=5.0))
    assert solver == PredictorCorrector(predictor=predictor, snr=0.1)


def test_settings_reach_the_solver():
    solver = made(name="unipc", num_steps=12, order=2, grid="uniform_log_snr")
    assert solver == SOLVERS["unipc"](num_steps=12, order=2, grid=UniformLogSNR())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "euler"}, r"config.solver.name must be one of 'adaptive', .* \(got 'euler'\)"),
        (
            {"name": "euler_maruyama", "snr": 0.1},
            r"config.solver.snr must be None with config.solver.name = 'euler_maruyama', which has no such "
            r"setting \(got 0.1\): leave it out, or .* has it: predictor_corrector, annealed_langevin",
        ),
        ({"name": "adaptive", "num_steps": 9}, r"config.solver.num_steps must be None .* \(got 9\)"),
        ({"name": "ddim", "order": 3}, r"config.solver.order must be None .* \(got 3\)"),
        ({"name": "ddim", "rho": 5.0, "grid": "uniform_t"}, r"config.solver.rho must be None .* \(got 5.0\)"),
        (
            {"name": "ddim", "grid": "uniform"},
            r"config.solver.grid must be one of 'uniform_t', .* \(got 'uniform'\)",
        ),
        ({"name": "ddim", "eta": 1.5}, r"config.solver.eta must be a number in \[0, 1\] \(got 1.5\)"),
        (
            {"name": "dpm_solver_pp", "num_steps": 2},
            r"config.solver.num_steps must be at least 3 .* \(got 2\)",
        ),
        ({"name": "unipc", "order": 4}, r"config.solver.order must be 2 or 3 \(got 4\)"),
        ({"name": "er_sde", "order": 0}, r"config.solver.order must be 1, 2 or 3 \(got 0\)"),
        ({"name": "sa_solver", "tau": -1.0}, r"config.solver.tau must be a finite number >= 0 \(got -1.0\)"),
        (
            {"name": "deis", "polynomial": "logrho"},
            r"config.solver.polynomial must be one of .* \(got 'logrho'\): did you mean 'log_rho'\?",
        ),
        ({"name": "rk45", "rtol": 0.0}, r"config.solver.rtol must be a number > 0 \(got 0.0\)"),
        (
            {"name": "predictor_corrector", "predictor": "ddim"},
            r"config.solver.predictor must be one of .* \(got 'ddim'\)",
        ),
        ({"name": "predictor_corrector", "snr": 0.0}, r"config.solver.snr must be a number > 0 \(got 0.0\)"),
        (
            {"name": "predictor_corrector", "corrector_steps": 0},
            r"config.solver.corrector_steps must be a whole number >= 1 \(got 0\)",
        ),
        ({"name": "edm", "churn": -1.0}, r"config.solver.churn must be a finite number >= 0 \(got -1.0\)"),
        ({"name": "heun", "num_steps": 0}, r"config.solver.num_steps must be a whole number >= 1 \(got 0\)"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        made(**settings)
