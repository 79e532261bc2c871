"""The sample store: what was sampled, kept as uint8 in numbered files, so that nothing is sampled twice.

Shard k holds the samples of the fixed ids [k·S, (k + 1)·S), whatever the order in which they were finished:
sample i is the same sample in every run of a config, so a killed run goes on with the ids that are missing, a
larger one adds what it lacks, and numbers computed shard by shard in id order do not depend on
interruptions. A shard is whole or not there (evaluation/store/files.py); one that a broken disk tore, or that
another config left, is found by its checksum or its identity, and made again.

Several processes may work in one folder, started by hand or by a scheduler: they share the shards by claims
(evaluation/store/claims.py), and what two of them make twice on machines of one kind is the same. The store looks
at the folder again whenever it says what is there.
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
from evaluation.store.files import atomic_file, explained, make_folder, read_file, version
from sde_lib.checks import require
from solvers import Solution


def to_uint8(x: Float[np.ndarray | Array, "n h w c"], *, centered: bool) -> Any:
    """Images as grey levels uint8 [n, h, w, c]: each value goes to the nearest, those outside to the ends.

    The published code cuts off the fraction instead, which darkens every image by half a grey level. What is
    not a number (in a failed sample) becomes black: failed samples stay among those that FID judges.

    Args:
        x: images in [0, 1], or in [−1, 1] if ``centered``; on a device they stay there.
        centered: as in ``config.data.centered``.
    """
    numpy = jnp if isinstance(x, jax.Array) else np
    unit = (x + 1) / 2 if centered else x
    return numpy.rint(numpy.clip(numpy.nan_to_num(unit, nan=0.0), 0, 1) * 255).astype(np.uint8)


# By config.data.centered: the same function each time, as the compiled sampling loop wants
GREY_LEVELS = {centered: functools.partial(to_uint8, centered=centered) for centered in (False, True)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Finished samples, with what each of them took.

    Attributes:
        sample_ids: [n], which samples of the config these are.
        images: uint8 [n, h, w, c].
        nfe: [n], evaluations of the score.
        accepted, rejected: [n], steps.
        status: [n], ``solvers.Status`` of each.
    """

    sample_ids: Int[np.ndarray, " n"]
    images: UInt8[np.ndarray, "n h w c"]
    nfe: Int[np.ndarray, " n"]
    accepted: Int[np.ndarray, " n"]
    rejected: Int[np.ndarray, " n"]
    status: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, solution: Solution) -> Samples:
        """What ``solvers.stream`` finished, its images made grey levels by ``GREY_LEVELS``."""
        return cls(
            sample_ids=solution.sample_ids.astype(np.int64),
            images=solution.x,
            nfe=solution.nfe,
            accepted=solution.accepted,
            rejected=solution.rejected,
            status=solution.status,
        )

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, rows: slice | np.ndarray) -> Samples:
        return Samples(**{name: getattr(self, name)[rows] for name in FIELDS})


FIELDS = tuple(field.name for field in dataclasses.fields(Samples))


def joined(*parts: Samples) -> Samples:
    """All of them in the order of their ids; of samples with the same id, the first."""
    together = Samples(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS})
    _, rows = np.unique(together.sample_ids, return_index=True)
    return together[rows]


