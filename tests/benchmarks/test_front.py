"""benchmarks/front.py: the choice of the rival and the verdict on made-up records, and a small run."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import front
from benchmarks.front import (
    GRIDS,
    Cell,
    Front,
    Sizes,
    against_each,
    at_least_as_good,
    best_of,
    finalists,
    front_of,
    judged,
    main,
    point_of,
    rival_at,
    shown,
    summary,
    with_pooled_errors,
)
from sde_lib import VESDE, VPSDE
from solvers import UniformLogSNR


def point(value, error=0.0, evaluations=10, label="a", nfe=10.0):
    return point_of(label, [{"nfe": nfe, "value": value, "error": error}], evaluations)


def test_the_finalists_are_the_best_at_their_number_of_evaluations():
    values = {"a": (3.0, 1.0), "b": (1.0, 2.0), "c": (2.0, 3.0)}
    searched = {label: {10: point(first), 20: point(second)} for label, (first, second) in values.items()}
    assert finalists(searched, 10) == ["b", "c"]
    assert finalists(searched, 20) == ["a", "b"]


def test_the_best_is_the_least_at_each_number_of_evaluations():
    points = [point(2.0, evaluations=20), point(3.0, label="b"), point(1.0, label="c"), point(4.0)]
    assert [(p.evaluations, p.value, p.label) for p in best_of(points)] == [(10, 1.0, "c"), (20, 2.0, "a")]


def test_ours_is_worse_only_by_more_than_two_standard_errors():
    # the error of the difference is 5, that of a (3, 4, 5) triangle
    rival = point(10.0, error=3.0)
    assert at_least_as_good(point(19.9, error=4.0), rival)
    assert not at_least_as_good(point(20.1, error=4.0), rival)
    assert at_least_as_good(point(1.0, error=0.0), rival)


def test_the_rival_between_two_numbers_is_on_their_line_in_the_logarithms():
    best = [point(8.0, 0.8, evaluations=5), point(2.0, 0.1, evaluations=20)]
    between = rival_at(best, 10.0)
    assert between is not None
    assert between.value == pytest.approx(4.0)
    assert between.error in (pytest.approx(0.4), pytest.approx(0.2))  # of the same share as a neighbour's
    assert rival_at(best, 4.9) is None
    assert rival_at(best, 20.1) is None


def test_the_mean_over_seeds_has_the_error_of_a_mean():
    records = [{"nfe": 11.0, "value": 1.0, "error": 0.3}, {"nfe": 13.0, "value": 3.0, "error": 0.4}]
    found = point_of("a", records)
    assert (found.evaluations, found.value, found.error) == (12.0, 2.0, pytest.approx(0.25))


def test_pooled_errors_are_those_of_all_seeds():
    def of(*values):
        return point_of("a", [{"nfe": 1.0, "value": value} for value in values], 1)

    # relative variances 0.02 and 0, so 0.01 in the mean; the mean of two seeds has half of it
    first, second = with_pooled_errors([of(0.9, 1.1), of(2.0, 2.0)])
    assert first.error == pytest.approx(math.sqrt(0.01 / 2))
    assert second.error == pytest.approx(2 * math.sqrt(0.01 / 2))


def test_the_summary_counts_and_names_the_cells_from_ten_evaluations_on():
    cells = [
        Cell(problem="near_2_ve", ours=point(4e-4, evaluations=n), rival=point(value, evaluations=n))
        for n, value in ((8, 1e-4), (10, 1e-4), (20, 9e-4))
    ]
    text = summary(judged(cells), "by number")
    assert text == "by number: at least as good in 1 of 2 cells, better in 1. Worse: near_2_ve at 10 (2.00)"


def test_each_fixed_solver_is_compared_by_what_is_beyond_true_samples():
    def at(value, floor, label="a"):
        return point_of(label, [{"nfe": 10.0, "value": value, "error": 0.1, "floor": floor}], 10)

    # the same 2 beyond true samples, with fewer samples; less by 1; more by 1
    values = {"equal": 3.0, "good": 2.0, "poor": 4.0}
    found = Front(
        problem="near_2_ve",
        searched={label: {10: at(value, 1.0, label)} for label, value in values.items()},
        best=[],
        by_number=[at(2.5, 0.5)],
        by_tolerance=[],
        without_noise=[],
    )
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in against_each([found]).splitlines()]
    assert rows[2:] == [["good", "0", "0", "1"], ["equal", "0", "1", "0"], ["poor", "1", "0", "0"]]


def test_fid_is_shown_as_it_is_and_a_square_as_its_root():
    assert shown("digits_ve", 0.04) == 0.04
    assert shown("near_2_ve", 0.04) == pytest.approx(0.2)


@pytest.mark.parametrize("sde", [VESDE(), VPSDE()])
def test_a_large_rho_is_uniform_in_log_snr(sde):
    fractions = jnp.linspace(0, 1, 21)

    def log_snr(grid):
        return np.asarray(jax.vmap(lambda fraction: sde.log_snr(grid.time(sde, fraction)))(fractions))

    found, expected = log_snr(GRIDS["log-SNR"]), log_snr(UniformLogSNR())
    # the curve of e^(−λ/ρ) deviates by at most 1/8 of the squared range over ρ: range²/8000, and rounding
    assert np.max(np.abs(found - expected)) < 0.01 * np.ptp(expected)


@pytest.mark.slow
def test_a_small_run_is_resumed_and_ours_beats_ddim(tmp_path, monkeypatch, capsys):
    labels = ["DDIM eta 0, log-SNR", "DDIM eta 1, rho 7"]  # one compiled program
    small = functools.partial(front_of, counts=(8, 20), labels=labels, tolerances=(0.02,))
    monkeypatch.setattr(front, "front_of", small)
    monkeypatch.setattr(front, "sizes_of", lambda problem, quick: Sizes(search=1024, counted=1024))
    arguments = ["--quick", "--workdir", str(tmp_path), "--json", str(tmp_path / "front.json")]
    main(arguments)
    output = capsys.readouterr().out
    figures = json.loads((tmp_path / "front.json").read_text())["figures"]
    assert figures["share"] == figures["near_2_ve.20.at_least_as_good"] == 1.0
    assert figures["near_2_ve.20.ours"] < figures["near_2_ve.20.best"]
    assert "by num_evaluations: at least as good in 1 of 1 cells" in output
    assert (tmp_path / "front.png").stat().st_size > 10_000
    monkeypatch.setattr(front, "on_exact", None)  # all records are there
    main(arguments)
    assert capsys.readouterr().out == output
