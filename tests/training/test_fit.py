"""A network is fitted to float arrays of any shape, and samples of it have the data's moments."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sde_lib import VPSDE, as_score
from solvers import AdaptiveExponential, sample
from training import fit

SDE = VPSDE()
ROWS = 2000
CLASSES = (np.arange(ROWS) % 2).astype(np.int32)


def apply(params, x, t, classes=None):
    """The exact noise for Gaussian data of the mean and deviation in params; with classes, one mean each."""
    mean = params["mean"] if classes is None else params["mean"][classes]
    marginal: Any = jax.vmap(SDE.marginal)(t)
    alpha, sigma = (value.reshape(-1, *(1,) * (x.ndim - 1)) for value in marginal)
    variance = (alpha * jnp.exp(params["log_std"])) ** 2 + sigma**2
    return sigma * (x - alpha * mean) / variance


def score_of(params):
    return as_score(Partial(apply, params), SDE, prediction="epsilon", time="t")


def fitted(data, params, score_of=score_of, **settings):
    settings = {"key": jax.random.key(0), "num_steps": 400, "learning_rate": 0.05} | settings
    return fit(score_of, params, SDE, data, **settings)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 1)])
def test_the_weights_become_the_datas_moments(shape):
    data = 0.4 + 0.3 * np.random.default_rng(0).standard_normal((ROWS, *shape)).astype(np.float32)
    params = fitted(data, {"mean": jnp.zeros(shape), "log_std": jnp.zeros(())})
    np.testing.assert_allclose(params["mean"], data.mean(0), atol=0.03)
    np.testing.assert_allclose(np.exp(params["log_std"]), 0.3, rtol=0.06)
    again = fitted(data, {"mean": jnp.zeros(shape), "log_std": jnp.zeros(())})
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_conditions_and_trees():
    rng = np.random.default_rng(0)
    tree = {"a": rng.standard_normal((ROWS, 2)), "b": rng.standard_normal(ROWS)}
    data = {name: np.float32(CLASSES.reshape(-1, *(1,) * (x.ndim - 1)) + 0.1 * x) for name, x in tree.items()}

    def of_tree(params: Any) -> Any:
        def score_fn(x, t, classes):
            both = jnp.concatenate([x["a"], x["b"][:, None]], axis=1)
            flat = as_score(Partial(apply, params), SDE, prediction="epsilon", time="t")(both, t, classes)
            return {"a": flat[:, :2], "b": flat[:, 2]}

        return score_fn

    begin = {"mean": jnp.full((2, 3), 0.5), "log_std": jnp.zeros(())}
    params = fitted(data, begin, of_tree, conditions=CLASSES, num_steps=200, batch_size=64)
    np.testing.assert_allclose(params["mean"], [[0] * 3, [1] * 3], atol=0.05)
    settings: Any = {"shape": {"a": (2,), "b": ()}, "num_samples": 64, "conditions": CLASSES[:64]}
    drawn = sample(of_tree(params), SDE, AdaptiveExponential(), key=jax.random.key(0), **settings)
    assert np.abs(drawn.x["b"] - CLASSES[:64]).max() < 0.6


@pytest.mark.parametrize(("x64", "dtype"), [(True, "float32"), (True, "float64"), (False, "bfloat16")])
def test_the_weights_keep_their_type(x64, dtype):
    data = 0.4 + 0.3 * np.random.default_rng(0).standard_normal((ROWS, 3))
    with jax.enable_x64(x64):
        params = fitted(data, {"mean": jnp.zeros(3, dtype), "log_std": jnp.zeros((), dtype)})
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {dtype}
    # the last weights of bfloat16 have an error of 2^-9 each, and move by no less
    np.testing.assert_allclose(np.float64(params["mean"]), data.mean(0), atol=0.03)
    np.testing.assert_allclose(np.exp(np.float64(params["log_std"])), 0.3, rtol=0.06)


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (np.zeros((5, 2), np.uint8), {}, r"data must be floating-point arrays \(got \['uint8'\]"),
        (np.full((5, 2), np.nan), {}, "data must be finite"),
        ({"a": np.zeros((5, 2)), "b": np.zeros(4)}, {}, "data and conditions must be of one length"),
        (np.zeros((5, 2)), {"conditions": np.zeros(4)}, "data and conditions must be of one length"),
        (np.zeros((5, 2)), {"num_steps": 0}, "num_steps must be a whole number >= 1"),
        (np.zeros((5, 2)), {"score_of": lambda _: lambda x, t: x[:, :1]}, r"score_fn\(x, t\) must be of x's"),
        (np.zeros((5, 2)), {"params": {"mean": np.zeros(2, int)}}, r"params must .* \(got \['int32'\]\)"),
        (np.zeros((5, 2)), {"ema_rate": 1.0}, r"ema_rate must be a rate in \[0, 1\)"),
    ],
)
def test_what_cannot_be_fitted_is_refused(data, settings, message):
    with pytest.raises(ValueError, match=message):
        fitted(**{"data": data, "params": {"mean": jnp.zeros(2), "log_std": jnp.zeros(())}} | settings)
