"""Features of samples, kept in files until the figures are there, so that no process loses its work.

Processes share the shards as they do for the sampling (evaluation/store/claims.py): whoever takes a shard
computes the features of all its samples, in the batches in which one process would compute them, and writes
them to a file. The files are large (12 KB a sample for ``inception``) and only save work: where one is
absent, torn, or of other images, the features are computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable

from etils import epath

from evaluation.metrics.features import FeatureNetwork, Features
from evaluation.store.archives import pack, unpack
from evaluation.store.claims import Claims
from evaluation.store.files import atomic_file, read_file, remove_unfinished, version
from evaluation.store.processes import ALONE, Processes
from evaluation.store.samples import Samples, SampleStore
from solvers import progress


class FeatureStore:
    """The features and logits of one network for the shards of a sample store.

    Args:
        folder: the folder of all networks' features; made when something is written.
        network: the network that computes the features.
        samples: the store of the samples.
    """

    def __init__(self, folder: epath.PathLike, *, network: FeatureNetwork, samples: SampleStore):
        name = network.name.replace(":", ".")  # which not every disk takes
        self.folder = epath.Path(folder) / f"{name}_{network.sha256[:16]}"
        self._network = network
        self._samples = samples
        self._claims = Claims(self.folder)

    def fill(
        self, num_samples: int, *, needed: Callable[[], bool] = lambda: True, processes: Processes = ALONE
    ) -> None:
        """Writes this process's share of the features of the samples below ``num_samples``.

        The others take over the share of a process that died. A disk that refuses the files ends this with a
        warning.

        Args:
            num_samples: number of samples, which are all in the store.
            needed: asked before every shard; False ends this, because another process has the figures.
            processes: the processes that share the work.

        Raises:
            ValueError: if samples are missing.
        """
        numbers = self._samples.numbers(num_samples)

        def lacks(number: int) -> bool:
            return version(self._path(number)) is None

        missing = num_samples * sum(map(lacks, numbers)) // len(numbers)
        total = -(-missing // processes.count)  # of this process, about
        shown = processes.is_first and total > self._network.batch_size
        bar = progress.bar(total=total, unit="image", disable=not shown, desc="features")

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
                if needed():  # otherwise another process has the figures and has removed the folder
                    warnings.warn(f"no more features are kept: {error}", stacklevel=2)
            finally:
                self._claims.release_all()

    def of(self, samples: Samples) -> Features:
        """The features and logits of a shard: from its file, or computed where there is no such file."""
        path = self._path(int(samples.sample_ids[0]) // self._samples.shard_size)
        if (content := read_file(path)) is not None:
            try:
                arrays = unpack(content)
            except ValueError as error:
                warnings.warn(f"{path} is damaged ({error}): its features are computed again", stacklevel=2)
            else:
                if str(arrays["identity"]) == self._made_of(samples):
                    return arrays["features"], arrays["logits"]
        return self._network(samples.images)

    def remove(self) -> None:
        """Removes the files that this class writes, and the folders if nothing else is in them.

        Files that stay do no harm, so an error of the disk or of a store's client is ignored.
        """
        with contextlib.suppress(Exception):
            for ending in ("npz", "claim"):
                for path in self.folder.glob(f"shard_{'[0-9]' * 6}.{ending}"):
                    path.unlink(missing_ok=True)
            remove_unfinished(self.folder)
            for folder in (self.folder, self.folder.parent):
                folder.rmdir()  # refused by a folder that holds anything

    def _make(self, number: int, num_samples: int, after_batch: Callable[[int], None]) -> None:
        """Writes the features of a shard to its file."""
        samples = self._samples.shard(number, num_samples)
        features, logits = self._network(samples.images, after_batch=after_batch)
        arrays = {"identity": self._made_of(samples), "features": features, "logits": logits}
        with atomic_file(self._path(number)) as file:
            file.write(pack(arrays))
        self._claims.release(number)

    def _made_of(self, samples: Samples) -> str:
        """The run, the network and the images, of which a larger run may have more in a shard."""
        images = hashlib.sha256(samples.images.tobytes()).hexdigest()
        return f"{self._samples.config_hash} {self._network.name}:{self._network.sha256} {images}"

    def _path(self, number: int) -> epath.Path:
        return self.folder / f"shard_{number:06d}.npz"
