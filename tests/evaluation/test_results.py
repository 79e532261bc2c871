"""results.jsonl, and whose samples a workdir holds."""

import copy
import dataclasses
import hashlib
import json
from typing import Any

import numpy as np
import pytest

from configs import base
from evaluation import results
from evaluation.results import Result, append, claim_workdir, config_identity, find, read
from sde_lib import VESDE, VPSDE


@dataclasses.dataclass(frozen=True, kw_only=True)
class ASolver:
    eps_rel: Any = 0.02
    norm: str = "l2"


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


def get_config() -> Any:  # a ConfigDict's attributes have no type that is known before
    return base.get_config()


def identity_of(config: Any, *, sde: Any = None, solver: Any = None, checkpoint_sha256: str | None = "ff"):
    return config_identity(
        config, sde=sde or VESDE(), solver=solver or ASolver(), checkpoint_sha256=checkpoint_sha256
    )


# --- results.jsonl ---


def test_results_are_appended_and_found(tmp_path):
    workdir = tmp_path / "new" / "folder"
    assert read(workdir) == []
    append(workdir, RESULT)
    append(workdir, dataclasses.replace(RESULT, num_samples=200))
    append(workdir, dataclasses.replace(RESULT, fid=2.5, extra={"kid_mean": 0.1}))
    assert [line["fid"] for line in read(workdir)] == [1.5, 1.5, 2.5]
    newest = find(workdir, config_hash="aa", num_samples=100, features="digits:00")
    assert newest is not None
    assert (newest["fid"], newest["kid_mean"]) == (2.5, 0.1)
    assert find(workdir, config_hash="bb", num_samples=100, features="digits:00") is None
    assert find(workdir, config_hash="aa", num_samples=100, features="digits:11") is None


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
    config = get_config()
    identity, digest = identity_of(config)
    other = copy.deepcopy(config)
    other.eval.num_samples = 7
    other.eval.batch_size = 3
    other.eval.shard_size = 5
    other.training.num_steps = 1
    other.model.checkpoint = "elsewhere"
    other.model.dropout = 0.0
    other.solver.num_steps = 17  # not among ASolver's settings
    assert identity_of(other) == (identity, digest)
    assert json.loads(json.dumps(identity)) == identity


def test_identity_notices_what_determines_samples():
    config = get_config()
    digests = {identity_of(config)[1]}
    for key, value in [
        ("seed", 1),
        ("model.nf", 64),
        ("model.ch_mult", (1, 2)),
        ("data.image_size", 16),
        ("data.centered", True),
        ("solver.denoise", False),
        ("eval.max_evaluations", 10),
    ]:
        other = copy.deepcopy(config)
        group, _, name = key.rpartition(".")
        (other[group] if group else other)[name] = value
        digests.add(identity_of(other)[1])
    digests.add(identity_of(config, sde=VESDE(sigma_max=10.0))[1])
    digests.add(identity_of(config, sde=VPSDE())[1])
    digests.add(identity_of(config, solver=ASolver(eps_rel=0.05))[1])
    digests.add(identity_of(config, solver=ASolver(norm="linf"))[1])
    digests.add(identity_of(config, checkpoint_sha256="ee")[1])
    digests.add(identity_of(config, checkpoint_sha256=None)[1])
    assert len(digests) == 14


def test_identity_takes_scalars_of_numpy():
    config = get_config()
    assert identity_of(config, solver=ASolver(eps_rel=np.float64(0.02))) == identity_of(config)
    assert identity_of(config, solver=ASolver(eps_rel=np.asarray(0.02))) == identity_of(config)


# --- workdir ---


def test_a_workdir_is_claimed_once(tmp_path):
    identity, _ = identity_of(get_config())
    claim_workdir(tmp_path / "workdir", identity)
    claim_workdir(tmp_path / "workdir", identity)


def test_another_configs_workdir_is_refused_with_the_differences(tmp_path):
    config = get_config()
    claim_workdir(tmp_path, identity_of(config)[0])
    config.seed = 5
    with pytest.raises(ValueError, match="holds another config's samples") as caught:
        claim_workdir(tmp_path, identity_of(config, solver=ASolver(eps_rel=0.5))[0])
    message = str(caught.value)
    assert "seed = 5 here, 0 there; solver.eps_rel = 0.5 here, 0.02 there" in message
    assert "take another --workdir" in message
    assert "model" not in message
    with pytest.raises(
        ValueError, match=r'sde.beta_max = 20.0 here, absent there; .*sde.name = "VPSDE" here'
    ):
        claim_workdir(tmp_path, identity_of(get_config(), sde=VPSDE())[0])


def test_an_unreadable_identity_is_refused(tmp_path):
    (tmp_path / "identity.json").write_text("{")
    with pytest.raises(ValueError, match=r"identity.json is not JSON.*take another --workdir"):
        claim_workdir(tmp_path, {})


def test_a_workdir_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/sub"):
        claim_workdir(tmp_path / "file" / "sub", {})


# --- what made it ---


def test_hash_of_a_file_and_of_a_folder(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    assert results.sha256_of(tmp_path / "a") == hashlib.sha256(b"content").hexdigest()
    before = results.sha256_of(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert results.sha256_of(tmp_path) != before


def test_devices_and_versions():
    assert "cpu" in results.devices().lower()
    assert set(results.versions()) == set(results.PACKAGES)
    commit = results.git_commit()
    assert commit is None or len(commit.removesuffix("+changes")) == 40
