"""The rule of the house on who may know whom: imports point one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Room -> the rooms that it may import. A room that lies in another is a room of its own.
ALLOWED = {
    "sde_lib": set(),
    "configs": {"sde_lib"},
    "solvers": {"sde_lib"},
    "models": {"sde_lib", "configs"},
    "configs.checkpoint": {"sde_lib", "configs", "models"},  # a config that a checkpoint states
    "data": {"sde_lib", "configs"},
    "evaluation.store": {"sde_lib", "solvers"},
    "evaluation.metrics": {"sde_lib", "solvers", "models", "evaluation.store"},
    "training": {"sde_lib", "configs", "solvers", "models", "data", "evaluation.store"},
    "evaluation.runs": {
        *("sde_lib", "configs", "solvers", "models", "data", "training"),
        *("evaluation.store", "evaluation.metrics"),
    },
    "main": {"sde_lib", "configs", "evaluation.store", "evaluation.runs"},
}
NOBODYS = {"main", "tests", "benchmarks"}  # which no room may import


def imported(path: Path) -> set[str]:
    """Every dotted name that a file imports, wherever in it; ``from x import y`` may mean the module x.y."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relative to itself"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(name: str) -> str | None:
    """The room that a dotted name lies in; None for what is not of this project."""
    rooms = [room for room in (*ALLOWED, *NOBODYS) if f"{name}.".startswith(f"{room}.")]
    return max(rooms, key=len, default=None)


def files_of(room: str) -> list[Path]:
    place = ROOT / room.replace(".", "/")
    files = list(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    return [path for path in files if room_of(".".join(path.relative_to(ROOT).with_suffix("").parts)) == room]


def test_the_rooms_have_an_order():
    """Whoever is allowed is above: there is no circle."""
    above: dict[str, set[str]] = {}
    for room, allowed in ALLOWED.items():
        assert allowed <= above.keys(), f"{room} may import a room that comes after it"
        above[room] = allowed


def test_every_file_of_the_project_is_in_a_room():
    folders = {path.parent for path in ROOT.glob("*/**/*.py")} - {ROOT / "evaluation"}
    code = [folder for folder in folders if not any(part.startswith(".") for part in folder.parts)]
    relative = {folder.relative_to(ROOT) for folder in code}
    known = {room.replace(".", "/") for room in ALLOWED} | {"tests", "benchmarks", "examples", "build"}
    strays = [
        str(folder) for folder in relative if not any(f"{folder}/".startswith(f"{place}/") for place in known)
    ]
    assert strays == []


@pytest.mark.parametrize(
    ("source", "room"),
    [
        ("import evaluation.runs.run", "evaluation.runs"),
        ("from evaluation.runs import run", "evaluation.runs"),
        ("from evaluation import runs", "evaluation.runs"),
        ("def f():\n    from solvers import sample", "solvers"),
        ("import main", "main"),
    ],
)
def test_every_form_of_import_is_seen(source, room, tmp_path):
    (tmp_path / "file.py").write_text(source)
    assert [room_of(name) for name in imported(tmp_path / "file.py")] == [room]


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_one_way(room):
    wrong = {}
    for path in files_of(room):
        rooms = {room_of(name) for name in imported(path)} - {None, room} - ALLOWED[room]
        wrong |= {str(path.relative_to(ROOT)): rooms} if rooms else {}
    assert files_of(room)
    assert wrong == {}


@pytest.mark.parametrize("room", ALLOWED)
def test_no_second_framework_and_no_private_part_of_jax_is_needed(room):
    for path in files_of(room):
        names = imported(path)
        assert not {name for name in names if f"{name}.".startswith(("tensorflow.", "torch."))}, path
        assert not {name for name in names if "jax._src" in name}, path


@pytest.mark.parametrize("room", [*ALLOWED, "benchmarks"])
def test_no_module_uses_a_private_name_of_another(room):
    for path in files_of(room):
        tree = ast.parse(path.read_text())
        private = {name for name in imported(path) if name.rpartition(".")[2].startswith("_")}
        assert private <= {"__future__.annotations"}, path
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
        names = {alias.asname or alias.name for node in imports for alias in node.names}
        used = {
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if node.value.id in names and node.attr.startswith("_") and not node.attr.startswith("__")
        }
        assert used <= {"os._exit"}, path  # which is public all the same
