"""results.jsonl, and whose samples a workdir holds."""

import dataclasses
import errno
import json
import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import solvers
from configs import base
from configs.ve.digits_adaptive import get_config
from evaluation.runs import results, run
from evaluation.runs.results import Result, append, config_identity, find, read
from evaluation.store import workdir
from evaluation.store.files import read_file
from evaluation.store.samples import Samples, SampleStore
from evaluation.store.workdir import claim

RESULT = Result(
    config_hash="aa",
    checkpoint_sha256=None,
    git_commit=None,
    features="digits:00",
    reference="digits:all:1797",
    reference_content="d1915",
    num_samples=100,
    fid=1.5,
    is_mean=9.0,
    is_std=0.1,
    fid_interval=[1.0, 2.0],
    is_interval=None,
    nfe_interval=[50.0, 51.0],
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
        solver=solvers.from_config(config.solver, config.solver_defaults),
        checkpoint_sha256=checkpoint_sha256,
    )


# --- results.jsonl ---


def test_results_are_appended_and_found(folder):
    workdir = folder / "new" / "folder"
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
    newest = find(workdir, known)
    assert newest is not None
    assert (newest["fid"], newest["kid_mean"]) == (2.5, 0.1)
    for key, value in {"config_hash": "bb", "features": "digits:11", "reference": "digits:test:9"}.items():
        assert find(workdir, {**known, key: value}) is None


def test_a_result_without_a_figure_that_is_asked_for_does_not_do(tmp_path):
    known: dict[str, Any] = {"config_hash": "aa", "num_samples": 100, "features": "digits:00"}
    known |= {"reference": "digits:all:1797"}
    append(tmp_path, RESULT)
    append(tmp_path, dataclasses.replace(RESULT, extra={"compared": 50, "kid": 0.1}))
    append(tmp_path, dataclasses.replace(RESULT, extra={"fid_infinity": None}))
    found = find(tmp_path, known | {"compared": 50})
    assert found is not None
    assert found["kid"] == 0.1
    found = find(tmp_path, known, having=("fid_infinity",))
    assert found is not None
    assert "fid_infinity" in found
    assert find(tmp_path, known | {"compared": 60}) is None
    assert find(tmp_path, known, having=("recall",)) is None


def test_figures_without_a_field_stand_beside_the_others():
    figures = dataclasses.asdict(RESULT)
    of_the_run = {name: figures.pop(name) for name in ("config_hash", "checkpoint_sha256")}
    made_by = {name: getattr(results, name)() for name in ("devices", "versions", "git_commit")}
    figures = {name: value for name, value in figures.items() if name not in made_by}
    extra = figures.pop("extra")
    made = Result.of(figures | {"kid": 0.1}, extra=extra | {"config": "ve"}, **of_the_run)
    assert made.extra == {"kid": 0.1, "config": "ve"}
    assert made.line() == dataclasses.replace(RESULT, **made_by, extra={"config": "ve", "kid": 0.1}).line()


def test_a_line_has_every_key_and_is_strict_json(tmp_path):
    append(tmp_path, RESULT)
    text = (tmp_path / "results.jsonl").read_text()
    line = json.loads(text, parse_constant=pytest.fail)
    assert line["samples_per_second"] is None  # not a number
    assert set(line) == {field.name for field in dataclasses.fields(Result)} - {"extra"}


@pytest.mark.parametrize("torn", ["{", '{"fid": 1.5', json.dumps({"fid": 3}), "\0\0\0"])
def test_a_torn_last_line_is_passed_over_and_repaired(folder, torn):
    append(folder, RESULT)
    path = folder / "results.jsonl"
    path.write_bytes(path.read_bytes() + torn.encode())
    assert [line["fid"] for line in read(folder)] == [1.5]
    append(folder, dataclasses.replace(RESULT, fid=2.5))
    assert [line["fid"] for line in read(folder)] == [1.5, 2.5]
    assert path.read_text().count("\n") == 2


