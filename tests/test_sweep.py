"""Sweeps and the paper's tables on the shipped networks, with few samples and few steps."""

import dataclasses
from pathlib import Path

import pytest

from configs import tables as paper
from configs.ve.digits_adaptive import get_config
from evaluation.metrics.measurement import Measurement
from evaluation.runs import measurement as measuring
from evaluation.runs import reproduce as reproducing
from evaluation.runs import sweep as sweeping
from tests import commands
from tests.evaluation.runs.test_tables import lines_of

EULER = "solver.name=euler_maruyama solver.num_steps=3,5 seed=0,1"
# 16 samples say nothing about FID, and are warned of
pytestmark = pytest.mark.filterwarnings("ignore:FID of")


@pytest.fixture(scope="module")
def measurement() -> Measurement:
    return measuring.from_config(config_of_few())


def config_of_few():
    config = get_config()
    config.eval.num_samples = 16
    config.eval.batch_size = 16
    return config


def sweep(products: list[str], workdir: Path, measurement: Measurement | None = None) -> str:
    return sweeping.sweep(
        config_of_few(),
        products,
        workdir,
        name="ve/digits_adaptive",
        command="python",
        measurement=measurement,
    )


def made(workdir: Path) -> dict[Path, int]:
    """When each result of a cell was written."""
    return {path: path.stat().st_mtime_ns for path in workdir.glob("cells/*/results.jsonl")}


class Killed(BaseException):
    pass


