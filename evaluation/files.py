"""Files that are either whole or not there, and one way to say that a disk refused a write."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def refused(path: Path, error: OSError) -> OSError:
    """The same kind of error with the path, the reason and what to do about it."""
    return OSError(
        error.errno,
        f"cannot write {path}: {error.strerror or error}; free some space there or make it writable, or take "
        "another --workdir. What was finished before is kept: the same command goes on from it",
    )


def make_folder(path: Path) -> None:
    """Makes a folder and those above it.

    Raises:
        OSError: with the path, the reason and the fix.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(path, error) from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name only once all of it is on the disk.

    Whatever happens before (an exception, a kill, a power cut), what had the name stays as it was.

    Raises:
        OSError: with the path, the reason and the fix.
    """
    # the process id keeps two writers of one file apart: the last to finish wins, with a whole file
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
