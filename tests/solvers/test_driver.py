"""The driver: the same samples whatever the lanes, exact counts, and an end to every sample."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from solvers import EulerMaruyama, Status, driver, sample, stream
from tests.compilations import counted
from tests.problems import ADAPTIVE, SDES, Gaussian

SHAPE = (4, 4, 1)
NUM_SAMPLES = 70


def draw(sde_name="vp", solver=None, score_fn=None, **settings):
    sde = SDES[sde_name]
    settings = {"key": jax.random.key(0), "shape": SHAPE, **settings}
    if "sample_ids" not in settings:
        settings.setdefault("num_samples", NUM_SAMPLES)
    return sample(score_fn or Gaussian().score_fn(sde), sde, solver or ADAPTIVE[sde_name], **settings)


@pytest.fixture(scope="module", params=SDES)
def batches(request):
    """The same samples from batches of three sizes."""
    return {size: draw(request.param, batch_size=size) for size in (1, 7, 64)}


def test_the_batch_size_changes_no_bit(batches):
    for name in ("x", "nfe", "accepted", "rejected", "status"):
        for size in (1, 7):
            np.testing.assert_array_equal(getattr(batches[size], name), getattr(batches[64], name), name)


def test_every_evaluation_is_counted(batches):
    """Two for an accepted step, one for a rejected one, one for the denoising."""
    for solution in batches.values():
        np.testing.assert_array_equal(solution.nfe, 2 * solution.accepted + solution.rejected + 1)
        assert solution.nfe.sum() <= solution.lane_evaluations
    # a single lane is never idle
    assert batches[1].lane_utilization == 1.0


def test_the_order_of_ids_changes_no_bit():
    straight = draw(batch_size=7)
    ids = np.random.default_rng(0).permutation(NUM_SAMPLES)
    np.testing.assert_array_equal(draw(sample_ids=ids, batch_size=7).x, straight.x[ids])
    np.testing.assert_array_equal(draw(sample_ids=[41, 3], batch_size=7).x, straight.x[[41, 3]])


def test_where_the_calls_are_cut_changes_no_bit(monkeypatch):
    whole = draw(batch_size=7)
    monkeypatch.setattr(driver, "SECONDS_PER_CALL", 0.0)  # one iteration a call
    np.testing.assert_array_equal(draw(batch_size=7).x, whole.x)


def test_another_seed_gives_other_samples():
    assert not np.array_equal(draw(batch_size=7).x, draw(batch_size=7, key=jax.random.key(1)).x)


def test_the_score_is_called_as_often_as_counted():
    calls = 0

    def count(_):
        nonlocal calls
        calls += 1

    sde = SDES["vp"]

    def score_fn(x, t):
        jax.debug.callback(count, t[0])
        return Gaussian().score_fn(sde)(x, t)

    solution = draw(score_fn=score_fn, solver=EulerMaruyama(num_steps=20), num_samples=16, batch_size=16)
    jax.effects_barrier()
    assert calls == solution.network_calls == 21
    np.testing.assert_array_equal(solution.nfe, 21)


def test_euler_maruyama_without_denoising_takes_its_number_of_steps():
    solution = draw(solver=EulerMaruyama(num_steps=20), denoise=False, num_samples=16, batch_size=16)
    np.testing.assert_array_equal(solution.nfe, 20)
    np.testing.assert_array_equal(solution.accepted, 20)


def test_neither_a_second_call_nor_another_tolerance_compiles():
    solver = ADAPTIVE["vp"]
    draw(batch_size=7)
    with counted() as compiled:
        draw(batch_size=7, solver=dataclasses.replace(solver, eps_rel=0.1, safety=0.8))
    assert not compiled


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("solver", ["adaptive", "euler_maruyama"])
def test_samples_have_the_moments_of_the_data(name, solver):
    """The mean of 70 x 16 pixels errs by std/sqrt(1120) = 0.006, their deviation by 0.0042.

    Five of these are exceeded once in 1.7 million runs. Beyond them stands the solver's own bias: at eps_rel
    0.05 and at 500 steps the deviation comes out up to 3 % too large (0.006).
    """
    chosen = ADAPTIVE[name] if solver == "adaptive" else EulerMaruyama(num_steps=500)
    x = draw(name, solver=chosen, batch_size=64).x
    assert abs(x.mean() - 0.3) < 5 * 0.006
    assert abs(x.std() - 0.2) < 5 * 0.0042 + 0.006


BAD = 3  # the sample that is tampered with


def spoilt(value, below):
    """A Gaussian score that from t < below on gives ``value`` in lane BAD."""
    sde = SDES["vp"]
    good = Gaussian().score_fn(sde)

    def score_fn(x, t):
        score = good(x, t)
        lane = jnp.arange(len(t)) == BAD  # the first 16 ids start in the lanes of their numbers
        broken = (lane & (t < below)).reshape(-1, 1, 1, 1)
        return jnp.where(broken, value, score)

    return score_fn


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_ends_that_sample_alone(value):
    ids = np.arange(16)
    spoilt_run = draw(score_fn=spoilt(value, below=0.5), sample_ids=ids, batch_size=16)
    clean = draw(sample_ids=ids, batch_size=16)
    assert spoilt_run.status[BAD] == Status.NON_FINITE
    assert spoilt_run.failed == 1
    assert np.isfinite(spoilt_run.x).all()
    others = ids != BAD
    np.testing.assert_array_equal(spoilt_run.status[others], Status.COMPLETED)
    # another score function is another program: to rounding, not to the bit
    np.testing.assert_allclose(spoilt_run.x[others], clean.x[others], atol=1e-4)


def test_a_score_that_demands_ever_smaller_steps_ends_with_a_status():
    sde = SDES["vp"]

    def rough(x, t):
        # jumps of 1e6 between neighbouring numbers: no step is small enough
        return Gaussian().score_fn(sde)(x, t) + 1e6 * jnp.sign(jnp.sin(1e7 * x))

    solution = draw(score_fn=rough, num_samples=16, batch_size=16)
    np.testing.assert_array_equal(solution.status, Status.STEP_TOO_SMALL)
    assert solution.nfe.max() < 200


def test_the_cap_on_evaluations_ends_a_sample():
    solution = draw(num_samples=16, batch_size=16, max_evaluations=50)
    np.testing.assert_array_equal(solution.nfe, 50)
    np.testing.assert_array_equal(solution.status, Status.MAX_EVALUATIONS)


def test_a_stream_gives_every_sample_once():
    sde = SDES["vp"]
    parts = list(
        stream(
            Gaussian().score_fn(sde),
            sde,
            ADAPTIVE["vp"],
            key=jax.random.key(0),
            shape=SHAPE,
            sample_ids=np.arange(NUM_SAMPLES),
            lanes=7,
        )
    )
    ids = np.concatenate([part.sample_ids for part in parts])
    np.testing.assert_array_equal(np.sort(ids), np.arange(NUM_SAMPLES))


def test_the_state_keeps_float32_under_x64():
    with jax.enable_x64(True):
        solution = draw(num_samples=16, batch_size=16, dtype=jnp.float32)
        assert solution.x.dtype == np.float32
        assert draw(num_samples=16, batch_size=16, dtype=jnp.float64).x.dtype == np.float64


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 0}, "num_samples = 0: allowed is a whole number >= 1; set num_samples to how many"),
        ({"num_samples": 2.5}, "num_samples = 2.5: allowed is a whole number >= 1"),
        ({"batch_size": 0}, "batch_size = 0: allowed is a whole number >= 1"),
        ({"max_evaluations": 0}, "max_evaluations = 0: allowed is a whole number >= 1"),
        ({"sample_ids": [-1]}, r"sample_ids from and to = \(-1, -1\): allowed is numbers from 0"),
        ({"sample_ids": [0.5]}, r"sample_ids = \[0.5\]: allowed is a list of at least one whole number"),
        ({"sample_ids": [1], "num_samples": 1}, "num_samples = 1: allowed is None beside sample_ids"),
        ({"score_fn": lambda x, t: t}, r"score_fn\(x, t\) = .* allowed is one array of x's shape"),
        ({"solver": EulerMaruyama(num_steps=1), "shape": (2,), "score_fn": lambda x, t: (x, t)}, "score_fn"),
    ],
)
def test_bad_input_is_named_before_anything_compiles(settings, message):
    with pytest.raises(ValueError, match=message):
        draw(**settings)


def test_a_step_number_must_be_whole():
    with pytest.raises(ValueError, match="num_steps = 0: allowed is a whole number >= 1; set num_steps"):
        EulerMaruyama(num_steps=0)


def test_a_partial_keeps_its_arrays_as_arguments():
    """Other weights of the same shape are not compiled anew."""
    sde = SDES["vp"]

    def score_fn(mean, x, t):
        return jax.vmap(lambda x, t: Gaussian().score(sde, x - mean, t))(x, t)

    solver = EulerMaruyama(num_steps=20)
    draw(score_fn=Partial(score_fn, jnp.float32(0.0)), solver=solver, num_samples=16, batch_size=16)
    with counted() as compiled:
        draw(score_fn=Partial(score_fn, jnp.float32(0.5)), solver=solver, num_samples=16, batch_size=16)
    assert not compiled
