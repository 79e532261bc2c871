"""The paths of benchmarks/same_path.py are Brownian motions, and solvers get them rightly; a small table."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solvers
from benchmarks import strong_error
from benchmarks.same_path import (
    Path,
    Paths,
    _advance,
    clock_of,
    clock_of_width,
    noise_share,
    run,
    run_along,
    solve_along,
)
from benchmarks.strong_error import errors, main
from sde_lib import VESDE, VPSDE
from solvers import (
    DDIM,
    ERSDE,
    Adaptive,
    AdaptiveExponential,
    EulerMaruyama,
    Heun,
    SASolver,
    SDEDPMSolverPP,
    Solver,
    Status,
    UniformLogSNR,
)
from solvers.arguments import as_arrays
from solvers.noise import sample_key, standard_normal
from tests.problems import Gaussian

KEY, SHAPE, N, CELLS = jax.random.key(0), (4, 4), 16, 800
FULL = EulerMaruyama()  # a solver of the process with all of the noise
OTHER = jax.random.key(5)
PROBLEM = Gaussian()
SDES = {"ve": VESDE(), "vp": VPSDE()}
SOLVERS = [
    SDEDPMSolverPP(num_steps=20),
    SASolver(num_steps=20),
    AdaptiveExponential(),
    AdaptiveExponential(num_evaluations=10),  # whose steps are longer than 1/2
    ERSDE(num_steps=20),
    EulerMaruyama(num_steps=50),
    # draws anew for every step that it tries, as the test below counts the draws
    Adaptive(eps_rel=0.1, first_step=0.05, noise_on_rejection="redraw"),
]


@jax.jit
def numbers_of(key):
    """The first 200 draws of every sample, [sample, number, ...]."""

    def of_one(i):
        draw = jax.vmap(lambda number: standard_normal(sample_key(key, i), number, SHAPE, jnp.float32))
        return draw(jnp.arange(200))

    return jax.vmap(of_one)(jnp.arange(N, dtype=jnp.uint32))


NUMBERS = np.asarray(numbers_of(OTHER))


def paths_of(sde, *, num_cells=CELLS, num_samples=N):
    return Paths.draw(sde, key=KEY, shape=SHAPE, num_samples=num_samples, num_cells=num_cells)


def by_number(n):
    return AdaptiveExponential(num_evaluations=n)


def score_of(sde):
    return PROBLEM.score_fn(sde)


def distance(x, y):
    return float(np.sqrt(np.mean((np.asarray(x) - np.asarray(y)) ** 2)))


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_a_solver_with_another_s_numbers_draws_the_other_s_samples(solver):
    """Other numbers in the place of the solver's own give what the solver makes of a key that has them."""
    sde = SDES["vp"]
    keys = [jax.vmap(sample_key, (None, 0))(key, jnp.arange(N, dtype=jnp.uint32)) for key in (KEY, OTHER)]
    states = jax.vmap(lambda key: solver.init(sde, key, SHAPE, jnp.float32))(keys[0])
    expected = dataclasses.replace(states, key=keys[1])
    arguments = score_of(sde), *as_arrays((sde, solver), jnp.float32)
    while np.any(expected.status == Status.RUNNING):
        expected, _ = _advance(*arguments, expected)
    settings = {"key": KEY, "shape": SHAPE, "num_samples": N}
    found = run(score_of(sde), sde, solver, draw=lambda i, n, *_: NUMBERS[i, n], **settings)
    # rounding of numbers that are replaced where x is 5 or so; the data's deviation is 0.2
    np.testing.assert_allclose(found.x, expected.x, atol=1e-4)


def test_with_a_solver_s_own_numbers_the_samples_are_those_of_the_driver():
    sde, solver = SDES["vp"], AdaptiveExponential()
    settings = {"key": OTHER, "shape": SHAPE, "num_samples": N}
    expected = solvers.sample(score_of(sde), sde, solver, denoise=False, batch_size=N, **settings)
    found = run(score_of(sde), sde, solver, draw=lambda i, n, *_: NUMBERS[i, n], **settings)
    np.testing.assert_allclose(found.x, expected.x, atol=1e-5)
    assert np.array_equal(found.nfe, expected.nfe)


