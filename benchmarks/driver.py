"""Measure what the driver adds to the network's own time, and how busy it keeps the lanes.

python -m benchmarks.driver [--json FILE] [--mnist] [--turns 4] [--digits_samples 256]
                            [--cifar10_evaluations 3] [--num_samples 4096] [--exact_samples 16384]

The overhead compares two times for one evaluation of a batch, on one device: that of the driver, and that of
the jitted network called equally often in a bare loop at the same batch size. The networks are the shipped
digits network at batch 64, and ve/cifar10 at full size with random weights at batch 16, where each sample is
cut off after a few evaluations. The two take turns and the best turn of each counts, because a disturbance
can only make a run slower. A third turn draws the same samples with a condition, a number for each that the
score ignores: it shows what it costs to keep every sample's condition on its lane. The driver's time includes
the solver's own arithmetic and noise. Each call in the bare loop waits for the one before, as in a sampler:
on CPUs, independent calls would run side by side and be faster than any sampler can be.

    <network>.overhead             the driver's seconds over the bare loop's, less 1
    <network>.conditions           the driver's seconds with a condition over those without, less 1
    <network>.lane_utilization     useful evaluations over lanes × iterations, at batch 64: --num_samples of
                                   the digits network (and of MNIST's with --mnist), and --exact_samples of a
                                   Gaussian's exact score

The digits and MNIST networks are sampled with the paper's solver at eps_rel 0.50 instead of the 0.02 of their
configs, so that the benchmark ends in four minutes on 2 cores; MNIST takes eight more. This makes the task
harder for the driver: for the same number of evaluations, samples end and start seven times as often, and the
evaluations per sample vary more (by 7 % of their mean on the digits, instead of 2 %).
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import configs
import models
import sde_lib
import solvers
from benchmarks.lanes import gaussian_score
from benchmarks.report import machine, write_json
from configs.ve.cifar10_adaptive import get_config as cifar10_config
from configs.ve.digits_adaptive import get_config as digits_config
from configs.ve.mnist_adaptive import get_config as mnist_config
from evaluation.runs.tables import markdown

BATCH, CIFAR10_BATCH = 64, 16
EPS_REL = 0.5


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The driver's overhead and its lane utilization")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--mnist", action="store_true", help="also measure lane utilization on MNIST, eight minutes"
    )
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--digits_samples", type=int, default=256)
    parser.add_argument("--cifar10_evaluations", type=int, default=3)
    parser.add_argument("--num_samples", type=int, default=4096)
    parser.add_argument("--exact_samples", type=int, default=16_384)
    parsed = parser.parse_args(arguments)

    digits_of_few = digits_config()
    digits_of_few.solver.eps_rel = EPS_REL
    digits = models.load_score_fn(digits_of_few)
    figures, rows = {}, []

    def compare(name: str, score_fn: Any, batch_size: int, **settings: Any) -> None:
        seconds = compared(score_fn, turns=parsed.turns, batch_size=batch_size, conditions=True, **settings)
        figures[f"{name}.overhead"] = overhead = seconds["driver"] / seconds["bare loop"] - 1
        figures[f"{name}.conditions"] = conditions = seconds["conditions"] / seconds["driver"] - 1
        milliseconds = [f"{1000 * seconds[way]:.3f}" for way in ("bare loop", "driver", "conditions")]
        rows.append([name, f"{batch_size}", *milliseconds, f"{overhead:+.1%}", f"{conditions:+.1%}"])

    compare("digits", digits, BATCH, config=digits_of_few, num_samples=parsed.digits_samples)
    config = cifar10_config()
    cifar10 = random_network(config)
    capped = {"num_samples": CIFAR10_BATCH, "max_evaluations": parsed.cifar10_evaluations}
    compare("ve_cifar10", cifar10, CIFAR10_BATCH, config=config, **capped)

    busy = []

    def fill(name: str, score_fn: Any, config: Any, num_samples: int) -> None:
        solution = drawn(score_fn, config=config, num_samples=num_samples, batch_size=BATCH)
        figures[f"{name}.lane_utilization"] = solution.lane_utilization
        nfe = f"{solution.nfe.mean():.1f} ± {solution.nfe.std():.1f}"
        busy.append([name, f"{num_samples:,}", f"{BATCH}", nfe, f"{solution.lane_utilization:.4f}"])

    fill("digits", digits, digits_of_few, parsed.num_samples)
    exact = Partial(gaussian_score, sde_lib.from_config(digits_config().sde))
    fill("exact", exact, digits_config(), parsed.exact_samples)
    if parsed.mnist:
        config = mnist_config()
        config.solver.eps_rel = EPS_REL
        fill("mnist", models.load_score_fn(config), config, parsed.num_samples)

    print(f"{machine()}\n")
    times = ["bare loop, ms", "driver, ms", "with conditions, ms"]
    print(markdown(["network", "batch", *times, "overhead", "of conditions"], rows))
    print()
    print(markdown(["score", "samples", "batch", "NFE", "lane utilization"], busy))
    if parsed.json:
        write_json(parsed.json, figures)


def random_network(config: Any) -> Any:
    """The score function of a config's network with random weights.

    These are not the weights that training starts from: compiling their initialization takes longer than
    measuring the network.
    """
    network = models.build(config)
    return network.score_fn(sde_lib.from_config(config.sde), random_weights(network.abstract_params()))


def random_weights(expected: Any, *, gain: float = 1.0) -> Any:
    """Random arrays in the shapes of a tree, of a scale that preserves the activations' scale.

    Zeros, or activations that vanish or overflow, could be faster or slower than real ones.

    Args:
        expected: a pytree of arrays' shapes; kernels have their outputs as the last axis.
        gain: variance of a kernel's entries times the number of its inputs; 2 for ReLU networks.
    """
    generator = np.random.default_rng(0)

    def random(leaf: Any) -> jax.Array:
        spread = math.sqrt(gain / math.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
        return jnp.asarray(generator.standard_normal(leaf.shape, np.float32) * np.float32(spread))

    return jax.tree.map(random, expected)


def drawn(score_fn: Any, *, config: Any, **settings: Any) -> solvers.Solution:
    """Draw samples with a config's process and solver, on one device."""
    return solvers.sample(
        score_fn,
        sde_lib.from_config(config.sde),
        solvers.from_config(config.solver, config.solver_defaults),
        key=jax.random.key(0),
        shape=configs.image_shape(config.data),
        devices=jax.local_devices()[:1],
        **settings,
    )


