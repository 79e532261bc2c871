"""Which ids to draw, and their way to the devices: the host's side of the lanes, without JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt32

from sde_lib.checks import require, require_count, require_shared

# Ids as the caller gives them: all at once, or arrays of them one after the other.
SampleIds = Sequence[int] | np.ndarray | Iterable[np.ndarray]


def checked_ids(sample_ids: Sequence[int] | np.ndarray) -> UInt32[np.ndarray, " n"]:
    """The ids as an array; ValueError for none, and for what is not a whole number of 32 bits."""
    ids = np.asarray(sample_ids)
    fits = ids.ndim == 1 and ids.size > 0 and np.issubdtype(ids.dtype, np.integer)
    require(fits, "sample_ids", sample_ids, "a list of at least one whole number", "name the samples to draw")
    limit = np.iinfo(np.uint32).max
    ends = int(ids.min()), int(ids.max())
    inside = ends[0] >= 0 and ends[1] <= limit
    require(inside, "sample_ids from and to", ends, f"numbers from 0 to {limit}", "take ids in this range")
    return ids.astype(np.uint32)


def ids_asked_for(
    num_samples: int | None, sample_ids: Sequence[int] | np.ndarray | None
) -> UInt32[np.ndarray, " n"]:
    """The ids 0 to ``num_samples`` − 1, or ``sample_ids``; ValueError for both and for neither."""
    if sample_ids is None:
        require_count(num_samples=num_samples)
        return np.arange(num_samples or 0, dtype=np.uint32)
    require(
        num_samples is None, "num_samples", num_samples, "None beside sample_ids", "give only one of the two"
    )
    return checked_ids(sample_ids)


def lanes_for(num_samples: int, batch_size: int, num_devices: int, *, name: str = "batch_size") -> int:
    """How many lanes to draw so many samples in: at most one each, and on every device as many.

    Args:
        num_samples: of the whole run. What is left of it must not matter: networks round otherwise at another
            batch shape, and a run that is cut short and goes on would end with other bits.
        batch_size: lanes of all devices together.
        num_devices: that share them.
        name: of the batch size, for the message.

    Raises:
        ValueError: for a batch size that the devices cannot share.
    """
    require_count(**{name: batch_size})
    require_shared(name, batch_size, num_devices, "devices")
    return min(batch_size, -(-num_samples // num_devices) * num_devices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dealt:
    """The ids that the devices may start in their next call.

    Attributes:
        ids: a row for each device, of which the first ``lengths`` count.
        lengths: how many each device was given.
        more: whether there may be others: a device that runs out of its own then comes back for them.
    """

    ids: UInt32[np.ndarray, "devices length"]
    lengths: Int[np.ndarray, " devices"]
    more: bool

    @property
    def shortest(self) -> float:
        """How full the shortest queue is, from 0 to 1; 1 too where there was nothing left to give."""
        return float(self.lengths.min()) / self.ids.shape[1] if self.lengths.any() else 1.0


class Queues:
    """Deals ids to devices, a queue to each, and takes back what a call did not use.

    Nothing is a device's own before it has started it: at every boundary the ids that are left are dealt
    anew. As long as they fill all queues every device gets a full one. What is left at the end of a run goes
    to whoever has the fewest samples to work on, so that all devices end together.

    Args:
        sample_ids: all of them at once; or an iterable of arrays, of which the next is taken when the ids at
            hand do not fill all queues.
        num_devices, length: how many queues there are, and how many ids each holds.
    """

    def __init__(self, sample_ids: SampleIds, *, num_devices: int, length: int):
        given: Any = sample_ids
        at_once = isinstance(given, Sequence | np.ndarray)
        self._source: Iterator[np.ndarray] | None = iter([checked_ids(given)] if at_once else given)
        self._waiting = np.empty(0, np.uint32)
        self._under_way = np.zeros(num_devices, np.int64)
        self._length = length
        self._dealt: Dealt | None = None

    @property
    def done(self) -> bool:
        """Whether no sample is under way, and none is left to start."""
        self._fill()
        return len(self._waiting) == 0 and not self._under_way.any()

    def deal(self) -> Dealt:
        """The queues of the next call."""
        self._fill()
        devices, length = len(self._under_way), self._length
        # one by one to whoever has the fewest, counting samples under way and those given
        load = self._under_way + np.arange(length)[:, None]
        order = np.argsort(load, axis=None, kind="stable")[: len(self._waiting)] % devices
        lengths = np.bincount(order, minlength=devices)
        ids = np.zeros((devices, length), np.uint32)
        given = np.split(self._waiting[: lengths.sum()], np.cumsum(lengths)[:-1])
        for queue, own in zip(ids, given, strict=True):
            queue[: len(own)] = own
        self._waiting = self._waiting[lengths.sum() :]
        more = len(self._waiting) > 0 or self._source is not None
        self._dealt = Dealt(ids=ids, lengths=lengths, more=more)
        return self._dealt

    def take_back(
        self, *, started: Int[np.ndarray, " devices"], finished: Int[np.ndarray, " devices"]
    ) -> None:
        """What came of the queues dealt last: ids that each device started, and samples that it ended."""
        assert self._dealt is not None
        ids, lengths = self._dealt.ids, self._dealt.lengths
        left = [queue[start:end] for queue, start, end in zip(ids, started, lengths, strict=True)]
        self._waiting = np.concatenate([*left, self._waiting])
        self._under_way += np.asarray(started, np.int64) - finished

    def _fill(self) -> None:
        """Takes ids from the source until they fill all queues, or it ends."""
        while self._source is not None and len(self._waiting) < len(self._under_way) * self._length:
            ids = next(self._source, None)
            if ids is None:
                self._source = None
            elif len(ids):
                self._waiting = np.concatenate([self._waiting, checked_ids(ids)])
