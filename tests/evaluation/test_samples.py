"""The sample store: nothing sampled twice, nothing finished lost, nothing torn believed."""

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

import sde_lib
import solvers
from evaluation import files
from evaluation.samples import Samples, SampleStore, to_uint8


def made(ids) -> Samples:
    """What a sampler would give for these ids: the same for an id whenever it is asked."""
    ids = np.asarray(ids)
    images = np.stack([np.random.default_rng(int(i)).integers(0, 256, (4, 4, 1)) for i in ids]).astype(
        np.uint8
    )
    return Samples(
        sample_ids=ids,
        images=images,
        nfe=(10 + ids).astype(np.int32),
        accepted=(5 + ids).astype(np.int32),
        rejected=(ids % 3).astype(np.int32),
        status=(ids % 2).astype(np.int32),
    )


def opened(folder, identity="a", shard_size=8) -> SampleStore:
    return SampleStore(folder, identity=identity, shard_size=shard_size)


def check_holds(folder, num_samples, **arguments):
    """The store in this folder holds exactly what a sampler gives, in shards and in order."""
    shards = list(opened(folder, **arguments).shards(num_samples))
    assert [len(shard) for shard in shards[:-1]] == [8] * (len(shards) - 1)
    expected = made(np.arange(num_samples))
    for name in ("sample_ids", "images", "nfe", "accepted", "rejected", "status"):
        assert np.array_equal(np.concatenate([getattr(s, name) for s in shards]), getattr(expected, name)), (
            name
        )


@pytest.mark.parametrize("num_samples", [1, 8, 16, 21])
@pytest.mark.parametrize("pieces", [1, 3, 7])
def test_samples_come_back_in_order_whatever_order_they_came_in(tmp_path, num_samples, pieces):
    order = np.random.default_rng(pieces).permutation(num_samples)
    with opened(tmp_path / "samples") as store:
        assert np.array_equal(store.missing(num_samples), np.arange(num_samples))
        for ids in np.array_split(order, min(pieces, num_samples)):
            store.add(made(ids))
        assert len(store.missing(num_samples)) == 0
    check_holds(tmp_path / "samples", num_samples)


def test_a_complete_shard_is_on_the_disk_at_once(tmp_path):
    store = opened(tmp_path)
    store.add(made(np.arange(9)))
    assert np.array_equal(opened(tmp_path).missing(16), np.arange(8, 16))


def test_more_samples_add_only_what_is_missing(tmp_path):
    with opened(tmp_path) as store:
        store.add(made(np.arange(11)))
    first = (tmp_path / "shard_000000.npz").stat().st_mtime_ns
    with opened(tmp_path) as store:
        assert np.array_equal(store.missing(19), np.arange(11, 19))
        store.add(made(np.arange(11, 19)))
    assert (tmp_path / "shard_000000.npz").stat().st_mtime_ns == first
    check_holds(tmp_path, 19)
    # fewer are a part of what is there
    check_holds(tmp_path, 5)


def test_an_id_that_is_there_already_is_passed_over(tmp_path):
    with opened(tmp_path) as store:
        for ids in ([0, 1, 2], [2, 3], np.arange(8), [5, 8], [8]):
            store.add(made(ids))
    check_holds(tmp_path, 9)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_finished_samples_survive_an_interruption(tmp_path, interruption):
    def run():
        with opened(tmp_path) as store:
            store.add(made([3, 9, 1]))
            raise interruption

    with pytest.raises(interruption):
        run()
    assert np.array_equal(opened(tmp_path).missing(10), [0, 2, 4, 5, 6, 7, 8])


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "other"])
def test_torn_shards_are_found_and_made_again(tmp_path, harm):
    with opened(tmp_path) as store:
        store.add(made(np.arange(24)))
    path = tmp_path / "shard_000001.npz"
    content = bytearray(path.read_bytes())
    if harm == "flip":  # one bit, in the middle of the images
        content[content.index(made([8]).images.tobytes())] ^= 1
    path.write_bytes({"cut": content[:-50], "flip": content, "empty": b"", "other": b"\0" * 3000}[harm])
    with pytest.warns(UserWarning, match=r"shard_000001.npz is torn"):
        store = opened(tmp_path)
    with store:
        assert np.array_equal(store.missing(24), np.arange(8, 16))
        store.add(made(np.arange(8, 16)))
    check_holds(tmp_path, 24)


def test_a_shard_torn_after_opening_is_not_evaluated(tmp_path):
    store = opened(tmp_path)
    store.add(made(np.arange(8)))
    (tmp_path / "shard_000000.npz").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="is torn"),
        pytest.raises(ValueError, match="torn or was replaced meanwhile; run the same command again"),
    ):
        list(store.shards(8))


