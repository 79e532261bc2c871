"""How processes share the shards of a folder by nothing but its files.

A process claims a shard by a file beside it, and removes the file when the shard is done. Claims are
advisory: a process that ignores one does the same work a second time, with the same outcome. While a process
works, it renews its claims. A process with nothing left to claim can therefore wait for the others, and can
tell which of them died: those whose claims are no longer renewed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterable, Iterator

from etils import epath

from evaluation.store.files import create, is_gone, make_folder, owner, remove_unfinished, show_life, version

POLL = 0.5  # seconds between two looks at the claims of others
RENEW = 5.0  # seconds between two signs of life


class Claims:
    """The claims on the shards of a folder, by this process and by others.

    Every method may raise an OSError, if the folder cannot be read or written.

    Args:
        folder: made when a shard is claimed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     claims, done = Claims(folder), set()
        ...     while claims.any_left(range(3), lambda number: number not in done):
        ...         for number in claims.take(range(3), lambda number: number not in done):
        ...             done.add(number)  # the work
        ...             claims.release(number)
        >>> done
        {0, 1, 2}
    """

    def __init__(self, folder: epath.PathLike):
        self.folder = epath.Path(folder)
        self._held: set[int] = set()
        self._renewed = 0.0

    def take(
        self, numbers: Iterable[int], lacks: Callable[[int], bool], *, process: int = 0, processes: int = 1
    ) -> Iterator[int]:
        """Claims the unfinished shards that nobody has claimed, each when it is asked for, and yields them.

        Args:
            numbers: numbers of the shards.
            lacks: whether a shard is unfinished, as the folder is now.
            process, processes: number of this process and of all that were started together; each begins
                with shards of its own.
        """
        for number in sorted(numbers, key=lambda number: (number - process) % processes):
            if lacks(number) and self._take(number):
                if lacks(number):
                    yield number
                else:  # another process finished it in the meantime
                    self.release(number)

    def any_left(self, numbers: Iterable[int], lacks: Callable[[int], bool], *, seconds: float = 0.0) -> bool:
        """Whether ``take`` has a shard to give; to be asked by a process that holds no claim.

        If others have claimed every unfinished shard, this waits until the shards are finished, or until a
        claim is free. A claim that was not renewed for ``seconds`` is removed, and one of a dead process of
        this machine at once.
        """
        left = list(numbers)
        seen: dict[int, tuple[Hashable, float]] = {}  # version of each claim, and since when we know it
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
        """Shows the others that this process is alive; to be called now and then while it works."""
        if time.monotonic() - self._renewed < RENEW:
            return
        self._renewed = time.monotonic()
        for number in self._held:
            show_life(self._path(number))

    def release(self, number: int) -> None:
        """Removes the claim on a shard, whoever made it."""
        self._held.discard(number)
        # a store's client has errors of its own; a claim that stays does no harm
        with contextlib.suppress(Exception):
            self._path(number).unlink(missing_ok=True)

    def release_all(self) -> None:
        """Removes all claims of this process."""
        for number in sorted(self._held):
            self.release(number)

    def _path(self, number: int) -> epath.Path:
        return self.folder / f"shard_{number:06d}.claim"

    def _take(self, number: int) -> bool:
        """Claims a shard, unless another process has."""
        make_folder(self.folder)
        if number not in self._held and not create(self._path(number), owner()):
            return False
        self._held.add(number)
        return True

    def _remove_leftovers(self) -> None:
        """Removes the unfinished files and the claims of this machine's dead processes."""
        remove_unfinished(self.folder)
        for path in self.folder.glob("shard_*.claim"):
            with contextlib.suppress(Exception):  # gone meanwhile
                if is_gone(path.read_text()):
                    path.unlink()
