"""What README and the other pages tell people to write works as written."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def named(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


def test_the_library_example_runs_as_written():
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    solution = names["solution"]
    assert solution.failed == 0
    assert solution.x.shape == (1000, 2)


def test_the_readme_fits_on_a_page():
    assert len(README.splitlines()) <= 150


@named(PAGES)
def test_every_file_that_a_page_links_to_is_there(page):
    for path in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", page.read_text()):
        assert (page.parent / path).exists(), path


@named(PAGES)
def test_every_module_and_config_in_its_commands_is_there(page):
    text = page.read_text()
    for module in re.findall(r"-m ((?:benchmarks|training)\.[a-z_]+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    for config in re.findall(r"--config=(configs/\S+?\.py)", text):
        assert (ROOT / config).exists(), config


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_an_install_has_every_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = ("configs", "data", "evaluation", "models", "training")
    folders = {path.parent.relative_to(ROOT) for room in rooms for path in (ROOT / room).rglob("*.py")}
    inside = {"gotta_go_fast." + ".".join(folder.parts) for folder in folders}
    assert set(settings["packages"]) == {"sde_lib", "solvers", "gotta_go_fast"} | inside
