"""The paper's first table on the shipped digits networks: FID and IS against evaluations, beside Euler–Maruyama.

python -m benchmarks.digits [--json FILE] [--num_samples 1797] [--seeds 3] [--workdir runs/benchmark_digits]

For VE and VP: Adaptive at the paper's five tolerances, Euler–Maruyama at 1,000 steps and at each of Adaptive's
mean evaluations. Every cell is a run of its own below the workdir, so that a killed benchmark goes on where it
was. FID is to the 1,797 digits under the digits classifier's features; the first line is FID between the halves
of the digits themselves, which no sampler can be expected to beat by more than chance.
"""

import argparse
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

TOLERANCES = (0.02, 0.05, 0.01, 0.10, 0.50)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--num_samples", type=int, default=1797)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmark_digits"))
    arguments = parser.parse_args()

    network = load_features("digits")
    images = training.load(ve_config().data)
    reference = fid.moments_of_images(images, network, data="digits", split="train")

    def cell(make_config: Any, name: str, **solver: Any) -> dict[str, Any]:
        """Mean and deviation over the seeds of a solver's figures."""
        results = []
        for seed in range(arguments.seeds):
            config = make_config()
            config.seed = seed
            config.eval.num_samples = arguments.num_samples
            config.solver.update(solver)
            prepared = run.prepare(config, name=name)
            workdir = arguments.workdir / f"{name}-{prepared.config_hash}"
            results.append(run.sample_and_evaluate(prepared, workdir, network=network, reference=reference))
        figures = {key: [result[key] for result in results] for key in ("fid", "is_mean", "nfe_mean")}
        return {
            "solver": solver["name"].replace("_", "–").title(),
            "setting": f"ε_rel {solver['eps_rel']}"
            if "eps_rel" in solver
            else f"{solver['num_steps']} steps",
            "failed": sum(result["failed"] for result in results),
            "nfe_max": max(result["nfe_max"] for result in results),
            **{key: float(np.mean(values)) for key, values in figures.items()},
            **{
                f"{key}_spread": float(np.std(values, ddof=1))
                for key, values in figures.items()
                if len(values) > 1
            },
        }

    tables: dict[str, list[dict[str, Any]]] = {}
    for name, make_config in (("ve", ve_config), ("vp", vp_config)):
        rows = [cell(make_config, name, name="euler_maruyama", num_steps=1000)]
        for tolerance in TOLERANCES:
            adaptive = cell(make_config, name, name="adaptive", eps_rel=tolerance)
            same = cell(make_config, name, name="euler_maruyama", num_steps=round(adaptive["nfe_mean"]) - 1)
            rows += [adaptive, same]
        tables[name] = sorted(rows, key=lambda row: -row["nfe_mean"])

    halves = halves_of(images, network, arguments.seeds)
    print(
        f"{machine()}\nFID between halves of the digits {halves['fid']:.3f}, IS of all {halves['is_mean']:.2f}"
    )
    for name, rows in tables.items():
        print(
            f"\n{name.upper()}, {arguments.num_samples:,} samples, {arguments.seeds} seeds, mean ± deviation\n"
        )
        print(markdown(["solver", "setting", "NFE", "FID", "IS"], [line(row) for row in rows]))
    if arguments.json:
        figures = {f"halves.{key}": value for key, value in halves.items()}
        for name, rows in tables.items():
            for row in rows:
                for key in ("fid", "is_mean", "nfe_mean"):
                    figures[f"{name}.{row['solver']}.{row['setting']}.{key}"] = row[key]
        write_json(arguments.json, figures)


def halves_of(images: np.ndarray, network: Any, seeds: int) -> dict[str, float]:
    """FID between random halves of the real digits, over the seeds, and their Inception Score."""
    distances = []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(images))
        halves = [images[part] for part in np.array_split(order, 2)]
        moments = [fid.moments_of_images(half, network, data="digits", split="half") for half in halves]
        distances.append(fid.fid(*moments))
    return {"fid": float(np.mean(distances)), "is_mean": inception_score(network(images)[1])[0]}


def line(row: dict[str, Any]) -> list[str]:
    return [
        row["solver"],
        row["setting"],
        f"{row['nfe_mean']:.0f}",
        f"{row['fid']:.3f} ± {row.get('fid_spread', 0):.3f}",
        f"{row['is_mean']:.2f} ± {row.get('is_mean_spread', 0):.2f}",
    ]


if __name__ == "__main__":
    main()
