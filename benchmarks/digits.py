"""What FID and the Inception Score are of the digits themselves: the scale for what is sampled.

python -m benchmarks.digits [--json FILE] [--num_samples 256] [--draws 20]

FID between random halves of the 1,797 digits, and of a random num_samples of them to all, with the deviation
over the draws; and the Inception Score of all. Features and classes are those of
models/classifier.py. The samplers' table is made by main.py --mode=reproduce --table=digits.
"""

import argparse
from pathlib import Path

import numpy as np

import training
from benchmarks.report import machine, write_json
from configs.ve.digits_adaptive import get_config
from evaluation import fid
from evaluation.features import load_features
from evaluation.inception_score import inception_score
from evaluation.tables import markdown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--num_samples", type=int, default=256)
    parser.add_argument("--draws", type=int, default=20)
    arguments = parser.parse_args()

    network = load_features("digits")
    images = training.load(get_config().data)
    features, logits = network(images)
    source = fid.Source.of(network, data="digits", split="part")

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
    print(f"{machine()}\n\n{markdown(['of the digits', f'over {arguments.draws} draws'], rows)}")
    if arguments.json:
        figures = {"halves.fid": np.mean(halves), "part.fid": np.mean(parts), "is_mean": score}
        write_json(arguments.json, {name: float(figure) for name, figure in figures.items()})


if __name__ == "__main__":
    main()
