"""Training of any network on float arrays of any shape, in a call; ``train`` is for a config's images."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import PRNGKeyArray

from sde_lib import SDE, ScoreFn
from sde_lib.checks import require, require_count, require_number, require_positive
from sde_lib.pytrees import as_partial
from solvers.layouts import FlatScore, Layout
from solvers.progress import bar as progress_bar
from training.losses import draw, loss_at
from training.step import moving_average, warmed_up

Params = Any
CALL = 100  # steps of a compiled call


def fit(
    score_of: Callable[[Params], ScoreFn],
    params: Params,
    sde: SDE,
    data: Any,
    *,
    key: PRNGKeyArray,
    num_steps: int,
    conditions: Any = None,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    ema_rate: float = 0.999,
    progress: bool = False,
) -> Params:
    """Trains a network by denoising score matching (arXiv 2011.13456, eq. 7), and returns averaged weights.

    Adam, on batches drawn with replacement, with the loss that counts the noise alike at all times. The
    learning rate falls to zero along a cosine.

    Args:
        score_of: from parameters to the score function, such as ``lambda params: as_score(Partial(apply,
            params), sde, prediction="epsilon", time="t")``.
        params: the parameters to begin with, a pytree of float arrays.
        sde: the process.
        data: x(0), float [n, ...] of any shape, of a size of about one; or a pytree of such arrays, which the
            score function then takes and returns.
        key: root of all randomness.
        num_steps: number of steps.
        conditions: a pytree of arrays with one row for each row of the data. The score functions are then
            ones of (x, t, condition).
        batch_size: rows in a step.
        learning_rate: at the beginning.
        ema_rate: of the weights' moving average, whose warm-up is min(ema_rate, (1 + n)/(10 + n)).
        progress: show a bar with the loss.

    Returns:
        The moving average of the parameters.

    Raises:
        ValueError: for data that are not finite floating-point numbers, parameters that are not of such a
            type, rows of different numbers, a score of another shape than x, or a setting out of range.
        FloatingPointError: if the loss is no longer finite.

    Example:
        >>> from sde_lib import VPSDE, as_score
        >>> def apply(params, x, t):  # the noise in data of mean zero; the best weight is σ/(α² + σ²)
        ...     return x * (params[0] + params[1] * t[:, None])
        >>> sde, data = VPSDE(), jax.random.normal(jax.random.key(1), (1000, 3))
        >>> def score_of(params):
        ...     return as_score(Partial(apply, params), sde, prediction="epsilon", time="t")
        >>> params = fit(score_of, jnp.zeros(2), sde, data, key=jax.random.key(0), num_steps=300)
        >>> print(f"{params[0] + params[1]:.1f}")  # at t = 1, x is all noise
        1.1
    """
    require_count(num_steps=num_steps, batch_size=batch_size)
    require_positive(learning_rate=learning_rate)
    fix = "set 0 for no averaging"
    require_number("ema_rate", ema_rate, lambda rate: 0 <= rate < 1, "a rate in [0, 1)", fix)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(data)]
    floating = bool(leaves) and all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)
    types = [str(leaf.dtype) for leaf in leaves]
    require(floating, "data", types, "floating-point arrays", "scale them to about one, as floats")
    finite = all(np.isfinite(leaf).all() for leaf in leaves)
    require(finite, "data", "NaN or infinite values", "finite", "leave those rows out")
    rows = {leaf.shape[0] if leaf.ndim else None for leaf in (*leaves, *map(np.asarray, _leaves(conditions)))}
    fix = "give every array one row for each sample"
    require(len(rows) == 1 and None not in rows, "data and conditions", f"{rows} rows", "of one length", fix)

    layout = Layout.of(jax.tree.map(lambda leaf: tuple(np.shape(leaf)[1:]), data))
    x0 = jnp.asarray(leaves[0] if layout is None else layout.flatten(jax.tree.map(np.asarray, data)))
    given = jax.tree.map(jnp.asarray, conditions)
    params = jax.tree.map(jnp.asarray, params)
    weights = jax.tree.leaves(params)
    floating = bool(weights) and all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in weights)
    types = sorted({str(leaf.dtype) for leaf in weights})
    fix = "leave what is not trained to score_of"
    require(floating, "params", types, "a pytree of floating-point arrays", fix)
    transform = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def loss_of(params: Params, key: PRNGKeyArray) -> Any:
        rows_key, loss_key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (batch_size,), 0, len(x0))
        score_fn = score_of(params)
        if layout is not None:
            score_fn = Partial(FlatScore(layout), as_partial(score_fn))
        if given is not None:
            condition = jax.tree.map(lambda leaf: leaf[rows], given)
            score_fn = functools.partial(_with_condition, score_fn, condition)
        batch = x0[rows]
        return jnp.mean(loss_at(score_fn, sde, batch, *draw(sde, loss_key, batch)))

    def step(carry: tuple, n: Any) -> tuple[tuple, Any]:
        params, average, state = carry
        loss, gradient = jax.value_and_grad(loss_of)(params, jax.random.fold_in(key, n))
        updates, state = transform.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        average = moving_average(params, average, warmed_up(ema_rate, n))
        return (params, average, state), loss

    @jax.jit
    def steps(carry: tuple, numbers: Any) -> tuple[tuple, Any]:
        return jax.lax.scan(step, carry, numbers)

    # float16 and bfloat16 would lose what a step adds to the average
    average = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), params)
    carry = (params, average, transform.init(params))
    with progress_bar(total=num_steps, unit="step", disable=not progress, desc="training") as bar:
        for begin in range(0, num_steps, CALL):
            carry, losses = steps(carry, jnp.arange(begin, min(begin + CALL, num_steps)))
            mean = float(losses.mean())
            if not np.isfinite(mean):
                raise FloatingPointError(
                    f"the loss must be finite (got {mean} in steps {begin} to {begin + len(losses)}): lower "
                    "learning_rate, or scale the data to about one"
                )
            bar.set_postfix_str(f"loss {mean:.4g}")
            bar.update(len(losses))
    return jax.tree.map(lambda average, leaf: average.astype(leaf.dtype), carry[1], params)


def _with_condition(score_fn: ScoreFn, condition: Any, x: Any, t: Any) -> Any:
    return score_fn(x, t, condition)


def _leaves(tree: Any) -> list[Any]:
    return [] if tree is None else jax.tree.leaves(tree)
