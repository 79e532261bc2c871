"""The sample store: nothing is sampled twice, nothing finished is lost, nothing damaged is believed."""

import errno
import io
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import sde_lib
import solvers
from evaluation.store import claims, files, samples
from evaluation.store.archives import pack, unpack
from evaluation.store.samples import GREY_LEVELS, Samples, SampleStore, to_uint8
from tests.evaluation.store.object_store import memory_for_gs
from tests.test_main import ROOT


def made(ids) -> Samples:
    """The samples that a sampler gives for these ids: always the same for an id."""
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


def opened(folder, config_hash="a", shard_size=8) -> SampleStore:
    return SampleStore(folder, config_hash=config_hash, shard_size=shard_size)


def check_holds(folder, num_samples, **arguments):
    """Checks that the store in this folder holds exactly a sampler's samples, in shards and in order."""
    shards = list(opened(folder, **arguments).shards(num_samples))
    assert [len(shard) for shard in shards[:-1]] == [8] * (len(shards) - 1)
    expected = made(np.arange(num_samples))
    for name in ("sample_ids", "images", "nfe", "accepted", "rejected", "status"):
        assert np.array_equal(np.concatenate([getattr(s, name) for s in shards]), getattr(expected, name)), (
            name
        )


@pytest.mark.parametrize("num_samples", [1, 8, 16, 21])
@pytest.mark.parametrize("pieces", [1, 3, 7])
def test_samples_come_back_in_order_whatever_order_they_came_in(folder, num_samples, pieces):
    order = np.random.default_rng(pieces).permutation(num_samples)
    with opened(folder / "samples") as store:
        assert np.array_equal(store.missing(num_samples), np.arange(num_samples))
        for ids in np.array_split(order, min(pieces, num_samples)):
            store.add(made(ids))
        assert len(store.missing(num_samples)) == 0
    check_holds(folder / "samples", num_samples)


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
def test_damaged_shards_are_found_and_drawn_again(folder, harm):
    with opened(folder) as store:
        store.add(made(np.arange(24)))
    path = folder / "shard_000001.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(
        {"cut": bytes(content[:-50]), "flip": bytes(content), "empty": b"", "other": b"\0" * 3000}[harm]
    )
    with opened(folder) as store:
        with pytest.warns(UserWarning, match=r"shard_000001.npz is damaged"):
            assert np.array_equal(store.missing(24), np.arange(8, 16))
        store.add(made(np.arange(8, 16)))
    check_holds(folder, 24)


def packed(ids) -> bytes:
    return pack(
        {"identity": "a", "shard_size": 8, **made(ids).arrays()}
    )  # the config hash has this name there


def test_a_single_flipped_bit_anywhere_in_a_shard_is_found():
    content = packed([3, 4])
    assert np.array_equal(unpack(content)["images"], made([3, 4]).images)
    rng = np.random.default_rng(0)
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.integers(8)
        with pytest.raises(ValueError, match="checksum"):
            unpack(bytes(flipped))
    for length in range(len(content)):
        with pytest.raises(ValueError, match="checksum"):
            unpack(content[:length])


def test_a_shard_is_an_archive_that_numpy_reads():
    with np.load(io.BytesIO(packed([3, 4]))) as file:
        assert np.array_equal(file["images"], made([3, 4]).images)
        assert file["identity"] == "a"


def test_a_shard_is_the_same_file_whenever_it_is_made(monkeypatch):
    once = packed([3, 4])
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e6)
    assert packed([3, 4]) == once


def test_a_shard_damaged_in_the_midst_of_the_evaluation_is_not_believed(tmp_path):
    store = opened(tmp_path)
    store.add(made(np.arange(16)))
    shards = store.shards(16)
    next(shards)
    (tmp_path / "shard_000001.npz").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match="damaged or removed meanwhile: run the same command again"),
    ):
        next(shards)


