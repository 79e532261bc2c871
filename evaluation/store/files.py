"""Files that are either complete or absent, on local disks and on gs:// alike; errors that say what to do.

Paths are those of etils.epath. On a local disk a file gets its name only once it is complete. On an object
store nothing of a write is visible before the write ends, so there a whole file is written at once.
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
from pathlib import Path
from typing import Any, BinaryIO

import fsspec.config
from etils import epath

from sde_lib.checks import refusal, require

TEMPORARY = ".tmp"

# Processes on other machines write to the same stores, so that a listing must not be kept
fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False


def is_local(path: epath.PathLike) -> bool:
    """Whether a path is on a file system, rather than on an object store."""
    return "://" not in os.fspath(path)


def cache_folder(name: str) -> Path:
    """The folder in which results of this name are kept for all runs: $XDG_CACHE_HOME/gotta-go-fast/NAME.

    Without XDG_CACHE_HOME it is below ~/.cache.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gotta-go-fast" / name


def work_folder(path: str) -> epath.Path:
    """The folder that ``--workdir`` names, which may be new; local, or on an object store as gs://BUCKET/FOLDER.

    Raises:
        ValueError: if the path is that of a file, or of a store that cannot be reached.
        OSError: if no folder can be made there. This function makes none.
    """
    try:
        folder = epath.Path(path).expanduser()
        there, is_folder = folder.exists(), folder.is_dir()
    except Exception as error:  # the clients of the stores have no common one
        allowed = "a folder that can be reached, local or on gs://"
        fix = f"use a local folder, or install gcsfs and log in to Google Cloud ({error})"
        raise ValueError(refusal("--workdir", path, allowed, fix)) from None
    fix = "choose another path, or remove the file"
    require(is_folder or not there, "--workdir", path, "a folder, not a file", fix)
    if not there:
        require_writable(folder)
    return folder


FIXES = {
    "read": "make it readable, or use another --workdir",
    "write": "free some space there or make it writable, or use another --workdir. Finished work is kept: "
    "the same command resumes from it",
}


@contextlib.contextmanager
def explained(doing: str, path: epath.PathLike) -> Iterator[None]:
    """Turns an error of the block into an OSError that gives the path, the reason and the fix.

    Args:
        doing: what the block does, "read" or "write".
        path: of the file or folder.
    """
    try:
        yield
    except Exception as error:
        if is_local(path) and not isinstance(error, OSError):
            raise  # not the disk is at fault; the clients of stores, though, have errors of their own
        reason = getattr(error, "strerror", None) or error
        code = getattr(error, "errno", None) or errno.EIO
        raise OSError(code, f"cannot {doing} {os.fspath(path)}: {reason}; {FIXES[doing]}") from error


def read_file(path: epath.PathLike) -> bytes | None:
    """The content of a file, or None if there is no file.

    Raises:
        OSError: with the path, the reason and the fix.
    """
    with explained("read", path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return epath.Path(path).read_bytes()
    return None


def require_writable(folder: epath.PathLike, *, size: int = 0) -> None:
    """Checks before any work that a local folder can be made and written to, and has room for ``size`` bytes.

    Raises:
        OSError: with the path, the reason and the fix.
    """
    folder = epath.Path(folder)
    if not is_local(folder):
        return  # a store refuses at the first write only
    there = next(place for place in (folder, *folder.parents) if place.exists())
    with explained("write", folder):
        tempfile.TemporaryFile(dir=os.fspath(there)).close()
        free = shutil.disk_usage(there).free
        if size > free:
            raise OSError(errno.ENOSPC, f"{size / 1e6:,.1f} MB are needed, and {free / 1e6:,.1f} MB are free")


def make_folder(path: epath.PathLike) -> None:
    """Makes a folder, and those above it, unless it exists.

    Raises:
        OSError: with the path, the reason and the fix.
    """
    with explained("write", path):
        epath.Path(path).mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def atomic_file(path: epath.PathLike) -> Iterator[BinaryIO]:
    """A file to write, which gets its name only once it is complete.

    Whatever interrupts the writing (an exception, a kill, a power cut), a file that had the name before stays
    as it was.

    Raises:
        OSError: with the path, the reason and the fix.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_file(f"{folder}/figures") as file:
        ...         names = os.listdir(folder)
        ...         _ = file.write(b"FID 2.1")
        ...     "figures" in names, os.listdir(folder)
        (False, ['figures'])
    """
    path = epath.Path(path)
    if not is_local(path):
        content = io.BytesIO()  # ending the write would make the file, also after an exception in the caller
        yield content
        with explained("write", path):
            path.write_bytes(content.getvalue())
        return
    # each writer has a temporary file of its own: the last to finish wins, with a whole file
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


def add_lines(path: epath.PathLike, lines: bytes) -> None:
    """Adds whole lines to a file, and makes its folder; a torn line that an interruption left is cut off.

    On an object store, the file is written anew.

    Raises:
        OSError: with the path, the reason and the fix.
    """
    path = epath.Path(path)
    make_folder(path.parent)
    if not is_local(path):
        before = read_file(path) or b""
        with atomic_file(path) as file:
            file.write(before[: before.rfind(b"\n") + 1] + lines)
        return
    with explained("write", path), open(path, "a+b") as file:
        file.seek(0)
        before = file.read()
        if (end := before.rfind(b"\n") + 1) < len(before):
            file.truncate(end)
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def create(path: epath.PathLike, text: str) -> bool:
    """Makes a small file unless there is one; returns whether it did.

    On a local disk exactly one of several processes makes it; on an object store, more may believe that they
    did.

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


def show_life(path: epath.PathLike) -> None:
    """Writes a small file anew, so that others see its ``version`` change; errors are ignored."""
    # In place: an NFS client would notice another file of this name much later than a change to this one
    with contextlib.suppress(Exception):  # a store's client has errors of its own
        epath.Path(path).write_text(owner())


def version(path: epath.PathLike) -> Hashable:
    """A value that changes whenever a file is written anew; None if there is no file."""
    with explained("read", path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if is_local(path):
            return _version(os.stat(path))
        remote = epath.Path(path).stat()
        return remote.mtime, remote.length
    return None


def version_to_be(file: Any) -> Hashable:
    """The ``version`` that an ``atomic_file`` will have if nothing more is written to it.

    It is that of this very file, while a look at the path could find another that was put in its place. None
    on an object store, where a file has no version before it has its name.
    """
    if isinstance(file, io.BytesIO):
        return None
    file.flush()
    return _version(os.fstat(file.fileno()))


def _version(stat: os.stat_result) -> Hashable:
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def owner() -> str:
    """The name of this process among all that write to a folder: HOST.PID."""
    return f"{socket.gethostname()}.{os.getpid()}"


def is_gone(owner: str) -> bool:
    """Whether the process of this name is known to have ended; for other machines this is never known."""
    host, _, pid = owner.rpartition(".")
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)  # sends nothing
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    # the owner was an earlier process with our number, as in a container that was started again
    return int(pid) == os.getpid()


def remove_unfinished(folder: epath.PathLike) -> None:
    """Removes the temporary files that killed processes left in a local folder; on a store there are none."""
    if not is_local(folder):
        return
    for path in epath.Path(folder).glob(f".*@*{TEMPORARY}"):
        if is_gone(path.name.removesuffix(TEMPORARY).rpartition("@")[2]):
            with contextlib.suppress(OSError):
                path.unlink()
