"""The examples of docs/conditional.md run as written, one after the other."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "conditional.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.slow
def test_the_examples_run_as_written():
    """They make assertions of their own."""
    assert len(EXAMPLES) >= 5
    names: dict = {}
    for example in EXAMPLES:
        exec(compile(example, "docs/conditional.md", "exec"), names)
        assert names["solution"].failed == 0
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(names["solution"].x))
