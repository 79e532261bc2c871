"""Progress in a file is a line now and then; in a terminal or a notebook a bar is drawn in place."""

import importlib
import io
import sys
import warnings
from types import SimpleNamespace

import pytest
import tqdm

from solvers import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(monkeypatch, file: io.StringIO, seconds: float) -> str:
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setattr(progress, "SECONDS", seconds)
    with progress.bar(total=50, unit="sample", desc="sampling", mininterval=0.0, file=file) as bar:
        for number in range(50):
            bar.update()
            bar.set_postfix_str(f"mean NFE {number}")
    return file.getvalue()


def test_a_file_gets_the_first_and_the_last_line_of_a_short_run(monkeypatch):
    text = drawn(monkeypatch, io.StringIO(), 30.0)
    first, last = text.splitlines()
    assert "0/50 [" in first
    assert "50/50 [" in last
    assert "mean NFE 49" in last
    assert "\r" not in text


def test_a_file_gets_more_lines_of_a_long_run(monkeypatch):
    text = drawn(monkeypatch, io.StringIO(), 0.0)
    assert len(text.splitlines()) > 50
    assert "\r" not in text


def test_a_terminal_gets_a_bar_in_place(monkeypatch):
    text = drawn(monkeypatch, Terminal(), 30.0)
    assert text.count("\r") > 10
    assert text.count("\n") == 1


@pytest.mark.parametrize("file", [io.StringIO(), Terminal()])
def test_a_bar_can_be_switched_off(monkeypatch, file):
    monkeypatch.setattr(sys, "stderr", file)
    with progress.bar(total=3, disable=True) as bar:
        bar.update()
    assert file.getvalue() == ""


def test_a_notebook_without_widgets_gets_a_bar_and_no_warning(monkeypatch):
    """The module is loaded anew, in what it takes for the kernel of a notebook."""
    kernel = SimpleNamespace(get_ipython=object)
    for name in ("IPython", "ipykernel", "ipykernel.zmqshell"):
        monkeypatch.setitem(sys.modules, name, kernel)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    for name in ("auto", "autonotebook", "notebook"):
        monkeypatch.delitem(sys.modules, f"tqdm.{name}", raising=False)
        monkeypatch.delattr(tqdm, name, raising=False)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        importlib.reload(progress)
    assert given == []
    text = drawn(monkeypatch, io.StringIO(), 30.0)
    assert text.count("\r") > 10
    assert "50/50 [" in text
