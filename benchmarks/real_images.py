"""Compute FID and the Inception Score of real images: the scale on which to read the samples' figures.

python -m benchmarks.real_images [--config ve/digits_adaptive] [--path FOLDER] [--num_samples 256]
    [--draws 20] [--json FILE]

Prints FID between random halves of a config's data set and FID of num_samples random images to all images,
each with its standard deviation over the draws, and the Inception Score of all images. The features and
classes are the config's. The samplers' own table comes from main.py --mode=reproduce --table=digits.
"""

import argparse
from pathlib import Path

import numpy as np

import configs
from benchmarks.report import machine, write_json
from data import datasets
from evaluation.metrics import fid
from evaluation.metrics.features import load_features
from evaluation.metrics.inception_score import inception_score
from evaluation.runs.tables import markdown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="ve/digits_adaptive", help="a file of configs/, without .py")
    parser.add_argument("--path", help="config.data.path")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--num_samples", type=int, default=256)
    parser.add_argument("--draws", type=int, default=20)
    arguments = parser.parse_args()

    config = configs.load(arguments.config)
    config.data.path = arguments.path
    network = load_features(config.eval.features)
    images = datasets.load(config.data)
    features, logits = network(images)
    source = fid.Source.of(network, data=config.data.name, split="part")

    def distance(first: np.ndarray, second: np.ndarray) -> float:
        return fid.fid(fid.Moments.of(features[first], source), fid.Moments.of(features[second], source))

    halves, parts = [], []
    for draw in range(arguments.draws):
        order = np.random.default_rng(draw).permutation(len(images))
        halves.append(distance(*np.array_split(order, 2)))
        parts.append(distance(order[: arguments.num_samples], order))
    score, _ = inception_score(logits)
    rows = [
        ["FID between halves", f"{np.mean(halves):.3f} ± {np.std(halves, ddof=1):.3f}"],
        [f"FID of {arguments.num_samples} to all", f"{np.mean(parts):.3f} ± {np.std(parts, ddof=1):.3f}"],
        ["Inception Score of all", f"{score:.2f}"],
    ]
    title = f"of {len(images):,} images of {config.data.name}"
    print(f"{machine()}\n\n{markdown([title, f'over {arguments.draws} draws'], rows)}")
    if arguments.json:
        figures = {"halves.fid": np.mean(halves), "part.fid": np.mean(parts), "is_mean": score}
        write_json(arguments.json, {name: float(figure) for name, figure in figures.items()})


if __name__ == "__main__":
    main()
