"""The driver: samples do not depend on the lanes, counts are exact, and every sample ends."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sde_lib.pytrees import register_dataclass
from solvers import EulerMaruyama, Status, driver, sample, stream
from solvers.device_memory import out_of_memory_explained
from solvers.queues import Queues
from tests.compilations import counted
from tests.problems import ADAPTIVE, SDES, Gaussian

pytestmark = pytest.mark.optimized

SHAPE = (4, 4, 1)
NUM_SAMPLES = 70


def draw(sde_name="vp", solver=None, score_fn=None, **settings):
    sde = SDES[sde_name]
    settings = {"key": jax.random.key(0), "shape": SHAPE, **settings}
    if "sample_ids" not in settings:
        settings.setdefault("num_samples", NUM_SAMPLES)
    return sample(score_fn or Gaussian().score_fn(sde), sde, solver or ADAPTIVE[sde_name], **settings)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name == "ve" else pytest.mark.slow) for name in SDES],
)
def batches(request):
    """The same samples, drawn with three batch sizes."""
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


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_the_batch_size_changes_no_bit_for_keys_of_other_implementations(implementation):
    """JAX draws for a batch of such keys with the first of them."""
    key = jax.random.key(0, impl=implementation)
    many, few = (draw(batch_size=size, key=key).x for size in (64, 7))
    np.testing.assert_array_equal(many, few)
    # data ~ N(0.3, 0.2^2), 1,120 numbers: five standard errors, and the bias of Adaptive
    np.testing.assert_allclose([many.mean(), many.std()], [0.3, 0.2], atol=0.04)


def test_arrays_of_a_callable_pytree_are_arguments():
    @register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Score:
        mean: Any

        def __call__(self, x, t):
            return jax.vmap(Gaussian(mean=self.mean, std=0.1).score, (None, 0, 0))(SDES["vp"], x, t)

    solver, (first, second) = EulerMaruyama(num_steps=100), jnp.array([0.0, -3.0])
    assert abs(draw(score_fn=Score(first), solver=solver).x.mean()) < 0.05
    with counted() as compiled:
        x = draw(score_fn=Score(second), solver=solver).x
    assert abs(x.mean() + 3) < 0.05
    assert not compiled


def test_arrays_that_a_function_closes_over_may_change():
    """As do those of a network that is trained in place; they are constants of the compiled program."""
    sde: Any = SDES["vp"]
    held: dict[str, Any] = {}

    def score_fn(x, t):  # of data that are one number, but for a deviation of 0.1
        # an array that is new in every trace is no change
        return jax.vmap(Gaussian(mean=held["mean"], std=0.1).score, (None, 0, 0))(sde, x, t) * jnp.array(
            [1.0]
        )

    for mean in (0.0, -3.0, 2.0):
        held["mean"] = jnp.full((), mean)
        x = draw(score_fn=score_fn, solver=EulerMaruyama(num_steps=100)).x
        assert abs(x.mean() - mean) < 0.05
    for mean in (2.0, -3.0):  # known by their numbers: these have been compiled
        held["mean"] = jnp.full((), mean)
        with counted() as compiled:
            again = draw(score_fn=score_fn, solver=EulerMaruyama(num_steps=100)).x
        assert abs(again.mean() - mean) < 0.05
        assert not compiled


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
    """The mean of 70 x 16 pixels has an error of std/sqrt(1120) = 0.006, their deviation one of 0.0042.

    Five times these are exceeded once in 1.7 million runs. The solver's own bias is added: at eps_rel 0.05
    and at 500 steps the deviation is up to 3 % too large (0.006).
    """
    chosen = ADAPTIVE[name] if solver == "adaptive" else EulerMaruyama(num_steps=500)
    x = draw(name, solver=chosen, batch_size=64).x
    assert abs(x.mean() - 0.3) < 5 * 0.006
    assert abs(x.std() - 0.2) < 5 * 0.0042 + 0.006


BAD = 3  # the sample with a broken score


def spoilt(value, below):
    """A Gaussian score that is ``value`` in lane BAD for t < below."""
    sde = SDES["vp"]
    good = Gaussian().score_fn(sde)

    def score_fn(x, t):
        score = good(x, t)
        lane = jnp.arange(len(t)) == BAD  # the first 16 ids start in the lanes with their numbers
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
    # another score function is another program: equal to rounding, not bit by bit
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


def pour(sample_ids, **settings):
    """A stream of 7 lanes, like ``draw(batch_size=7)``."""
    sde = SDES["vp"]
    settings = {"key": jax.random.key(0), "shape": SHAPE, "lanes": 7, **settings}
    return stream(Gaussian().score_fn(sde), sde, ADAPTIVE["vp"], sample_ids=sample_ids, **settings)


def collected(parts):
    """(ids, x) of all parts in the order of the ids."""
    parts = list(parts)
    ids = np.concatenate([part.sample_ids for part in parts])
    return np.sort(ids), np.concatenate([part.x for part in parts])[np.argsort(ids)]


def test_a_stream_gives_every_sample_once():
    ids, x = collected(pour(np.arange(NUM_SAMPLES)))
    np.testing.assert_array_equal(ids, np.arange(NUM_SAMPLES))
    np.testing.assert_array_equal(x, draw(batch_size=7).x)


@pytest.mark.parametrize("total", [None, 1, 1000])
def test_ids_that_come_in_arrays_are_taken_when_they_are_needed(total):
    taken = []

    def arrays():
        for start in range(0, NUM_SAMPLES, 10):
            taken.append(start)
            yield np.arange(start, start + 10)
            yield np.empty(0, int)

    parts = pour(arrays(), total=total)
    first = next(parts)
    # two arrays of ten fill a queue of two ids per lane; the third is taken because the second call starts
    # before the results of the first are handed over
    assert taken == [0, 10, 20]
    ids, x = collected([first, *parts])
    np.testing.assert_array_equal(ids, np.arange(NUM_SAMPLES))
    np.testing.assert_array_equal(x, draw(batch_size=7).x)


def test_no_ids_are_no_samples():
    jax.random.key(0)  # also compiles a program
    with counted() as compiled:
        assert list(pour(iter([np.empty(0, int)]))) == []
    assert not compiled


def grey_levels(x):
    return jnp.rint(jnp.clip(x, 0, 1) * 255).astype(jnp.uint8)


def test_the_output_is_made_on_the_device():
    _, levels = collected(pour(np.arange(NUM_SAMPLES), output=grey_levels))
    assert levels.dtype == np.uint8
    np.testing.assert_array_equal(levels, grey_levels(draw(batch_size=7).x))
    with counted() as compiled:
        list(pour(np.arange(3), output=grey_levels))
    assert not compiled


@dataclasses.dataclass(frozen=True)
class Card:
    """A device with this many bytes of memory; None if it does not report them."""

    memory: int | None
    device_kind: str = "card"

    def memory_stats(self):
        return None if self.memory is None else {"bytes_limit": self.memory}


def out_of_memory(*_, **__):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.")


def program(batch_size) -> Any:
    """A program with 100 bytes of weights, 10 of state and 5 of output per sample, on each of two devices.

    With 16 samples or more it cannot be compiled.
    """
    if batch_size >= 16:
        out_of_memory()
    size = batch_size // 2
    sizes = types.SimpleNamespace(
        argument_size_in_bytes=100 + 10 * size,
        temp_size_in_bytes=0,
        output_size_in_bytes=15 * size,
        alias_size_in_bytes=10 * size,
    )
    return types.SimpleNamespace(memory_analysis=lambda: sizes)


@pytest.mark.parametrize(
    ("memory", "batch_size", "advice"),
    [
        (180, 32, "set it to 8, which according to the compiler needs 0.00 of the 0.00 GiB"),
        (179, 32, "set it to 4, which"),
        (179, 12, "set it to 6, which"),
        (119, 32, "use a smaller network or devices with more memory"),
        (179, 2, "use a smaller network or devices with more memory"),
        (None, 32, "set it to 16, and halve it again if that does not fit either [(]it was not tried[)]"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(memory, batch_size, advice):
    cards = [Card(memory), Card(10**6)]
    message = rf"batch_size must be small enough for the memory of 2 x card \(got {batch_size}\): {advice}"
    with pytest.raises(ValueError, match=message), out_of_memory_explained(batch_size, cards, program):
        out_of_memory()


def test_other_errors_of_the_device_are_left_alone():
    error = jax.errors.JaxRuntimeError("INTERNAL: something else")
    explained = out_of_memory_explained(32, [Card(100)], program)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), explained:
        raise error


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("when", ["compiling", "running"])
def test_the_driver_explains_that_memory_ran_out(monkeypatch, when):
    def compile_():
        return out_of_memory() if when == "compiling" else out_of_memory

    lowered = types.SimpleNamespace(compile=compile_)
    monkeypatch.setattr(driver, "run", types.SimpleNamespace(lower=lambda *_, **__: lowered))
    with pytest.raises(
        ValueError, match=r"batch_size must be .* 1 x cpu \(got 64\): set it to 32, and halve it"
    ):
        draw(batch_size=64)


def test_devices_with_fewer_samples_get_more_of_the_last_ids():
    queues = Queues(np.arange(100, 112), num_devices=3, length=4)
    first = queues.deal()
    np.testing.assert_array_equal(
        first.ids, [[100, 101, 102, 103], [104, 105, 106, 107], [108, 109, 110, 111]]
    )
    assert first.shortest == 1
    queues.take_back(started=np.array([3, 1, 1]), finished=np.array([0, 0, 1]))  # 3, 1 and 0 under way
    second = queues.deal()
    np.testing.assert_array_equal(second.lengths, [1, 3, 3])
    assert second.shortest == 0.25
    given = [ids[:length].tolist() for ids, length in zip(second.ids, second.lengths, strict=True)]
    assert given == [[103], [105, 106, 107], [109, 110, 111]]
    assert not second.more
    queues.take_back(started=np.array([1, 3, 3]), finished=np.array([4, 3, 3]))  # 0, 1 and 0 under way
    assert not queues.done
    last = queues.deal()
    assert (last.lengths.sum(), last.shortest) == (0, 1)
    queues.take_back(started=np.zeros(3, int), finished=np.array([0, 1, 0]))
    assert queues.done


def test_the_state_keeps_float32_under_x64():
    with jax.enable_x64(True):
        solution = draw(num_samples=16, batch_size=16, dtype=jnp.float32)
        assert solution.x.dtype == np.float32
        assert draw(num_samples=16, batch_size=16, dtype=jnp.float64).x.dtype == np.float64


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_samples": 0},
            r"num_samples must be a whole number >= 1 \(got 0\): set num_samples to 1 or more",
        ),
        ({"num_samples": 2.5}, r"num_samples must be a whole number >= 1 \(got 2.5\)"),
        ({"batch_size": 0}, r"batch_size must be a whole number >= 1 \(got 0\)"),
        ({"max_evaluations": 0}, r"max_evaluations must be a whole number >= 1 \(got 0\)"),
        ({"sample_ids": [-1]}, r"sample_ids must be numbers from 0 to 4294967295 \(got \[-1\]\)"),
        ({"sample_ids": [0.5]}, r"sample_ids must be a list of at least one whole number \(got \[0.5\]\)"),
        (
            {"sample_ids": [1], "num_samples": 1},
            r"num_samples must be None when sample_ids is given \(got 1\)",
        ),
        (
            {"devices": []},
            r"devices must be a list of at least one of jax.devices\(\) \(got \[\]\): leave it out",
        ),
        ({"score_fn": lambda x, t: t}, r"score_fn\(x, t\) must be one array of x's shape .* \(got "),
        (
            {"solver": EulerMaruyama(num_steps=1), "shape": (2,), "score_fn": lambda x, t: (x, t)},
            "score_fn.* must be",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_compiles(settings, message):
    with pytest.raises(ValueError, match=message):
        draw(**settings)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lanes": 0}, r"lanes must be a whole number >= 1 \(got 0\)"),
        ({"output": jnp.sum}, r"output\(x\) must be one array with a row for each of x's 16 samples"),
        (
            {"sample_ids": iter([np.array([0.5])])},
            r"sample_ids must be a list of at least .* \(got array\(\[0.5\]\)\)",
        ),
    ],
)
def test_bad_input_of_a_stream_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        next(pour(**{"sample_ids": [0], **settings}))


def test_a_step_number_must_be_whole():
    with pytest.raises(ValueError, match=r"num_steps must be a whole number >= 1 \(got 0\): set num_steps"):
        EulerMaruyama(num_steps=0)


def test_a_partial_keeps_its_arrays_as_arguments():
    """Other weights of the same shape neither recompile nor trace the network again, which can take long."""
    sde, traces = SDES["vp"], []

    def score_fn(mean, x, t):
        traces.append(x.shape)
        return jax.vmap(lambda x, t: Gaussian().score(sde, x - mean, t))(x, t)

    solver = EulerMaruyama(num_steps=20)
    draw(score_fn=Partial(score_fn, jnp.float32(0.0)), solver=solver, num_samples=16, batch_size=16)
    traces.clear()
    with counted() as compiled:
        draw(score_fn=Partial(score_fn, jnp.float32(0.5)), solver=solver, num_samples=16, batch_size=16)
    assert not compiled
    assert not traces
    # with an array of another shape, it is checked again
    with pytest.raises(ValueError, match="one array of x's shape"):
        draw(score_fn=Partial(score_fn, jnp.zeros(3)), solver=solver, num_samples=16, batch_size=16)
