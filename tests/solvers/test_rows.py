"""Conditions, starts and samples that are pytrees: each sample keeps its own rows, or they are refused."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sde_lib import as_score
from sde_lib.guidance import classifier_free
from solvers import (
    DDIM,
    AdaptiveExponential,
    EulerMaruyama,
    Start,
    Status,
    sample,
    stream,
)
from solvers.presets import SOLVERS
from tests.problems import PATHS, SDES, Gaussian

SDE = SDES["vp"]
NUM_SAMPLES, LANES = 64, 16
CLASSES = (np.arange(NUM_SAMPLES) * 7 % 10).astype(np.int32)
SETTINGS: dict[str, Any] = {"key": jax.random.key(0), "shape": (4, 4), "batch_size": LANES}


def of_class(x, t, classes):
    """The score of data that are their class in every pixel, but for a deviation of 0.1."""
    return jax.vmap(lambda x, t, c: Gaussian(mean=c, std=0.1).score(SDE, x, t))(x, t, classes)


def drawn(score_fn: Any = of_class, solver: Any = AdaptiveExponential(), **settings: Any) -> Any:  # noqa: B008
    if "sample_ids" not in settings:
        settings = {"num_samples": NUM_SAMPLES} | settings
    together: Any = SETTINGS | settings
    return sample(score_fn, SDE, solver, **together)


# --- conditions ---


def test_every_sample_has_its_own_condition_whatever_lane_it_is_in():
    solution = drawn(conditions=CLASSES)
    assert np.abs(solution.x.mean((1, 2)) - CLASSES).max() < 5 * 0.1 / 4
    for settings in ({"batch_size": 7}, {"batch_size": 64}):
        np.testing.assert_array_equal(drawn(conditions=CLASSES, **settings).x, solution.x)
    ids = np.array([5, 60, 7, 3, 41])
    some = drawn(sample_ids=ids, conditions=CLASSES[ids], batch_size=2)
    np.testing.assert_array_equal(some.x, solution.x[ids])


def test_a_condition_may_be_any_tree():
    means, stds = CLASSES / 10, np.full(NUM_SAMPLES, 0.1)

    def score_fn(x, t, condition):
        return of_class(x, t, 10 * condition["mean"] + jnp.sum(condition["parts"][1], axis=(1, 2)))

    parts = [np.zeros((NUM_SAMPLES, 2)), np.zeros((NUM_SAMPLES, 3, 2), np.int8)]
    tree = {"mean": means, "parts": parts, "std": stds}
    solution = drawn(score_fn, conditions=tree)
    assert np.abs(solution.x.mean((1, 2)) - CLASSES).max() < 5 * 0.1 / 4


def test_a_stream_asks_for_the_rows_when_the_devices_need_them():
    asked: list[int] = []

    def ids():
        for begin in range(0, 10_000, 50):
            yield np.arange(begin, begin + 50)

    def rows_of(some):
        asked.append(int(some.max()))
        return CLASSES[some % NUM_SAMPLES]

    setting: Any = SETTINGS | {"shape": (2,)}
    del setting["batch_size"]
    lanes: Any = {"lanes": LANES, "conditions": rows_of}
    parts = stream(of_class, SDE, DDIM(num_steps=5), sample_ids=ids(), **lanes, **setting)
    first = next(part for part in parts if len(part.x))
    assert max(asked) < 500  # of 10,000: no more than the queues hold
    np.testing.assert_allclose(first.x.mean(1), CLASSES[first.sample_ids % NUM_SAMPLES], atol=0.5)


def test_the_network_evaluations_of_guidance_are_counted():
    guided = classifier_free(Partial(of_class), SDE, null=0, scale=2.0)
    solver = EulerMaruyama(num_steps=10)
    plain, twice = (drawn(score, solver, conditions=CLASSES) for score in (of_class, guided))
    assert (plain.nfe == 11).all()
    assert (twice.nfe == 22).all()
    assert (plain.evaluations_per_call, twice.evaluations_per_call) == (1, 2)
    assert twice.network_calls == plain.network_calls
    assert twice.lane_utilization == plain.lane_utilization
    stopped = drawn(guided, solver, conditions=CLASSES, max_evaluations=9)
    assert (stopped.nfe == 10).all()
    assert (stopped.status == Status.MAX_EVALUATIONS).all()


def test_a_score_that_holds_a_row_for_each_sample_is_warned_of():
    classes = jnp.asarray(CLASSES)

    def held(x, t):
        return of_class(x, t, classes[: len(x)])

    with pytest.warns(
        UserWarning, match=r"type int32. If it has a row for each of the 64 samples, pass it as"
    ):
        drawn(held, DDIM(num_steps=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(Partial(lambda weights, x, t: weights[0] * x, jnp.zeros(NUM_SAMPLES)), DDIM(num_steps=2))
        drawn(solver=DDIM(num_steps=2), conditions=CLASSES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conditions": CLASSES[:-1]}, r"conditions must be arrays with a leading axis of 64.*shape \(63,\)"),
        ({"conditions": 3}, r"conditions must be arrays with a leading axis of 64"),
        ({"conditions": ()}, r"conditions must be arrays"),
        ({"conditions": np.array(["cat"] * 64)}, r"conditions must be arrays of numbers \(got .*<U3'\)"),
        # JAX would take 2^40 + 1 for class 1
        (
            {"conditions": CLASSES + np.int64(2**40)},
            r"conditions must be numbers that int32 holds \(got \[1099511627776",
        ),
        (
            {"conditions": CLASSES + np.float64(1e300)},
            r"conditions must be numbers that float32 holds \(got \[1e\+300",
        ),
        (
            {"score_fn": lambda x, t: -x, "conditions": CLASSES},
            r"score_fn must be a function of \(x, t, condit",
        ),
        ({}, r"score_fn must be a function of \(x, t\) .*pass conditions=, one row a sample"),
        ({"sample_ids": [1, 2, 1], "conditions": CLASSES[:3]}, r"sample_ids must be different ids"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        drawn(**settings)


def test_a_network_that_does_not_take_what_the_score_hands_on_is_refused():
    class Conditional:
        def __call__(self, x, label, classes):
            return x

    network: Any
    settings: Any = {"prediction": "epsilon", "time": "t"}
    for network, conditions, message in (
        (
            lambda x, label, classes: x,
            None,
            r"\(x, label\) .*classes\)'\): pass conditions=, one row a sample",
        ),
        (Conditional(), None, r"\(x, label\) .*classes\)'\): pass conditions="),
        (lambda x, label: x, CLASSES, r"\(x, label, condition\), .*: leave conditions out, or change"),
    ):
        with pytest.raises(ValueError, match=f"network must be a function of {message}"):
            drawn(as_score(network, SDE, **settings), conditions=conditions)


def test_rows_whose_shape_changes_are_refused():
    def rows_of(ids):
        return np.zeros((len(ids), 1 + int(ids.max() > 40)), np.float32)

    def score_fn(x, t, condition):
        return -x + 0 * condition[:, :1, None]

    with pytest.raises(ValueError, match=r"conditions must be alike for all ids, as \(\(1,\), 'float32'\)"):
        drawn(score_fn, conditions=rows_of)
    with pytest.raises(ValueError, match="conditions must be arrays with a leading axis of 1"):
        drawn(score_fn, conditions=lambda ids: np.zeros((len(ids) + 1, 1), np.float32))


# --- starts ---


# Quick is one that chooses its times, and one whose grid and history have to begin elsewhere
QUICK = ("adaptive", "unipc")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SOLVERS]
)
def test_every_solver_starts_from_any_time(name):
    """Samples of the marginals at several times come out as the data: mean 0.3 and deviation 0.2."""
    problem, count = Gaussian(), 256
    few = name in ("euler_maruyama", "reverse_diffusion", "ancestral", "annealed_langevin")
    steps = {"num_steps": 200} if few else {}
    solver: Any = SOLVERS[name](**steps)
    t = np.repeat(np.array([0.05, 0.3, 0.7, 1.0], np.float32), count // 4)
    data = 0.3 + 0.2 * np.random.default_rng(0).standard_normal((count, 8, 8)).astype(np.float32)
    start = Start.noised(SDE, data, t, key=jax.random.key(1))
    settings: Any = {"key": jax.random.key(0), "shape": (8, 8), "num_samples": count, "batch_size": 64}
    solution = sample(problem.score_fn(SDE), SDE, solver, start=start, **settings)
    assert solution.failed == 0
    for rows in solution.x.reshape(4, -1):
        error = 5 / np.sqrt(len(rows))
        # what the methods themselves leave: Langevin steps at few noise levels mix slowly
        left, wider = (0.15, 1.5) if name == "annealed_langevin" else (0.01, 0.1)
        assert abs(rows.mean() - 0.3) < 0.2 * error + left
        assert abs(rows.std() / 0.2 - 1) < error + wider
    again = sample(problem.score_fn(SDE), SDE, solver, start=start, **settings | {"batch_size": 16})
    np.testing.assert_array_equal(again.x, solution.x)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "edm" else pytest.mark.slow) for name in PATHS]
)
def test_every_process_starts_from_any_time(name):
    sde, problem = PATHS[name], Gaussian()
    t = np.asarray(jax.vmap(sde.inverse_log_snr)(jnp.linspace(-3, 2, 32)))
    data = np.full((32, 8, 8), 0.3, np.float32)
    start = Start.noised(sde, data, t, key=jax.random.key(1))
    settings: Any = {"key": jax.random.key(0), "shape": (8, 8), "num_samples": 32}
    solution = sample(problem.score_fn(sde), sde, AdaptiveExponential(), start=start, **settings)
    assert solution.failed == 0
    assert abs(solution.x.mean() - 0.3) < 0.05


def test_an_early_start_keeps_the_image_and_a_late_one_does_not():
    image = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 4, 4)
    kept = []
    for t in (0.01, 1.0):
        start = Start.noised(SDE, np.repeat(image, NUM_SAMPLES, 0), t, key=jax.random.key(2))
        x = drawn(Gaussian(0.0, 1.0).score_fn(SDE), start=start).x
        kept.append(np.corrcoef(x.mean(0).ravel(), image.ravel())[0, 1])
    assert kept[0] > 0.99 > 0.6 > abs(kept[1])


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (Start(np.zeros((64, 4, 4)), 1e-3), r"start.t must be times above eps = 0.001 and up to T = 1 \(got"),
        (Start(np.zeros((64, 4, 4)), 1.5), r"start.t must be times above eps = 0.001"),
        (Start(np.zeros((64, 4, 4)), np.nan), r"start.t must be times above eps = 0.001"),
        (Start(np.zeros((64, 4, 4)), np.arange(64) / 32), r"start.t must be times .* \(got \[0.0, 1.03"),
        (Start(np.zeros((64, 4, 5)), 0.5), r"start.x must be of shape \(.*, 4, 4\)"),
        (Start(np.zeros((63, 4, 4)), 0.5), r"start must be arrays with a leading axis of 64"),
        (Start(np.full((64, 4, 4), np.inf), 0.5), r"start.x must be finite"),
        (np.zeros((64, 4, 4)), r"start must be a Start"),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_starts_that_do_not_fit_are_refused(start, message):
    with pytest.raises(ValueError, match=message):
        drawn(Gaussian().score_fn(SDE), start=start)


# --- samples of any tree ---


def test_samples_of_a_tree_are_those_of_the_flat_array():
    shape = {"position": (3, 2), "mass": ()}

    def of_tree(x, t):
        # the leaves in the order of their names: mass is the first number of the flat sample
        return {"mass": flat(x["mass"][:, None], t)[:, 0], "position": flat(x["position"], t)}

    def flat(x, t):
        return jax.vmap(lambda x, t: Gaussian().score(SDE, x, t))(x, t)

    settings: Any = {"shape": shape, "batch_size": 8, "num_samples": 20}
    tree = drawn(of_tree, **settings)
    plain = drawn(flat, **settings | {"shape": (7,)})
    assert tree.x["position"].shape == (20, 3, 2)
    flattened = np.concatenate([tree.x["mass"][:, None], tree.x["position"].reshape(20, 6)], axis=1)
    # the score is another program, which rounds differently
    np.testing.assert_allclose(flattened, plain.x, atol=1e-4)
    start = Start({"mass": np.zeros(20), "position": np.zeros((20, 3, 2))}, 0.5)
    started = drawn(of_tree, start=start, **settings)
    assert (started.nfe < tree.nfe).any()


@pytest.mark.parametrize("shape", [(), (5, 3)])
def test_samples_of_any_shape(shape):
    solution = drawn(Gaussian().score_fn(SDE), shape=shape)
    assert solution.x.shape == (NUM_SAMPLES, *shape)
    assert solution.failed == 0
    assert abs(solution.x.mean() - 0.3) < 0.15


def test_a_score_of_another_tree_is_refused():
    with pytest.raises(ValueError, match="samples must be a pytree"):
        drawn(lambda x, t: x["a"], shape={"a": (3,), "b": (2,)}, conditions=None)
    with pytest.raises(ValueError, match="shape must be a tuple of whole numbers >= 1, or a pytree"):
        drawn(lambda x, t: x, shape={"a": (3,), "b": "c"})
