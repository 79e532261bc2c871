"""One truth for settings: what each key decides, and which solver has it."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import configs
import sde_lib
import solvers
from configs.base import get_config
from configs.keys import ADDED, DECIDES, LIKELIHOODS, SAMPLES, TRAINING, UNUSED, WEIGHTS, deciding
from evaluation.runs.results import config_identity
from sde_lib.presets import PROCESSES
from sde_lib.presets import settings_of as process_settings
from solvers.deis import Polynomial
from solvers.presets import PREDICTORS, SOLVERS, settings_of

KEYS = [key for key in DECIDES if key.startswith("solver.") and key not in ("solver.name", "solver.denoise")]

# for every setting of a solver, a value that its own solver takes
VALUES = {
    "eps_rel": 0.9,
    "eps_abs": 0.1,
    "num_evaluations": 10,
    "data_deviation": 0.3,
    "safety": 0.5,
    "exponent": 0.7,
    "first_step": 0.02,
    "norm": "l2",
    "extrapolate": True,
    "use_previous": False,
    "error_estimate": "heun",
    "noise_on_rejection": "redraw",
    "num_steps": 12,
    "grid": "uniform_t",
    "rho": 5.0,
    "predictor": "euler_maruyama",
    "snr": 0.1,
    "corrector_steps": 2,
    "eta": 0.5,
    "order": 2,
    "polynomial": "log_rho",
    "tau": 0.5,
    "predictor_order": 2,
    "corrector_order": 3,
    "rtol": 0.1,
    "atol": 0.1,
    "churn": 1.0,
    "churn_min": 0.1,
    "churn_max": 10.0,
    "churn_noise": 1.1,
}


def test_every_key_of_a_config_is_in_the_table_and_no_other():
    assert configs.flat(get_config()).keys() == DECIDES.keys()
    assert set().union(*DECIDES.values()) == {SAMPLES, TRAINING, WEIGHTS, LIKELIHOODS}
    assert deciding(WEIGHTS)[0] == "sde.name"


def test_what_decides_the_weights_decides_samples_and_training_too():
    assert set(deciding(WEIGHTS)) < set(deciding(TRAINING))
    assert set(deciding(WEIGHTS)) - {"data.crop", "data.resize"} < set(deciding(SAMPLES))


def test_weights_belong_to_their_process_and_data():
    process = {f"sde.{name}" for name in get_config().sde} - {"sde.eps"}
    assert process | {"data.name", "data.crop", "data.resize"} < set(deciding(WEIGHTS))


def test_every_solver_key_is_a_placeholder():
    values = configs.flat(get_config())
    assert [key for key in KEYS if values[key] is not None] == []
    assert {key.removeprefix("solver.") for key in KEYS} == VALUES.keys()


@pytest.mark.parametrize("name", SOLVERS)
def test_defaults_live_in_the_solvers_class_and_the_published_setting_in_the_config(name):
    config = get_config()
    config.solver.name = name
    published = {"noise_on_rejection": "redraw"} if name == "adaptive" else {}
    assert solvers.from_config(config.solver, config.solver_defaults) == SOLVERS[name](**published)
    assert solvers.from_config(config.solver) == SOLVERS[name]()
    assert {key: value for key, value in config.solver_defaults.items() if value is not None} == {
        "noise_on_rejection": "redraw"
    }


def test_every_config_samples_as_published():
    files = sorted(Path(configs.__file__).parent.glob("*/[!_]*.py"))
    assert files
    for file in files:
        config = configs.load(f"{file.parent.name}/{file.stem}")
        solver = solvers.from_config(config.solver, config.solver_defaults)
        assert isinstance(solver, solvers.Adaptive)
        assert solver.noise_on_rejection == "redraw"


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_has_its_own_defaults_and_refuses_the_settings_of_others(name):
    config = get_config()
    config.sde.name = name
    assert [key for key, value in config.sde.items() if value is not None] == ["name"]
    sde, own = sde_lib.from_config(config.sde), process_settings(name)
    assert {key: value for key, value in vars(sde).items() if key in own} == own or name == "discrete_vp"
    for key in config.sde.keys() - own.keys() - {"name"}:
        other = config.copy_and_resolve_references()
        other.sde[key] = {"schedule": "linear", "num_levels": 10}.get(key, 0.5)
        message = rf"^config\.sde\.{key} must be None with .* a process that has it"
        with pytest.raises(ValueError, match=message):
            sde_lib.from_config(other.sde)


def test_a_setting_of_a_process_reaches_it():
    config = get_config()
    config.sde.update({"name": "discrete_vp", "schedule": "scaled_linear", "beta_end": 0.03})
    table = sde_lib.DiscreteVP.from_betas(np.linspace(1e-2, 0.03**0.5, 1000) ** 2)
    np.testing.assert_allclose(sde_lib.from_config(config.sde).log_alphas, table.log_alphas, rtol=1e-3)  # pyright: ignore[reportAttributeAccessIssue]
    config = get_config()
    config.sde.update({"name": "edm", "T": 40.0})
    assert sde_lib.from_config(config.sde) == sde_lib.EDMProcess(T=40.0)


FOREIGN = [(name, setting) for name in SOLVERS for setting in VALUES if setting not in settings_of(name)]
OWN = [(name, setting) for name in SOLVERS for setting in VALUES if setting in settings_of(name)]


@pytest.mark.parametrize(("name", "setting"), FOREIGN)
def test_a_setting_that_the_solver_does_not_have_is_refused(name, setting):
    config = get_config()
    config.solver.name = name
    config.solver[setting] = VALUES[setting]
    owners = ", ".join(other for other in SOLVERS if setting in settings_of(other))
    with pytest.raises(ValueError, match=r"^config\.solver\.") as refused:
        solvers.from_config(config.solver)
    assert str(refused.value) == (
        f"config.solver.{setting} must be None with config.solver.name = {name!r}, which has no such setting "
        f"(got {VALUES[setting]!r}): leave it out, or choose a solver that has it: {owners}"
    )


@pytest.mark.parametrize(("name", "setting"), OWN)
def test_a_setting_that_the_solver_has_reaches_it(name, setting):
    config = get_config()
    config.solver.name = name
    config.solver[setting] = VALUES[setting]
    solver = solvers.from_config(config.solver)
    stepper: Any = getattr(solver, "predictor", solver)  # has the grid
    reached = {
        "grid": lambda: stepper.grid == solvers.UniformTime(),
        "rho": lambda: stepper.grid == solvers.Rho(rho=5.0),
        "predictor": lambda: isinstance(stepper, solvers.EulerMaruyama),
    }.get(setting, lambda: vars(stepper if hasattr(stepper, setting) else solver)[setting] == VALUES[setting])
    assert reached()


def test_every_setting_of_every_solver_is_a_key():
    names = {field.name for solver in SOLVERS.values() for field in dataclasses.fields(solver)}
    assert names | {"rho"} == VALUES.keys()
    assert all(settings_of(name) <= settings_of("predictor_corrector") for name in PREDICTORS)


def test_defaults_of_an_experiment_reach_the_solvers_that_have_them_and_give_way():
    config = configs.load("ve/digits_adaptive")
    adaptive = solvers.from_config(config.solver, config.solver_defaults)
    published: Any = {"noise_on_rejection": "redraw"}
    assert adaptive == solvers.Adaptive(first_step=0.5, **published)
    config.solver.first_step = 0.1
    adaptive = solvers.from_config(config.solver, config.solver_defaults)
    assert adaptive == solvers.Adaptive(first_step=0.1, **published)
    config.solver.first_step = None
    config.solver.name = "ddim"
    assert solvers.from_config(config.solver, config.solver_defaults) == solvers.DDIM()


def test_the_identity_holds_what_decides_samples_and_nothing_else():
    config = configs.load("vp/digits_adaptive")
    solver = solvers.from_config(config.solver, config.solver_defaults)
    identity, _ = config_identity(config, solver=solver, checkpoint_sha256="ff")
    of_no_key = {"checkpoint_sha256", "solver.revision"}
    assert identity.keys() - of_no_key <= set(deciding(SAMPLES))
    unused = {f"sde.{name}" for name in config.sde.keys() - process_settings("vp").keys()} - {"sde.name"}
    unused |= {f"solver.{name}" for name in VALUES.keys() - settings_of("adaptive")} | ADDED.keys()
    assert set(deciding(SAMPLES)) - unused == identity.keys() - of_no_key
    assert identity["solver.eps_abs"] == 2 / 256


def test_a_setting_that_was_added_to_a_solver_leaves_the_identity_of_stored_samples():
    config = configs.load("vp/digits_adaptive")
    before, after = (
        config_identity(config, solver=solvers.DEIS(polynomial=polynomial), checkpoint_sha256="ff")[0]
        for polynomial in get_args(Polynomial)
    )
    assert after == before | {"solver.polynomial": "log_rho"}
    assert "solver.polynomial" not in before


@pytest.mark.parametrize("mode", UNUSED)
def test_what_a_mode_does_not_use_are_keys(mode):
    for beginning in UNUSED[mode]:
        assert any(key.startswith(beginning) for key in DECIDES), beginning
