"""What to measure of samples: the feature network, the reference, and which figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from evaluation.metrics import inception_score, neighbours
from evaluation.metrics.bootstrap import REPLICATES
from evaluation.metrics.features import FeatureNetwork
from evaluation.metrics.fid import Moments, Source, require_comparable, require_enough_for_line
from sde_lib.checks import refusal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """What ``figures.evaluate`` measures of samples besides their cost.

    Attributes:
        network: gives the features and logits of images.
        reference: statistics of the network's features of the data. Without them there is no FID.
        compared: computes the network's features [m, d] of m images of the data, which m samples are compared
            with. Without it there is no KID, sliced Wasserstein distance, precision, recall, density or
            coverage.
        num_compared: m, if it is known in advance, so that ``check`` can refuse it.
        compared_content: fingerprint of the data that the samples are compared with, for the record.
        fid_infinity: whether to extrapolate FID to infinitely many samples.
        splits: number of splits of the Inception Score.
        replicates: number of bootstrap replicates for the 95 % intervals of FID, of the sliced Wasserstein
            distance and of the evaluations; 0 for no intervals at all.
    """

    network: FeatureNetwork
    reference: Moments | None = None
    compared: Callable[[], Float[np.ndarray, "m d"]] | None = None
    num_compared: int | None = None
    compared_content: str | None = None
    fid_infinity: bool = False
    splits: int = 10
    replicates: int = REPLICATES

    def check(
        self, num_samples: int, image_shape: tuple[int, int, int], num_images: int | None = None
    ) -> None:
        """Refuses, before anything expensive is done, what ``figures.evaluate`` would refuse later.

        Args:
            num_samples: number of samples to measure.
            image_shape: (h, w, c) of a sample.
            num_images: number of images in the data, if it is known.

        Raises:
            ValueError: for too few samples, for a reference of other features, for a network that does not
                take such images, or for a number of compared images that the sets do not have.
        """
        inception_score.require_enough(num_samples, self.splits if self.network.num_classes else 0)
        if self.fid_infinity:
            require_enough_for_line(num_samples, self.network.num_features)
        if self.num_compared is not None:
            neighbours.require_enough(self.num_compared, num_samples, num_images)
        if self.reference is not None:
            require_comparable(self.source, self.reference.source)
        try:
            self.network.check(np.empty((0, *image_shape), np.uint8))
        except ValueError:
            allowed = f"a feature network for images of shape {image_shape}"
            fix = f"choose another one; {self.network.name!r} takes {self.network.image_shape}"
            raise ValueError(refusal("features", self.network.name, allowed, fix)) from None

    @property
    def features_name(self) -> str:
        """The feature network, as name:sha256."""
        return f"{self.network.name}:{self.network.sha256}"

    @property
    def reference_name(self) -> str | None:
        """The reference, as data:split:number; None without one."""
        return None if self.reference is None else self.reference.name

    @property
    def reference_content(self) -> str | None:
        """The fingerprint of the reference's images; None without one."""
        return None if self.reference is None else self.reference.source.content

    @property
    def source(self) -> Source:
        """The source of the samples' feature statistics."""
        return Source.of(self.network, data="samples", split="all")
