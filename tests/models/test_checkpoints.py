"""Checkpoints of every format are read as they were written, and a bad one is refused with the reason."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax.serialization import msgpack_restore, msgpack_serialize

import models
import sde_lib
from configs.base import get_config
from configs.keys import WEIGHTS, values
from models import checkpoints, published_jax
from sde_lib.presets import settings_of
from tests.models import tiny

# Of the reference's float32 scores, and of bfloat16 scores against our float32 ones
SCORE_TOLERANCE, BFLOAT16_TOLERANCE = 2e-4, 2e-2

FLAX = ["ve_ncsnpp", "ve_ncsnpp_256style", "vp_ddpm", "vp_ddpmpp", "subvp_ddpmpp"]
TORCH = ["ve_ncsnpp", "ve_ncsnpp_256style", "vp_ddpmpp"]
GOLDEN = [("flax", case, "checkpoint_7") for case in FLAX] + [("torch", c, "checkpoint_7.pth") for c in TORCH]


def golden_config(folder: Path) -> Any:
    """Our config of a published one."""
    theirs, config = json.loads((folder / "config.json").read_text()), get_config()
    config.sde.name = theirs["training"]["sde"].removesuffix("sde")
    for group, source in (("sde", "model"), ("model", "model"), ("data", "data")):
        for name, value in theirs[source].items():
            if name in (settings_of(config.sde.name) if group == "sde" else config[group]):
                old = config[group][name]
                config[group][name] = type(old)(value) if isinstance(old, float | tuple) else value
    return config


def relative(a: Any, b: Any) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize(("kind", "case", "file"), GOLDEN)
def test_published_checkpoints_give_the_reference_scores(golden, kind, case, file):
    folder = golden(kind, case)
    config, golden = golden_config(folder), np.load(folder / "golden.npz")
    call = jax.jit(lambda score_fn, x, t: score_fn(x, t))
    for raw, name in ((False, "score_from_params_ema"), (True, "score_from_params")):
        score_fn = models.load_score_fn(config, folder / file, raw=raw)
        score = call(score_fn, golden["x"], golden["t"])
        assert relative(score, golden[name]) < SCORE_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("case", FLAX)
def test_bfloat16_stays_near_float32(golden, case):
    folder = golden("flax", case)
    config, golden = golden_config(folder), np.load(folder / "golden.npz")
    config.model.dtype = "bfloat16"
    call = jax.jit(lambda score_fn, x, t: score_fn(x, t))
    for raw, name in ((False, "score_from_params_ema"), (True, "score_from_params")):
        score = call(models.load_score_fn(config, folder / "checkpoint_7", raw=raw), golden["x"], golden["t"])
        assert score.dtype == np.float32
        assert relative(score, golden[name]) < BFLOAT16_TOLERANCE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A config, its averaged and raw weights, and a checkpoint with them in each format."""
    folder, config = tmp_path_factory.mktemp("checkpoints"), tiny.config(sde="ve")
    ema, raw = tiny.params(config), tiny.params(config, seed=1)
    order = list(models.build(config).abstract_params())
    metadata = checkpoints.describe(config, step=7000, command="python main.py")
    paths = {
        "own": checkpoints.save(folder / "own", ema, metadata, {"params": raw, "step": np.int32(7000)}),
        "jax": tiny.write_jax(folder / "checkpoint_7", ema, raw),
        "torch": tiny.write_torch(folder / "checkpoint_7.pth", order, ema, raw),
        "legacy": tiny.write_torch(folder / "checkpoint_6.pth", order, ema, raw, legacy=True),
    }
    return config, ema, raw, paths


def restore(path: str | Path, config: Any, raw: bool = False) -> tuple[models.Params, dict[str, Any]]:
    return models.restore_params(models.find(path), models.build(config), config, raw=raw)


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, dict(a), dict(b))


@pytest.mark.parametrize("kind", ["own", "jax", "torch", "legacy"])
def test_every_format_gives_the_averaged_and_on_request_the_raw_weights(made, kind, tmp_path):
    config, ema, raw, paths = made
    for wanted, as_trained in ((ema, False), (raw, True)):
        params, metadata = restore(paths[kind], config, raw=as_trained)
        assert_same(params, wanted)
        assert metadata["step"] == 7000
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    # the content decides, not the name
    if kind != "own":
        renamed = shutil.copy(paths[kind], tmp_path / "weights.bin")
        assert_same(restore(renamed, config)[0], ema)