def test_foreign_shards_are_found_and_kept_aside(folder):
    for config_hash in ("first", "second"):
        with warnings.catch_warnings(action="ignore"), opened(folder, config_hash=config_hash) as store:
            store.add(made(np.arange(8)))
    with opened(folder, config_hash="ours") as store:
        with pytest.warns(UserWarning, match="another config .hash second, here ours"):
            assert len(store.missing(8)) == 8
        store.add(made(np.arange(8)))
    check_holds(folder, 8, config_hash="ours")
    for config_hash, ending in (("first", ".foreign"), ("second", ".foreign2")):
        (folder / f"shard_000000.npz{ending}").replace(folder / "shard_000000.npz")
        check_holds(folder, 8, config_hash=config_hash)


def test_a_foreign_shard_that_is_replaced_in_two_writes_is_kept_aside_once(folder):
    with opened(folder, config_hash="first") as store:
        store.add(made(np.arange(8)))
    with opened(folder, config_hash="ours") as store:
        with pytest.warns(UserWarning, match="another config .hash first, here ours"):
            store.add(made(np.arange(3)))
        store.flush()
        store.add(made(np.arange(3, 8)))
    check_holds(folder, 8, config_hash="ours")
    assert sorted(path.name for path in folder.glob("shard_*")) == [
        "shard_000000.npz",
        "shard_000000.npz.foreign",
    ]


def test_what_was_written_here_is_not_read_until_it_changes(tmp_path, monkeypatch):
    read = []

    def noted(path):
        read.append(path)
        return files.read_file(path)

    with opened(tmp_path) as store:
        store.add(made(np.arange(12)))
        store.flush()
        monkeypatch.setattr(samples, "read_file", noted)
        assert not store.any_left(12)
        assert read == []
        (tmp_path / "shard_000000.npz").unlink()
        with opened(tmp_path) as other:  # another process
            other.add(made(np.arange(5)))
        read.clear()
        assert store.missing(12).tolist() == [5, 6, 7]
        assert len(read) == 1


def test_an_unreadable_shard_is_not_made_again(tmp_path):
    (tmp_path / "shard_000000.npz").mkdir()  # the disk may be at fault, and not the shard
    with pytest.raises(OSError, match=r"cannot read .*shard_000000.npz: Is a directory; make it readable"):
        opened(tmp_path).missing(8)


def test_another_shard_size_is_refused(tmp_path):
    with opened(tmp_path) as store:
        store.add(made(np.arange(8)))
    with pytest.raises(ValueError, match=r"shard_size must be 8, .*got 4.: set shard_size back"):
        opened(tmp_path, shard_size=4).missing(4)
    with pytest.raises(ValueError, match=r"shard_size must be at least 1 .got 0."):
        opened(tmp_path, shard_size=0)


def test_missing_samples_are_not_evaluated(tmp_path):
    store = opened(tmp_path)
    store.add(made(np.arange(5)))
    with pytest.raises(ValueError, match=r"number of missing samples must be 0 of 6 .*got 1"):
        list(store.shards(6))


# --- several processes ---


def claim(folder, number, owner="another-machine.1"):
    """Claims a shard as another process does."""
    (folder / f"shard_{number:06d}.claim").write_text(owner)


def names(folder, pattern="*"):
    return sorted(path.name for path in epath.Path(folder).glob(pattern))


def test_what_other_processes_write_is_seen(folder):
    one, other = opened(folder), opened(folder)
    assert len(one.missing(20)) == 20
    other.add(made(np.arange(8)))
    assert np.array_equal(one.missing(20), np.arange(8, 20))
    other.add(made(np.arange(8, 20)))
    other.flush()
    assert len(one.missing(20)) == 0
    assert [len(shard) for shard in one.shards(20)] == [8, 8, 4]


def test_pending_gives_a_shard_at_a_time_and_none_that_is_there_by_then(folder):
    store, other = opened(folder), opened(folder)
    other.add(made([0, 2]))
    other.flush()
    pending = store.pending(28)
    assert next(pending).tolist() == [1, 3, 4, 5, 6, 7]
    assert names(folder, "*.claim") == ["shard_000000.claim"]
    other.add(made(np.arange(8, 16)))
    assert next(pending).tolist() == list(range(16, 24))
    assert next(pending).tolist() == list(range(24, 28))
    assert next(pending, None) is None
    store.add(made([1, *range(3, 8), *range(16, 28)]))
    assert names(folder, "*.claim") == ["shard_000003.claim"]  # the others are complete
    store.flush()
    assert not names(folder, "*.claim")
    check_holds(folder, 28)


