"""Runs a notebook as Jupyter does, in a kernel of its own and in the notebook's folder.

python -m tests.notebooks examples/quickstart.ipynb

writes the outputs into the notebook.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

LONGEST = 600  # seconds that a cell may take, also on a busy machine


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a new run; raises CellExecutionError at the first cell that fails."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=LONGEST,
        resources={"metadata": {"path": str(path.parent)}},
        coalesce_streams=True,  # of a progress bar, its last state alone
        record_timing=False,
    )
    return client.execute()


if __name__ == "__main__":
    notebook_path = Path(sys.argv[1])
    nbformat.write(executed(notebook_path), notebook_path)