def test_weights_of_half_the_size_are_the_nearest_ones(made, tmp_path):
    config, ema, _, paths = made
    path = models.convert(paths["own"], tmp_path / "half", config, dtype="bfloat16")
    params, _ = restore(path, config)
    assert_same(params, jax.tree.map(lambda leaf: np.asarray(jnp.bfloat16(leaf), np.float32), ema))


@pytest.mark.parametrize("kind", ["own", "jax", "torch"])
def test_convert_writes_the_weights_and_where_they_are_from(made, kind, tmp_path):
    config, ema, _, paths = made
    path = models.convert(paths[kind], tmp_path / "out", config, command="main.py --mode=convert")
    params, metadata = restore(path, config)
    assert_same(params, ema)
    assert metadata["source_sha256"] == checkpoints.checkpoint_sha256(paths[kind])
    assert metadata["command"] == "main.py --mode=convert"
    assert metadata.get("source_command") == {"own": "python main.py"}.get(kind)
    assert checkpoints.provenance(path)["source_sha256"] == metadata["source_sha256"]
    assert checkpoints.provenance(path)["checkpoint_sha256"] == checkpoints.checkpoint_sha256(path)
    assert not [f for f in path.rglob("*") if f.is_file() and str(tmp_path).encode() in f.read_bytes()]
    before = checkpoints.checkpoint_sha256(path)
    (path / ".DS_Store").write_text("a file manager's")
    assert checkpoints.checkpoint_sha256(path) == before
    with pytest.raises(ValueError, match=r"checkpoint to write must be a path where nothing exists"):
        models.convert(paths[kind], path, config)
    (tmp_path / "file").write_text("somebody's own")
    message = rf"checkpoint to write must be a path in a folder, and {tmp_path / 'file'} is a file \(got "
    with pytest.raises(ValueError, match=message):
        models.convert(paths[kind], tmp_path / "file" / "new", config)
    with pytest.raises(
        ValueError, match=r"checkpoint to write must be a local folder \(got 'gs://bucket/new'"
    ):
        models.convert(paths[kind], "gs://bucket/new", config)
    with pytest.raises(ValueError, match=r"item 'training_state' for raw weights"):
        restore(path, config, raw=True)


def test_the_config_names_the_checkpoint_unless_the_call_does(made):
    config, ema, _, paths = made
    score_fn = models.load_score_fn(config, paths["own"])
    x, t = np.zeros((2, 8, 8, 3), np.float32), np.array([0.1, 0.9], np.float32)
    direct = models.build(config).score_fn(sde_lib.from_config(config.sde), ema)
    call = jax.jit(lambda score_fn, x, t: score_fn(x, t))
    np.testing.assert_array_equal(call(score_fn, x, t), call(direct, x, t))
    config = config.copy_and_resolve_references()
    with pytest.raises(
        ValueError, match=r"config.model.checkpoint must .*None\): .*--mode=train, or name one with"
    ):
        models.load_score_fn(config)
    config.model.checkpoint = str(paths["jax"])
    assert models.load_score_fn(config).func == score_fn.func


def test_a_missing_checkpoint_names_its_neighbours(made):
    config, _, _, paths = made
    with pytest.raises(
        ValueError,
        match=r"checkpoint must be .*nothing at .*checkpoint_8'\): did you mean checkpoint_7.* "
        r"Otherwise see docs/checkpoints.md",
    ):
        restore(paths["jax"].with_name("checkpoint_8"), config)


def test_a_missing_published_checkpoint_says_where_it_is():
    where = "ve/cifar10_ncsnpp_continuous"
    page = (checkpoints.ROOT / "docs" / "checkpoints.md").read_text()
    for file, address in (
        ("checkpoint_24", checkpoints.JAX_PAGE),
        ("checkpoint_24.pth", checkpoints.TORCH_PAGE),
    ):
        with pytest.raises(
            ValueError, match=rf"download {file} of the folder {where} from {address} and put it"
        ):
            models.find(f"checkpoints/{where}/{file}")
        assert address in page
        assert where in page
    with pytest.raises(ValueError, match=r"bring back the shipped ones with `git checkout assets`"):
        models.find("assets/letters")


