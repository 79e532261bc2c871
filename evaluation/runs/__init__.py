"""What the modes of ``main.py`` do.

- ``modes``: a function for each mode.
- ``run``: a config from its checks to its result; ``measurement``: what a config measures.
- ``sweep``, ``reproduce``: many runs, as one table and one plot (``tables``, ``plots``).
- ``report``: one page of HTML of what a workdir holds.
- ``results``: the lines of results.jsonl, and the identity of what made them.
"""
