"""Files that are either whole or not there, on local disks and on gs:// alike; and what a refusal calls for.

Paths are those of etils.epath. On a local disk a file takes its name only once all of it is there. On an
object store nothing of a write can be seen before the write ends, so there a whole file is written at once.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import socket
import tempfile
from collections.abc import Hashable, Iterator
from typing import BinaryIO

import fsspec.config
from etils import epath

from sde_lib.checks import require

TEMPORARY = ".tmp"

# Processes on other machines write to the same stores: what was listed once is listed again
fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False


def is_local(path: epath.PathLike) -> bool:
    """Whether a path is on a file system of this machine, and not on an object store."""
    return "://" not in os.fspath(path)


def work_folder(path: str) -> epath.Path:
    """The folder that ``--workdir`` names: new or not, local or on an object store, as gs://BUCKET/FOLDER.

    Raises:
        ValueError: for a file, or for a store that cannot be reached.
        OSError: for a place where no folder can be made; none is made yet.
    """
    try:
        folder = epath.Path(path).expanduser()
        there, is_folder = folder.exists(), folder.is_dir()
    except Exception as error:  # the clients of the stores have no common one
        raise ValueError(
            f"--workdir = {path!r} cannot be reached ({error}): allowed is a folder, local or on gs://; name "
            "a local one, or install gcsfs and log in to Google Cloud"
        ) from None
    require(
        is_folder or not there,
        "--workdir",
        path,
        "a folder, new or not",
        "name one, or remove the file there",
    )
    if not there:
        require_writable(folder)
    return folder


FIXES = {
    "read": "make it readable, or take another --workdir",
    "write": "free some space there or make it writable, or take another --workdir. What was finished before "
    "is kept: the same command goes on from it",
}


@contextlib.contextmanager
def explained(doing: str, path: epath.PathLike) -> Iterator[None]:
    """Adds to what goes wrong in "read" or "write" the path and what to do about it, as an OSError."""
    try:
        yield
    except Exception as error:
        if is_local(path) and not isinstance(error, OSError):
            raise  # it is not the disk; the clients of stores, though, have errors of their own
        reason = getattr(error, "strerror", None) or error
        code = getattr(error, "errno", None) or errno.EIO
        raise OSError(code, f"cannot {doing} {os.fspath(path)}: {reason}; {FIXES[doing]}") from error


def read_file(path: epath.PathLike) -> bytes | None:
    """The content of a file; None where there is no file.

    Raises:
        OSError: with the path, the reason and the fix.
    """
    with explained("read", path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return epath.Path(path).read_bytes()
    return None


def require_writable(folder: epath.PathLike, *, size: int = 0) -> None:
    """Finds out before any work whether a local folder can be made and takes ``size`` bytes.

    Raises:
        OSError: with the path, the reason and the fix.
    """
    folder = epath.Path(folder)
    if not is_local(folder):
        return  # which say so at the first write only
    there = next(place for place in (folder, *folder.parents) if place.exists())
    with explained("write", folder):
        tempfile.TemporaryFile(dir=os.fspath(there)).close()
        free = shutil.disk_usage(there).free
        if size > free:
            raise OSError(errno.ENOSPC, f"{size / 1e6:,.1f} MB are needed, and {free / 1e6:,.1f} MB are free")


def make_folder(path: epath.PathLike) -> None:
    """Makes a folder and those above it.

    Raises:
        OSError: with the path, the reason and the fix.
    """
    with explained("write", path):
        epath.Path(path).mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def atomic_file(path: epath.PathLike) -> Iterator[BinaryIO]:
    """A file to write that takes its name only once all of it is there.

    Whatever happens before (an exception, a kill, a power cut), what had the name stays as it was.

    Raises:
        OSError: with the path, the reason and the fix.
    """
    path = epath.Path(path)
    if not is_local(path):
        content = io.BytesIO()  # an exception in the caller must not end the write: what it ends is there
        yield content
        with explained("write", path):
            path.write_bytes(content.getvalue())
        return
    # two writers of one file have a temporary one each: the last to finish wins, with a whole file
    temporary = path.with_name(f".{path.name}@{owner()}{TEMPORARY}")
    try:
        with explained("write", path):
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def create(path: epath.PathLike, text: str) -> bool:
    """Makes a small file unless there is one; returns whether it did.

    Of several processes one alone makes it on a local disk; on an object store, more may believe so.

    Raises:
        OSError: with the path, the reason and the fix.
    """
    path = epath.Path(path)
    with explained("write", path):
        if is_local(path):
            with contextlib.suppress(FileExistsError), open(path, "x") as file:
                file.write(text)
                return True
            return False
        if path.exists():
            return False
        path.write_text(text)
        return True


def version(path: epath.PathLike) -> Hashable:
    """Something that changes when a file is written anew; None where there is no file."""
    with explained("read", path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if is_local(path):
            stat = os.stat(path)
            return stat.st_ino, stat.st_mtime_ns, stat.st_size
        remote = epath.Path(path).stat()
        return remote.mtime, remote.length
    return None


def owner() -> str:
    """This process, among all that write to a folder."""
    return f"{socket.gethostname()}.{os.getpid()}"


def is_gone(owner: str) -> bool:
    """Whether the process that called itself so is known to have ended; of other machines' nobody knows."""
    host, _, pid = owner.rpartition(".")
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)  # sends nothing
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return int(pid) == os.getpid()  # an earlier process with this number, as in a container started again


def remove_unfinished(folder: epath.PathLike) -> None:
    """Removes the temporary files that killed processes left in a local folder; elsewhere there are none."""
    if not is_local(folder):
        return
    for path in epath.Path(folder).glob(f".*@*{TEMPORARY}"):
        if is_gone(path.name.removesuffix(TEMPORARY).rpartition("@")[2]):
            with contextlib.suppress(OSError):
                path.unlink()
