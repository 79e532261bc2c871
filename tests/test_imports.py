"""The house rule on who may know whom: imports point one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "configs": set(),
    "sde_lib": set(),
    "solvers": {"sde_lib"},
    "models": {"sde_lib"},
    "training": {"models", "sde_lib"},
    "evaluation": {"solvers", "models", "sde_lib"},
}


def imported_packages(path: Path) -> set[str]:
    """The top-level names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package):
    others = {*ALLOWED, "main", "tests", "benchmarks"} - ALLOWED[package] - {package}
    files = list((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(path.relative_to(ROOT)): imported_packages(path) & others for path in files}
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.parametrize("package", [*ALLOWED, "main"])
def test_no_second_framework_is_needed(package):
    files = [ROOT / "main.py"] if package == "main" else (ROOT / package).rglob("*.py")
    for path in files:
        top_level = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import)]
        names = {alias.name.split(".")[0] for node in top_level for alias in node.names}
        assert not names & {"tensorflow", "torch"}, path
