"""Progress bars: drawn in place in a terminal or a notebook; in a log file, a line now and then."""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

from tqdm import TqdmWarning, tqdm

with warnings.catch_warnings():
    # a notebook without ipywidgets gets the bar as text, and needs no advice about that
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm as in_place

SECONDS = 30.0  # between two lines


class Lines(tqdm):
    """A bar that prints its state as a line of its own: at the start, every ``SECONDS``, and at the end."""

    shown: float | None = None  # when it printed last

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.shown is None or time.monotonic() - self.shown >= SECONDS:
            self.shown = time.monotonic()
            print(self, file=self.fp, flush=True)

    def close(self) -> None:
        if not self.disable:
            self.shown = None
            self.display()
            self.disable = True  # the rest of tqdm's own close serves terminals


def bar(**settings: Any) -> tqdm:
    """A tqdm bar with these settings, of the kind that the output can show.

    Example:
        >>> with bar(total=2, unit="sample", disable=True) as shown:
        ...     shown.update()
    """
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        return in_place(**settings)
    return Lines(**settings)
