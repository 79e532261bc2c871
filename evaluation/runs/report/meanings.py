"""The figures of results.jsonl in words, for those who meet them for the first time."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from sde_lib.checks import is_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of results.jsonl, for those who have not met it.

    Attributes:
        key: in results.jsonl; its interval is at ``interval``.
        name: of the figure, with its unit.
        form: of the number.
        meaning: a sentence or two.
        interval_of: what the 95 % interval is for.
    """

    key: str
    name: str
    form: str
    meaning: str
    interval: str = ""
    interval_of: str = ""


INFINITE = "for infinitely many samples"
QUALITY = (
    Figure(
        key="fid",
        name="FID",
        form=",.3f",
        meaning="Fréchet distance between the features of the samples and of the data. Less is better: 0 "
        "would be equal. Compare it at equal numbers of samples.",
        interval="fid_interval",
        interval_of=INFINITE,
    ),
    Figure(
        key="fid_infinity",
        name="FID of infinitely many samples",
        form=",.3f",
        meaning="FID extrapolated to infinitely many samples. Less is better.",
    ),
    Figure(
        key="is_mean",
        name="Inception Score",
        form=",.2f",
        meaning="How sure a classifier is of each sample's class, and how evenly the classes occur. More is "
        "better, from 1 to the number of classes.",
        interval="is_interval",
        interval_of="for as many samples",
    ),
    Figure(
        key="accuracy",
        name="Accuracy",
        form=".1%",
        meaning="Share of the samples in which a classifier finds the class that was asked for.",
        interval="accuracy_interval",
        interval_of=INFINITE,
    ),
    Figure(
        key="kid",
        name="KID",
        form=",.4f",
        meaning="Kernel distance between the features of samples and data. Less is better: 0 would be equal.",
    ),
    Figure(
        key="sliced_wasserstein",
        name="Sliced Wasserstein distance",
        form=",.3f",
        meaning="How far the features of the samples have to move to become those of the data, seen along "
        "random directions. Less is better: 0 would be equal. Compare it at equal numbers of samples.",
        interval="sliced_wasserstein_interval",
        interval_of="for infinitely many samples and images",
    ),
    Figure(
        key="precision",
        name="Precision",
        form=".1%",
        meaning="Share of the samples that look like data.",
    ),
    Figure(
        key="recall",
        name="Recall",
        form=".1%",
        meaning="Share of the data that the samples cover.",
    ),
    Figure(
        key="density",
        name="Density",
        form=",.3f",
        meaning="How many images of the data each sample is near to, in units of what equal distributions "
        "have: about 1.",
    ),
    Figure(
        key="coverage",
        name="Coverage",
        form=".1%",
        meaning="Share of the images of the data that have a sample nearby.",
    ),
    Figure(
        key="bits_per_dim",
        name="Bits per dimension",
        form=",.3f",
        meaning="How many bits a number of an image takes under the model, the mean over the images. Less is "
        "better.",
        interval="bits_per_dim_interval",
        interval_of="for infinitely many images",
    ),
)
COST = (
    Figure(
        key="nfe_mean",
        name="Evaluations a sample (NFE)",
        form=",.1f",
        meaning="How often the network was evaluated for a sample, on average; every evaluation counts.",
        interval="nfe_interval",
        interval_of=INFINITE,
    ),
    Figure(
        key="nfe_max",
        name="Evaluations, the slowest sample",
        form=",.0f",
        meaning="The largest number of evaluations that a sample took.",
    ),
    Figure(
        key="nfe_lockstep",
        name="Evaluations in lockstep",
        form=",.1f",
        meaning="A sample's evaluations by the published count, in which a batch waits for its slowest "
        "sample. It depends on the batch size.",
    ),
    Figure(
        key="rejected",
        name="Rejected steps a sample",
        form=",.2f",
        meaning="How many steps a sample tried and repeated with a smaller one, on average.",
    ),
    Figure(
        key="failed",
        name="Failed samples",
        form=",.0f",
        meaning="How many did not complete, by numbers that are not finite or by too many evaluations.",
    ),
    Figure(
        key="samples_per_second",
        name="Samples a second",
        form=",.1f",
        meaning="Of the sampling on the devices below, without the compilation.",
    ),
    Figure(
        key="seconds_compile",
        name="Compilation, seconds",
        form=",.1f",
        meaning="What it took to compile the program once, before the first sample.",
    ),
    Figure(
        key="lane_utilization",
        name="Lane utilization",
        form=".1%",
        meaning="Share of the network's work that advanced a sample; the rest is idle lanes at the end.",
    ),
)


def text(value: Any) -> str:
    """A value for people: with as many digits as say something."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and all(map(is_number, value)):
        return f"[{', '.join(map(text, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def counted(count: int, one: str) -> str:
    """A number of things, such as "1 cell" or "1,024 cells"."""
    return f"{count:,} {one}" if count == 1 else f"{count:,} {one}s"