@pytest.mark.parametrize("keep", [0.999, 0.5, 0.01])
@pytest.mark.parametrize("kind", ["jax", "torch", "legacy"])
def test_a_truncated_file(made, kind, keep, tmp_path):
    config, _, _, paths = made
    content = paths[kind].read_bytes()
    short = tmp_path / "checkpoint_7"
    short.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=rf"checkpoint must be a whole .*file.*'{short}'\): copy it again"):
        restore(short, config)


def test_a_damaged_own_checkpoint(made, tmp_path):
    config, _, _, paths = made
    for damage in ("truncate", "metadata"):
        copy = shutil.copytree(paths["own"], tmp_path / damage)
        if damage == "metadata":
            (copy / "metadata" / "metadata").write_text('{"step": 70')
        else:
            largest = max((copy / "params_ema").rglob("*"), key=lambda f: f.stat().st_size * f.is_file())
            largest.write_bytes(largest.read_bytes()[:100])
        with pytest.raises(
            ValueError, match=rf"checkpoint must be a whole folder.*'{copy}'\): copy it again"
        ):
            restore(copy, config)


@pytest.mark.parametrize("kind", ["own", "jax", "torch"])
def test_another_architecture_lists_what_differs(made, kind):
    config, _, _, paths = made
    config = config.copy_and_resolve_references()
    config.model.num_res_blocks = 2
    if kind == "own":
        message = (
            r"config must be that .* had {'config.model.num_res_blocks': 1} "
            r"\(got {'config.model.num_res_blocks': 2}\): take the config"
        )
    else:
        message = r"(?s)of the architecture.*missing \(\d+\): .*and \d+ more.*misshapen \(\d+\): .*instead of"
    with pytest.raises(ValueError, match=message):
        restore(paths[kind], config)


def test_the_list_of_differences_is_short(made):
    config, _, _, paths = made
    config = config.copy_and_resolve_references()
    config.model.update({"nf": 8, "embedding_type": "fourier"})
    with pytest.raises(ValueError, match=r"the config has a Fourier embedding.*VE networks") as caught:
        restore(paths["jax"], config)
    misshapen = next(line for line in str(caught.value).split("\n") if "misshapen" in line)
    assert misshapen.count("instead of") == 10


DIFFERING = {
    "sde.sigma_min": 0.02,
    "sde.sigma_max": 60.0,
    "sde.T": 0.9,
    "data.name": "mnist",
    "data.crop": 8,
    "data.resize": "box",
}


@pytest.mark.parametrize("key", DIFFERING)
def test_weights_of_another_process_or_other_data_are_refused_unless_that_is_wanted(made, key):
    config, ema, _, paths = made
    trained, config = values(config, WEIGHTS)[key], config.copy_and_resolve_references()
    config.update_from_flattened_dict({key: DIFFERING[key]})
    with pytest.raises(ValueError, match=r"^config must be that of the training of checkpoint") as caught:
        restore(paths["own"], config)
    assert f"which had {{'config.{key}': {trained!r}}} (got {{'config.{key}': {DIFFERING[key]!r}}}): " in str(
        caught.value
    )
    assert str(caught.value).endswith(
        f"if the difference is wanted, add --config.model.mismatch_allowed='(\"{key}\",)'"
    )
    config.model.mismatch_allowed = (key,)
    assert_same(restore(paths["own"], config)[0], ema)
    for published in ("jax", "torch"):  # state nothing
        config.model.mismatch_allowed = ()
        assert_same(restore(paths[published], config)[0], ema)


def test_a_wanted_difference_permits_no_other(made):
    config = made[0].copy_and_resolve_references()
    config.sde.update({"sigma_max": 60.0, "T": 0.9})
    config.model.mismatch_allowed = ("sde.T",)
    with pytest.raises(ValueError, match=r"mismatch_allowed='\(\"sde.T\", \"sde.sigma_max\"\)'$"):
        restore(made[3]["own"], config)
    config.model.mismatch_allowed = ("sde.sigma_mux",)
    with pytest.raises(
        ValueError, match=r"config.model.mismatch_allowed must .*did you mean 'sde.sigma_max'"
    ):
        restore(made[3]["own"], config)


def test_the_end_of_sampling_may_differ(made):
    config, ema, _, paths = made
    config = config.copy_and_resolve_references()
    config.sde.eps = 1e-4
    assert_same(restore(paths["own"], config)[0], ema)


