"""FID, and the accuracy of the classes asked for, against the scale of classifier-free guidance.

python -m benchmarks.guidance [--json FILE] [--workdir runs/guidance] [--num_samples 2000]

The network is the shipped class-conditional one of handwritten digits, and the classifier is the one whose
features FID uses. The accuracy is the share of samples that it takes for the class that was asked for. On
held-out digits its accuracy is 99.7 % (docs/results.md). Finished scales are kept in the workdir.
"""

import argparse
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import configs
from benchmarks.report import write_json
from evaluation.runs import measurement, run
from evaluation.runs.tables import markdown
from evaluation.store.files import atomic_file

SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
SOLVER = "adaptive_exponential"


def main() -> None:
    parser = argparse.ArgumentParser(description="FID and accuracy against the scale of guidance")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--workdir", type=Path, default=Path("runs/guidance"))
    parser.add_argument("--num_samples", type=int, default=2000)
    arguments = parser.parse_args()

    results = []
    for scale in SCALES:
        config = configs.load("vp/digits_classes")
        config.solver.name = SOLVER
        config.guidance.scale = scale
        config.eval.num_samples = arguments.num_samples
        prepared = run.prepare(config, name="vp/digits_classes")
        folder = arguments.workdir / f"scale_{scale:g}"
        measured = measurement.from_config(config)
        results.append(run.sample_and_evaluate(prepared, folder, measurement=measured))
    rows = [
        [f"{scale:g}", f"{each['fid']:.3f}", f"{each['accuracy']:.4f}", f"{each['nfe_mean']:.1f}"]
        for scale, each in zip(SCALES, results, strict=True)
    ]
    print(markdown(["scale", "FID", "accuracy", "network evaluations"], rows))
    if arguments.json:
        names = ("fid", "accuracy", "nfe_mean")
        pairs = zip(SCALES, results, strict=True)
        write_json(
            arguments.json, {f"scale_{scale:g}.{name}": each[name] for scale, each in pairs for name in names}
        )
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    with atomic_file(arguments.workdir / "guidance.png") as file:
        FigureCanvasAgg(picture(results, arguments.num_samples)).print_png(file)
    print(f"{arguments.workdir / 'guidance.png'}")


def picture(results: list[dict], num_samples: int) -> Figure:
    """FID and accuracy, one above the other, against the scale."""
    figure = Figure(figsize=(6, 5), dpi=150, layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    for axis, name, label in ((above, "fid", "FID"), (below, "accuracy", "accuracy of the class")):
        values = [result[name] for result in results]
        intervals = [result.get(f"{name}_interval") for result in results]
        spans = [(v, v) if span is None else span for v, span in zip(values, intervals, strict=True)]
        errors = [
            [max(v - low, 0) for v, (low, _) in zip(values, spans, strict=True)],
            [max(high - v, 0) for v, (_, high) in zip(values, spans, strict=True)],
        ]
        axis.errorbar(SCALES, values, yerr=errors, marker="o", capsize=3, color="#1f5aa6")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    below.set_xlabel("scale of guidance (0: class ignored, 1: no guidance)")
    figure.suptitle(f"vp/digits_classes   {SOLVER}   {num_samples:,} samples, 95 % intervals", fontsize=10)
    return figure


if __name__ == "__main__":
    main()
