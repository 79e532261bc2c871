"""The differences of quality between runs of one network, with intervals from samples of the same ids.

python -m benchmarks.paired WORKDIR WORKDIR… [--path DATA] [--features NAME] [--inception_weights FILE]
    [--json FILE]

Each WORKDIR holds a run of main.py, all of one config but for the solver. Samples with the same id begin with
the same noise and have the same class, so some of what chance does to a figure is common to all runs. The
table says for each run how far FID, Inception Score and accuracy are from those of the first, with the 95 %
interval of this difference: of FID and accuracy by a bootstrap whose replicates count the same ids, of the
score by Student's t over the ten splits. If the interval does not hold zero, chance alone is no explanation.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

import configs
from benchmarks.report import machine, write_json
from evaluation.metrics import bootstrap
from evaluation.metrics.fid import Moments, frechet_distance
from evaluation.metrics.inception_score import InceptionScore, interval_of_mean
from evaluation.metrics.measurement import Measurement
from evaluation.runs import measurement, results
from evaluation.runs.tables import markdown
from evaluation.store.archives import unpack
from evaluation.store.samples import SampleStore, joined
from sde_lib.checks import require
from solvers import progress

Values = Float64[np.ndarray, " r"]  # of the replicates, or of the splits


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", type=Path, nargs="+", metavar="WORKDIR")
    parser.add_argument("--path", help="config.data.path, where the reference is not stored")
    parser.add_argument("--features", help="config.eval.features, if other than the config's")
    parser.add_argument("--inception_weights", help="config.eval.inception_weights")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    try:
        runs = [last_result(folder) for folder in given.workdirs]
        require_alike(runs)
    except ValueError as error:
        parser.error(str(error))
    config = configs.load(runs[0]["config"])
    config.data.path = given.path
    config.eval.inception_weights = given.inception_weights
    config.eval.features = given.features or config.eval.features
    size = min(run["num_samples"] for run in runs)
    measured = measurement.from_config(config)
    shown = progress.bar(iterable=runs, unit="run")
    both = zip(given.workdirs, shown, strict=True)
    found = [figures_of(folder, run, size, measured) for folder, run in both]

    names = names_of(given.workdirs, runs)
    rows = [
        [name, f"{run['nfe_mean']:.1f}", *cells(each, found[0])]
        for name, run, each in zip(names, runs, found, strict=True)
    ]
    print(machine())
    print(f"\n{size:,} samples of {runs[0]['config']}, reference {measured.reference_name}")
    print(f"features {measured.network.name}\n")
    header = itertools.chain.from_iterable((name, "less the first's") for name in found[0])
    print(markdown(["solver", "NFE", *header], rows))
    if given.json:
        stated = {
            f"{name}.{figure}": f.value
            for name, of in zip(names, found, strict=True)
            for figure, f in of.items()
        }
        write_json(given.json, stated, {"table": rows})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure, and what its spread is from: replicates of a bootstrap, or splits of the samples."""

    value: float
    parts: Values
    splits: bool = False

    def less(self, other: "Figure") -> tuple[float, float, float]:
        """The difference, and the ends of its 95 % interval."""
        difference, parts = self.value - other.value, self.parts - other.parts
        ends = (
            interval_of_mean(parts) if self.splits else bootstrap.interval(difference, parts, lowest=-np.inf)
        )
        return difference, float(ends[0]), float(ends[1])


def last_result(folder: Path) -> dict[str, Any]:
    found = results.read(folder)
    require(found, "WORKDIR", str(folder), "the workdir of a run with a result", "make one with main.py")
    return found[-1]


def require_alike(runs: Sequence[dict[str, Any]]) -> None:
    """Refuses runs of different configs or weights, whose samples of one id have nothing in common."""
    for key in ("config", "checkpoint_sha256"):
        values = [run.get(key) for run in runs]
        fix = "give runs that differ in the solver only"
        require(len(set(values)) == 1, key, values, "the same in all runs", fix)


def names_of(folders: Sequence[Path], runs: Sequence[dict[str, Any]]) -> list[str]:
    """The runs' solvers with their main settings; with the workdir where two would have one name."""
    labels = [results.solver_label(run) for run in runs]
    named = zip(labels, folders, strict=True)
    return [label if labels.count(label) == 1 else f"{label} ({folder})" for label, folder in named]


def figures_of(folder: Path, run: dict[str, Any], size: int, measured: Measurement) -> dict[str, Figure]:
    """FID, Inception Score and accuracy of a run's first samples, each with its replicates or splits."""
    assert measured.reference is not None
    first = unpack((folder / "samples" / "shard_000000.npz").read_bytes())
    store = SampleStore(
        folder / "samples", config_hash=run["config_hash"], shard_size=int(first["shard_size"])
    )
    samples = joined(*store.shards(size))
    features, logits = measured.network(samples.images)
    weights = bootstrap.weights(samples.sample_ids)
    every = np.ones(len(samples))
    reference = measured.reference
    distances = [distance(features, counts, reference) for counts in weights.T]
    found = {"FID": Figure(value=distance(features, every, reference), parts=np.array(distances))}
    if measured.network.num_classes:
        score = InceptionScore(num_samples=size, num_classes=logits.shape[1])
        score.add(logits)
        found["IS"] = Figure(value=score.result()[0], parts=score.scores(), splits=True)
    if samples.classes is not None and logits.shape[1] == configs.load(run["config"]).model.num_classes:
        right = (logits.argmax(axis=1) == samples.classes).astype(np.float64)
        means = right @ weights / weights.sum(axis=0)
        found["accuracy"] = Figure(value=right.mean(), parts=means)
    return found


def distance(
    features: Float[np.ndarray, "n d"], counts: Float[np.ndarray, " n"], reference: Moments
) -> float:
    """FID of samples, each as often as it counts."""
    weights = counts.astype(np.float64) / counts.sum()
    mean = weights @ features
    apart = features - mean
    covariance = (apart * weights[:, None]).T @ apart * (counts.sum() / (counts.sum() - 1))
    return frechet_distance(mean, covariance, reference.mean, reference.covariance)


def cells(found: dict[str, Figure], base: dict[str, Figure]) -> list[str]:
    texts = []
    for name, figure in found.items():
        texts.append(f"{figure.value:.3f}")
        difference, low, high = figure.less(base[name])
        texts.append("" if found is base else f"{difference:+.3f} ({low:+.3f} to {high:+.3f})")
    return texts


if __name__ == "__main__":
    main()