@pytest.mark.parametrize(("key", "value"), [("sde.beta_min", 0.2), ("sde.beta_max", 25.0)])
def test_weights_of_another_vp_process(key, value, tmp_path):
    config = tiny.config()
    params = tiny.params(config)
    path = checkpoints.save(tmp_path / "own", params, checkpoints.describe(config, step=1, command="x"))
    assert_same(restore(path, config)[0], params)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=rf"which had {{'config.{key}': .*mismatch_allowed="):
        checkpoints.require_trained_like(path, config)


def test_a_checkpoint_that_does_not_state_its_data_and_a_copy_of_one_that_does(made, tmp_path):
    config, ema, _, paths = made
    metadata = checkpoints.describe(config, step=1, command="x")
    for name in ("name", "crop", "resize"):
        del metadata["data"][name]
    path = checkpoints.save(tmp_path / "old", ema, metadata)
    config = config.copy_and_resolve_references()
    config.data.update({"name": "mnist", "resize": "box"})
    assert_same(restore(path, config)[0], ema)
    # The wanted difference is that of one run: the copy says what the weights were trained with
    config.model.mismatch_allowed = ("data.name", "data.resize")
    copy = models.convert(paths["own"], tmp_path / "copy", config)
    config.model.mismatch_allowed = ()
    with pytest.raises(
        ValueError, match=r"which had {'config.data.name': 'digits', 'config.data.resize': None"
    ):
        restore(copy, config)
    assert "mismatch_allowed" not in json.loads((copy / "metadata" / "metadata").read_text())["model"]


def test_another_process_where_it_can_be_told(made):
    config, _, _, paths = made
    config = config.copy_and_resolve_references()
    config.sde.name = "vp"
    config.data.centered = True
    config.model.dropout = 0.5  # may differ
    message = r"'config.sde.name': 've', 'config.data.centered': False} \(got .*'vp', .*: True}\): take the"
    with pytest.raises(ValueError, match=message):
        restore(paths["own"], config)


def test_weights_that_are_not_finite(made, tmp_path):
    config, ema, raw, _ = made
    ema = jax.tree.map(np.copy, ema)
    ema["Conv_0"]["kernel"][0, 0, 0, 0] = np.nan
    path = tiny.write_jax(tmp_path / "checkpoint_7", ema, raw)
    with pytest.raises(ValueError, match=r"1 of \d+ hold NaN or infinite values: Conv_0/kernel"):
        restore(path, config)
    restore(path, config, raw=True)  # those are good


