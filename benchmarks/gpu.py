"""Measure the full-size CIFAR-10 networks on one GPU or TPU: their speed, the driver, the longest kernels.

bash benchmarks/gpu.sh [OUT.json]
python -m benchmarks.gpu [--json FILE] [--seconds 480] [--tiny]

The networks are ve/cifar10 and vp/cifar10 with random weights, on one device, in bfloat16 unless stated:

    matmul.bfloat16.tflops      the device's rate in one large matrix product (10^12 multiplications and
    matmul.float32.tflops       additions a second), at JAX's default precision
    <network>.bfloat16.batch_size                   the fastest one; doubled until that gains little
    <network>.bfloat16.evaluations_per_second       images a second of the network alone, in a bare loop
    <network>.bfloat16.share_of_matmul              the network's multiplications and additions (convolutions
                                                    and matrix products only) over matmul.bfloat16.tflops
    <network>.float32.…                             the same in float32, relative to the same bfloat16 rate
    <network>.overhead                              the driver's time over the bare loop's, less 1
    <network>.samples_per_second, nfe_mean,         the paper's solver at eps_rel 0.05, with at most 200
        lane_utilization                            evaluations a sample (random weights may need fewer)
    <network>.batch_size                            the batch size of these figures and of the profile; it is
                                                    halved until the driver fits into the memory

The file also holds the ten longest kernels of a profile ("longest") with their seconds and shares, and the
parts that were left out. A part that would probably end after --seconds is left out. A part that fails does
not keep the others from running. --tiny takes a small network, for a test on any machine.
"""

import argparse
import functools
import math
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import configs
from benchmarks.convolution import operations, seconds
from benchmarks.driver import bare_loop, compared, drawn, random_network
from benchmarks.report import machine, write_json
from configs.ve.cifar10_adaptive import get_config as ve_config
from configs.vp.cifar10_adaptive import get_config as vp_config
from evaluation.runs.profile import longest_operations, recorded
from evaluation.runs.tables import markdown
from sde_lib.checks import refusal

NETWORKS = {"ve_cifar10": ve_config, "vp_cifar10": vp_config}
FIRST_BATCH, LARGEST_BATCH = 256, 4096
LITTLE = 1.03  # by less than this factor, doubling the batch is not worth it
EPS_REL = 0.05
MAX_EVALUATIONS = 200
FEW_EVALUATIONS = 20  # for the overhead and the profile
TURNS = 3
SIDE = 8192  # of the matrices


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The full-size CIFAR-10 networks on one GPU or TPU")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--tiny", action="store_true", help="a small network, on any machine")
    parsed = parser.parse_args(arguments)
    if jax.default_backend() == "cpu" and not parsed.tiny:
        fix = "install requirements-cuda.txt or requirements-tpu.txt on such a machine, or add --tiny here"
        parser.error(refusal("the device", "cpu", "a GPU or TPU that JAX sees", fix))
    print(machine(), flush=True)
    parts = Parts(seconds=parsed.seconds, path=parsed.json)
    parts.run("matmul", lambda: matmul(256 if parsed.tiny else SIDE))
    first_batch = 2 if parsed.tiny else FIRST_BATCH
    for name in NETWORKS:
        first_batch = measure(parts, name, first_batch=first_batch, tiny=parsed.tiny)
    print(parts.summary())
    return 1 if parts.failed else 0


