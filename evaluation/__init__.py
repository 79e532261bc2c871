"""What was sampled, kept and measured: the sample store, feature networks, FID and its kin, results, plots.

Import from the modules; this file stays empty so that a command that draws no picture does not load
matplotlib.
"""
