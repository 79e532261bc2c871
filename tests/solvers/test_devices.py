"""Many devices draw the same samples as one and share the work evenly; an interrupted run is completed.

Eight virtual devices need a process of their own, since JAX fixes their number when it starts. That process
runs ``draw_on_eight_devices`` once, and the tests check the arrays that it writes.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import EulerMaruyama, Start, sample, stream
from tests.compilations import counted
from tests.problems import ADAPTIVE, SDES, Gaussian

ROOT = Path(__file__).resolve().parents[2]
COUNTS = (1, 8)
SHAPE = (4, 4, 1)
NUM_SAMPLES, LANES = 512, 16
FEW = 3  # fewer than devices
UNEVEN = 13  # some devices get one sample and others two
KILLED_AFTER = 150  # samples

SDE = SDES["vp"]
PROBLEM = (Gaussian().score_fn(SDE), SDE, ADAPTIVE["vp"])
SETTINGS = {"key": jax.random.key(0), "shape": SHAPE}


def draw_on_eight_devices(path):
    """Writes the arrays that the tests check."""
    devices = jax.devices()
    assert len(devices) == 8
    found = {}

    def keep(name, solution):
        found[f"{name}.x"], found[f"{name}.nfe"] = solution.x, solution.nfe
        found[f"{name}.calls"] = solution.device_calls

    for count in COUNTS:
        whole = sample(
            *PROBLEM, **SETTINGS, num_samples=NUM_SAMPLES, batch_size=LANES, devices=devices[:count]
        )
        keep(str(count), whole)
    with counted() as compiled:
        keep("uneven", sample(*PROBLEM, **SETTINGS, num_samples=UNEVEN, batch_size=LANES))
    found["compiled"] = np.array(len(compiled))
    keep("few", sample(*PROBLEM, **SETTINGS, num_samples=FEW))
    keep("three", sample(*PROBLEM, **SETTINGS, num_samples=UNEVEN, devices=devices[:3]))

    # a run on eight devices, interrupted after some samples, and resumed on four
    ids, x = np.empty(0, int), np.empty((0, *SHAPE), np.float32)
    for part in stream(*PROBLEM, **SETTINGS, sample_ids=range(NUM_SAMPLES), lanes=LANES):
        ids, x = np.append(ids, part.sample_ids), np.append(x, part.x, axis=0)
        if len(ids) >= KILLED_AFTER:
            break
    found["killed.ids"] = ids
    missing = np.array_split(np.setdiff1d(np.arange(NUM_SAMPLES), ids), 9)
    for part in stream(*PROBLEM, **SETTINGS, sample_ids=iter(missing), lanes=LANES, devices=devices[:4]):
        ids, x = np.append(ids, part.sample_ids), np.append(x, part.x, axis=0)
    found["restarted.ids"], found["restarted.x"] = ids, x

    # a condition and a start for each sample
    means = np.linspace(-1, 1, NUM_SAMPLES, dtype=np.float32)
    for count in COUNTS:
        keep(f"conditions {count}", conditioned(means, slice(None), devices=devices[:count]))
    keep("conditions of some", conditioned(means, slice(300, 100, -3), devices=devices))

    # a plain function that holds an array on the first device
    offset = jnp.full(SHAPE, 0.5)
    closure = sample(
        lambda x, t: PROBLEM[0](x, t) + 0 * offset,
        SDE,
        EulerMaruyama(num_steps=5),
        **SETTINGS,
        num_samples=UNEVEN,
        batch_size=LANES,
    )
    keep("closure", closure)

    with pytest.raises(
        ValueError, match=r"batch_size must be a multiple of the 8 devices \(got 100\): set it to 104"
    ):
        sample(*PROBLEM, **SETTINGS, num_samples=NUM_SAMPLES, batch_size=100)
    with pytest.raises(
        ValueError, match=r"lanes must be a multiple of the 8 devices \(got 12\): set it to 16"
    ):
        next(stream(*PROBLEM, **SETTINGS, sample_ids=range(3), lanes=12))
    np.savez(path, **found)


def conditioned(means, some, **settings):
    """Samples whose data have these means, some of which start from noised data."""
    ids = np.arange(NUM_SAMPLES)[some]
    x = np.broadcast_to(means[some, None, None, None], (len(ids), *SHAPE))
    t = np.linspace(0.2, 1.0, NUM_SAMPLES, dtype=np.float32)[some]
    start = Start.noised(SDE, x, t, key=jax.random.key(5), ids=ids)

    def score_fn(x, t, mean):
        return jax.vmap(lambda x, t, mean: Gaussian(mean=mean).score(SDE, x, t))(x, t, mean)

    rows = {"sample_ids": ids, "conditions": means[some], "start": start}
    return sample(score_fn, SDE, PROBLEM[2], **SETTINGS, **rows, batch_size=LANES, **settings)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "found.npz"
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    subprocess.run(
        [sys.executable, "-m", "tests.solvers.test_devices", str(path)],
        check=True,
        cwd=ROOT,
        env=environment,
    )
    return np.load(path)


@pytest.mark.parametrize("count", COUNTS[1:])
def test_the_number_of_devices_changes_no_bit(found, count):
    np.testing.assert_array_equal(found[f"{count}.x"], found["1.x"])
    np.testing.assert_array_equal(found[f"{count}.nfe"], found["1.nfe"])


@pytest.mark.parametrize("count", COUNTS)
def test_every_device_does_its_share(found, count):
    """Within 3 %: only the end of the run differs, by part of the last of 32 samples per lane."""
    calls = found[f"{count}.calls"]
    assert len(calls) == count
    np.testing.assert_allclose(calls, calls.sum() / count, rtol=0.03)


@pytest.mark.parametrize("count", COUNTS)
def test_lanes_wait_only_at_the_end(found, count):
    """The lanes of a device end within the evaluations of one sample, half of them on average: 2 %."""
    assert found["1.nfe"].sum() / (found[f"{count}.calls"].sum() * (LANES // count)) > 0.97


@pytest.mark.parametrize("count", COUNTS[1:])
def test_conditions_and_starts_go_with_their_samples_to_every_device(found, count):
    np.testing.assert_array_equal(found[f"conditions {count}.x"], found["conditions 1.x"])
    np.testing.assert_array_equal(found["conditions of some.x"], found["conditions 1.x"][300:100:-3])
    means = found["conditions 1.x"].mean((1, 2, 3))  # of 16 pixels with deviation 0.2
    assert np.abs(means - np.linspace(-1, 1, NUM_SAMPLES)).max() < 5 * 0.2 / 4


def test_few_samples_on_many_devices(found):
    np.testing.assert_array_equal(found["few.x"], found["1.x"][:FEW])
    assert sorted(found["few.calls"] > 0) == [False] * (8 - FEW) + [True] * FEW
    # one lane each, so that no device makes more calls than its only sample needs
    np.testing.assert_array_equal(np.sort(found["few.calls"])[-FEW:], np.sort(found["few.nfe"]))


def test_a_number_of_samples_that_the_devices_do_not_divide(found):
    np.testing.assert_array_equal(found["uneven.x"], found["1.x"][:UNEVEN])
    assert (found["uneven.calls"] > 0).all()


def test_three_devices_share_the_default_batch_size(found):
    """Of 128 lanes, which three devices cannot share, they take 126."""
    np.testing.assert_array_equal(found["three.x"], found["1.x"][:UNEVEN])
    assert (found["three.calls"] > 0).all()


def test_other_ids_on_the_same_devices_do_not_compile(found):
    assert found["compiled"] == 0


def test_a_resumed_run_keeps_finished_samples_and_draws_the_same_others(found):
    killed, ids = found["killed.ids"], found["restarted.ids"]
    assert KILLED_AFTER <= len(killed) < NUM_SAMPLES
    np.testing.assert_array_equal(np.sort(ids), np.arange(NUM_SAMPLES))
    np.testing.assert_array_equal(found["restarted.x"], found["1.x"][ids])


def test_a_function_that_holds_an_array_runs_on_every_device(found):
    assert (found["closure.nfe"] == 6).all()
    assert (found["closure.calls"] > 0).all()
    assert np.isfinite(found["closure.x"]).all()


@pytest.mark.slow
def test_cost_grows_with_the_number_of_samples_alone():
    """Beyond the samples' own evaluations, lanes wait only at the end, for one sample."""
    lanes = 64
    mean = []
    for num_samples in (256, 4096, 65_536):
        nfe = lane_evaluations = 0
        longest = 0
        for part in stream(*PROBLEM, **SETTINGS, sample_ids=range(num_samples), lanes=lanes):
            nfe += int(part.nfe.sum())
            longest = max(longest, int(part.nfe.max(initial=0)))
            lane_evaluations += part.lane_evaluations
        assert nfe <= lane_evaluations <= nfe + lanes * longest
        mean.append(nfe / num_samples)
    # the same distribution of evaluations: its deviation is below 20 %, that of the mean of 256 1.3 %
    np.testing.assert_allclose(mean, mean[-1], rtol=5 * 0.013)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stays_flat():
    """For 65,536 samples of 1 KB, which together would take 64 MB."""

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    problem = (PROBLEM[0], SDE, EulerMaruyama(num_steps=4))
    settings = {**SETTINGS, "shape": (16, 16, 1), "lanes": 256}
    done, early = 0, None
    for part in stream(*problem, **settings, sample_ids=range(65_536)):
        done += len(part.sample_ids)
        if early is None and done > 8192:  # everything is compiled and every buffer exists
            early = resident()
    assert done == 65_536
    assert early is not None
    assert resident() - early < 16 * 2**20


if __name__ == "__main__":
    draw_on_eight_devices(Path(sys.argv[1]))