@pytest.mark.parametrize("solver", [ERSDE(), EulerMaruyama(), AdaptiveExponential()])
def test_a_path_is_a_brownian_motion_wherever_it_is_looked_at(solver):
    """Points in any order, within cells and beyond: the increments between them are independent normals."""
    sde, random = SDES["vp"], np.random.default_rng(1)
    clock = clock_of(solver, {"variance": np.array(0.04), "eta": np.array(0.7)})
    paths = paths_of(sde, num_cells=25, num_samples=200)
    begin, end = paths.log_snr[0], paths.log_snr[-1]
    time_at = jax.jit(jax.vmap(sde.inverse_log_snr))
    found = []
    for sample in range(200):
        path = Path(paths, sample, random)
        points = np.sort(random.uniform(begin, end, 9))
        points[4] = points[3] + 1e-3  # in one cell
        times = np.asarray(time_at(points), float)
        # a rejected step looks at a point before others
        path.increment((begin, points[6]), (paths.times[0], times[6]), clock)
        steps = [
            path.increment((points[i], points[i + 1]), (times[i], times[i + 1]), clock) for i in range(8)
        ]
        # and they add up to the increment over all of them
        lengths = np.diff(clock(points, times))
        total = path.increment((points[0], points[8]), (times[0], times[8]), clock)
        np.testing.assert_allclose(np.tensordot(np.sqrt(lengths / lengths.sum()), steps, 1), total, atol=1e-4)
        found.append([z.ravel() for z in steps])
    z = np.concatenate(found, axis=1)  # [step, sample × element]
    count = z.shape[1]
    # standard errors of a mean, a variance and a correlation; with 5.5 of them, one alarm in 10^6 runs
    assert np.abs(z.mean(axis=1)).max() < 5.5 / np.sqrt(count)
    assert np.abs(z.var(axis=1) - 1).max() < 5.5 * np.sqrt(2 / count)
    assert np.abs(np.corrcoef(z) - np.eye(8)).max() < 5.5 / np.sqrt(count)


def test_cuts_leave_the_cells_as_they_are():
    paths = paths_of(SDES["ve"], num_cells=8)
    path = Path(paths, 3, np.random.default_rng(0))
    middle = paths.log_snr[2] + 0.3 * (paths.log_snr[3] - paths.log_snr[2])
    time = float(SDES["ve"].inverse_log_snr(middle))
    path.increment((paths.log_snr[0], middle), (paths.times[0], time), clock_of_width(0.0))
    z = path.increment(tuple(paths.log_snr[2:4]), tuple(paths.times[2:4]), clock_of_width(0.0))
    np.testing.assert_allclose(z, paths.e[2, 3], atol=1e-5)


def exact(sde, paths):
    """The solution along the paths: with b the data's deviation, C (y − mean) changes by the noise in C."""
    clock = clock_of_width(PROBLEM.std**2)
    ends = tuple(paths.log_snr[[0, -1]]), tuple(paths.times[[0, -1]])
    random = np.random.default_rng(0)
    z = np.array([Path(paths, i, random).increment(*ends, clock) for i in range(len(paths.prior))])
    first, last = clock(*np.array(ends))
    y = np.asarray(paths.prior) / float(sde.marginal(sde.T)[0])
    y = PROBLEM.mean + (first * (y - PROBLEM.mean) + np.sqrt(last - first) * z) / last
    return float(sde.marginal(sde.eps)[0]) * y


def fine(sde, paths, solver: Solver = FULL, **settings):
    share = noise_share(solver, jnp.asarray(paths.log_snr[:-1], jnp.float32), SHAPE)
    return solve_along(score_of(sde), sde, paths, share, **settings)


def error_of(solver, paths, expected, **settings):
    sde = SDES["vp"]
    return distance(run_along(score_of(sde), sde, solver, paths, key=KEY, **settings).x, expected)


@pytest.mark.parametrize(
    "make",
    [lambda n: DDIM(num_steps=n, eta=1.0, grid=UniformLogSNR()), lambda n: EulerMaruyama(num_steps=n)],
    ids=["exponential", "in_time"],
)
def test_the_strong_error_has_order_1(make):
    paths = paths_of(SDES["vp"])
    expected = exact(SDES["vp"], paths)
    found = [error_of(make(n), paths, expected) for n in (50, 100, 200)]
    # terms of second order are a tenth at 50 steps, and the cells' own error a tenth at 200
    np.testing.assert_allclose(np.array(found[:-1]) / found[1:], 2, rtol=0.2)
    assert distance(fine(SDES["vp"], paths), expected) < found[-1] / 2