def test_claimed_shards_are_passed_over_and_sampled_if_nobody_else_does(folder):
    store, other = opened(folder), opened(folder)
    for number in (0, 2, 3):
        claim(folder, number)
    assert store.any_left(37)
    ids = np.concatenate(list(store.pending(37)))
    assert np.array_equal(ids, [*range(8, 16), *range(32, 37)])
    store.add(made(ids))
    other.add(made(np.arange(16, 24)))
    # nothing is known of those that claimed the others, so nobody waits for them
    assert store.any_left(37)
    ids = np.concatenate(list(store.pending(37)))
    assert np.array_equal(ids, [*range(8), *range(24, 32)])
    store.add(made(ids))
    assert not store.any_left(37)
    assert not names(folder, "*.claim")
    check_holds(folder, 37)


def test_who_has_nothing_left_waits_for_those_that_live(tmp_path, monkeypatch):
    store, other = opened(tmp_path), opened(tmp_path)
    for module in (claims, files):
        monkeypatch.setattr(module, "owner", lambda: "another-machine.2")
    claim(tmp_path, 1)  # by a process that is never heard of again
    taken = other.pending(21)
    assert next(taken).tolist() == list(range(8))
    assert next(taken).tolist() == list(range(16, 21))
    start, now = time.monotonic(), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def sleep(seconds):
        nonlocal now
        now += claims.RENEW
        real_sleep(0.01)  # for files to differ in time
        if now - start < 70:
            other.add(made([0]))  # a sign of life
        else:
            other.add(made(np.arange(8)))
            other.flush()

    real_sleep = time.sleep
    monkeypatch.setattr(time, "sleep", sleep)
    assert store.any_left(21, seconds=50.0)
    assert 50 <= now - start < 50 + 2 * claims.RENEW
    assert np.concatenate(list(store.pending(21))).tolist() == list(range(8, 16))
    store.add(made(np.arange(8, 16)))
    other.add(made(np.arange(16, 20)))
    assert store.any_left(21, seconds=50.0)  # the other gave one up unfinished
    assert now - start >= 70
    assert np.concatenate(list(store.pending(21))).tolist() == [20]
    store.add(made([20]))
    assert not store.any_left(21, seconds=50.0)
    assert not names(tmp_path, "*.claim")
    check_holds(tmp_path, 21)