def test_folders(made, tmp_path):
    config, ema, _, paths = made
    with pytest.raises(ValueError, match=r"this folder is empty \(got .*\): see docs/checkpoints.md"):
        restore(tmp_path, config)
    (tmp_path / "notes.txt").write_text("of no interest")
    with pytest.raises(ValueError, match=r"this folder holds none"):
        restore(tmp_path, config)
    shutil.copy(paths["jax"], tmp_path / "checkpoint_7")
    assert_same(restore(tmp_path, config)[0], ema)
    shutil.copy(paths["torch"], tmp_path / "checkpoint_8")
    with pytest.raises(
        ValueError, match=r"holds 2: checkpoint_7, checkpoint_8 .*: choose one, .*checkpoint_8"
    ):
        restore(tmp_path, config)
    assert_same(restore(tmp_path / "checkpoint_8", config)[0], ema)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x80\x01}q\x00.", b"\x93NUMPY", b"PK\x05\x06" + bytes(18)]
)
def test_a_file_of_no_known_format(made, content, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"checkpoint must be in this project's format.*none of these \(got '{path}'\)"
    ):
        restore(path, made[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"\x80\x03}q\x00.",
            r"a network snapshot as EDM writes it, .*it holds nothing.*: take a published net",
        ),
        (b"\x80\x04\x95", "a whole pickle, but reading it fails .*: copy it again"),
        (
            b"\x81\x01" + bytes(6) + b'{"__metadata__"',
            "a safetensors file, which says nothing of its network .*: give the folder of diffusers",
        ),
        (b"version https://git-lfs.github.com/spec/v1", r"a pointer of Git LFS.*: run `git lfs pull`"),
        (b"<!DOCTYPE html><html>", "a web page instead of the file itself.*: download it again in a browser"),
        (b"\n<html>", "a web page instead of the file itself"),
    ],
)
def test_files_of_other_projects_are_named_as_what_they_are(made, content, message, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        restore(path, made[0])
    assert "\n" not in str(caught.value)


def test_archives_of_other_projects_are_named_as_what_they_are(made, tmp_path):
    np.savez(tmp_path / "weights.npz", a=np.zeros(2))
    with pytest.raises(
        ValueError, match=r"a PyTorch file, but it is a zip archive that holds a.npy .*: take"
    ):
        restore(tmp_path / "weights.npz", made[0])


def test_msgpack_of_something_else(made, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(msgpack_serialize({"weights": np.ones(3)}))
    with pytest.raises(ValueError, match=r"arrays under 'params_ema', but it holds 'weights' "):
        restore(path, made[0])


def test_the_walk_over_msgpack_reads_what_flax_wrote(tmp_path):
    """All kinds of values of a training state, small and large."""
    state = {
        "numbers": {
            str(i): n for i, n in enumerate([0, 1, 127, 128, 70_000, 2**40, -1, -33, -300, -(2**40), 0.5])
        },
        "others": {"none": None, "yes": True, "no": False, "text": "x" * 300, "bytes": b"y" * 70_000},
        "params_ema": {f"layer {i}": {"w": np.full((i, 2), i, np.float32)} for i in range(20)},
        "step": np.int32(3),
    }
    path = tmp_path / "x"
    path.write_bytes(msgpack_serialize(state))
    weights = published_jax.open_weights(path, raw=False)
    read = weights.read(weights.shapes)
    expected = msgpack_restore(path.read_bytes())["params_ema"]
    assert weights.metadata == {"step": 3}
    assert set(read) == {f"layer {i}/w" for i in range(20)}
    for name, array in read.items():
        np.testing.assert_array_equal(array, expected[name.removesuffix("/w")]["w"])


def packed_lists(number: int) -> bytes:
    return b"\xdd" + number.to_bytes(4, "big") + b"\xc0" * number


def flax_array(shape: Any, dtype: Any, content: bytes) -> bytes:
    array = msgpack.ExtType(1, msgpack.packb((shape, dtype, content), default=str) or b"")
    return msgpack.packb({"params_ema": {"a": array}}) or b""


def test_arrays_without_numbers_are_of_another_architecture(made, tmp_path):
    path = tmp_path / "checkpoint_7"
    path.write_bytes(flax_array([0, 3], "float32", b""))
    with pytest.raises(ValueError, match=r"(?s)of the architecture.*unexpected \(1\): a$"):
        restore(path, made[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"\x81\xaaparams_ema" + packed_lists(30_000_000),
            "a whole file in .*30000000 exceeds max_array_len",
        ),
        (b"\x81\xa4more" + packed_lists(30_000_000), "arrays under 'params_ema', but it holds 'more' "),
        (b"\xdf\xff\xff\xff\xff", "a map has 4294967295 names"),
        (b"\x81\xaaparams_ema\xdf\x7f\xff\xff\xff", "exceeds max_map_len"),
        (b"\x81\xaaparams_ema\xc9\x3f\xff\xff\xff\x01abc", "it ends inside a value"),
        (b"\x81\xaaparams_ema\xda\x01\x2c" + b"x" * 300, "300 exceeds max_str_len"),
        (b"\x81" * 2000, "a map's name is a dict|StackError"),
        (b"\x81\xaaparams_ema" + b"\x81\xa1a" * 1015 + b"\xc0", "RecursionError"),
        (b"\x81\x01\xc0", "a map's name is a int, not a string"),
        (b"\x82\xa1a\xc0\x90\xc0", "a map's name is a list, not a string"),
        (b"\x81\xaaparams_ema\x81\x01\xc0", "int is not allowed for map key"),
        (b"\x81\xaaparams_ema\x81\xc4\x01a\xc0", "TypeError"),
        (b"\x81\xaaparams_ema\x81\xa1a\xc7\x03\x01\x93\xc0\xc0", "a whole file in the published JAX"),
        (b"\x81\xaaparams_ema\xc1", "FormatError"),
        (b"\x81\xaaparams_ema\xc0", "arrays under 'params_ema', but it holds 'params_ema' "),
        (
            b"\x81\xaaparams_ema\x83\xa1a\xc0\xa1b\xa2xy\xa1c\x07",
            "under that name there are 'a' NoneType, 'b' str, 'c' int ",
        ),
        (b"\x81\xaaparams_ema\x81\xa1a\xd4\x02x", "under that name there are 'a' ExtType"),
        (flax_array([2, 2], "object", bytes(32)), "an array has the type"),
        (flax_array([2], "V0", b""), "an array has the type"),
        (flax_array([2], ["float32"], bytes(8)), "an array has the type"),
        (flax_array("ab", "float32", bytes(8)), "an array has the type"),
        (flax_array([-1], "float32", bytes(8)), "an array has the type"),
        (flax_array([2**70], "float32", bytes(8)), "a whole file in .* but "),
        (flax_array([3], "float32", bytes(8)), "a whole file in .* but ValueError"),
        (b"\x82\xa4step\xcb\x7f\xf0" + bytes(6) + b"\xaaparams_ema\x80", "OverflowError"),
    ],
)
def test_msgpack_of_bad_will_is_refused_in_one_line(content, message, tmp_path):
    path = tmp_path / "checkpoint_7"
    path.write_bytes(content)
    program = """
import resource, sys, time
from pathlib import Path
from models import published_jax
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
try:
    published_jax.open_weights(Path(sys.argv[1]), raw=False)
except ValueError as error:
    print(error)
print(time.perf_counter() - start)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    if len(content) < 10_000:
        with pytest.raises(ValueError, match=message) as caught:
            published_jax.open_weights(path, raw=False)
        assert "\n" not in str(caught.value)
        return
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], cwd=root, check=True, stdout=subprocess.PIPE, text=True
    )
    text, seconds, megabytes = done.stdout.splitlines()
    assert re.search(message, text)
    assert float(seconds) < 5
    assert float(megabytes) < 100  # of libraries it has more


def test_a_network_with_weights_of_an_odd_type_is_refused(made, tmp_path):
    config, ema, raw, _ = made
    ema = jax.tree.map(np.copy, ema)
    ema["Conv_0"]["bias"] = np.zeros(ema["Conv_0"]["bias"].shape, np.int32)
    path = tiny.write_jax(tmp_path / "checkpoint_7", ema, raw)
    with pytest.raises(ValueError, match=r"floating-point weights, but 1 of \d+ are not: Conv_0/bias int32"):
        restore(path, config)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak of a process's memory")
def test_reading_takes_little_more_memory_than_the_weights(tmp_path):
    """A file of 400 MB, of which the averaged weights are a quarter, in 50 arrays of 2 MB."""
    array = np.ones((512, 1024), np.float32)
    tree = {str(i): array for i in range(50)}
    path = tmp_path / "checkpoint_7"
    state = {"optimizer": {"target": tree, "state": {"a": tree, "b": tree}}, "params_ema": tree}
    path.write_bytes(msgpack_serialize(state))
    assert path.stat().st_size > 400e6
    program = """
import resource, sys
from pathlib import Path
from models import published_jax
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
weights = published_jax.open_weights(Path(sys.argv[1]), raw=sys.argv[2] == "raw")
arrays = weights.read(weights.shapes)
assert len(arrays) == 50
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    root = Path(__file__).resolve().parents[2]
    for which in ("averaged", "raw"):
        command = [sys.executable, "-c", program, str(path), which]
        done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
        assert float(done.stdout) < 100 + 20  # MB: the weights, and some arrays on their way


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


class _Import:
    def __reduce__(self) -> Any:
        return eval, ("1 + 1",)


def test_a_pickle_that_imports_something_else_is_refused_by_name_and_not_run(made, tmp_path):
    mark = tmp_path / "was run"
    for content, name in ((_Bomb(mark), "getattr"), (_Import(), "eval")):  # Path.touch is found by getattr
        path = tmp_path / "x.pth"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"model": content}, protocol=2))
        with pytest.raises(
            ValueError, match=rf"model needs __builtin__\.{name} .*: nothing was imported or run"
        ):
            restore(path, made[0])
    assert not mark.exists()


