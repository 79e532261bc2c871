"""A run from a config to its figures, in one process."""

import functools

import pytest

import main
from evaluation.metrics.features import load_features
from evaluation.metrics.reference import find, first_features
from evaluation.runs import run
from evaluation.runs.results import read


def test_further_figures_need_no_new_samples(tmp_path):
    config = main.config_of("vp/digits_adaptive")
    config.solver.name = "adaptive_exponential"
    config.solver.eps_rel = 0.5
    config.eval.update({"num_samples": 240, "batch_size": 48})
    network, data = load_features("digits"), main.reference_data(config)
    reference = find(network, **data)
    measured = functools.partial(run.sample_and_evaluate, workdir=tmp_path, network=network)

    first = measured(run.prepare(config, name="digits"), reference=reference)
    assert first["samples_per_second"] > 0
    assert not {"kid", "fid_infinity"} & first.keys()
    assert first["fid_interval"][0] < first["fid_interval"][1]

    config.eval.update({"compared": 100, "fid_infinity": True})
    prepared = run.prepare(config, name="digits")
    features = functools.partial(first_features, data["pieces"](), network, count=100)
    second = measured(prepared, reference=reference, compared=features)
    assert second["samples_per_second"] is None  # all were there
    assert {name: second[name] for name in ("fid", "is_mean", "nfe_mean")} == {
        name: first[name] for name in ("fid", "is_mean", "nfe_mean")
    }
    assert second["fid_infinity"] < second["fid"]
    assert 0 < second["precision"] <= 1
    for word in ("infinitely many", "KID", "precision"):
        assert word in run.summary(second)
        assert word not in run.summary(first)

    assert measured(prepared, reference=reference, compared=pytest.fail) == second
    assert len(read(tmp_path)) == 2
