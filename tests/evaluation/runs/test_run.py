"""A run from a config to its figures, in one process."""

import dataclasses
from typing import Any

import numpy as np
import pytest

import configs
from evaluation.runs import measurement, run
from evaluation.runs.results import read


@pytest.mark.parametrize(("key", "value"), [("sde.sigma_max", 50.0), ("data.name", "mnist")])
def test_a_process_or_data_that_the_weights_do_not_know_is_refused_before_any_work(key, value):
    config = configs.load("ve/digits_adaptive")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(
        ValueError, match=rf"config must be that of the training.*'config.{key}'.*mismatch_al"
    ):
        run.prepare(config, name="digits")
    config.model.mismatch_allowed = (key,)
    assert run.prepare(config, name="digits").config is config


@pytest.mark.parametrize(("rounding", "level"), [("nearest", 128), ("truncate", 127)])
def test_a_run_draws_grey_levels_as_its_config_says(rounding, level):
    config = configs.load("vp/digits_adaptive")
    config.eval.rounding = rounding
    draw: Any = run.drawing(run.prepare(config, name="digits"))[0]
    grey = np.full((1, 8, 8, 1), 0.0021, np.float32)  # in [−1, 1]: 127.77 levels
    assert set(draw.keywords["output"](grey).ravel().tolist()) == {level}


def test_further_figures_need_no_new_samples(tmp_path):
    config = configs.load("vp/digits_adaptive")
    config.solver.name = "adaptive_exponential"
    config.solver.eps_rel = 0.5
    config.eval.update({"num_samples": 240, "batch_size": 48})

    def measured(measure):
        return run.sample_and_evaluate(run.prepare(config, name="digits"), tmp_path, measurement=measure)

    first = measured(measurement.from_config(config))
    assert first["samples_per_second"] > 0
    assert not {"kid", "fid_infinity"} & first.keys()
    assert first["fid_interval"][0] < first["fid_interval"][1]

    config.eval.update({"compared": 100, "fid_infinity": True})
    second = measured(measurement.from_config(config))
    assert second["samples_per_second"] is None  # all were there
    assert {name: second[name] for name in ("fid", "is_mean", "nfe_mean")} == {
        name: first[name] for name in ("fid", "is_mean", "nfe_mean")
    }
    assert second["fid_infinity"] < second["fid"]
    assert 0 < second["precision"] <= 1
    low, high = second["sliced_wasserstein_interval"]
    assert 0 <= low < high
    for word in ("infinitely many", "KID", "sliced Wasserstein", "precision"):
        assert word in run.summary(second)
        assert word not in run.summary(first)

    known = dataclasses.replace(measurement.from_config(config), compared=pytest.fail)
    assert measured(known) == second
    assert len(read(tmp_path)) == 2


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ({"name": "adaptive_exponential"}, "adaptive_exponential   eps_rel 0.02"),
        (
            {"name": "adaptive_exponential", "num_evaluations": 20},
            "adaptive_exponential   num_evaluations 20",
        ),
        ({"name": "predictor_corrector", "num_steps": 50}, "predictor_corrector   num_steps 50"),
        ({"name": "rk45", "rtol": 0.1}, "rk45   rtol 0.1"),
    ],
)
def test_a_run_is_named_by_the_setting_that_decides_its_cost(settings, title):
    config = configs.load("vp/digits_adaptive")
    config.solver.update(settings)
    assert run.prepare(config, name="digits").title == f"digits   {title}"