def write_changed(made: Any, path: Path, change: Any) -> Path:
    config, ema, raw, _ = made
    order = list(models.build(config).abstract_params())
    return tiny.write_torch(path, order, ema, raw, change=change)


def test_what_is_beside_the_weights_may_name_anything_and_is_not_run(made, tmp_path):
    config, ema, _, _ = made
    mark = tmp_path / "was run"
    bombs = {"bomb": _Bomb(mark), "set": {_Bomb(mark)}, "config": argparse.Namespace(a=1, b=[np.arange(3)])}
    path = write_changed(made, tmp_path / "x.pth", lambda state: state | bombs)
    params, metadata = restore(path, config)
    assert_same(params, ema)
    assert metadata["step"] == 7000
    assert not mark.exists()


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_the_files_of_the_public_training_loop_are_read(made, module, tmp_path):
    """Its learning rate is one of NumPy's, under a name that depends on the version."""
    config, ema, _, paths = made
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(paths["torch"]) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray\nscalar" in content
                content = content.replace(b"numpy._core.multiarray\nscalar", f"{module}\nscalar".encode())
            new.writestr(name, content)
    assert_same(restore(path, config)[0], ema)


@pytest.mark.parametrize(
    ("step", "found"),
    [
        (tiny.Tensor(np.array([7000], np.float32)), 7000),
        (np.int64(7000), None),
        (7000.0, 7000),
        (float("inf"), None),
        (2**2000, 2**2000),
        (tiny.Tensor(np.zeros(2, np.float32)), None),
        ("7000", None),
    ],
)
def test_a_step_of_any_kind(made, step, found, tmp_path):
    path = write_changed(made, tmp_path / "x.pth", lambda state: state | {"step": step})
    assert restore(path, made[0])[1]["step"] == found


