"""Compare continuous lanes with the published method's lockstep batches, on the same samples.

python -m benchmarks.lanes [--json FILE] [--num_samples 1024] [--batch_size 64] [--eps_rel 0.05]

In a lockstep batch every lane waits for the slowest sample, and a rejected step costs two evaluations,
because each iteration evaluates both stages of all lanes. A lane of the driver starts its next sample at
once, and a rejected step costs one evaluation, that of its second stage. Both run the same solver on the same
sample ids, in loops that are compiled beforehand. The scores are those of the shipped digits networks and of
a Gaussian, and the samples of the two methods are compared bit by bit.
"""

import argparse
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import models
import sde_lib
import solvers
from benchmarks.report import machine, write_json
from configs.ve.digits_adaptive import get_config as ve_config
from configs.vp.digits_adaptive import get_config as vp_config
from evaluation.runs.tables import markdown
from sde_lib.checks import refusal
from solvers.noise import sample_key

SHAPE = (8, 8, 1)
REPEATS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare continuous lanes with lockstep batches")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--num_samples", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--eps_rel", type=float, default=0.05)
    arguments = parser.parse_args()
    count, size = arguments.num_samples, arguments.batch_size
    if count % size:
        fix = f"set --num_samples={-(-count // size) * size}"
        parser.error(refusal("--num_samples", count, f"a multiple of --batch_size={size}", fix))

    figures, rows = {}, []
    for name, make_config in (("ve", ve_config), ("vp", vp_config)):
        config = make_config()
        config.solver.eps_rel = arguments.eps_rel
        sde, solver = (
            sde_lib.from_config(config.sde),
            solvers.from_config(config.solver, config.solver_defaults),
        )
        assert isinstance(solver, solvers.Adaptive)
        network = models.load_score_fn(config)
        for score, score_fn in (("network", network), ("exact", jax.tree_util.Partial(gaussian_score, sde))):
            ways = [
                functools.partial(way, score_fn, sde, solver, size=size) for way in (continuous, lockstep)
            ]
            lanes, batches = timed(ways, count, size)
            # the shortest time of several: a disturbance can only make a run slower
            (lanes_calls, lanes_x), lanes_seconds = lanes
            (batches_calls, batches_x), batches_seconds = batches
            same = np.mean(np.all(lanes_x == batches_x, axis=(1, 2, 3)))
            calls, rate = batches_calls / lanes_calls, batches_seconds / lanes_seconds
            if score == "network":
                figures |= {f"{name}.calls_ratio": calls, f"{name}.rate_ratio": rate}
            else:
                figures |= {f"{name}.exact_calls_ratio": calls, f"{name}.exact_bitwise_equal": float(same)}
            counts = [f"{batches_calls:,}", f"{lanes_calls:,}", f"{calls:.2f}", f"{rate:.2f}", f"{same:.0%}"]
            rows.append([name, score, *counts])

    print(f"{machine()}\n{count} samples, batch {size}, eps_rel {arguments.eps_rel:g}\n")
    header = [
        "sde",
        "score",
        "calls in lockstep",
        "calls of lanes",
        "ratio",
        "samples/s ratio",
        "equal bitwise",
    ]
    print(markdown(header, rows))
    if arguments.json:
        write_json(arguments.json, figures)


def gaussian_score(sde: Any, x: jax.Array, t: jax.Array) -> jax.Array:
    """The score of data ~ N(0.3, 0.2^2 I)."""

    def score(x: jax.Array, t: jax.Array) -> jax.Array:
        alpha, sigma = sde.marginal(t)
        return (0.3 * alpha - x) / ((0.2 * alpha) ** 2 + sigma**2)

    return jax.vmap(score)(x, t)


def timed(ways: list[Callable[..., Any]], count: int, size: int) -> list[tuple[Any, float]]:
    """Each function's result for ``count`` samples and its shortest time; the functions take turns."""
    for way in ways:
        way(size)  # compiles
    results: list[Any] = [None] * len(ways)
    seconds = [math.inf] * len(ways)
    for _ in range(REPEATS):
        for i, way in enumerate(ways):
            start = time.perf_counter()
            results[i] = way(count)
            seconds[i] = min(seconds[i], time.perf_counter() - start)
    return list(zip(results, seconds, strict=True))


def continuous(score_fn: Any, sde: Any, solver: Any, count: int, *, size: int) -> tuple[int, np.ndarray]:
    """(network calls, samples) of the driver."""
    solution = solvers.sample(
        score_fn,
        sde,
        solver,
        key=jax.random.key(0),
        shape=SHAPE,
        num_samples=count,
        batch_size=size,
        devices=jax.local_devices()[:1],  # as for the lockstep batches
    )
    return solution.network_calls, solution.x


def lockstep(score_fn: Any, sde: Any, solver: Any, count: int, *, size: int) -> tuple[int, np.ndarray]:
    """(network calls, samples) of batches run one after the other."""
    calls, samples = 0, []
    for start in range(0, count, size):
        ids = jnp.arange(start, start + size, dtype=jnp.uint32)
        calls_of_batch, x = lockstep_batch(score_fn, sde, solver, ids)
        calls += int(calls_of_batch)
        samples.append(np.asarray(x))
    return calls, np.concatenate(samples)


@jax.jit
def lockstep_batch(score_fn: Any, sde: Any, solver: Any, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(network calls, samples) of one batch, run until its slowest sample is done, then denoised."""
    keys = jax.vmap(lambda i: sample_key(jax.random.key(0), i))(ids)
    states = jax.vmap(lambda key: solver.init(sde, key, SHAPE, jnp.float32))(keys)

    def call(carry: tuple[Any, jax.Array, jax.Array]) -> tuple[Any, jax.Array, jax.Array]:
        states, second_stage, calls = carry
        x, t = jax.vmap(solver.ask)(states)
        told = jax.vmap(solver.tell, (None, 0, 0))(sde, states, score_fn(x, t))
        # the stages take turns: a lane whose step was rejected waits while the others are in their first
        moves = (states.second_stage == second_stage) & (states.status == solvers.Status.RUNNING)

        def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(moves.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        return jax.tree.map(chosen, told, states), ~second_stage, calls + 1

    def running(carry: tuple[Any, jax.Array, jax.Array]) -> jax.Array:
        return jnp.any(carry[0].status == solvers.Status.RUNNING)

    states, _, calls = jax.lax.while_loop(running, call, (states, jnp.bool_(False), jnp.int32(0)))
    score = score_fn(states.x, states.t)
    return calls + 1, jax.vmap(sde_lib.denoise, (None, 0, 0, 0))(sde, states.x, states.t, score)


if __name__ == "__main__":
    main()
