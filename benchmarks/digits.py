"""The paper's first table on the shipped digits networks: FID and IS against evaluations.

python -m benchmarks.digits [--json FILE] [--sdes ve,vp] [--num_samples 1797] [--seeds 3] [--workdir DIR]

For VE and VP: Adaptive at the paper's five tolerances, and Euler–Maruyama at 1,000 steps and at each of
Adaptive's mean evaluations. Every cell is a run of its own below the workdir, so that a killed benchmark goes
on where it was, and two can share the work by --sdes. FID is to the 1,797 digits under the classifier of
evaluation/digits_classifier.py; the first lines are of the digits themselves.
"""

import argparse
import functools
from pathlib import Path
from typing import Any

import numpy as np

import training
from benchmarks.report import machine, markdown, write_json
from configs.ve.digits_adaptive import get_config as ve_config
from configs.vp.digits_adaptive import get_config as vp_config
from evaluation import fid, run
from evaluation.features import load_features
from evaluation.inception_score import inception_score

CONFIGS = {"ve": ve_config, "vp": vp_config}
TOLERANCES = (0.50, 0.10, 0.05, 0.02, 0.01)
MEASURED = ("nfe_mean", "fid", "is_mean")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sdes", default="ve,vp")
    parser.add_argument("--num_samples", type=int, default=1797)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmark_digits"))
    arguments = parser.parse_args()

    network = load_features("digits")
    images = training.load(ve_config().data)
    reference = fid.moments_of_images(images, network, data="digits", split="train")

    @functools.cache
    def result(name: str, seed: int, solver: str, setting: str, value: float) -> dict[str, Any]:
        config = CONFIGS[name]()
        config.seed = seed
        config.eval.num_samples = arguments.num_samples
        config.eval.batch_size = 256
        config.solver.name = solver
        config.solver[setting] = value
        prepared = run.prepare(config, name=name)
        workdir = arguments.workdir / f"{name}-{prepared.config_hash}"
        return run.sample_and_evaluate(prepared, workdir, network=network, reference=reference)

    figures = halves_of(images, network, arguments.seeds)
    report = [machine(), f"FID between halves of the digits {figures['halves.fid']:.3f}"]
    report.append(f"Inception Score of the digits {figures['halves.is_mean']:.2f}")
    seeds = range(arguments.seeds)
    for name in arguments.sdes.split(","):
        cells = [("adaptive", "eps_rel", tolerance) for tolerance in TOLERANCES]
        cells.append(("euler_maruyama", "num_steps", 1000))
        rows = {cell: [result(name, seed, *cell) for seed in seeds] for cell in cells}
        for tolerance in TOLERANCES:
            results = rows["adaptive", "eps_rel", tolerance]
            steps = round(np.mean([r["nfe_mean"] for r in results])) - 1  # one evaluation is the denoising
            cell = ("euler_maruyama", "num_steps", steps)
            rows[cell] = [result(name, seed, *cell) for seed in seeds]
        report.append(f"\n{name}: {arguments.num_samples} samples, mean ± deviation of {len(seeds)} seeds\n")
        report.append(
            markdown(
                ["solver", "setting", "NFE", "FID", "IS", "failed"],
                [[cell[0], f"{cell[1]} {cell[2]:g}", *line(results)] for cell, results in rows.items()],
            )
        )
        for cell, results in rows.items():
            for key in MEASURED:
                mean = float(np.mean([r[key] for r in results]))
                figures[f"{name}.{cell[0]}.{cell[1]}_{cell[2]:g}.{key}"] = mean
    print("\n".join(report))
    if arguments.json:
        write_json(arguments.json, figures)


def halves_of(images: np.ndarray, network: Any, seeds: int) -> dict[str, float]:
    """FID between random halves of the real digits, over the seeds, and the Inception Score of all."""
    distances = []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(images))
        halves = [images[part] for part in np.array_split(order, 2)]
        moments = [fid.moments_of_images(half, network, data="digits", split="half") for half in halves]
        distances.append(fid.fid(*moments))
    score, _ = inception_score(network(images)[1])
    return {"halves.fid": float(np.mean(distances)), "halves.is_mean": score}


def line(results: list[dict[str, Any]]) -> list[str]:
    """The cells of a row of the table."""

    def spread(key: str, digits: int) -> str:
        values = [result[key] for result in results]
        deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
        return f"{np.mean(values):.{digits}f}{deviation}"

    nfe = f"{np.mean([result['nfe_mean'] for result in results]):.0f}"
    failed = sum(result["failed"] for result in results)
    return [nfe, spread("fid", 3), spread("is_mean", 2), str(failed)]


if __name__ == "__main__":
    main()