@pytest.mark.parametrize("name", ["module._orig_mod.{}", "_orig_mod.module.{}", "_orig_mod.{}", "{}"])
def test_names_of_compiled_and_parallel_models(made, name, tmp_path):
    def renamed(state: dict[str, Any]) -> dict[str, Any]:
        plain = {key.removeprefix("module."): tensor for key, tensor in state["model"].items()}
        return state | {"model": {name.format(key): tensor for key, tensor in plain.items()}}

    path = write_changed(made, tmp_path / "x.pth", renamed)
    for wanted, as_trained in ((made[1], False), (made[2], True)):
        assert_same(restore(path, made[0], raw=as_trained)[0], wanted)


def with_model(change: Any) -> Any:
    return lambda state: state | {"model": dict(change([*state["model"].items()]))}


def with_average(number: int, change: Any) -> Any:
    def changed(state: dict[str, Any]) -> dict[str, Any]:
        shadow = list(state["ema"]["shadow_params"])
        shadow[number] = change(shadow[number])
        return state | {"ema": {"shadow_params": shadow}}

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_average(0, lambda tensor: np.float64(1)), r"all_modules.0.bias needs numpy\._core"),
        (
            with_average(1, lambda tensor: tiny.Tensor(tensor.array, (-1,) * 4)),
            r"all_modules.0.weight needs a shape, strides or an offset that PyTorch does not write",
        ),
        (with_model(lambda named: named[::-1]), "in another order than that of their use"),
        (lambda state: state["model"], r"it holds .*all_modules.*: save {'model': .*}, not bare weights$"),
        (lambda state: state | {"ema": np.float64(1)}, r"ema needs numpy._core.multiarray.scalar"),
        (lambda state: state | {"ema": {"shadow_params": np.float64(1)}}, r"shadow_params needs numpy"),
        (lambda state: state | {"ema": {"shadow_params": 7}}, r"a training state with tensors under"),
        (lambda state: np.float64(1), r"the file needs numpy._core.multiarray.scalar"),
        (
            lambda state: state | {"model": {"module.all_modules.0.W": 7}},
            "a training state with tensors under",
        ),
        (lambda state: 7, r"it holds int \("),
    ],
)
def test_weights_that_are_no_tensors_are_refused_by_name(made, change, message, tmp_path):
    path = write_changed(made, tmp_path / "x.pth", change)
    with pytest.raises(ValueError, match=message) as caught:
        restore(path, made[0])
    assert "\n" not in str(caught.value)


