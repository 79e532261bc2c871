"""The shipped networks in the driver: the batch changes a sample only by rounding."""

import jax
import numpy as np
import pytest

import models
import sde_lib
import solvers
from configs.ve import digits_adaptive as ve
from configs.vp import digits_adaptive as vp

pytestmark = pytest.mark.optimized


@pytest.mark.parametrize("batch_size", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "make_config",
    [pytest.param(ve.get_config, id="ve", marks=pytest.mark.slow), pytest.param(vp.get_config, id="vp")],
)
def test_neither_batch_nor_order_changes_a_networks_samples(make_config, batch_size):
    """A network is another program at another batch shape, and rounding grows along a sample's path."""
    config = make_config()
    config.solver.eps_rel = 0.1
    sde, score_fn = sde_lib.from_config(config.sde), models.load_score_fn(config)

    def draw(ids, batch_size):
        solver = solvers.from_config(config.solver, config.solver_defaults)
        settings = {"key": jax.random.key(0), "shape": (8, 8, 1), "batch_size": batch_size}
        return solvers.sample(score_fn, sde, solver, sample_ids=ids, **settings)

    ids = np.arange(64)
    whole = draw(ids, 64)
    assert whole.failed == 0
    some = ids[20:2:-1]
    part = draw(some, batch_size)
    np.testing.assert_allclose(part.x, whole.x[some], atol=1e-4)
    np.testing.assert_array_equal(part.nfe, whole.nfe[some])
