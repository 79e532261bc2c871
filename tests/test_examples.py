"""The examples run from a clone as they are; the notebook is committed with its outputs."""

import runpy
from pathlib import Path

import nbformat
import pytest

from tests.notebooks import executed

QUICKSTART = Path(__file__).resolve().parent.parent / "examples" / "quickstart.ipynb"
LARGEST = 300_000  # bytes with outputs, so that a clone stays small


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def pictures(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def printed(notebook: nbformat.NotebookNode, stream: str) -> str:
    return "".join(output.text for output in outputs(notebook) if output.get("name") == stream)


def test_the_quickstart_is_committed_with_its_outputs():
    notebook = nbformat.read(QUICKSTART, as_version=4)
    nbformat.validate(notebook)
    assert QUICKSTART.stat().st_size < LARGEST
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # run once, in order
    assert pictures(notebook) == 4
    assert "Traceback" not in QUICKSTART.read_text()


def test_a_sentence_stands_before_each_cell_of_code():
    kinds = [cell.cell_type for cell in nbformat.read(QUICKSTART, as_version=4).cells]
    assert all(kinds[i - 1] == "markdown" for i, kind in enumerate(kinds) if kind == "code")


@pytest.mark.slow
def test_the_quickstart_runs_from_a_clone(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = executed(QUICKSTART)
    assert pictures(notebook) == 4
    said = printed(notebook, "stderr")
    assert "100%" in said  # the progress bar, and nothing else, such as a warning
    assert all(line.lstrip("\r").startswith("sampling:") for line in said.splitlines() if line.strip())
    assert "0 samples failed" in printed(notebook, "stdout")


@pytest.mark.slow
def test_the_galaxies_are_drawn(monkeypatch, tmp_path, capsys):
    pytest.importorskip("galaxygrad", reason="pip install galaxygrad==0.1.9")
    monkeypatch.chdir(tmp_path)
    runpy.run_module("examples.galaxies")
    assert (tmp_path / "galaxies.png").exists()
    assert capsys.readouterr().out.count("0 failed") == 4