def test_processes_started_together_begin_apart(tmp_path):
    orders = [
        [int(ids[0]) // 8 for ids in opened(tmp_path / str(i)).pending(48, process=i, processes=3)]
        for i in range(3)
    ]
    assert orders == [[0, 3, 1, 4, 2, 5], [1, 4, 2, 5, 0, 3], [2, 5, 0, 3, 1, 4]]


def test_more_processes_than_shards_leave_some_without_any(tmp_path):
    stores = [opened(tmp_path) for _ in range(3)]
    pending = [store.pending(13, process=i, processes=3) for i, store in enumerate(stores)]
    found = [next(ids, None) for ids in pending]
    for store, ids in zip(stores[:2], found[:2], strict=True):
        assert ids is not None
        store.add(made(ids))
        store.flush()
    assert found[2] is None
    assert not stores[2].any_left(13, seconds=50.0)
    check_holds(tmp_path, 13)


def test_claims_and_unfinished_files_of_dead_processes_are_removed(tmp_path):
    process = subprocess.Popen(["true"])
    process.wait()
    host = socket.gethostname()
    dead, reborn, alive = (f"{host}.{pid}" for pid in (process.pid, os.getpid(), os.getppid()))
    for number, owner in enumerate((dead, reborn, alive, "another-machine.1", "?")):
        claim(tmp_path, number, owner)
        (tmp_path / f".shard_{number:06d}.npz@{owner}.tmp").write_bytes(b"half of it")
    assert opened(tmp_path).any_left(8)
    assert names(tmp_path, "*.claim") == [f"shard_{number:06d}.claim" for number in (2, 3, 4)]
    assert [name[12] for name in names(tmp_path, ".*")] == ["2", "3", "4"]


def test_a_shard_that_another_process_completed_is_not_written_again(tmp_path):
    one, other = opened(tmp_path), opened(tmp_path)
    (ids,) = one.pending(8)
    one.add(made(ids[:5]))
    other.add(made(ids))
    before = files.version(tmp_path / "shard_000000.npz")
    one.add(made(ids[5:]))
    one.flush()
    assert files.version(tmp_path / "shard_000000.npz") == before
    assert not names(tmp_path, "*.claim")


WORKER = f"""
import pathlib, sys, time
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from tests.evaluation.store.test_samples import made, opened
folder, me = pathlib.Path(sys.argv[1]), int(sys.argv[2])
log = open(folder / f"{{me}}.log", "w")

def wait_for(word):
    print("ready to", word, file=log, flush=True)
    while not (folder / word).exists():
        time.sleep(0.001)

wait_for("race")
for number in range(40):  # all write to one shard, a third of it each
    with opened(folder / "raced") as store:
        store.add(made(np.arange(8 * number + me, 8 * number + 8, 3)))
wait_for("share")
with opened(folder / "shared") as store:
    while store.any_left(300, seconds=60.0):
        for ids in store.pending(300, process=me, processes=3):
            time.sleep(0.02)
            store.add(made(ids))
            print(*ids, file=log, flush=True)
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """What three processes left that began together, and of which one was killed in the midst of it."""
    folder = tmp_path_factory.mktemp("processes")
    running = [subprocess.Popen([sys.executable, "-c", WORKER, str(folder), str(i)]) for i in range(3)]

    def wait_for(lines, *logs):
        while any(not path.exists() or path.read_text().count("\n") < lines for path in logs):
            assert all(process.poll() is None for process in running)
            time.sleep(0.001)

    logs = [folder / f"{i}.log" for i in range(3)]
    for lines, word in enumerate(("race", "share"), start=1):
        wait_for(lines, *logs)
        (folder / word).write_text("")
    wait_for(2 + 2, logs[0])  # its first two shards
    running[0].kill()
    assert [process.wait() for process in running] == [-signal.SIGKILL, 0, 0]
    return folder


def test_processes_share_the_work_and_make_up_for_a_killed_one(workplace):
    check_holds(workplace / "shared", 300)
    assert not names(workplace / "shared", "*.claim")
    logs = [(workplace / f"{i}.log").read_text().splitlines()[2:] for i in range(3)]
    assert all(logs)
    # of 38 shards the dead one may have written one more than it says, and the others, who notice its death
    # at the same time, may both make the one that it was at
    assert 37 <= sum(len(shards) for shards in logs) <= 39


def test_processes_that_write_one_shard_at_once_leave_it_whole(workplace):
    with warnings.catch_warnings(action="error"), opened(workplace / "raced") as store:
        lost = store.missing(320)  # one overwrote what another had written since it looked
        assert 0 < len(lost) < 200
        store.add(made(lost))
    check_holds(workplace / "raced", 320)
    assert not names(workplace / "raced", ".*")


# --- disks that refuse ---


def test_a_full_disk_loses_no_finished_shard(tmp_path):
    """A limit on the size of files stands in for a full disk: the first bytes are written, others refused."""
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


@pytest.mark.skipif(not os.path.isdir("/sys"), reason="needs a folder that takes no files from anybody")
def test_a_read_only_place_is_found_before_work_is_spent():
    for path in ("/sys/new", "/sys/new/deeper"):
        with pytest.raises(OSError, match=rf"cannot write {path}: .*use another --workdir"):
            files.work_folder(path)
    with pytest.raises(OSError, match=r"cannot write /sys/new"):
        next(opened("/sys/new").pending(8))


def test_a_disk_without_room_is_found_before_work_is_spent(tmp_path, monkeypatch):
    files.require_writable(tmp_path / "new" / "folder", size=1000)
    assert not os.listdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 2_000_000))
    with pytest.raises(
        OSError, match=r"new: 3.0 MB are needed, and 2.0 MB are free; free some space"
    ) as caught:
        files.require_writable(tmp_path / "new", size=3_000_000)
    assert caught.value.errno == errno.ENOSPC


def test_a_workdir_is_a_folder_that_can_be_reached(tmp_path, monkeypatch):
    assert os.fspath(files.work_folder(str(tmp_path / "new"))) == str(tmp_path / "new")
    assert not os.listdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert os.fspath(files.work_folder("~/new")) == str(tmp_path / "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--workdir must be a folder, not a file .got '.*/file'.: choose"):
        files.work_folder(str(tmp_path / "file"))
    with pytest.raises(
        ValueError, match=r"--workdir must be a folder that can be reached, local or on gs:// .got 'ftp:"
    ):
        files.work_folder("ftp://host/x")

    def no_client(*_):
        raise ImportError("Please install gcsfs")

    with memory_for_gs() as store:
        assert os.fspath(files.work_folder("gs://bucket/new")) == "gs://bucket/new"
        monkeypatch.setattr(store, "info", no_client)
        monkeypatch.setattr(store, "exists", no_client)
        with pytest.raises(
            ValueError,
            match=r"can be reached.*: use a local folder, or install gcsfs .*.Please install gcsfs",
        ):
            files.work_folder("gs://bucket/new")


def test_a_store_that_refuses_is_explained(monkeypatch):
    class Forbidden(Exception):  # as gcsfs.retry.HttpError, no OSError
        pass

    def refuse(*_, **__):
        raise Forbidden("403")

    with memory_for_gs() as store:
        monkeypatch.setattr(store, "open", refuse)
        with pytest.raises(OSError, match=r"cannot write gs://bucket/.*: 403; .*use another --workdir"):
            files.create("gs://bucket/folder/file", "")
        with pytest.raises(OSError, match=r"cannot read gs://bucket/.*: 403; make it readable, or use"):
            opened("gs://bucket/folder").missing(8)


# --- whole files ---


def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path):
    code = f"""
        import pathlib
        from evaluation.store.files import atomic_file
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


def test_an_atomic_file_that_fails_leaves_nothing(folder):
    path = folder / "file"
    path.write_text("old")

    def run():
        with files.atomic_file(path) as file:
            file.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run()
    assert path.read_text() == "old"
    assert names(folder) == ["file"]
    assert not names(folder, ".*")


def test_what_a_solver_finishes_can_be_stored(tmp_path):
    problem: Any = {
        "score_fn": lambda x, t: -x / t[:, None, None, None],
        "sde": sde_lib.VESDE(),
        "solver": solvers.EulerMaruyama(num_steps=2),
        "key": jax.random.key(0),
        "shape": (4, 4, 1),
    }
    with opened(tmp_path) as store:
        for part in solvers.stream(
            **problem, sample_ids=[0, 1, 2], lanes=3, output=GREY_LEVELS[True, "nearest"]
        ):
            store.add(Samples.of(part))
    (found,) = opened(tmp_path).shards(3)
    solution = solvers.sample(**problem, num_samples=3)
    # on the host and on the device alike
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


def test_truncated_grey_levels_are_those_below():
    """As the published code: clip to [0, 1], times 255, without the fraction."""
    unit = np.random.default_rng(0).uniform(-0.1, 1.1, (3, 8, 8, 1)).astype(np.float32)
    expected = np.floor(np.clip(unit, 0, 1) * 255).astype(np.uint8)
    assert np.array_equal(to_uint8(unit, centered=False, rounding="truncate"), expected)
    assert np.array_equal(GREY_LEVELS[False, "truncate"](jnp.asarray(unit)), expected)
    nearest = to_uint8(unit, centered=False).astype(int)
    inside = (unit > 0) & (unit < 1)
    # 150 fractions, uniform in [0, 1): their mean is within four deviations of half a level
    assert (nearest - expected)[inside].mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(inside.sum()))


def test_values_outside_go_to_the_ends_and_failed_ones_to_black():
    x = np.array([-3, 7, np.inf, -np.inf, np.nan], np.float32).reshape(1, 1, 5, 1)
    for centered in (False, True):
        assert to_uint8(x, centered=centered).ravel().tolist() == [0, 255, 255, 0, 0]
        assert GREY_LEVELS[centered, "nearest"](jnp.asarray(x)).ravel().tolist() == [0, 255, 255, 0, 0]