def test_a_killed_sweep_goes_on_and_does_nothing_twice(tmp_path, measurement, monkeypatch):
    run_cell, calls = sweeping.sample_and_evaluate, []

    def killed_at_the_third(*arguments, **settings):
        calls.append(arguments)
        if len(calls) == 3:
            raise Killed
        return run_cell(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(sweeping, "sample_and_evaluate", killed_at_the_third)
        with pytest.raises(Killed):
            sweep([EULER], tmp_path, measurement)
    before = made(tmp_path)
    assert len(before) == 2
    assert not list(tmp_path.glob("sweep.*"))

    text = sweep([EULER], tmp_path, measurement)
    after = made(tmp_path)
    assert len(after) == 4
    assert before.items() <= after.items()
    rows = [line for line in text.splitlines() if "| euler_maruyama" in line]
    assert len(rows) == 2  # the seeds of a setting are one row
    assert all("±" in row for row in rows)
    assert {path.name for path in tmp_path.glob("sweep.*")} == {"sweep.md", "sweep.csv", "sweep.png"}

    assert sweep([EULER], tmp_path, measurement) == text
    assert made(tmp_path) == after

    # a larger sweep adds what is missing
    more = sweep([EULER, "solver.name=euler_maruyama solver.num_steps=4"], tmp_path, measurement)
    assert after.items() <= made(tmp_path).items()
    assert len(made(tmp_path)) == 5
    assert len([line for line in more.splitlines() if "| euler_maruyama" in line]) == 3


@pytest.mark.parametrize(
    ("products", "message"),
    [
        ([], r"--sweep must be at least one product \(got \[\]\): add one such as --sweep="),
        (["  "], r"--sweep must be KEY=VALUE,VALUE,… for one or more keys \(got '  '\)"),
        (["solver.eps_rel"], r"--sweep must be KEY=VALUE,VALUE,… \(got 'solver.eps_rel'\)"),
        (["solver.eps_rel="], r"--sweep must be KEY=VALUE,VALUE,… \(got 'solver.eps_rel='\)"),
        (["solver.eps_rell=0.1"], r"--sweep key must .* 'solver.eps_rell'.* did you mean 'solver.eps_rel'\?"),
        (["eps_rel=0.1"], r"--sweep key must .* 'eps_rel'.* did you mean 'solver.eps_rel'\?"),
        (["solver=adaptive"], r"--sweep key must be a field of the config \(got 'solver'\)"),
        (["solver.eps_rel=0.1,small"], r"--sweep solver.eps_rel must be a number \(got 'small'\)"),
        (["solver.num_steps=2.5"], r"--sweep solver.num_steps must be a whole number \(got '2.5'\)"),
        (["solver.denoise=maybe"], r"--sweep solver.denoise must be true or false \(got 'maybe'\)"),
        (["model.ch_mult=1"], r"--sweep model.ch_mult must be a field that holds a number or .* 'tuple'"),
        (["seed=0,0"], r"--sweep seed must be different values \(got '0,0'\)"),
        (["seed=0 seed=1"], r"--sweep seed must be given once a product \(got '1'\)"),
        (["solver.name=adaptiv"], r"config.solver.name must .*'adaptiv'.* did you mean 'adaptive'\?"),
        (["solver.name=adaptive solver.eps_rel=0.1,-1"], r"config.solver.eps_rel must be a number > 0"),
        (
            ["solver.name=ddim solver.eps_rel=0.1"],
            r"config.solver.eps_rel must be None with config.solver.na",
        ),
        (["eval.batch_size=8,16"], r"--sweep cell must be one with samples of its own; .*batch_size=16"),
        # settings that would be the same for all cells, whatever the table said
        (
            ["solver.num_steps=4 eval.compared=8"],
            r"--sweep key must be .* \(got 'eval.compared'\): set it for",
        ),
        (
            ["solver.num_steps=4 data.name=mine"],
            r"--sweep key must be .* \(got 'data.name'\): set it for all",
        ),
        (["solver.num_steps=4 training.num_steps=9"], r"--sweep key must be .*'training.num_steps'"),
        (["model.checkpoint=absent"], r"checkpoint must .*'absent'"),
        (["sde.name=subvp solver.name=ancestral"], r"sde"),
    ],
)
def test_a_bad_sweep_is_refused_before_anything_is_sampled(products, message, tmp_path):
    good = [EULER] if products else []
    with pytest.raises(ValueError, match=message):
        sweep([*good, *products], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_values_take_the_types_of_their_fields():
    product = "solver.eps_rel=1,0.5 solver.extrapolate=true,False solver.num_steps=10 solver.norm=linf"
    cells = [dict(cell) for cell in sweeping.cells_of(product, get_config())]
    assert len(cells) == 4
    assert [cell["solver.eps_rel"] for cell in cells] == [1.0, 1.0, 0.5, 0.5]
    assert {type(cell["solver.eps_rel"]) for cell in cells} == {float}
    assert [cell["solver.extrapolate"] for cell in cells] == [True, False] * 2
    assert {(cell["solver.num_steps"], cell["solver.norm"]) for cell in cells} == {(10, "linf")}


def cell(model: str, method: str, variant: str, settings: dict, **more) -> paper.Cell:
    return paper.Cell(model=model, method=method, variant=variant, settings=settings, expected_nfe=40, **more)


EULER_5 = {"solver.name": "euler_maruyama", "solver.num_steps": 5}
LOOSE = {"solver.name": "adaptive", "solver.eps_rel": 0.5}
FEW = paper.Table(
    title="Few",
    num_samples=16,
    cells=(
        cell("digits_ve", "adaptive", "loose", LOOSE, eps_rel=0.5, seeds=2),
        cell(
            "digits_ve",
            "euler_maruyama",
            "as many",
            EULER_5,
            eps_rel=0.5,
            steps_of_adaptive=True,
            published=paper.recalled(52, 169.32),
        ),
        cell("vp", "euler_maruyama", "no checkpoint", EULER_5, published=paper.confirmed(1000, 2.55)),
        cell("church", "euler_maruyama", "no features", EULER_5),
    ),
    notes=("A note.",),
)
# a model whose weights are there, and whose features and data are not
CHURCH = dataclasses.replace(paper.MODELS["church"], checkpoint="assets/digits_ve")


@pytest.fixture
def reproduce(measurement, monkeypatch):
    """Makes a table of the digits; the features of other data are absent."""

    def of_digits(config):
        if config.data.name != "digits":
            raise ValueError("these features are not here")
        return measurement

    monkeypatch.setattr(measuring, "from_config", of_digits)
    monkeypatch.setitem(paper.MODELS, "church", CHURCH)

    def make(workdir: Path, table: paper.Table = FEW, **counts) -> str:
        monkeypatch.setitem(paper.TABLES, "few", table)
        return reproducing.reproduce("few", workdir, command="python", **counts)

    return make


def test_a_table_is_made_of_what_is_there_and_says_what_is_not(tmp_path, reproduce):
    text = reproduce(tmp_path)
    lines = lines_of(text, "setting")
    assert lines["loose"]["seeds"] == "2"
    assert float(lines["loose"]["NFE"]) < float(lines["loose"]["NFE lockstep"])
    # as many evaluations as Adaptive's mean, the denoising included
    assert float(lines["as many"]["NFE"]) == pytest.approx(float(lines["loose"]["NFE"]), abs=0.55)
    assert lines["as many"]["FID paper"] == "169.32†"
    difference = float(lines["as many"]["FID"]) - 169.32
    assert float(lines["as many"]["FID - paper's"]) == pytest.approx(difference, abs=0.0051)  # both rounded
    assert lines["no checkpoint"]["FID"] == "absent [1]"
    assert lines["no checkpoint"]["NFE"] == "-"
    assert "[1] there is no checkpoint at checkpoints/vp/cifar10_ddpmpp_continuous/checkpoint_8," in text
    assert lines["no features"]["FID"] == "absent [2]"
    assert "[2] the features or the reference are absent: these features are not here" in text
    assert {path.name for path in tmp_path.glob("table*")} == {
        "table_few.md",
        "table_few.csv",
        "table_few.png",
    }

    before = made(tmp_path)
    assert len(before) == 3
    assert reproduce(tmp_path) == text
    assert made(tmp_path) == before


def test_counts_of_a_table_can_be_set(tmp_path, reproduce):
    table = dataclasses.replace(FEW, cells=(cell("digits_ve", "euler_maruyama", "five", EULER_5),))
    text = reproduce(tmp_path, table, num_samples=24, seeds=2, batch_size=16)
    assert lines_of(text, "setting")["five"]["seeds"] == "2"
    assert "samples a seed 24" in text


def test_a_table_with_a_setting_out_of_range_samples_nothing(tmp_path, reproduce):
    wrong = cell("digits_ve", "adaptive", "wrong", {"solver.eps_rel": -1.0})
    with pytest.raises(ValueError, match=r"config.solver.eps_rel must be a number > 0 \(got -1.0\)"):
        reproduce(tmp_path / "new", dataclasses.replace(FEW, cells=(*FEW.cells, wrong)))
    assert not (tmp_path / "new").exists()


def test_the_command_makes_a_table_without_any_checkpoint(tmp_path):
    done = commands.main("--mode=reproduce", "--table=2", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "table_2.md").read_text() in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith(("| LSUN", "| FFHQ"))]
    assert len(lines) == len(paper.TABLES["2"].cells)
    assert all("absent" in line for line in lines)
    assert not (tmp_path / "cells").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode=reproduce"], "--table must be one of '1', '2', 'appendix', 'digits' (got '')"),
        (["--mode=reproduce", "--table=digit"], "did you mean 'digits'?"),
        (["--mode=reproduce", "--table=1", "--num_samples=0"], "--num_samples must be a whole number >= 1"),
        (
            ["--mode=reproduce", "--table=1", "--checkpoint=a"],
            "--checkpoint must be absent with --mode=reproduce (got 'a'): drop it, or choose --mode=eval or",
        ),
        (
            ["--table=1"],
            "--table must be absent with --mode=eval (got '1'): drop it, or choose --mode=reproduce",
        ),
        (["--mode=eval", "--sweep=seed=0,1"], "--sweep must be absent with --mode=eval (got ['seed=0,1'])"),
    ],
)
def test_a_bad_command_is_refused(arguments, message):
    refused = commands.main(*arguments)
    assert refused.returncode == 2
    assert message in refused.stderr
