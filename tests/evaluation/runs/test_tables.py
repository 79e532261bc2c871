"""The paper's tables as data, and how tables show what is there, what is not, and what is only recalled."""

import csv
import importlib
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sde_lib
import solvers
from configs import tables as paper
from evaluation.runs import tables
from evaluation.runs.sweep import with_settings
from tests.conftest import SHARED

CELLS: list[tuple[str, Any]] = [(name, cell) for name, table in paper.TABLES.items() for cell in table.cells]
CSV_MODELS = {
    ("1", "cifar10", "vp"): "vp",
    ("1", "cifar10", "vp_deep"): "vp_deep",
    ("1", "cifar10", "ve"): "ve",
    ("1", "cifar10", "ve_deep"): "ve_deep",
    ("2", "lsun_church_256", "ve_256"): "church",
    ("2", "ffhq_256", "ve_256"): "ffhq",
}


def test_the_published_numbers_are_the_collected_ones():
    path = SHARED / "paper" / "tables.csv"
    if not path.exists():
        pytest.skip(f"the collected numbers are not at {path}")
    collected = {}
    with path.open() as file:
        for line in csv.DictReader(file):
            key = (
                line["table"],
                CSV_MODELS[line["table"], line["dataset"], line["model"]],
                line["method"].removesuffix("_same_nfe"),
                float(line["eps_rel"]) if line["eps_rel"] else None,
            )
            collected[key] = int(line["nfe"]), float(line["fid"]), line["status"] == "confirmed"
    ours = {
        (name, cell.model, cell.method, cell.eps_rel): (
            cell.published.nfe,
            cell.published.fid,
            cell.published.confirmed,
        )
        for name, cell in CELLS
        if cell.published is not None
    }
    assert ours == collected


def test_one_cell_is_published_twice():
    twice = [cell for _, cell in CELLS if cell.published and cell.published.fid_elsewhere]
    (cell,) = twice
    assert (cell.model, cell.method, cell.published.nfe) == ("ve", "euler_maruyama", 1000)
    assert (cell.published.fid, cell.published.fid_elsewhere) == (2.98, 2.89)


@pytest.mark.parametrize("name", paper.TABLES)
def test_every_cell_is_a_solver_that_serves_its_process(name):
    for cell in paper.TABLES[name].cells:
        model = paper.MODELS[cell.model]
        module = importlib.import_module(f"configs.{model.config.replace('/', '.')}")
        config = with_settings(module.get_config(), cell.settings)
        solver, sde = (
            solvers.from_config(config.solver, config.solver_defaults),
            sde_lib.from_config(config.sde),
        )
        jax.eval_shape(lambda key, s=solver, d=sde: s.init(d, key, (2,), jnp.float32), jax.random.key(0))


def test_rows_at_adaptives_evaluations_are_given_published_steps_or_follow_an_adaptive_row():
    for name, cell in CELLS:
        if cell.eps_rel is None or cell.method == "adaptive":
            continue
        partners = [
            other
            for _, other in CELLS
            if (other.model, other.method, other.eps_rel) == (cell.model, "adaptive", cell.eps_rel)
        ]
        assert partners, cell
        if cell.steps_of_adaptive:
            cells = paper.TABLES[name].cells
            assert cells.index(partners[0]) < cells.index(cell)
        else:
            assert cell.settings["solver.num_steps"] == partners[0].published.nfe == cell.published.nfe


def test_the_ablations_are_all_different_and_the_first_is_the_default():
    settings = list(paper.ABLATIONS.values())
    assert settings[0] == {}
    assert len({tuple(sorted(each.items())) for each in settings}) == len(settings) == 11


def test_the_digits_table_is_affordable():
    """Under 20 minutes on 2 cores, at 200 microseconds an evaluation and 3 seconds a run besides."""
    table = paper.TABLES["digits"]
    evaluations = sum(cell.expected_nfe * cell.seeds for cell in table.cells) * table.num_samples
    runs = sum(cell.seeds for cell in table.cells)
    assert evaluations * 200e-6 + runs * 3 < 20 * 60


def result(seed: int, **figures) -> dict:
    return {
        "config_hash": f"hash{seed}",
        "num_samples": 100,
        "nfe_mean": 10.5,
        "nfe_max": 12 + seed,
        "nfe_lockstep": 11.0,
        "fid": 3.0 + seed,
        "is_mean": 2.0,
        "rejected": 0.5,
        "failed": seed,
        "features": "digits:abc",
        "reference": "digits:train:1797",
        "devices": "cpu x 1",
        "git_commit": "c0ffee",
        **figures,
    }