@pytest.mark.parametrize(
    "solver",
    [ERSDE(num_steps=200, order=1), AdaptiveExponential(num_evaluations=200)],
    ids=["er_sde", "ours"],
)
def test_the_process_is_that_of_the_solver(solver):
    """Many steps end at the fine solution of the process with the solver's share of noise, no other."""
    paths = paths_of(SDES["vp"])
    own, other = (error_of(solver, paths, fine(SDES["vp"], paths, process)) for process in (solver, FULL))
    assert own < 0.1 * other


def test_the_noise_in_the_clock_of_another_solver_is_farther_from_the_path():
    paths = paths_of(SDES["vp"])
    for solver in (AdaptiveExponential(), EulerMaruyama(num_steps=50)):
        expected = fine(SDES["vp"], paths, solver)
        other = error_of(solver, paths, expected, clock=clock_of_width(0.0))
        assert error_of(solver, paths, expected) < 0.6 * other


def test_a_solver_that_is_the_fine_solution_has_no_error():
    sde = SDES["ve"]
    paths = paths_of(sde, num_cells=60)
    solver = DDIM(num_steps=30, eta=1.0, grid=UniformLogSNR())
    found = run_along(score_of(sde), sde, solver, paths, key=KEY)
    # rounding of x at σ = 50
    np.testing.assert_allclose(found.x, fine(sde, paths, merged=2), atol=1e-4)


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (Heun(), "solver must be one of DDIM, SDEDPMSolverPP, .* choose one of these"),
        (DDIM(), r"eta must be 1 \(got 0.0\): set it to 1"),
        (AdaptiveExponential(eta=0.5), r"eta must be 1 \(got 0.5\)"),
        (SASolver(tau=0.5), r"tau must be 1 \(got 0.5\)"),
        (Adaptive(error_estimate="lamba"), r"error_estimate must be 'heun' \(got 'lamba'\)"),
    ],
)
def test_other_noise_is_refused(solver, message):
    sde = SDES["vp"]
    with pytest.raises(ValueError, match=message):
        run_along(score_of(sde), sde, solver, paths_of(sde, num_cells=20), key=KEY)


def test_the_figures_of_known_distances():
    found = errors(np.array([0.0, 0.2, 0.2, 2.0]), deviation=2.0)
    assert found["error"] == pytest.approx(np.sqrt(4.08 / 4))
    assert found["relative"] == pytest.approx(found["error"] / 2)
    assert found["median"] == pytest.approx(0.1)
    assert found["parted"] == 0.25
    squares = np.random.default_rng(0).exponential(size=(2000, 100))  # whose strong error is 1
    spread = [errors(np.sqrt(each), 1.0)["standard_error"] for each in squares]
    estimates = np.sqrt(squares.mean(axis=1))
    assert np.mean(spread) == pytest.approx(estimates.std(), rel=0.1)


def test_an_odd_number_of_cells_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--cells", "101", "--workdir", str(tmp_path)])
    assert "--cells must be an even number of at least 2 (got 101)" in capsys.readouterr().err


def test_a_killed_run_is_resumed(tmp_path, monkeypatch, capsys):
    arguments = ["--quick", "--solvers", "half,sde_dpm_solver_pp_2m", "--workdir", str(tmp_path)]
    arguments += ["--json", str(tmp_path / "figures.json")]
    main(arguments)
    first = capsys.readouterr().out
    path = tmp_path / "strong_error.jsonl"
    *whole, last = path.read_text().splitlines()
    path.write_text("\n".join([*whole, last[:30]]) + "\n")  # killed while it wrote the last line
    calls, measuring = [], strong_error.measuring

    def counted(problem, workdir):
        measure = measuring(problem, workdir)
        return lambda cell: calls.append(cell) or measure(cell)

    monkeypatch.setattr(strong_error, "measuring", counted)
    main(arguments)
    assert len(calls) == 1
    assert capsys.readouterr().out == first
    assert (tmp_path / "strong_error.png").exists()
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    fewer, more = (figures[f"mixture_vp.sde_dpm_solver_pp_2m.{steps}.relative"] for steps in (10, 50))
    assert fewer > more > figures["mixture_vp.half.200.relative"]
    changed = dataclasses.replace(calls[0], num_samples=33)
    assert changed.identity != calls[0].identity
