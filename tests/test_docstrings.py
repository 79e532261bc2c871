"""The examples in the docstrings of the library run and print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("sde_lib", "solvers")
    for path in sorted((ROOT / package).glob("*.py"))
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0


@pytest.mark.parametrize("package", ["sde_lib", "solvers"])
def test_every_public_class_has_an_example(package):
    """Except protocols and results, of which users make no instances."""
    module = importlib.import_module(package)
    public = {name: getattr(module, name) for name in module.__all__}
    classes = {name for name, thing in public.items() if isinstance(thing, type)}
    without = {name for name in classes if ">>>" not in (public[name].__doc__ or "")}
    assert without <= {"SDE", "Grid", "Solver", "Solution", "Likelihood", "Trace"}
