"""The measures of benchmarks/torture.py on exact and on wrong samples; resumption; and a small table."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import torture
from benchmarks.torture import PROBLEMS, law, main, marks, quality, run
from solvers import Adaptive, AdaptiveExponential

N = 4000


def number_of(name, process):
    return next(i for i, p in enumerate(PROBLEMS) if (p.name, p.process) == (name, process))


PAIR = number_of("pair_1", "vp")
FOUR = number_of("four_8", "vp")


def marked(number, x):
    return set(marks(quality(number, x) | {"failed": 0}, PROBLEMS[number]))


@pytest.mark.parametrize("name", ["pair_1", "near_2", "four_8", "decades_pair_8", "heavy_1", "constant_8"])
def test_exact_samples_are_not_marked(name):
    number = number_of(name, "vp")
    assert marked(number, law(PROBLEMS[number]).samples(N, seed=0)) == set()


def test_a_wrong_weight_width_or_place_is_marked():
    modes = law(PROBLEMS[FOUR])
    x = modes.samples(N, seed=0)
    nearest = np.argmin(np.sum((x[:, None] - modes.centres) ** 2, axis=2), axis=1)
    centres = modes.centres[nearest]
    # a quarter of the first mode's samples are moved to the last
    moved = (nearest == 0) & (np.arange(N) % 4 == 0)
    assert {"weights", "ks"} <= marked(FOUR, x + moved[:, None] * (modes.centres[-1] - modes.centres[0]))
    assert "residual" in marked(FOUR, centres + 1.05 * (x - centres))
    assert "ks" in marked(FOUR, x + 0.2)
    # one sample of 4,000 far from every mode
    x[7] = 3.0
    assert "gross" in marked(FOUR, x)


def test_a_heavy_tail_is_marked():
    modes = law(PROBLEMS[PAIR])
    x = modes.samples(N, seed=0)
    x[: N // 50] += 5 * modes.widths[0]
    assert "tail" in marked(PAIR, x)


def test_a_failed_sample_is_marked_and_a_run_without_samples_is_no_error():
    assert marks({"failed": 5, "nfe": 1.0}, PROBLEMS[PAIR]) == ["failed"]


def test_the_score_is_that_of_double_precision():
    problem = PROBLEMS[number_of("decades_pair_8", "vp")]
    sde = torture.PROCESSES["vp"]
    for t in (sde.eps, 0.3, 1.0):
        modes = problem.modes.at(sde, t)
        x = jnp.asarray(modes.samples(16, seed=1), jnp.float32)
        score = problem.modes.score_fn(sde)(x, jnp.full(16, t, jnp.float32))
        z = (np.asarray(x, np.float64)[:, None] - modes.centres) / modes.widths
        logits = np.log(modes.weights) - 0.5 * np.sum(z**2, axis=2) - np.sum(np.log(modes.widths), axis=1)
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        expected = -np.sum(share[..., None] * z / modes.widths, axis=1)
        # rounding of x over the narrowest width, in units of the score
        np.testing.assert_allclose(score, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("process", ["vp", "vp_40"])
def test_the_default_draws_a_mixture_in_one_dimension(process):
    """Steps of 4 in log-SNR gave a residual variance of 2.7 and 7.6 here, and reported success."""
    number = number_of("pair_1", process)
    record = run(number, AdaptiveExponential(), 4000)
    assert marks(record, PROBLEMS[number]) == []


@pytest.mark.parametrize("process", ["edm", "subvp"])
def test_the_papers_solver_draws_a_mixture_in_one_dimension(process):
    """Steps that grew without a bound gave a residual variance of 2.1 and 1.4 here, and gross samples."""
    number = number_of("pair_1", process)
    record = run(number, Adaptive(), 2000)
    assert marks(record, PROBLEMS[number]) == []


def test_a_killed_run_is_resumed(tmp_path, monkeypatch, capsys):
    arguments = ["--solvers", "exact", "--problems", "four_8", "--num_samples", "500"]
    arguments += ["--workdir", str(tmp_path), "--json", str(tmp_path / "figures.json")]
    main(arguments)
    first = capsys.readouterr().out
    path = tmp_path / "torture.jsonl"
    *whole, last = path.read_text().splitlines()
    path.write_text("\n".join([*whole, last[:30]]) + "\n")  # killed while it wrote the last line
    calls = []
    monkeypatch.setattr(torture, "run", lambda *a: calls.append(a) or run(*a))
    main(arguments)
    assert len(calls) == 1
    assert capsys.readouterr().out == first
    assert "four_8.vp.exact.residual" in json.loads((tmp_path / "figures.json").read_text())["figures"]
