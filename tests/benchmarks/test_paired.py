"""benchmarks/paired.py on samples of known differences."""

import json
import sys

import numpy as np
import pytest

import configs
from benchmarks import paired
from evaluation.runs import run

SOLVERS = {
    "few": {"name": "ddim", "num_steps": 2},
    "more": {"name": "ddim", "num_steps": 8},
    "same": {"name": "ddim", "num_steps": 8, "eta": 0.0},
}


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paired")
    for name, settings in SOLVERS.items():
        config = configs.load("vp/digits_classes")
        config.solver.update(settings)
        config.eval.update({"num_samples": 100, "batch_size": 100})
        run.sample_and_evaluate(
            run.prepare(config, name="vp/digits_classes"), folder / name, measurement=None
        )
    return folder


def _measured(workdirs, names, monkeypatch, tmp_path):
    flags = [*(str(workdirs / name) for name in names), "--json", str(tmp_path / "paired.json")]
    monkeypatch.setattr(sys, "argv", ["paired", *flags])
    paired.main()
    return json.loads((tmp_path / "paired.json").read_text())


@pytest.mark.filterwarnings("ignore:FID of")
def test_runs_are_compared_with_the_first(workdirs, monkeypatch, tmp_path, capsys):
    found = _measured(workdirs, ["more", "few", "same"], monkeypatch, tmp_path)
    first, few, same = found["table"]
    # two runs of one solver and setting are told apart by their workdirs
    assert first[0] == f"ddim, num_steps 8 ({workdirs / 'more'})"
    assert first[3::2] == ["", "", ""]
    # two steps are far worse than eight in all that is measured
    low, high = (float(end) for end in few[3].partition("(")[2].strip(")").split(" to "))
    distances = found["figures"]
    assert 0 < low < distances["ddim, num_steps 2.FID"] - distances[f"{first[0]}.FID"] < high
    assert distances[f"{first[0]}.FID"] == distances[f"{same[0]}.FID"]
    assert same[3] == same[5] == same[7] == "+0.000 (+0.000 to +0.000)"
    assert "100 samples of vp/digits_classes" in capsys.readouterr().out


def test_the_distance_of_all_samples_is_fid():
    features = np.random.default_rng(0).normal(size=(50, 3))
    reference = paired.Moments(count=9, mean=np.zeros(3), scatter=8 * np.eye(3), source=None)  # type: ignore
    weighted = paired.distance(features, np.ones(50), reference)
    expected = paired.frechet_distance(features.mean(0), np.cov(features.T), np.zeros(3), np.eye(3))
    assert weighted == pytest.approx(expected, rel=1e-9)


def test_runs_of_different_configs_are_refused(workdirs, monkeypatch, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    line = json.loads((workdirs / "few" / "results.jsonl").read_text()) | {"config": "vp/digits_adaptive"}
    (other / "results.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.setattr(sys, "argv", ["paired", str(workdirs / "more"), str(other)])
    with pytest.raises(SystemExit):
        paired.main()
    assert "config must be the same in all runs" in capsys.readouterr().err