class Parts:
    """Run parts of the benchmark while there is time, and write their figures to the disk after each."""

    def __init__(self, *, seconds: float, path: Path | None) -> None:
        self.figures: dict[str, float] = {}
        self.longest: dict[str, list[list[Any]]] = {}  # by network: kernel, seconds, share
        self.left_out: list[str] = []
        self.failed: dict[str, str] = {}
        self._end = time.perf_counter() + seconds
        self._longest_part = 0.0  # compilation dominates every part, so the next may take as long
        self._path = path

    def run(self, name: str, part: Callable[[], dict[str, float]], *, seconds: float = 0.0) -> bool:
        """Run a part that takes at least so many seconds; returns whether it ran and did not fail."""
        start = time.perf_counter()
        needed, left = max(seconds, self._longest_part), self._end - start
        if needed > left:
            print(f"{name}: left out, as it may take {needed:.0f} s and {left:.0f} s are left", flush=True)
            self.left_out.append(name)
            self._write()
            return False
        try:
            figures = part()
        except Exception as error:  # whatever the card or its driver refuses, the other parts still run
            traceback.print_exc()
            self.failed[name] = f"{type(error).__name__}: {error}"
            figures = {}
        took = time.perf_counter() - start
        self._longest_part = max(self._longest_part, took)
        self.figures |= figures
        self._write()
        values = ", ".join(f"{figure} {value:.4g}" for figure, value in figures.items()) or "failed"
        print(f"{name}: {values} ({took:.0f} s)", flush=True)
        return name not in self.failed

    def summary(self) -> str:
        """All figures and kernels as Markdown tables, with the parts left out and those that failed."""
        tables = [markdown(["figure", "value"], [[name, f"{it:.4g}"] for name, it in self.figures.items()])]
        for name, kernels in self.longest.items():
            rows = [[kernel, f"{of_it:.4f}", f"{share:.1%}"] for kernel, of_it, share in kernels]
            tables.append(markdown([f"kernels of {name}", "seconds", "share"], rows))
        tables += [f"left out: {name}" for name in self.left_out]
        tables += [f"FAILED: {name}: {error}" for name, error in self.failed.items()]
        return "\n\n".join(tables)

    def _write(self) -> None:
        if self._path:
            details = {"longest": self.longest, "left_out": self.left_out, "failed": self.failed}
            write_json(self._path, self.figures, details)


def measure(parts: Parts, name: str, *, first_batch: int, tiny: bool) -> int:
    """Measure one network; returns its fastest batch size, where the search for the next network starts."""
    config = config_of(name, "bfloat16", tiny=tiny)
    score_fn = random_network(config)
    per_image = operations_of_one(score_fn, config)
    batch_sizes = doubled(first_batch, 4 if tiny else LARGEST_BATCH)
    rates = rates_by_batch(parts, name, score_fn, config, per_image=per_image, batch_sizes=batch_sizes)
    if not rates:
        return first_batch
    best = max(rates, key=rates.__getitem__)
    measure_driver(parts, name, score_fn, config, batch_size=best, rate=rates[best])

    def in_float32() -> dict[str, float]:
        other = config_of(name, "float32", tiny=tiny)
        network = random_network(other)
        size, rate = fitting(best, lambda size: evaluations_per_second(network, other, size))
        return of_rate(parts, f"{name}.float32", size, rate, per_image=per_image)

    parts.run(f"{name} in float32", in_float32)
    return best


def rates_by_batch(
    parts: Parts, name: str, score_fn: Any, config: Any, *, per_image: float, batch_sizes: Iterator[int]
) -> dict[int, float]:
    """Images a second by batch size, up to the first size that gains little or does not fit."""
    rates: dict[int, float] = {}

    def search(size: int) -> dict[str, float]:
        try:
            rates[size] = evaluations_per_second(score_fn, config, size)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            print(f"{name}: a batch of {size} does not fit into the memory")
            return {}
        best = max(rates, key=rates.__getitem__)
        return of_rate(parts, f"{name}.bfloat16", best, rates[best], per_image=per_image)

    for size in batch_sizes:
        before = max(rates.values(), default=0.0)
        if not parts.run(f"{name} in bfloat16 at batch {size}", functools.partial(search, size)):
            break
        if rates.get(size, 0.0) < LITTLE * before or size not in rates:
            break
    return rates


def of_rate(parts: Parts, prefix: str, size: int, rate: float, *, per_image: float) -> dict[str, float]:
    """The figures of a network that evaluates ``rate`` images a second, each in ``per_image`` operations."""
    figures = {f"{prefix}.batch_size": size, f"{prefix}.evaluations_per_second": rate}
    if of_card := parts.figures.get("matmul.bfloat16.tflops"):
        figures[f"{prefix}.share_of_matmul"] = rate * per_image / (of_card * 1e12)
    return figures


