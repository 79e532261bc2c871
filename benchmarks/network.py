"""Measure the speed of the full-size ve/cifar10 network, and the solver's share of an iteration.

python -m benchmarks.network [--json FILE] [--turns 5] [--batch_size 16]

The network has random weights and runs in float32. Its rate is the number of multiplications and additions a
second in its convolutions and matrix products. It is compared with the rate of one 3x3 convolution of 128
channels at 32x32 at the same batch size. The two take turns and the best turn of each counts, because a
disturbance can only make a run slower. The solver's own time is that of the paper's solver in its whole
compiled loop at the same batch size, with a score that costs nothing.

    ve_cifar10.rate_over_conv   the network's rate over the convolution's
    ve_cifar10.solver_share     the solver's share of an iteration's time
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

import configs
from benchmarks.convolution import one_convolution, operations, seconds
from benchmarks.driver import drawn, random_network
from benchmarks.report import machine, write_json
from configs.ve.cifar10_adaptive import get_config
from evaluation.runs.tables import markdown

EVALUATIONS = 100  # of the loop without a network


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The network's rate and the solver's share of an iteration")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=16)
    parsed = parser.parse_args(arguments)

    config = get_config()
    score_fn = random_network(config)
    x = jax.random.normal(jax.random.key(1), (parsed.batch_size, *configs.image_shape(config.data)))
    t = jnp.full(parsed.batch_size, 0.5)
    network = jax.jit(lambda score_fn, x, t: score_fn(x, t))
    jax.block_until_ready(network(score_fn, x, t))  # compiles
    convolve, of_convolution = one_convolution(parsed.batch_size)

    of_network, of_one, of_solver = [], [], []
    for _ in range(parsed.turns):
        of_one += [seconds(convolve) for _ in range(3)]
        of_network.append(seconds(lambda: jax.block_until_ready(network(score_fn, x, t))))
        solution = drawn(
            Partial(_free),
            config=config,
            num_samples=parsed.batch_size,
            batch_size=parsed.batch_size,
            max_evaluations=EVALUATIONS,
        )
        of_solver.append(solution.seconds_sampling / solution.network_calls)

    rate = operations(network, score_fn, x, t) / min(of_network)
    convolution_rate = of_convolution / min(of_one)
    figures = {
        "ve_cifar10.images_per_second": parsed.batch_size / min(of_network),
        "ve_cifar10.gflops": rate / 1e9,
        "conv.gflops": convolution_rate / 1e9,
        "ve_cifar10.rate_over_conv": rate / convolution_rate,
        "ve_cifar10.solver_share": min(of_solver) / (min(of_solver) + min(of_network)),
    }
    print(machine() + "\n")
    print(markdown(["figure", "value"], [[name, f"{value:.4g}"] for name, value in figures.items()]))
    if parsed.json:
        write_json(parsed.json, figures)


def _free(x: jax.Array, t: jax.Array) -> jax.Array:
    return -x


if __name__ == "__main__":
    main()
