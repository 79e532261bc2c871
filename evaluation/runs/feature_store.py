"""Features of samples, kept in files until the figures are there, so that no process's work on them is lost.

Processes share the shards as for the sampling (evaluation/store/claims.py): whoever takes one computes the features
of all its samples, in the batches in which it would without the others, and writes them beside. The files
are large (12 KB a sample for ``inception``), and only save work: where one is absent, torn, or of images
that are not these, the features are computed again.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable

from etils import epath
from tqdm import tqdm

from evaluation.metrics.features import FeatureNetwork, Features
from evaluation.store.archives import pack, unpack
from evaluation.store.claims import Claims
from evaluation.store.files import atomic_file, read_file, version
from evaluation.store.processes import ALONE, Processes
from evaluation.store.samples import Samples, SampleStore


class FeatureStore:
    """The features and logits of one network for the shards of a sample store.

    Args:
        folder: of all networks' features; made when something is written.
        network: whose features these are.
        samples: where the samples are.
    """

    def __init__(self, folder: epath.PathLike, *, network: FeatureNetwork, samples: SampleStore):
        self.folder = epath.Path(folder) / f"{network.name}_{network.sha256[:16]}"
        self._network = network
        self._samples = samples
        self._claims = Claims(self.folder)

    def fill(
        self, num_samples: int, *, needed: Callable[[], bool] = lambda: True, processes: Processes = ALONE
    ) -> None:
        """Writes the features of the samples below ``num_samples``, this process its share of them.

        What dead processes leave the others take over. A disk that refuses the files ends it with a warning.

        Args:
            num_samples: which all have to be there.
            needed: asked before every shard; where it says no, another process has the figures.
            processes: those that share the work.

        Raises:
            ValueError: if samples are missing.
        """
        numbers = self._samples.numbers(num_samples)

        def lacks(number: int) -> bool:
            return version(self._path(number)) is None

        missing = num_samples * sum(map(lacks, numbers)) // len(numbers)
        total = -(-missing // processes.count)  # of this process, about
        shown = processes.is_first and total > self._network.batch_size
        bar = tqdm(total=total, unit="image", disable=not shown, desc="features")

        def after_batch(count: int) -> None:
            bar.update(count)
            self._claims.renew()

        with bar:
            try:
                while self._claims.any_left(numbers, lacks, seconds=processes.seconds):
                    for number in self._claims.take(
                        numbers, lacks, process=processes.index, processes=processes.count
                    ):
                        if not needed():
                            return
                        self._make(number, num_samples, after_batch)
            except OSError as error:
                if needed():  # and not the others, who remove the folder when they have the figures
                    warnings.warn(f"no more features are kept: {error}", stacklevel=2)
            finally:
                self._claims.release_all()

    def of(self, samples: Samples) -> Features:
        """The features and logits of a shard: from its file, or computed where there is none of these."""
        path = self._path(int(samples.sample_ids[0]) // self._samples.shard_size)
        if (content := read_file(path)) is not None:
            try:
                arrays = unpack(content)
            except ValueError as error:
                warnings.warn(f"{path} is torn ({error}): its features are made again", stacklevel=2)
            else:
                if str(arrays["identity"]) == self._identity(samples):
                    return arrays["features"], arrays["logits"]
        return self._network(samples.images)

    def _make(self, number: int, num_samples: int, after_batch: Callable[[int], None]) -> None:
        """Puts the features of a shard into its file."""
        samples = self._samples.shard(number, num_samples)
        features, logits = self._network(samples.images, after_batch=after_batch)
        arrays = {"identity": self._identity(samples), "features": features, "logits": logits}
        with atomic_file(self._path(number)) as file:
            file.write(pack(arrays))
        self._claims.release(number)

    def _identity(self, samples: Samples) -> str:
        """Of the run, the network and the very images, of which a larger run may have more in a shard."""
        images = hashlib.sha256(samples.images.tobytes()).hexdigest()
        return f"{self._samples.identity} {self._network.name}:{self._network.sha256} {images}"

    def _path(self, number: int) -> epath.Path:
        return self.folder / f"shard_{number:06d}.npz"
