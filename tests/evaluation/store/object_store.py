"""An object store in memory, in place of gs://."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


class _Store(MemoryFileSystem):
    """Names without gs:// and times of the last change, as the client of gs:// gives them."""

    protocol = "gs"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://"))

    def info(self, path, **options):
        found = super().info(path, **options)
        return found | {"mtime": self.modified(path)} if found["type"] == "file" else found


@contextlib.contextmanager
def memory_for_gs() -> Iterator[MemoryFileSystem]:
    """Paths that begin with gs:// belong to a new, empty store."""
    store = _Store(global_store=False)
    backends = type(backend.fsspec_backend)
    with mock.patch.object(backends, "_get_filesystem", return_value=store):
        yield store
