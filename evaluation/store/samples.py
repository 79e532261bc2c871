"""The sample store: finished samples, kept as uint8 in numbered files, so that nothing is sampled twice.

Shard k holds the samples with the ids [k·S, (k + 1)·S), in whatever order they were finished. Sample i is
the same in every run of a config. So a killed run resumes with the ids that are missing, a larger run adds
what it lacks, and figures computed shard by shard in the order of the ids do not depend on interruptions. A
shard's file is either whole or absent (evaluation/store/files.py). One that a broken disk damaged, or that
another config left, is recognised by its checksum or its config hash, and its samples are drawn again.

Several processes may work in one folder, started by hand or by a scheduler. They share the shards by claims
(evaluation/store/claims.py); a shard that two of them sample is the same on machines of one kind. The store
looks at the folder anew whenever it is asked what is there.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Hashable, Iterator
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int, UInt8

from evaluation.store.archives import pack, unpack
from evaluation.store.claims import Claims
from evaluation.store.files import atomic_file, explained, make_folder, read_file, version, version_to_be
from sde_lib.checks import require
from solvers import Solution

ROUNDINGS = ("nearest", "truncate")


def to_uint8(x: Float[np.ndarray | Array, "n h w c"], *, centered: bool, rounding: str = "nearest") -> Any:
    """Images as grey levels uint8 [n, h, w, c], of 0 to 255.

    NaN (in a failed sample) becomes black, so that failed samples count in FID.

    Args:
        x: images in [0, 1], or in [−1, 1] if ``centered``. Images on a device stay there.
        centered: as in ``config.data.centered``.
        rounding: "nearest": each value becomes the nearest level; "truncate": the level below, as in the
            published code, which darkens images by half a grey level on average.
    """
    numpy = jnp if isinstance(x, jax.Array) else np
    unit = (x + 1) / 2 if centered else x
    levels = numpy.clip(numpy.nan_to_num(unit, nan=0.0), 0, 1) * 255
    return (numpy.rint(levels) if rounding == "nearest" else levels).astype(np.uint8)  # which truncates


# By config.data.centered and config.eval.rounding: always the same function object, or the sampling loop
# would be compiled again
GREY_LEVELS = {
    (centered, rounding): functools.partial(to_uint8, centered=centered, rounding=rounding)
    for centered in (False, True)
    for rounding in ROUNDINGS
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Finished samples, with the cost of each.

    Attributes:
        sample_ids: [n], the samples' ids in the run of their config.
        images: uint8 [n, h, w, c].
        nfe: [n], number of evaluations of the score.
        accepted, rejected: [n], number of steps.
        status: [n], ``solvers.Status``.
        classes: [n], the classes asked for; None without classes.
    """

    sample_ids: Int[np.ndarray, " n"]
    images: UInt8[np.ndarray, "n h w c"]
    nfe: Int[np.ndarray, " n"]
    accepted: Int[np.ndarray, " n"]
    rejected: Int[np.ndarray, " n"]
    status: Int[np.ndarray, " n"]
    classes: Int[np.ndarray, " n"] | None = None

    @classmethod
    def of(cls, solution: Solution, classes: Int[np.ndarray, " n"] | None = None) -> Samples:
        """The samples of a solution by ``solvers.stream`` with one of ``GREY_LEVELS`` for ``output``."""
        return cls(
            sample_ids=solution.sample_ids.astype(np.int64),
            images=solution.x,
            nfe=solution.nfe,
            accepted=solution.accepted,
            rejected=solution.rejected,
            status=solution.status,
            classes=classes,
        )

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, rows: slice | np.ndarray) -> Samples:
        return Samples(**{name: array[rows] for name, array in self.arrays().items()})

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, without those that are None."""
        return {name: array for name, array in vars(self).items() if array is not None}


HASH = "identity"  # the config hash has this name in a shard's file: shards of earlier versions stay valid


def joined(*parts: Samples) -> Samples:
    """All samples in the order of their ids; of samples with the same id, the first."""
    names = parts[0].arrays()
    together = Samples(**{name: np.concatenate([part.arrays()[name] for part in parts]) for name in names})
    _, rows = np.unique(together.sample_ids, return_index=True)
    return together[rows]


class SampleStore:
    """The samples of one config in a folder, to which other processes may be adding too.

    Use it as a context manager: leaving it, also by Ctrl-C, writes the finished samples of unfinished shards.
    Every method that looks at the folder may raise a ValueError, if its shards are of another size, and an
    OSError, if it cannot be read or written.

    Args:
        folder: made when something is written.
        config_hash: of the config; a shard with another hash does not belong here.
        shard_size: S, number of samples in a shard.

    Example:
        >>> import tempfile
        >>> ids = np.arange(3)
        >>> counts = dict(nfe=ids, accepted=ids, rejected=ids, status=ids)
        >>> samples = Samples(sample_ids=ids, images=np.zeros((3, 8, 8, 1), np.uint8), **counts)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with SampleStore(folder, config_hash="5eed", shard_size=2) as store:
        ...         while store.any_left(3):
        ...             for missing in store.pending(3):
        ...                 store.add(samples[missing])  # in any order and in any pieces
        ...     [shard.sample_ids.tolist() for shard in store.shards(3)]
        [[0, 1], [2]]
    """

    def __init__(self, folder: epath.PathLike, *, config_hash: str, shard_size: int):
        require(shard_size >= 1, "shard_size", shard_size, "at least 1", "set it to 1024, for example")
        self.folder = epath.Path(folder)
        self.config_hash = config_hash
        self.shard_size = shard_size
        self._seen: dict[
            int, tuple[Hashable, np.ndarray]
        ] = {}  # version of each shard's file, and the ids in it
        self._finished: dict[int, Samples] = {}  # samples of each shard that are in no file yet
        self._foreign: set[int] = set()
        self._claims = Claims(self.folder)

    def __enter__(self) -> SampleStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.flush()
        except OSError as second_error:
            if error is None:
                raise
            # the first error is the one to report
            warnings.warn(f"finished samples were lost: {second_error}", stacklevel=2)

    def missing(self, num_samples: int) -> Int[np.ndarray, " m"]:
        """Ids below ``num_samples`` that nobody has finished yet, ascending."""
        parts = [self._missing(number, num_samples) for number in self.numbers(num_samples)]
        return np.concatenate([np.empty(0, int), *parts])

    def any_left(self, num_samples: int, *, seconds: float = 0.0) -> bool:
        """Whether ``pending`` has ids to give; the samples finished here are written first.

        Args:
            num_samples: the ids are below it.
            seconds: if other processes have claimed all that is missing, this waits until they have finished
                it, or until one of them has given no sign of life for so long.
        """
        self.flush()
        return self._claims.any_left(self.numbers(num_samples), self._lacks(num_samples), seconds=seconds)

    def pending(
        self, num_samples: int, *, process: int = 0, processes: int = 1
    ) -> Iterator[Int[np.ndarray, " m"]]:
        """Claims shards one by one, each when it is asked for, and yields the ids that are missing in it.

        Args:
            num_samples: the ids are below it.
            process, processes: number of this process and of all that were started together; each begins
                with shards of its own.
        """
        numbers, lacks = self.numbers(num_samples), self._lacks(num_samples)
        for number in self._claims.take(numbers, lacks, process=process, processes=processes):
            yield self._missing(number, num_samples)

    def add(self, samples: Samples) -> None:
        """Adds finished samples in any order; a shard is written as soon as it is complete.

        Of samples with the same id the first is kept: they are equal.

        Raises:
            OSError: if the shard cannot be written, with path, reason and fix. The samples stay in memory,
                and ``flush`` tries again.
        """
        self._claims.renew()
        numbers = samples.sample_ids // self.shard_size
        for number in np.unique(numbers).tolist():
            finished = [self._finished[number]] if number in self._finished else []
            self._finished[number] = joined(*finished, samples[numbers == number])
            _, stored = self._seen.get(number) or self._look(number)
            if len(np.union1d(stored, self._finished[number].sample_ids)) == self.shard_size:
                self._write(number)

    def flush(self) -> None:
        """Writes the finished samples of incomplete shards, and removes the claims on these.

        Raises:
            OSError: if a shard cannot be written, with path, reason and fix.
        """
        for number in sorted(self._finished):
            self._write(number)
        self._claims.release_all()

    def shards(self, num_samples: int) -> Iterator[Samples]:
        """The samples 0 to ``num_samples`` − 1 in the order of their ids, a shard at a time.

        Raises:
            ValueError: if samples are missing, or if a shard is damaged meanwhile.
        """
        self.flush()
        missing = self.missing(num_samples)
        require(
            len(missing) == 0,
            "number of missing samples",
            len(missing),
            f"0 of {num_samples} in {self.folder}",
            "run the same command again to sample them",
        )
        for number in self.numbers(num_samples):
            yield self.shard(number, num_samples)  # and nothing here keeps it

    def shard(self, number: int, num_samples: int) -> Samples:
        """The samples of one shard with ids below ``num_samples``.

        Raises:
            ValueError: if the shard is damaged or absent.
        """
        samples = self._read(number)
        if samples is None:
            raise ValueError(
                f"{self._path(number)} was damaged or removed meanwhile: run the same command again to draw "
                "its samples again"
            )
        return samples[samples.sample_ids < num_samples]

    def numbers(self, num_samples: int) -> range:
        """Numbers of the shards that hold the samples below ``num_samples``."""
        return range(-(-num_samples // self.shard_size))

    def _path(self, number: int) -> epath.Path:
        return self.folder / f"shard_{number:06d}.npz"

    def _lacks(self, num_samples: int) -> Callable[[int], bool]:
        return lambda number: len(self._missing(number, num_samples)) > 0

    def _missing(self, number: int, num_samples: int) -> Int[np.ndarray, " m"]:
        """The ids of a shard that are neither in its file nor finished here."""
        start = number * self.shard_size
        ids = np.arange(start, min(start + self.shard_size, num_samples))
        _, stored = self._look(number)
        finished = self._finished[number].sample_ids if number in self._finished else []
        return np.setdiff1d(ids, np.union1d(stored, finished))

    def _look(self, number: int) -> tuple[Hashable, Int[np.ndarray, " m"]]:
        """The version of a shard's file and the ids in it, as they are now; read only if the file changed."""
        now = version(self._path(number))
        if number not in self._seen or self._seen[number][0] != now:
            samples = self._read(number)
            self._seen[number] = now, np.empty(0, int) if samples is None else samples.sample_ids
        return self._seen[number]

    def _write(self, number: int) -> None:
        """Puts the finished samples of a shard into its file, unless another process has."""
        path, samples = self._path(number), self._finished[number]
        _, stored = self._look(number)
        if not np.isin(samples.sample_ids, stored).all():
            if len(stored) and (there := self._read(number)) is not None:
                samples = joined(there, samples)
            make_folder(self.folder)
            if number in self._foreign:
                with explained("write", path):
                    path.rename(_unused(path, ".foreign"))
            with atomic_file(path) as file:
                named = {HASH: self.config_hash, "shard_size": self.shard_size}
                file.write(pack(named | samples.arrays()))
                now = version_to_be(file)
            if now is not None:  # what was written need not be read
                self._seen[number] = now, samples.sample_ids
        del self._finished[number]
        if len(np.union1d(stored, samples.sample_ids)) == self.shard_size:
            self._claims.release(number)

    def _read(self, number: int) -> Samples | None:
        """A shard of this config; None if there is none, or, with a warning, if it is damaged or foreign."""
        path = self._path(number)
        self._foreign.discard(number)
        if (content := read_file(path)) is None:
            return None
        try:
            arrays = unpack(content)
        except ValueError as error:
            warnings.warn(f"{path} is damaged ({error}): its samples are drawn again", stacklevel=2)
            return None
        config_hash, shard_size = str(arrays.pop(HASH)), int(arrays.pop("shard_size"))
        if config_hash != self.config_hash:
            warnings.warn(
                f"{path} is of another config (hash {config_hash}, here {self.config_hash}): its samples are "
                "drawn again, and the file is kept with the ending .foreign",
                stacklevel=2,
            )
            self._foreign.add(number)
            return None
        require(
            shard_size == self.shard_size,
            "shard_size",
            self.shard_size,
            f"{shard_size}, the size of the shards in {self.folder}",
            f"set shard_size back to {shard_size}, or use another folder",
        )
        return Samples(**arrays)


def _unused(path: epath.Path, ending: str) -> epath.Path:
    """A path beside another with this ending, and with a number if that exists already."""
    numbers = itertools.chain([""], itertools.count(2))
    return next(p for n in numbers if not (p := path.with_name(f"{path.name}{ending}{n}")).exists())
