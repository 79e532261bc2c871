"""Shapes and dtypes in signatures are checked here at run time; compiled programs are kept between runs.

Compilation takes most of the tests' time, and half as long without optimization. So modules, and the commands
that they start, compile without it. The exceptions have ``pytestmark = pytest.mark.optimized``: their subject
is which programs agree to the bit. With ``-m slow``, everything is optimized.
"""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jaxtyping
import pytest

from tests import typechecking

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

PACKAGES = ["sde_lib", "solvers", "models", "data", "training", "evaluation"]
jaxtyping.install_import_hook(PACKAGES, f"{typechecking.__name__}.check")


def pytest_collection_finish() -> None:
    """Spares the garbage collector what imports and the collection of tests have made, which stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)  # JAX makes many objects when it traces, few of them garbage


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the tests' own, also for the commands that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def optimization(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of the programs of a module, and of the processes that it starts."""
    quick = request.config.option.markexpr == "not slow"
    unoptimized = quick and request.node.get_closest_marker("optimized") is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(int(unoptimized)))
        jax.config.update("jax_disable_most_optimizations", unoptimized)
        yield


@pytest.fixture(scope="module", autouse=True)
def few_compiled_programs() -> Iterator[None]:
    """Drops a module's compiled programs after its tests.

    Each takes some memory maps. Linux allows a process 65,530, and XLA crashes where it gets no more.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def golden() -> Callable[..., Path]:
    """Finds arrays of reference implementations: small ones in tests/golden, others beside a checkout."""
    beside = Path(os.environ.get("GOLDEN_DIR", SHARED / "golden"))

    def find(*parts: str) -> Path:
        for folder in (ROOT / "tests" / "golden", beside):
            if (path := folder.joinpath(*parts)).exists():
                return path
        pytest.skip(f"reference arrays not found at {path}; set GOLDEN_DIR to the folder that holds them")

    return find


@pytest.fixture
def as_users_run_it():
    """Without the checks of types: wrong ones meet the project's own messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