def zipped(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return path


def write_greedy_files(folder: Path) -> list[Path]:
    """Small files that ask for much time or memory, one kind each."""
    nested = b"\x80\x02}" + b"K\x01" + b"2\x86" * 100_000 + b"K\x01s."
    pickles = {
        "memo": b"\x80\x02]r\x00\x00\x00\x10.",  # LONG_BINPUT 2^28
        "nested key": nested,
        "doubled key": b"\x80\x02}" + b"K\x01" + b"2\x86" * 60 + b"K\x01s.",
        "deep": b"]" + b"\x85" * 400_000 + b".",
        "long string": b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"abc",
        "long number": b"\x80\x02\x8b\xff\xff\xff\x7fabc",
        "long frame": b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b"N.",
        "many": b"\x80\x02" + b"N0" * 4_000_000 + b"N.",
        "digits": b"L" + b"9" * 8_000_000 + b"L\n.",
        "large": b"\x80\x02" + b"U\xff" + bytes(32_000_000) + b".",
    }
    paths = [zipped(folder / f"{name}.pth", content) for name, content in pickles.items()]
    for name, content in pickles.items():
        paths.append(folder / f"{name}.pkl")
        paths[-1].write_bytes(content if content.startswith(b"\x80") else b"\x80\x04" + content)
    for name in ("memo", "nested key", "long string"):
        heads = b"".join(pickle.dumps(head, 2) for head in (0x1950A86A20F9469CFC6C, 1001, {}))
        paths.append(folder / f"{name} legacy.pth")
        paths[-1].write_bytes(heads + pickles[name])
    paths.append(folder / "deflated.pth")
    with (
        zipfile.ZipFile(paths[-1], "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("archive/data.pkl", "w") as file,
    ):
        for _ in range(600):
            file.write(bytes(1_000_000))
    assert paths[-1].stat().st_size < 600_000_000 / 200
    for name, content in {
        "ext": b"\x81\xaaparams_ema\x81\xa1a\xc9\x3f\xff\xff\xff\x01abc",
        "bin": b"\x81\xaaparams_ema\xc6\xff\xff\xff\xffabc",
        "map": b"\x81\xaaparams_ema\xdf\xff\xff\xff\xffabc",
        "skipped": b"\x81\xa1a\xdd\xff\xff\xff\xff" + b"\xc0" * 1000,
        "inner": flax_array([1 << 30, 1 << 30], "float32", b""),
    }.items():
        paths.append(folder / name)
        paths[-1].write_bytes(content)
    return paths


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak of a process's memory")
def test_files_that_ask_for_much_are_refused_soon_and_in_little_memory(tmp_path):
    program = """
import resource, sys, time
from pathlib import Path
import jax
from models import checkpoints
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    start = time.process_time()
    try:
        checkpoints._open(Path(path), {}, raw=False)
    except ValueError:
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"{time.process_time() - start:.2f} s, {peak:.0f} MB, {Path(path).name}")
"""
    paths = write_greedy_files(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths)],
        cwd=checkpoints.ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths)
    for line in lines:
        seconds, megabytes = (float(part.split()[0]) for part in line.split(", ")[:2])
        assert seconds < 5, line
        assert megabytes < 500, line


def build_on(module: str, name: str, state: bytes) -> bytes:
    """A pickle that names something and then changes its attributes, by the instruction BUILD."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + state + b"b."


@pytest.mark.parametrize(
    "content",
    [
        build_on("torch", "FloatStorage", b"}X\x05\x00\x00\x00dtypeX\x05\x00\x00\x00int32s"),
        build_on("torch", "FloatStorage", b"N}X\x05\x00\x00\x00dtypeX\x05\x00\x00\x00int32s\x86"),
        build_on("torch._utils", "_rebuild_tensor_v2", b"N}X\x0c\x00\x00\x00__defaults__Ns\x86"),
        build_on("torch._utils", "_rebuild_parameter", b"}X\x01\x00\x00\x00xK\x01s"),
        build_on("collections", "OrderedDict", b"N}X\x05\x00\x00\x00itemsNs\x86"),
    ],
)
def test_a_pickle_changes_nothing_for_the_next_file(made, content, tmp_path):
    config, ema, _, paths = made
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    with pytest.raises(ValueError, match="checkpoint must be"):
        restore(path, config)
    assert_same(restore(paths["torch"], config)[0], ema)


def test_a_tensor_that_goes_beyond_its_bytes(made, tmp_path):
    config, _, _, paths = made
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(paths["torch"]) as whole, zipfile.ZipFile(path, "w") as broken:
        for name in whole.namelist():
            content = whole.read(name)
            broken.writestr(name, content[:-8] if "/data/" in name and len(content) > 16 else content)
    with pytest.raises(ValueError, match=r"a tensor goes beyond storage \d+\).*: copy it again"):
        restore(path, config)


def test_save_refuses_to_overwrite_unless_told(made, tmp_path):
    config, ema, _, _ = made
    metadata = checkpoints.describe(config, step=1, command="x")
    path = checkpoints.save(tmp_path / "a" / "own", ema, metadata)
    with pytest.raises(
        ValueError, match=r"checkpoint to write must be .*: choose another path, or remove what"
    ):
        checkpoints.save(path, ema, metadata)
    checkpoints.save(path, ema, metadata | {"step": 2}, force=True)
    assert restore(path, config)[1]["step"] == 2
