"""An object store in memory, in the place of gs://."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


class _Store(MemoryFileSystem):
    """Names without gs://, as the clients of stores give them."""

    protocol = "gs"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://"))


@contextlib.contextmanager
def memory_for_gs() -> Iterator[MemoryFileSystem]:
    """Paths that begin with gs:// are those of a new and empty store."""
    store = _Store(global_store=False)
    backends = type(backend.fsspec_backend)
    with mock.patch.object(backends, "_get_filesystem", return_value=store):
        yield store