def test_foreign_shards_are_found_and_kept_aside(tmp_path):
    with opened(tmp_path, identity="theirs") as store:
        store.add(made(np.arange(8)))
    with pytest.warns(UserWarning, match="another run .identity theirs, here ours"):
        store = opened(tmp_path, identity="ours")
    with store:
        assert len(store.missing(8)) == 8
        store.add(made(np.arange(8)))
    check_holds(tmp_path, 8, identity="ours")
    (tmp_path / "shard_000000.npz.foreign").rename(tmp_path / "shard_000000.npz")
    check_holds(tmp_path, 8, identity="theirs")


def test_another_shard_size_is_refused(tmp_path):
    with opened(tmp_path) as store:
        store.add(made(np.arange(8)))
    with pytest.raises(ValueError, match=r"config.eval.shard_size = 4: allowed is 8.*set it back"):
        opened(tmp_path, shard_size=4)
    with pytest.raises(ValueError, match=r"config.eval.shard_size = 0: allowed is at least 1"):
        opened(tmp_path, shard_size=0)


def test_missing_samples_are_not_evaluated(tmp_path):
    store = opened(tmp_path)
    store.add(made(np.arange(5)))
    with pytest.raises(ValueError, match="samples missing = 1: allowed is none of 6"):
        list(store.shards(6))


def test_a_full_disk_loses_no_finished_shard(tmp_path):
    """A limit on the size of files stands in for the disk: the first bytes are written, then it refuses."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = opened(tmp_path)
    store.add(made(np.arange(8)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*shard_000001.npz.*free some space") as caught:
            store.add(made(np.arange(8, 16)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert caught.value.errno == errno.EFBIG
    assert [path.name for path in tmp_path.iterdir()] == ["shard_000000.npz"]
    # the samples are still in memory: with space made, they are written
    store.flush()
    check_holds(tmp_path, 16)


def test_a_refused_flush_does_not_hide_the_first_error(tmp_path):
    (tmp_path / "file").write_text("")

    def run(interruption: type[BaseException] | None):
        with opened(tmp_path / "file" / "samples") as store:
            store.add(made([0]))
            if interruption is not None:
                raise interruption

    with pytest.raises(OSError, match="cannot write"):
        run(None)
    with (
        pytest.warns(UserWarning, match=r"finished samples were lost: .*cannot write"),
        pytest.raises(KeyboardInterrupt),
    ):
        run(KeyboardInterrupt)


def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path):
    code = f"""
        import pathlib
        from evaluation.files import atomic_file
        path = pathlib.Path({str(tmp_path / "file")!r})
        for i in range(10**9):
            with atomic_file(path) as file:
                for _ in range(20):
                    file.write(bytes([i % 256]) * 1000)
            if i == 0:
                print("started", flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    content = (tmp_path / "file").read_bytes()
    assert len(content) == 20_000
    assert len(set(content)) == 1


def test_an_atomic_file_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def run():
        with files.atomic_file(path) as file:
            file.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_solver_finishes_can_be_stored(tmp_path):
    solution = solvers.sample(
        lambda x, t: -x / t[:, None, None, None],
        sde_lib.VESDE(),
        solvers.EulerMaruyama(num_steps=2),
        key=jax.random.key(0),
        shape=(4, 4, 1),
        num_samples=3,
    )
    with opened(tmp_path) as store:
        store.add(Samples.of(solution, centered=True))
    (found,) = opened(tmp_path).shards(3)
    assert np.array_equal(found.images, to_uint8(solution.x, centered=True))
    assert found.nfe.tolist() == [3, 3, 3]
    assert found.accepted.tolist() == [2, 2, 2]
    assert found.status.tolist() == [solvers.Status.COMPLETED] * 3


def test_grey_levels_are_the_nearest_ones():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    unit = levels.astype(np.float32) / 255
    for offset in (-0.49 / 255, 0, 0.49 / 255):
        assert np.array_equal(to_uint8(unit + np.float32(offset), centered=False), levels)
        assert np.array_equal(to_uint8(2 * (unit + np.float32(offset)) - 1, centered=True), levels)


def test_values_outside_go_to_the_ends_and_failed_ones_to_black():
    x = np.array([-3, 7, np.inf, -np.inf, np.nan], np.float32).reshape(1, 1, 5, 1)
    for centered in (False, True):
        assert to_uint8(x, centered=centered).ravel().tolist() == [0, 255, 255, 0, 0]