def row(name: str, **fields) -> tables.Row:
    return tables.Row(**{"labels": {"method": name}, "panel": "VE", "line": name, "results": (), **fields})


ROWS = [
    row("two seeds", results=[result(0), result(1)], published=paper.confirmed(9, 2.5)),
    row("one seed", results=[result(0)], published=paper.confirmed(9, 2.98, fid_elsewhere=2.89)),
    row("recalled", published=paper.recalled(49, 72.29), absent="no checkpoint"),
    row("no features", results=[result(0, fid=None, is_mean=None)]),
    row("also absent", absent="no checkpoint"),
    row("absent otherwise", absent="no features"),
]


def lines_of(text: str, key: str) -> dict[str, dict[str, str]]:
    """The lines of a Markdown table, by their cells in the column ``key``."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    named = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    return {line[key]: line for line in named}


def test_seeds_are_pooled():
    pooled = tables.pooled([result(0), result(1)])
    assert pooled["fid"] == 3.5
    assert pooled["fid_deviation"] == pytest.approx(np.sqrt(0.5))  # of 3 and 4, with n - 1
    assert (pooled["nfe_max"], pooled["failed"], pooled["seeds"]) == (13, 1, 2)
    assert pooled["config_hashes"] == "hash0 hash1"
    assert tables.pooled([result(0)])["fid_deviation"] is None


def test_ours_stands_beside_the_published_with_the_difference():
    cells = lines_of(tables.as_markdown(ROWS), "method")
    assert cells["two seeds"]["FID"] == "3.500 ± 0.707"
    assert cells["two seeds"]["FID paper"] == "2.50"
    assert cells["two seeds"]["FID - paper's"] == "+1.00"
    assert cells["one seed"]["FID"] == "3.000"
    assert cells["one seed"]["FID paper"] == "2.98 (also 2.89)"


def test_unconfirmed_numbers_are_marked_and_others_are_not():
    text = tables.as_markdown(ROWS)
    cells = lines_of(text, "method")
    assert cells["recalled"]["FID paper"] == "72.29†"
    assert cells["recalled"]["NFE paper"] == "49†"
    assert "†" not in "".join(cells["two seeds"].values())
    assert "† unconfirmed" in text
    assert "†" not in tables.as_markdown(ROWS[:1])


def test_what_is_absent_is_shown_so_with_its_reason_and_never_filled():
    text = tables.as_markdown(ROWS)
    cells = lines_of(text, "method")
    assert cells["recalled"]["FID"] == cells["also absent"]["FID"] == "absent [1]"
    assert cells["absent otherwise"]["FID"] == "absent [2]"
    assert "[1] no checkpoint\n\n[2] no features" in text
    for column in ("FID - paper's", "IS", "NFE", "NFE max", "failed", "seeds"):
        assert cells["recalled"][column] == tables.NOTHING
    assert cells["no features"]["FID"] == tables.NOTHING
    assert cells["no features"]["NFE"] == "10.5"


def test_the_csv_holds_the_same_as_plain_numbers():
    lines = {line["method"]: line for line in csv.DictReader(io.StringIO(tables.as_csv(ROWS)))}
    assert float(lines["two seeds"]["fid"]) == 3.5
    assert float(lines["two seeds"]["fid_difference"]) == 1.0
    assert lines["one seed"]["fid_deviation"] == ""
    assert lines["one seed"]["fid_published_elsewhere"] == "2.89"
    assert lines["recalled"]["published_confirmed"] == "False"
    assert lines["recalled"]["fid"] == lines["recalled"]["nfe_mean"] == ""
    assert lines["recalled"]["absent"] == "no checkpoint"


def test_a_table_says_what_it_is_of_and_how_to_make_it_again(tmp_path):
    text = tables.write(tmp_path, "t", ROWS, title="Title", command="python main.py", notes=["A note."])
    assert (tmp_path / "t.md").read_text() == text
    for part in ("# Title", "A note.", "digits:train:1797", "c0ffee", "    python main.py"):
        assert part in text
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_plotted_is_what_was_measured_and_what_was_published():
    (curves,) = tables.curves(ROWS).values()
    by_label = {curve.label: curve for curve in curves}
    assert by_label["two seeds"].points[0].ys == (3.0, 4.0)
    assert by_label["two seeds"].published[0].ys == (2.5,)
    assert not by_label["recalled"].points
    assert not by_label["recalled"].published
    assert by_label["recalled"].unconfirmed[0].ys == (72.29,)
    assert not {"no features", "also absent"} & set(by_label)


def test_nothing_is_plotted_where_there_is_nothing(tmp_path):
    tables.write(tmp_path, "t", [row("absent", absent="no checkpoint")], title="", command="")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.md"]