def measure_driver(
    parts: Parts, name: str, score_fn: Any, config: Any, *, batch_size: int, rate: float
) -> None:
    """Measure the driver's overhead and its samples a second, and profile it.

    The driver needs more memory than the network alone, so its batch can be smaller than ``batch_size``.
    """

    def overhead() -> dict[str, float]:
        def of_lanes(size: int) -> dict[str, float]:
            return compared(
                score_fn,
                config=config,
                batch_size=size,
                turns=TURNS,
                num_samples=size,
                max_evaluations=FEW_EVALUATIONS,
            )

        lanes, times = fitting(batch_size, of_lanes)
        return {f"{name}.batch_size": lanes, f"{name}.overhead": times["driver"] / times["bare loop"] - 1}

    if not parts.run(f"{name}, the driver's overhead", overhead):
        return
    lanes = int(parts.figures[f"{name}.batch_size"])
    draw = functools.partial(drawn, score_fn, config=config, batch_size=lanes)

    def sampling() -> dict[str, float]:
        solution = draw(num_samples=2 * lanes, max_evaluations=MAX_EVALUATIONS)
        return {
            f"{name}.samples_per_second": len(solution.nfe) / solution.seconds_sampling,
            f"{name}.nfe_mean": float(solution.nfe.mean()),
            f"{name}.lane_utilization": solution.lane_utilization,
        }

    def profile() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            with recorded(folder):
                draw(num_samples=lanes, max_evaluations=FEW_EVALUATIONS)
            kernels = longest_operations(folder)
        if not kernels:
            raise RuntimeError(
                "the profile holds no kernels: the card's driver may show them to administrators only"
            )
        parts.longest[name] = [[it.name, it.seconds, it.share] for it in kernels]
        return {f"{name}.share_of_ten_longest": sum(it.share for it in kernels)}

    parts.run(f"{name}, samples", sampling, seconds=2 * lanes * MAX_EVALUATIONS / rate)
    parts.run(f"{name}, profile", profile)


def matmul(side: int) -> dict[str, float]:
    """Multiplications and additions, in units of 10^12 a second, in a product of square matrices."""
    figures = {}
    for dtype in ("bfloat16", "float32"):
        # numbers that are all alike take less power, so a card multiplies them faster than those of a network
        a = jax.random.normal(jax.random.key(0), (side, side), dtype) / side**0.5
        product = jax.jit(jnp.matmul)
        jax.block_until_ready(product(a, a))

        def chain(calls: int = 20, a: jax.Array = a, product: Any = product) -> None:
            b = a
            for _ in range(calls):
                b = product(a, b)
            jax.block_until_ready(b)

        best = min(seconds(chain) for _ in range(TURNS)) / 20
        figures[f"matmul.{dtype}.tflops"] = 2 * side**3 / best / 1e12
    return figures


def evaluations_per_second(score_fn: Any, config: Any, batch_size: int) -> float:
    """Images a second of a network, in the best of a few loops of about a second each."""
    loop = bare_loop(score_fn, config=config, batch_size=batch_size)
    calls = max(3, min(200, math.ceil(1 / loop(3))))
    return batch_size / min(loop(calls) for _ in range(TURNS))


def operations_of_one(score_fn: Any, config: Any) -> float:
    """Multiplications and additions of one evaluation of one image."""
    return operations(score_fn, jnp.zeros((1, *configs.image_shape(config.data))), jnp.full(1, 0.5))


def config_of(name: str, dtype: str, *, tiny: bool) -> Any:
    config = NETWORKS[name]()
    config.model.dtype = dtype
    config.solver.eps_rel = EPS_REL
    if tiny:
        config.model.nf, config.model.ch_mult, config.model.num_res_blocks = 8, (1,), 1
        config.model.attn_resolutions, config.data.image_size = (), 8
    return config


def doubled(first: int, last: int) -> Iterator[int]:
    while first <= last:
        yield first
        first *= 2


def fitting(size: int, task: Callable[[int], Any]) -> tuple[int, Any]:
    """The first of size, size/2, … that fits into the device's memory, and the task's result for it."""
    while True:
        try:
            return size, task(size)
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            size //= 2


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the device ran out of memory, as JAX reports it or as an error that it caused."""
    return error is not None and ("RESOURCE_EXHAUSTED" in str(error) or is_out_of_memory(error.__cause__))


if __name__ == "__main__":
    sys.exit(main())