def compared(
    score_fn: Any, *, config: Any, batch_size: int, turns: int, conditions: bool = False, **settings: Any
) -> dict[str, float]:
    """Seconds for one evaluation of a batch by a bare loop, by the driver, and by the driver with conditions.

    Each is that of its best turn. The last is left out unless asked for.
    """
    bare = bare_loop(score_fn, config=config, batch_size=batch_size)
    driven: dict[str, tuple[Any, dict[str, Any]]] = {"driver": (score_fn, {})}
    if conditions:
        rows = np.arange(settings["num_samples"], dtype=np.float32)
        driven["conditions"] = (Partial(_ignoring, score_fn), {"conditions": rows})
    best: dict[str, float] = dict.fromkeys(("bare loop", *driven), math.inf)
    for _ in range(turns):
        solutions = {
            way: drawn(score, config=config, batch_size=batch_size, **settings, **given)
            for way, (score, given) in driven.items()
        }
        seconds = {
            way: solution.seconds_sampling / solution.network_calls for way, solution in solutions.items()
        }
        seconds["bare loop"] = bare(solutions["driver"].network_calls)
        best = {way: min(best[way], seconds[way]) for way in best}
    return best


def _ignoring(score_fn: Any, x: jax.Array, t: jax.Array, condition: jax.Array) -> jax.Array:
    # 0 · condition can be NaN for all that the compiler knows, so it cannot drop it
    return score_fn(x, t) + 0 * condition[:, None, None, None]


def bare_loop(score_fn: Any, *, config: Any, batch_size: int) -> Callable[[int], float]:
    """A function from a number of calls of the compiled network to the seconds for each, on one device."""
    x = jax.random.normal(jax.random.key(1), (batch_size, *configs.image_shape(config.data)))
    t = jnp.full(batch_size, 0.5)
    jax.block_until_ready(_score_after(score_fn, x, t, x))

    def seconds_of_each(calls: int) -> float:
        score = x
        start = time.perf_counter()
        for _ in range(calls):
            score = _score_after(score_fn, x, t, score)
        jax.block_until_ready(score)
        return (time.perf_counter() - start) / calls

    return seconds_of_each


@jax.jit
def _score_after(score_fn: Any, x: jax.Array, t: jax.Array, before: jax.Array) -> jax.Array:
    # makes each call wait for the last: 0 · before can be NaN, so the compiler cannot drop it
    return score_fn(x, t + 0 * before[:, 0, 0, 0])


if __name__ == "__main__":
    main()
