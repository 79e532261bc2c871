"""The host's side of the lanes, without JAX: which ids to draw, and how to deal them to the devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt32

from sde_lib.checks import require, require_count, require_shared

# Ids as the caller gives them: all at once, or as an iterable of arrays.
SampleIds = Sequence[int] | np.ndarray | Iterable[np.ndarray]


def checked_ids(sample_ids: Sequence[int] | np.ndarray) -> UInt32[np.ndarray, " n"]:
    """The ids as an array.

    Raises:
        ValueError: unless they are at least one unsigned 32-bit whole number.
    """
    ids = np.asarray(sample_ids)
    fits = ids.ndim == 1 and ids.size > 0 and np.issubdtype(ids.dtype, np.integer)
    fix = "list the ids of the samples to draw"
    require(fits, "sample_ids", sample_ids, "a list of at least one whole number", fix)
    limit = np.iinfo(np.uint32).max
    outside = ids[(ids < 0) | (ids > limit)]
    allowed = f"numbers from 0 to {limit}"
    require(outside.size == 0, "sample_ids", outside[:3].tolist(), allowed, "use ids in this range")
    return ids.astype(np.uint32)


def ids_asked_for(
    num_samples: int | None, sample_ids: Sequence[int] | np.ndarray | None
) -> UInt32[np.ndarray, " n"]:
    """The ids 0 to ``num_samples`` − 1, or ``sample_ids``.

    Raises:
        ValueError: if both or neither are given, or one has a bad value.
    """
    if sample_ids is None:
        require_count(num_samples=num_samples)
        return np.arange(num_samples or 0, dtype=np.uint32)
    unset = num_samples is None
    require(unset, "num_samples", num_samples, "None when sample_ids is given", "pass only one of the two")
    return checked_ids(sample_ids)


def lanes_for(num_samples: int, batch_size: int, num_devices: int, *, name: str = "batch_size") -> int:
    """The number of lanes for a run: at most one per sample, and the same number on every device.

    Args:
        num_samples: of the whole run, not of what is left of it: networks round differently at another batch
            shape, so that a resumed run would otherwise end with different bits.
        batch_size: lanes of all devices together.
        num_devices: number of devices that share them.
        name: of the batch size, for the message.

    Raises:
        ValueError: for a batch size that the devices cannot share.

    Example:
        >>> lanes_for(num_samples=10, batch_size=64, num_devices=4)
        12
    """
    require_count(**{name: batch_size})
    require_shared(name, batch_size, num_devices, "devices")
    return min(batch_size, -(-num_samples // num_devices) * num_devices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dealt:
    """The ids that the devices may start in their next call.

    Attributes:
        ids: one row per device, of which the first ``lengths`` entries count.
        lengths: number of ids that each device is given.
        more: whether there may be further ids; if so, a device that runs out of its own returns for them.
    """

    ids: UInt32[np.ndarray, "devices length"]
    lengths: Int[np.ndarray, " devices"]
    more: bool

    @property
    def shortest(self) -> float:
        """How full the shortest queue is, from 0 to 1; also 1 if no ids were left to deal."""
        return float(self.lengths.min()) / self.ids.shape[1] if self.lengths.any() else 1.0


class Queues:
    """Deals ids to devices, one queue to each, and takes back those that a call did not start.

    An id belongs to no device until the device has started it: the ids that are left are dealt anew before
    every call. As long as they fill all queues, every device gets a full one. The last ids of a run go to the
    devices with the fewest samples in progress, so that all devices finish together.

    Args:
        sample_ids: all ids at once; or an iterable of arrays, of which the next is taken when the waiting ids
            do not fill all queues.
        num_devices, length: the number of queues, and the number of ids that each holds.

    Example:
        >>> queues = Queues(range(5), num_devices=2, length=2)
        >>> queues.deal().ids.tolist()
        [[0, 1], [2, 3]]
        >>> queues.take_back(started=np.array([2, 1]), finished=np.array([1, 1]))
        >>> queues.deal().lengths.tolist()  # 3 and 4 are left; one sample is under way on the first device
        [1, 1]
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
        """Whether no sample is in progress and none is left to start."""
        self._fill()
        return len(self._waiting) == 0 and not self._under_way.any()

    @property
    def waiting(self) -> UInt32[np.ndarray, " n"]:
        """Ids that no device has started; at least one, if any is left."""
        self._fill()
        return self._waiting

    def deal(self) -> Dealt:
        """The queues for the next call."""
        self._fill()
        devices, length = len(self._under_way), self._length
        # one id at a time, to the device with the fewest samples in progress and ids dealt
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
        """Takes in, for the queues dealt last, how many ids each device started and samples it finished."""
        assert self._dealt is not None
        ids, lengths = self._dealt.ids, self._dealt.lengths
        left = [queue[start:end] for queue, start, end in zip(ids, started, lengths, strict=True)]
        self._waiting = np.concatenate([*left, self._waiting])
        self._under_way += np.asarray(started, np.int64) - finished

    def _fill(self) -> None:
        """Takes ids from the source until they fill all queues or the source ends."""
        while self._source is not None and len(self._waiting) < len(self._under_way) * self._length:
            ids = next(self._source, None)
            if ids is None:
                self._source = None
            elif len(ids):
                self._waiting = np.concatenate([self._waiting, checked_ids(ids)])
