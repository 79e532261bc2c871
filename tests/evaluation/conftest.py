"""What several tests of the evaluation start from."""

import pytest
from etils import epath

from tests.evaluation.store.object_store import memory_for_gs


@pytest.fixture(params=["local", "gs"])
def folder(request, tmp_path):
    """A new folder on a local disk, and on an object store."""
    if request.param == "local":
        yield epath.Path(tmp_path)
    else:
        with memory_for_gs():
            yield epath.Path("gs://bucket/folder")
