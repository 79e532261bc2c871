"""The sample store: what was sampled, kept as uint8 in numbered files, so that nothing is sampled twice.

Shard k holds the samples of the fixed ids [k·S, (k + 1)·S), whatever the order in which they were finished:
sample i is the same sample in every run of a config, so a killed run goes on with the ids that are missing, a
larger one adds what it lacks, and numbers computed shard by shard in id order do not depend on
interruptions. A shard is whole or not there (evaluation/files.py); one that a broken disk tore, or that
another config left, is found by its checksum or its identity, and made again.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Float, Int, UInt8

from evaluation.files import atomic_file, make_folder, refused
from sde_lib.checks import require
from solvers import Solution


def to_uint8(x: Float[np.ndarray, "n h w c"], *, centered: bool) -> UInt8[np.ndarray, "n h w c"]:
    """Images as grey levels: each value goes to the nearest of 0..255, and those outside to the ends.

    The published code cuts off the fraction instead, which darkens every image by half a grey level. What is
    not a number (in a failed sample) becomes black: failed samples stay among those that FID judges.

    Args:
        x: images in [0, 1], or in [−1, 1] if ``centered``.
        centered: as in ``config.data.centered``.
    """
    unit = (x + 1) / 2 if centered else x
    return np.rint(np.clip(np.nan_to_num(unit, nan=0.0), 0, 1) * 255).astype(np.uint8)


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
    def of(cls, solution: Solution, *, centered: bool) -> Samples:
        """What a solver finished, its images as grey levels; ``centered`` as in ``to_uint8``."""
        return cls(
            sample_ids=solution.sample_ids.astype(np.int64),
            images=to_uint8(solution.x, centered=centered),
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
    """The samples of one config in a folder.

    Use it as a context manager: leaving it, also by Ctrl-C, writes the finished samples of unfinished shards.

        with SampleStore(workdir / "samples", identity=config_hash, shard_size=1024) as store:
            for solution in solvers.stream(…, sample_ids=store.missing(num_samples)):
                store.add(Samples.of(solution, centered=…))
        for shard in store.shards(num_samples):
            …

    Args:
        folder: made when the first shard is written.
        identity: of the run; a shard with another one does not belong here.
        shard_size: S, samples a shard.

    Raises:
        ValueError: if the folder's shards are of another size.
        OSError: if a shard cannot be read.
    """

    def __init__(self, folder: Path, *, identity: str, shard_size: int):
        require(
            shard_size >= 1, "config.eval.shard_size", shard_size, "at least 1", "set it to 1024, for example"
        )
        self.folder = Path(folder)
        self.identity = identity
        self.shard_size = shard_size
        self._stored: dict[int, np.ndarray] = {}  # ids in each shard on the disk
        self._finished: dict[int, Samples] = {}  # samples of each shard that is not complete yet
        self._foreign: set[Path] = set()
        for path in sorted(self.folder.glob("shard_*.npz")):
            number = int(path.stem.removeprefix("shard_"))
            samples = self._read(path)
            if samples is not None:
                self._stored[number] = samples.sample_ids

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
        """Ids below ``num_samples`` that are yet to be sampled, ascending."""
        there = [*self._stored.values(), *(samples.sample_ids for samples in self._finished.values())]
        return np.setdiff1d(np.arange(num_samples), np.concatenate([np.empty(0, int), *there]))

    def add(self, samples: Samples) -> None:
        """Takes finished samples in any order; a shard is written as soon as it is complete.

        An id that is already there is passed over: it is the same sample.

        Raises:
            OSError: for a disk that refuses the shard, with path, reason and fix. The samples stay in memory,
                and ``flush`` tries again.
        """
        numbers = samples.sample_ids // self.shard_size
        for number in np.unique(numbers).tolist():
            stored = self._stored.get(number, np.empty(0, int))
            new = samples[(numbers == number) & ~np.isin(samples.sample_ids, stored)]
            if len(new) == 0:
                continue
            finished = [self._finished[number]] if number in self._finished else []
            self._finished[number] = joined(*finished, new)
            if len(self._finished[number]) + len(stored) == self.shard_size:
                self._write(number)

    def flush(self) -> None:
        """Writes the finished samples of shards that are not complete yet; those can be completed later.

        Raises:
            OSError: for a disk that refuses a shard, with path, reason and fix.
        """
        for number in sorted(self._finished):
            self._write(number)

    def shards(self, num_samples: int) -> Iterator[Samples]:
        """The samples 0 to ``num_samples`` − 1 in the order of their ids, a shard at a time.

        Raises:
            ValueError: if some are missing, or a shard was torn since the store was opened.
        """
        self.flush()
        missing = self.missing(num_samples)
        require(
            len(missing) == 0,
            "samples missing",
            len(missing),
            f"none of {num_samples} in {self.folder}",
            "sample them first",
        )
        for number in range(-(-num_samples // self.shard_size)):
            samples = self._read(self._path(number))
            if samples is None:  # it was whole when the store was opened
                raise ValueError(
                    f"{self._path(number)} is torn or was replaced meanwhile; run the same command again: "
                    "it makes this shard again"
                )
            yield samples[samples.sample_ids < num_samples]

    def _path(self, number: int) -> Path:
        return self.folder / f"shard_{number:06d}.npz"

    def _write(self, number: int) -> None:
        path = self._path(number)
        samples = self._finished[number]
        if number in self._stored:  # partial until now
            stored = self._read(path)
            samples = samples if stored is None else joined(stored, samples)
        make_folder(self.folder)
        if path in self._foreign:
            try:
                path.rename(path.with_name(path.name + ".foreign"))
            except OSError as error:
                raise refused(path, error) from error
            self._foreign.remove(path)
        with atomic_file(path) as file:
            arrays = {name: getattr(samples, name) for name in FIELDS}
            np.savez(file, allow_pickle=False, identity=self.identity, shard_size=self.shard_size, **arrays)
        self._stored[number] = samples.sample_ids
        del self._finished[number]

    def _read(self, path: Path) -> Samples | None:
        """A shard of this run; None, with a warning, for one that is torn or foreign."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}  # reading to the end checks the CRCs
            identity, shard_size = str(arrays.pop("identity")), int(arrays.pop("shard_size"))
            samples = Samples(**arrays)
        except OSError:
            raise  # the disk's fault, not the shard's
        except Exception as error:  # the zip and npy readers have no common error for torn files
            warnings.warn(f"{path} is torn ({error}): its samples are made again", stacklevel=3)
            return None
        if identity != self.identity:
            warnings.warn(
                f"{path} is of another run (identity {identity}, here {self.identity}): its samples are "
                "made again, and the file is kept with the ending .foreign",
                stacklevel=3,
            )
            self._foreign.add(path)
            return None
        require(
            shard_size == self.shard_size,
            "config.eval.shard_size",
            self.shard_size,
            f"{shard_size}, the size of the shards in {self.folder}",
            f"set it back to {shard_size}, or take another --workdir",
        )
        return samples
