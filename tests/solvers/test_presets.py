"""Solvers from configs: every name builds, and a setting that a method cannot take is refused."""

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


def made(**settings):
    config = get_config().solver
    for name, value in settings.items():
        config[name] = value
    return from_config(config)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_name_gives_its_solver_with_its_own_defaults(name):
    solver = made(name=name)
    assert type(solver) is SOLVERS[name]
    # the tolerances have values in every config
    tolerances = {key: get_config().solver[key] for key in ("eps_rel", "eps_abs")}
    if name != "adaptive":
        assert solver == SOLVERS[name](**(tolerances if name == "adaptive_exponential" else {}))


def test_the_knob_of_every_config_is_right_for_both_adaptive_solvers():
    assert get_config().solver.eps_rel == Adaptive().eps_rel == AdaptiveExponential().eps_rel


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
        ({"name": "euler"}, "config.solver.name = 'euler': allowed is one of 'adaptive'"),
        (
            {"name": "euler_maruyama", "snr": 0.1},
            r"config.solver.snr = 0.1: allowed is nothing \(None\) with config.solver.name = "
            "'euler_maruyama'; it is a setting of predictor_corrector, annealed_langevin",
        ),
        ({"name": "adaptive", "num_steps": 9}, "config.solver.num_steps = 9: allowed is nothing"),
        ({"name": "ddim", "order": 3}, "config.solver.order = 3: allowed is nothing"),
        ({"name": "ddim", "rho": 5.0, "grid": "uniform_t"}, "config.solver.rho = 5.0: allowed is nothing"),
        (
            {"name": "ddim", "grid": "uniform"},
            "config.solver.grid = 'uniform': allowed is one of 'uniform_t'",
        ),
        ({"name": "ddim", "eta": 1.5}, r"config.solver.eta = 1.5: allowed is .*\[0, 1\]"),
        ({"name": "dpm_solver_pp", "num_steps": 2}, "config.solver.num_steps = 2: allowed is at least 3"),
        ({"name": "unipc", "order": 4}, "config.solver.order = 4: allowed is 2 or 3"),
        ({"name": "rk45", "rtol": 0.0}, "config.solver.rtol = 0.0: allowed is a number > 0"),
        ({"name": "predictor_corrector", "predictor": "ddim"}, "config.solver.predictor = 'ddim': allowed"),
        ({"name": "predictor_corrector", "snr": 0.0}, "config.solver.snr = 0.0: allowed is a number > 0"),
        ({"name": "predictor_corrector", "corrector_steps": 0}, "config.solver.corrector_steps = 0: allowed"),
        ({"name": "edm", "churn": -1.0}, "config.solver.churn = -1.0: allowed"),
        ({"name": "heun", "num_steps": 0}, "config.solver.num_steps = 0: allowed is a whole number >= 1"),
    ],
)
def test_what_a_method_cannot_take_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        made(**settings)
