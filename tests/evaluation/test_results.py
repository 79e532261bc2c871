"""results.jsonl, and whose samples a workdir holds."""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import sde_lib
import solvers
from configs import base
from evaluation import results
from evaluation.results import Result, append, claim_workdir, config_identity, find, read

RESULT = Result(
    config_hash="aa",
    checkpoint_sha256=None,
    git_commit=None,
    features="digits:00",
    reference="digits:all:1797",
    num_samples=100,
    fid=1.5,
    is_mean=9.0,
    is_std=0.1,
    nfe_mean=50.5,
    nfe_max=70,
    nfe_lockstep=68.0,
    rejected=0.25,
    failed=0,
    lane_utilization=None,
    samples_per_second=float("nan"),
    seconds_compile=2.0,
    devices="cpu x 1",
    versions={"jax": "0"},
)


def changed(**settings: Any) -> Any:
    """The base config with these settings, double underscores for dots."""
    config = base.get_config()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in settings.items()})
    return config


def identity_of(*, checkpoint_sha256: str | None = "ff", **settings: Any) -> tuple[dict[str, Any], str]:
    config = changed(**settings)
    return config_identity(
        config,
        sde=sde_lib.from_config(config.sde),
        solver=solvers.from_config(config.solver),
        checkpoint_sha256=checkpoint_sha256,
    )


# --- results.jsonl ---


def test_results_are_appended_and_found(tmp_path):
    workdir = tmp_path / "new" / "folder"
    assert read(workdir) == []
    append(workdir, RESULT)
    append(workdir, dataclasses.replace(RESULT, num_samples=200))
    append(workdir, dataclasses.replace(RESULT, fid=2.5, extra={"kid_mean": 0.1}))
    assert [line["fid"] for line in read(workdir)] == [1.5, 1.5, 2.5]
    known: dict[str, Any] = {
        "config_hash": "aa",
        "num_samples": 100,
        "features": "digits:00",
        "reference": "digits:all:1797",
    }
    newest = find(workdir, **known)
    assert newest is not None
    assert (newest["fid"], newest["kid_mean"]) == (2.5, 0.1)
    for other in ({"config_hash": "bb"}, {"features": "digits:11"}, {"reference": "digits:test:9"}):
        assert find(workdir, **known | other) is None


def test_a_line_has_every_key_and_is_strict_json(tmp_path):
    append(tmp_path, RESULT)
    text = (tmp_path / "results.jsonl").read_text()
    line = json.loads(text, parse_constant=pytest.fail)
    assert line["samples_per_second"] is None  # not a number
    assert set(line) == {field.name for field in dataclasses.fields(Result)} - {"extra"}


@pytest.mark.parametrize("torn", ["{", '{"fid": 1.5', json.dumps({"fid": 3}), "\0\0\0"])
def test_a_torn_last_line_is_passed_over_and_repaired(tmp_path, torn):
    append(tmp_path, RESULT)
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write(torn)
    assert [line["fid"] for line in read(tmp_path)] == [1.5]
    append(tmp_path, dataclasses.replace(RESULT, fid=2.5))
    assert [line["fid"] for line in read(tmp_path)] == [1.5, 2.5]
    assert (tmp_path / "results.jsonl").read_text().count("\n") == 2


def test_a_broken_line_before_the_last_is_named(tmp_path):
    append(tmp_path, RESULT)
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write("what is this\n")
    append(tmp_path, RESULT)
    with pytest.raises(ValueError, match=r"results.jsonl, line 2 is not JSON.*delete that line"):
        read(tmp_path)


def test_a_refused_write_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/sub: .*take another --workdir"):
        append(tmp_path / "file" / "sub", RESULT)
    (tmp_path / "results.jsonl").mkdir()
    with pytest.raises(OSError, match=r"cannot write .*results.jsonl: Is a directory"):
        append(tmp_path, RESULT)


# --- identity ---


def test_identity_ignores_what_does_not_determine_samples():
    identity, digest = identity_of()
    assert json.loads(json.dumps(identity)) == identity
    others = {
        "eval__num_samples": 7,
        "eval__batch_size": 3,
        "eval__shard_size": 5,
        "training__num_steps": 1,
        "model__checkpoint": "elsewhere",
        "model__dropout": 0.0,
        "sde__beta_min": 0.2,  # VP's
    }
    assert identity_of(**others) == (identity, digest)
    # Adaptive's tolerance is nothing to another solver
    assert identity_of(solver__name="heun", solver__eps_rel=0.5) == identity_of(solver__name="heun")


def test_identity_notices_what_determines_samples():
    others = [
        {},
        {"seed": 1},
        {"model__nf": 64},
        {"model__ch_mult": (1, 2)},
        {"data__image_size": 16},
        {"data__centered": True},
        {"eval__max_evaluations": 10},
        {"sde__sigma_max": 10.0},
        {"sde__name": "vp"},
        {"sde__name": "vp", "sde__beta_min": 0.2},
        {"solver__denoise": False},
        {"solver__eps_rel": 0.05},
        {"solver__extrapolate": False},
        {"solver__name": "euler_maruyama"},
        {"solver__name": "euler_maruyama", "solver__num_steps": 17},
        {"solver__name": "heun"},
        {"solver__name": "heun", "solver__grid": "uniform_t"},
        {"solver__name": "heun", "solver__grid": "edm", "solver__rho": 5.0},
    ]
    digests = {identity_of(**settings)[1] for settings in others}
    digests |= {identity_of(checkpoint_sha256=sha256)[1] for sha256 in ("ee", None)}
    assert len(digests) == len(others) + 2


@pytest.mark.parametrize("number", [np.float64, jnp.float32])
def test_identity_of_a_solver_with_arrays_for_settings(number):
    config = changed(solver__eps_rel=0.25)
    solver = solvers.Adaptive(eps_rel=number(0.25))
    found, _ = config_identity(config, sde=sde_lib.VESDE(), solver=solver, checkpoint_sha256=None)
    assert found["solver.eps_rel"] == 0.25


# --- workdir ---


def test_a_workdir_is_claimed_once(tmp_path):
    identity, _ = identity_of()
    claim_workdir(tmp_path / "workdir", identity)
    claim_workdir(tmp_path / "workdir", identity)


def test_another_configs_workdir_is_refused_with_the_differences(tmp_path):
    claim_workdir(tmp_path, identity_of()[0])
    with pytest.raises(ValueError, match="allowed is a folder that is new or holds samples") as caught:
        claim_workdir(tmp_path, identity_of(seed=5, solver__eps_rel=0.5)[0])
    message = str(caught.value)
    assert message.startswith(f"workdir = {str(tmp_path)!r}")
    assert "differs in config.seed = 5 (there 0), config.solver.eps_rel = 0.5 (there 0.02); give" in message
    with pytest.raises(
        ValueError, match=r'config.sde.beta_max = 20.0 \(there absent\), .*"vp" \(there "ve"\)'
    ):
        claim_workdir(tmp_path, identity_of(sde__name="vp")[0])


def test_an_unreadable_identity_is_refused(tmp_path):
    (tmp_path / "identity.json").write_text("{")
    with pytest.raises(ValueError, match=r"identity.json is not JSON.*take another --workdir"):
        claim_workdir(tmp_path, {})


def test_a_workdir_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/sub"):
        claim_workdir(tmp_path / "file" / "sub", {})


# --- what made it ---


def test_devices_and_versions():
    assert "cpu" in results.devices().lower()
    assert set(results.versions()) == set(results.PACKAGES)
    commit = results.git_commit()
    assert commit is None or len(commit.removesuffix("+changes")) == 40
