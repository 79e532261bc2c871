"""The benchmark on exact scores: its rows are valid, and its quick run measures and can be resumed."""

import json
import math

import numpy as np
import pytest

from benchmarks import exact_score
from benchmarks.exact_score import MEASURED, SDES, SOLVERS, all_cells, main


def run(workdir, *arguments):
    main(["--quick", "--workdir", str(workdir), "--json", str(workdir / "figures.json"), *arguments])
    return json.loads((workdir / "figures.json").read_text())["figures"]


def test_every_row_is_a_run_of_its_own():
    """A row with settings that its solver refuses fails here."""
    cells = list(all_cells(list(SOLVERS), list(SDES), quick=False))
    identities = {cell.identity for cell in cells if cell.sde == "vp"}
    assert len(identities) == sum(cell.sde == "vp" for cell in cells)
    assert {cell.name for cell in cells} == {"truth", *SOLVERS}


@pytest.mark.slow
def test_the_quick_run_measures_and_the_next_reads_what_it_kept(tmp_path, monkeypatch, capsys):
    figures = run(tmp_path, "--solvers", "euler_maruyama,dpm_solver_pp_2m")
    assert (tmp_path / "exact_score.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "| vp  | 0.1       | euler_maruyama" in printed

    # for 256 true samples the mean residual has a standard deviation of sqrt(2/64/256) = 0.011, and the mean
    # log p one of sqrt(32/256) = 0.35 around −64/2 log(2 π e s²) − log 1797, but for a small overlap of modes
    truth = {name: figures[f"vp.0.1.truth.0.{name}"] for name in MEASURED}
    variance = 0.1**2 + 0.25 * (1 - math.exp(-(0.1e-3 + 0.5 * 19.9e-6)))
    separate = -32 * math.log(2 * math.pi * math.e * variance) - math.log(1797)
    assert truth["residual"] == pytest.approx(1, abs=5 * 0.011)
    assert truth["log_likelihood"] == pytest.approx(separate, abs=5 * 0.35)
    assert (truth["modes"], truth["nfe_mean"], truth["failed"]) == (1, 0, 0)

    # few steps leave noise behind, which worsens every figure; true samples are best in all of them
    coarse = {name: figures[f"vp.0.1.euler_maruyama.20.{name}"] for name in MEASURED}
    assert coarse["nfe_mean"] == coarse["nfe_max"] == 20
    assert coarse["residual"] > 1.2
    assert coarse["log_likelihood"] < truth["log_likelihood"] - 5
    assert coarse["frechet"] > truth["frechet"]
    assert coarse["failed"] == 0

    monkeypatch.setattr(exact_score, "measure", lambda cell: pytest.fail(f"{cell} was measured again"))
    assert run(tmp_path, "--solvers", "euler_maruyama,dpm_solver_pp_2m") == figures


def test_a_solver_that_does_not_converge_is_shown_as_such(tmp_path, monkeypatch, capsys):
    truth, cell, *_ = all_cells(["euler_maruyama"], ["vp"], quick=True)
    monkeypatch.setattr(exact_score, "MAX_EVALUATIONS", 10)
    records = {truth: exact_score.measure(truth), cell: exact_score.measure(cell)}
    assert records[cell]["failed"] == 256
    assert records[cell]["nfe_max"] == 10
    lines, figures = exact_score.table(records)
    assert "—" in lines.splitlines()[-1]
    assert np.isnan(figures["vp.0.1.euler_maruyama.20.frechet"])
    exact_score.plot(tmp_path / "plot.png", records)


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--solvers", "euler_maruyama,rk54"])
    message = capsys.readouterr().err
    assert "--solvers must be one of 'euler_maruyama', " in message
    assert "(got 'rk54'): did you mean 'rk45'?" in message
