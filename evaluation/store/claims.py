"""How processes share the shards of a folder, with nothing between them but its files.

A shard is taken by a file beside it, its claim, which goes when the shard is done. A claim is advice: who
takes no notice of one makes again what another makes too, and that is the same. While a process works it
renews its claims. So whoever has nothing left to take can wait for the others, and knows which of them died:
those whose claims nobody renews any more.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterable, Iterator

from etils import epath

from evaluation.store.files import create, is_gone, make_folder, owner, remove_unfinished, version

POLL = 0.5  # seconds between two looks at the claims of others
RENEW = 5.0  # seconds between two signs of life


class Claims:
    """The shards of a folder that this process has taken, and those of others.

    Every method may raise an OSError, if the folder cannot be read or written.

    Args:
        folder: made when a shard is taken.
    """

    def __init__(self, folder: epath.PathLike):
        self.folder = epath.Path(folder)
        self._held: set[int] = set()
        self._renewed = 0.0

    def take(
        self, numbers: Iterable[int], lacks: Callable[[int], bool], *, process: int = 0, processes: int = 1
    ) -> Iterator[int]:
        """Takes the shards that lack something and are nobody's, each when it is asked for, and yields them.

        Args:
            numbers: of the shards.
            lacks: whether there is something left to do for a shard, as the folder is now.
            process, processes: which process this is of how many that were started together, each of which
                begins with shards of its own.
        """
        for number in sorted(numbers, key=lambda number: (number - process) % processes):
            if lacks(number) and self._take(number):
                if lacks(number):
                    yield number
                else:  # whoever had it finished it in the meantime
                    self.release(number)

    def any_left(self, numbers: Iterable[int], lacks: Callable[[int], bool], *, seconds: float = 0.0) -> bool:
        """Whether there is a shard for ``take`` to give; to be asked by a process that holds none.

        Where others have taken all that are left it waits until they are done, or until a claim was not
        renewed for ``seconds``, which is then removed; at once if it is of a dead process of this machine.
        """
        left = list(numbers)
        seen: dict[int, tuple[Hashable, float]] = {}  # version of each claim, and since when it is this one
        while left := [number for number in left if lacks(number)]:
            self._remove_leftovers()
            versions = {number: version(self._path(number)) for number in left}
            if None in versions.values():
                return True
            now = time.monotonic()
            seen = {n: seen[n] if n in seen and seen[n][0] == v else (v, now) for n, v in versions.items()}
            silent = [number for number, (_, since) in seen.items() if now - since >= seconds]
            for number in silent:
                self.release(number)
            if not silent:
                time.sleep(POLL)
        return False

    def renew(self) -> None:
        """Shows the others that this process lives; to be called now and then while it works."""
        if time.monotonic() - self._renewed < RENEW:
            return
        self._renewed = time.monotonic()
        for number in self._held:
            with contextlib.suppress(Exception):  # as for ``release``
                self._path(number).write_text(owner())

    def release(self, number: int) -> None:
        """Removes the claim on a shard, whoever made it."""
        self._held.discard(number)
        # a store's client has errors of its own; a claim that stays is no harm
        with contextlib.suppress(Exception):
            self._path(number).unlink(missing_ok=True)

    def release_all(self) -> None:
        """Removes all claims of this process."""
        for number in sorted(self._held):
            self.release(number)

    def _path(self, number: int) -> epath.Path:
        return self.folder / f"shard_{number:06d}.claim"

    def _take(self, number: int) -> bool:
        """Takes a shard, unless another process has."""
        make_folder(self.folder)
        if number not in self._held and not create(self._path(number), owner()):
            return False
        self._held.add(number)
        return True

    def _remove_leftovers(self) -> None:
        """Removes what this machine's dead processes left: unfinished files and claims."""
        remove_unfinished(self.folder)
        for path in self.folder.glob("shard_*.claim"):
            with contextlib.suppress(Exception):  # gone meanwhile
                if is_gone(path.read_text()):
                    path.unlink()
