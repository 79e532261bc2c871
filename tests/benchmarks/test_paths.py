"""The measures of benchmarks/paths.py on exact samples and on wrong ones; and a small table."""

import jax
import numpy as np
import pytest

from benchmarks.paths import (
    DEVIATION,
    DIMENSIONS,
    EXACT,
    PROCESSES,
    REPEATS,
    alarms,
    measure,
    mixture,
    modes,
    quality,
    table,
)

N = 2048
FLOW = PROCESSES["flow"]


def exact_samples():
    key = jax.random.key(0)
    x = mixture().samples(FLOW, FLOW.eps, key=key, num_samples=N, shape=(DIMENSIONS,))
    return np.asarray(x, np.float64)


def marked(x):
    return alarms({f"flow.some.{name}": value for name, value in quality(x, FLOW).items()}, N)


def test_modes_are_as_far_apart_as_the_docstring_says():
    distances = np.linalg.norm(modes()[:, None] - modes(), axis=2)
    assert distances[distances > 0].min() > 10 * DEVIATION


def test_exact_samples_are_not_marked():
    assert marked(exact_samples()) == set()


def test_a_wrong_mean_width_or_weight_is_marked():
    x = exact_samples()
    assert marked(x + 0.1 * DEVIATION) == {"flow.some.means_p"}
    alpha = float(FLOW.marginal(FLOW.eps)[0])
    nearest = np.argmin(np.sum((x[:, None] - alpha * modes()) ** 2, axis=2), axis=1)
    centres = alpha * modes()[nearest]
    assert marked(centres + 1.05 * (x - centres)) == {"flow.some.variance"}
    # the first mode has every tenth of its samples moved to the second
    moved = (nearest == 0) & (np.arange(N) % 10 == 0)
    shift = alpha * (modes()[1] - modes()[0])
    assert marked(x + moved[:, None] * shift) == {"flow.some.weights_p"}


def test_a_lost_mode_is_marked_and_makes_no_nan():
    x = exact_samples()
    shift = modes()[0] - modes()[1]
    nearest = np.argmin(np.sum((x[:, None] - modes()) ** 2, axis=2), axis=1)
    found = quality(x + (nearest == 1)[:, None] * shift, FLOW)
    assert found["weights_p"] < 1e-10
    assert np.isfinite(list(found.values())).all()
    assert len(REPEATS) == 4


@pytest.mark.slow
def test_the_solvers_draw_the_mixture_from_the_flow_and_the_table():
    """Fewer samples and two processes of the table in docs/models.md."""
    figures = measure(512, ["flow", "table"])
    assert not [name for name in alarms(figures, 512) if "adaptive" in name or EXACT in name]
    assert {name for name in figures if EXACT in name} < set(figures)
    assert 3 * figures["flow.adaptive_exponential.nfe"] < figures["flow.adaptive.nfe"]
    assert len(table(figures, 512).splitlines()) == 2 + 2 * 4
