"""Sampling kept on disk, and its measurement.

- ``evaluation.store``: samples in files that are whole or not there, and how processes share them.
- ``evaluation.metrics``: feature networks, FID, Inception Score, KID, precision and recall, intervals.
- ``evaluation.runs``: what the modes of ``main.py`` do: runs of a config, sweeps, the paper's tables, plots.

Import from the modules. The packages import nothing themselves, so that a command that draws no picture does
not load matplotlib.
"""