class SampleStore:
    """The samples of one config in a folder, to which other processes may be adding too.

    Use it as a context manager: leaving it, also by Ctrl-C, writes the finished samples of unfinished shards.

        with SampleStore(workdir / "samples", identity=config_hash, shard_size=1024) as store:
            while store.any_left(num_samples):
                for ids in store.pending(num_samples):
                    store.add(…)  # the samples with these ids, in any order and in any pieces
        for shard in store.shards(num_samples):
            …

    Every method that looks at the folder may raise a ValueError, if its shards are of another size, and an
    OSError, if it cannot be read or written.

    Args:
        folder: made when something is written.
        identity: of the run; a shard with another one does not belong here.
        shard_size: S, samples a shard.
    """

    def __init__(self, folder: epath.PathLike, *, identity: str, shard_size: int):
        require(
            shard_size >= 1, "config.eval.shard_size", shard_size, "at least 1", "set it to 1024, for example"
        )
        self.folder = epath.Path(folder)
        self.identity = identity
        self.shard_size = shard_size
        self._seen: dict[int, tuple[Hashable, np.ndarray]] = {}  # version of each shard's file, ids in it
        self._finished: dict[int, Samples] = {}  # samples of each shard that are not on the disk yet
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
        """Ids below ``num_samples`` that nobody has finished by now, ascending."""
        parts = [self._missing(number, num_samples) for number in self.numbers(num_samples)]
        return np.concatenate([np.empty(0, int), *parts])

    def any_left(self, num_samples: int, *, seconds: float = 0.0) -> bool:
        """Whether ``pending`` has ids to give; what was finished here is written first.

        Args:
            num_samples: the ids are below it.
            seconds: where other processes have taken all that is missing, it waits until they have finished
                it, or one of them has shown no sign of life for so long.
        """
        self.flush()
        return self._claims.any_left(self.numbers(num_samples), self._lacks(num_samples), seconds=seconds)

    def pending(
        self, num_samples: int, *, process: int = 0, processes: int = 1
    ) -> Iterator[Int[np.ndarray, " m"]]:
        """Yields the ids to be sampled of a shard that nobody has taken, as it is when the next is asked for.

        Args:
            num_samples: the ids are below it.
            process, processes: which process this is of how many that were started together, each of which
                begins with shards of its own.
        """
        numbers, lacks = self.numbers(num_samples), self._lacks(num_samples)
        for number in self._claims.take(numbers, lacks, process=process, processes=processes):
            yield self._missing(number, num_samples)

    def add(self, samples: Samples) -> None:
        """Takes finished samples in any order; a shard is written as soon as it is complete.

        Of samples with the same id the first is kept: they are the same.

        Raises:
            OSError: for a disk that refuses the shard, with path, reason and fix. The samples stay in memory,
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
        """Writes the finished samples of shards that are not complete yet, and removes the claims on them.

        Raises:
            OSError: for a disk that refuses a shard, with path, reason and fix.
        """
        for number in sorted(self._finished):
            self._write(number)
        self._claims.release_all()

    def shards(self, num_samples: int) -> Iterator[Samples]:
        """The samples 0 to ``num_samples`` − 1 in the order of their ids, a shard at a time.

        Raises:
            ValueError: if some are missing, or a shard is torn meanwhile.
        """
        self.flush()
        missing = self.missing(num_samples)
        require(
            len(missing) == 0,
            "samples missing",
            len(missing),
            f"none of {num_samples} in {self.folder}",
            "run the same command again, which samples these",
        )
        for number in self.numbers(num_samples):
            yield self.shard(number, num_samples)  # and nothing here keeps it

    def shard(self, number: int, num_samples: int) -> Samples:
        """The samples of one shard, of those below ``num_samples``.

        Raises:
            ValueError: if the shard is torn or not there.
        """
        samples = self._read(number)
        if samples is None:
            raise ValueError(
                f"{self._path(number)} was torn or replaced meanwhile; run the same command again: it "
                "makes this shard again"
            )
        return samples[samples.sample_ids < num_samples]

    def numbers(self, num_samples: int) -> range:
        """Of the shards of the samples below ``num_samples``."""
        return range(-(-num_samples // self.shard_size))

    def _path(self, number: int) -> epath.Path:
        return self.folder / f"shard_{number:06d}.npz"

    def _lacks(self, num_samples: int) -> Callable[[int], bool]:
        return lambda number: len(self._missing(number, num_samples)) > 0

    def _missing(self, number: int, num_samples: int) -> Int[np.ndarray, " m"]:
        """The ids of a shard that are neither in its file by now nor finished here."""
        start = number * self.shard_size
        ids = np.arange(start, min(start + self.shard_size, num_samples))
        _, stored = self._look(number)
        finished = self._finished[number].sample_ids if number in self._finished else []
        return np.setdiff1d(ids, np.union1d(stored, finished))

    def _look(self, number: int) -> tuple[Hashable, Int[np.ndarray, " m"]]:
        """The version of a shard's file and the ids in it, as they are now; it is read only if it changed."""
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
                arrays = {name: getattr(samples, name) for name in FIELDS}
                file.write(pack({"identity": self.identity, "shard_size": self.shard_size, **arrays}))
        del self._finished[number]
        if len(np.union1d(stored, samples.sample_ids)) == self.shard_size:
            self._claims.release(number)

    def _read(self, number: int) -> Samples | None:
        """A shard of this run; None if there is none, and, with a warning, if it is torn or foreign."""
        path = self._path(number)
        self._foreign.discard(number)
        if (content := read_file(path)) is None:
            return None
        try:
            arrays = unpack(content)
        except ValueError as error:
            warnings.warn(f"{path} is torn ({error}): its samples are made again", stacklevel=2)
            return None
        identity, shard_size = str(arrays.pop("identity")), int(arrays.pop("shard_size"))
        if identity != self.identity:
            warnings.warn(
                f"{path} is of another run (identity {identity}, here {self.identity}): its samples are "
                "made again, and the file is kept with the ending .foreign",
                stacklevel=2,
            )
            self._foreign.add(number)
            return None
        require(
            shard_size == self.shard_size,
            "config.eval.shard_size",
            self.shard_size,
            f"{shard_size}, the size of the shards in {self.folder}",
            f"set it back to {shard_size}, or take another --workdir",
        )
        return Samples(**arrays)


def _unused(path: epath.Path, ending: str) -> epath.Path:
    """A path beside another with this ending, numbered where there is one already."""
    numbers = itertools.chain([""], itertools.count(2))
    return next(p for n in numbers if not (p := path.with_name(f"{path.name}{ending}{n}")).exists())
