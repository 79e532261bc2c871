"""The progress of a training: its loss, and FID of samples of its checkpoints, by images seen.

python -m benchmarks.learning_curve --training WORKDIR --runs FOLDER [--plot FILE] [--json FILE]

WORKDIR is one that main.py --mode=train wrote. FOLDER holds runs of main.py, each with a checkpoint of that
training and in a folder named by its step. A training keeps only its newest checkpoints, so copy others away:

    cp -r runs/cifar10/checkpoints/step_00002000 kept/
    python main.py --config=… --checkpoint=kept/step_00002000 --workdir=runs/curve/step_00002000

Prints the loss and the figures at each step, and draws both curves.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

from benchmarks.report import machine, write_json
from evaluation.runs import results
from evaluation.runs.tables import markdown
from evaluation.store.files import atomic_file
from sde_lib.checks import refusal

HEAD = 12  # bytes before an event in a file of TensorBoard: its length in eight, and that number's checksum
TAIL = 4  # bytes after it: its checksum


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--training", type=Path, required=True, help="the workdir of a training")
    parser.add_argument("--runs", type=Path, required=True, help="a folder with runs of its checkpoints")
    parser.add_argument("--plot", type=Path, default=Path("learning_curve.png"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    settings = given.training / "training.json"
    if not settings.exists():
        parser.error(
            refusal("--training", str(given.training), "the workdir of a training", "make one: --mode=train")
        )
    batch_size = json.loads(settings.read_text())["training.batch_size"]

    loss = losses(given.training / "tensorboard")
    runs = figures_of_runs(given.runs)
    if not runs:
        fix = "sample checkpoints as the text above says"
        parser.error(refusal("--runs", str(given.runs), "a folder with finished runs named step_N", fix))
    rows = [
        [
            f"{step * batch_size:,}",
            f"{smoothed(loss, step):.4f}",
            f"{run['fid']:.2f}",
            f"{run['is_mean']:.2f}",
        ]
        for step, run in runs.items()
    ]
    of = next(iter(runs.values()))
    print(machine())
    print(f"\nFID of {of['num_samples']:,} samples to {of['reference']}, features {of['features']}\n")
    print(markdown(["images seen", "loss", "FID", "IS"], rows))
    draw(given.plot, loss, runs, batch_size)
    if given.json:
        figures = {f"{step}.{name}": run[name] for step, run in runs.items() for name in ("fid", "is_mean")}
        write_json(given.json, figures, {"loss": loss, "batch_size": batch_size})


def losses(folder: Path) -> dict[int, float]:
    """The mean loss of the steps up to each report, by step, as TensorBoard shows it."""
    found: dict[int, float] = {}
    for path in sorted(folder.iterdir()):
        for event in events(path.read_bytes()):
            if event.HasField("session_log"):  # resumed: what came later is reported again
                found = {step: loss for step, loss in found.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == "loss":
                    found[event.step] = value.simple_value
    return found


def events(content: bytes) -> Iterator[Event]:
    """The events in a file of TensorBoard; one that a kill cut off is left out."""
    while len(content) > HEAD:
        length = int.from_bytes(content[:8], "little")
        if len(content) < HEAD + length + TAIL:
            return
        yield Event.FromString(content[HEAD : HEAD + length])
        content = content[HEAD + length + TAIL :]


def figures_of_runs(folder: Path) -> dict[int, dict]:
    """The last result of each run in the folder, by the step that its name ends with.

    A run that has no result yet is left out.
    """
    named = ((path.name.rpartition("_")[2], path) for path in folder.glob("*_*"))
    found = {int(step): results.read(path) for step, path in named if step.isdecimal()}
    return {step: lines[-1] for step, lines in sorted(found.items()) if lines}


def smoothed(loss: dict[int, float], step: int) -> float:
    """The mean of the reports over the last tenth of the steps so far."""
    return float(np.mean([value for at, value in loss.items() if 0.9 * step <= at <= step]))


def draw(path: Path, loss: dict[int, float], runs: dict[int, dict], batch_size: int) -> None:
    figure = Figure(figsize=(8.8, 3.6), dpi=200, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    images = [step * batch_size for step in loss]
    left.plot(images, list(loss.values()), color="#b9c6d8", lw=1, label="of the steps since the last report")
    left.plot(
        images,
        [smoothed(loss, step) for step in loss],
        color="#1f5aa6",
        label="of the last tenth of the steps",
    )
    left.set(title="Loss", xlabel="images seen", xscale="log")
    left.legend(frameon=False, fontsize=8)
    right.plot(
        [step * batch_size for step in runs], [run["fid"] for run in runs.values()], "o-", color="#1f5aa6"
    )
    number, features = (next(iter(runs.values()))[name] for name in ("num_samples", "features"))
    right.set(title=f"FID of {number:,} samples, features {features.partition(':')[0]}")
    right.set(xlabel="images seen", xscale="log")
    for axes in (left, right):
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(True, color="#eeeeee")
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(path) as file:
        canvas.print_png(file)


if __name__ == "__main__":
    main()