def test_a_broken_line_before_the_last_is_named(tmp_path):
    append(tmp_path, RESULT)
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write("what is this\n")
    append(tmp_path, RESULT)
    message = (
        r"line 2 of .*results.jsonl must be a result of this project \(got 'what is this'\): delete that"
    )
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("content", ['{"epoch": 1}\n', '[1]\n{"epoch": 2}', '{"epoch": 1}', "a line", "1\n"])
def test_results_of_somebody_else_are_refused_and_kept(content, tmp_path, prepared):
    (tmp_path / "results.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"results.jsonl must be a result of this project .*move the file"):
        run.sample_and_evaluate(prepared, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]
    assert (tmp_path / "results.jsonl").read_text() == content


def test_a_refused_write_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/sub: .*use another --workdir"):
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
    # the first step of Adaptive is no setting of another solver
    suited: dict[str, Any] = {"solver_defaults__first_step": 0.5, "solver_defaults__eps_abs": 0.1}
    assert identity_of(solver__name="heun", **suited) == identity_of(solver__name="heun")
    assert identity_of(solver__eps_rel=0.02) == identity_of()
    assert identity_of(eval__rounding="nearest") == (identity, digest)
    assert "eval.rounding" not in identity  # as before there was such a key


def test_identity_notices_what_determines_samples():
    others = [
        {},
        {"seed": 1},
        {"model__nf": 64},
        {"model__ch_mult": (1, 2)},
        {"data__image_size": 16},
        {"data__centered": True},
        {"eval__max_evaluations": 10},
        {"eval__rounding": "truncate"},
        {"sde__sigma_max": 10.0},
        {"sde__name": "vp"},
        {"sde__name": "vp", "sde__beta_min": 0.2},
        {"solver__denoise": False},
        {"solver__eps_rel": 0.05},
        {"solver_defaults__first_step": 0.5},
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
    found, _ = config_identity(config, solver=solver, checkpoint_sha256=None)
    assert found["solver.eps_rel"] == 0.25


# --- workdir ---


def test_a_workdir_is_claimed_once(folder):
    identity, _ = identity_of()
    claim(folder / "workdir", identity)
    claim(folder / "workdir", identity)


def test_another_configs_workdir_is_refused_with_the_differences(tmp_path):
    claim(tmp_path, identity_of()[0])
    with pytest.raises(ValueError, match="must be a folder that is new or holds samples of this") as caught:
        claim(tmp_path, identity_of(seed=5, solver__eps_rel=0.5)[0])
    message = str(caught.value)
    assert f"(got {str(tmp_path)!r}): choose another workdir, or set back" in message
    assert message.endswith(" config.seed = 5 (there 0), config.solver.eps_rel = 0.5 (there 0.02)")
    with pytest.raises(
        ValueError, match=r"config.sde.beta_max = 20.0 \(there absent\), .*'vp' \(there 've'\)"
    ):
        claim(tmp_path, identity_of(sde__name="vp")[0])


def test_an_unreadable_identity_is_refused(tmp_path):
    (tmp_path / "identity.json").write_text("{")
    with pytest.raises(ValueError, match=r"identity.json must be JSON \(got b'{'\): choose another workdir"):
        claim(tmp_path, {})


def test_a_workdir_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/sub"):
        claim(tmp_path / "file" / "sub", {})


@pytest.mark.parametrize("name", run.WRITES)
def test_files_of_somebody_else_are_not_written_over(name, folder, prepared):
    (folder / name).write_text("mine")
    message = (
        rf"workdir must be a folder that is new .* \(got .*\): choose another workdir, or move {name} away"
    )
    with pytest.raises(ValueError, match=message):
        run.sample_and_evaluate(prepared, folder)
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_text() == "mine"


def test_what_a_run_wrote_is_no_obstacle_to_the_next(tmp_path):
    identity, _ = identity_of()
    append(tmp_path, RESULT)  # as --images does, which marks no workdir
    (tmp_path / "notes.txt").write_text("mine")
    claim(tmp_path, identity, writes=run.WRITES)
    for name in run.WRITES:
        (tmp_path / name).mkdir()
    claim(tmp_path, identity, writes=run.WRITES)


def test_a_process_that_comes_second_is_not_refused_for_the_files_of_the_first(tmp_path, monkeypatch):
    """The first marks the folder and writes to it between this process's two looks at the folder."""
    identity, _ = identity_of()
    looks = []

    def meanwhile(path):
        looks.append(path)
        if len(looks) == 1:
            content = read_file(path)
            claim(tmp_path, identity)
            (tmp_path / "samples").mkdir()
            return content
        return read_file(path)

    monkeypatch.setattr(workdir, "read_file", meanwhile)
    claim(tmp_path, identity, writes=run.WRITES)
    assert len(looks) > 2


# --- runs ---


@pytest.fixture(scope="module")
def prepared():
    config = get_config()
    config.eval.update({"num_samples": 20, "shard_size": 8})
    return run.prepare(config, name="ve/digits_adaptive")


def some_samples(ids) -> Samples:
    counts = np.arange(1, 1 + len(ids), dtype=np.int32)
    images = np.full((len(ids), 8, 8, 1), 7, np.uint8)
    return Samples(sample_ids=ids, images=images, nfe=counts, accepted=counts, rejected=counts, status=counts)


def sampled_at_once(the_run, store, processes):
    """In the place of sampling."""
    for ids in store.pending(the_run.config.eval.num_samples):
        store.add(some_samples(ids))
    return {"lane_utilization": None, "samples_per_second": None, "seconds_compile": None}


def test_a_run_leaves_the_same_files_on_a_disk_and_on_an_object_store(folder, prepared, monkeypatch):
    monkeypatch.setattr(run, "_sample_missing", sampled_at_once)
    result = run.sample_and_evaluate(prepared, folder / "run")
    assert result["num_samples"] == 20
    assert read(folder / "run") == [result]
    files = {*(folder / "run").glob("*"), *(folder / "run" / "samples").glob("*")}
    assert {path.name for path in files} == {
        "identity.json",
        "results.jsonl",
        "samples",
        "samples.png",
        *(f"shard_00000{i}.npz" for i in range(3)),
    }
    assert (folder / "run" / "samples.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.delattr(run, "_sample_missing")
    assert run.sample_and_evaluate(prepared, folder / "run") == result


@pytest.mark.parametrize("when", ["sampling", "evaluating"])
def test_of_two_processes_that_finish_a_run_one_adds_the_result(tmp_path, prepared, monkeypatch, when):
    monkeypatch.setattr(run, "_sample_missing", sampled_at_once)

    def meanwhile(module, name):
        """Another process does all of the run while this one is at a step of its own."""
        own = getattr(module, name)

        def step(*arguments, **settings):
            with monkeypatch.context() as others:
                others.setattr(module, name, own)
                run.sample_and_evaluate(prepared, tmp_path)
            return own(*arguments, **settings)

        monkeypatch.setattr(module, name, step)

    meanwhile(*{"sampling": (run, "_sample_missing"), "evaluating": (run.plots, "save_grid")}[when])
    result = run.sample_and_evaluate(prepared, tmp_path)
    assert read(tmp_path) == [result]


def test_a_disk_without_room_is_refused_before_anything_is_sampled(tmp_path, prepared, monkeypatch):
    monkeypatch.delattr(run.models, "load_score_fn")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(
        OSError, match=r"cannot write .*samples: 0.0 MB are needed, and 0.0 MB are free"
    ) as error:
        run.sample_and_evaluate(prepared, tmp_path)
    assert error.value.errno == errno.ENOSPC
    # what is there needs no room
    with SampleStore(tmp_path / "samples", config_hash=prepared.config_hash, shard_size=8) as store:
        store.add(some_samples(np.arange(20)))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 0))
    assert run.sample_and_evaluate(prepared, tmp_path)["num_samples"] == 20


# --- what made it ---


def test_devices_and_versions():
    assert "cpu" in results.devices().lower()
    assert set(results.versions()) - {"gotta-go-fast"} == set(results.PACKAGES)
    commit = results.git_commit()
    assert commit is None or len(commit.removesuffix("+changes")) == 40
