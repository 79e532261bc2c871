"""Arrays in a file that shows if a single bit of it is not as it was written."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

DIGITS = 64  # of a SHA-256


def pack(arrays: Mapping[str, ArrayLike]) -> bytes:
    """An .npz archive of the arrays whose comment, its last 64 bytes, is the SHA-256 of all before."""
    archive = io.BytesIO()
    np.savez(archive, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
    content = archive.getbuffer()
    content[-2:] = DIGITS.to_bytes(2, "little")  # an archive ends with the length of its comment, 0 so far
    return b"".join([content, hashlib.sha256(content).hexdigest().encode()])


def unpack(content: bytes) -> dict[str, np.ndarray]:
    """The arrays in a file of ``pack``.

    Raises:
        ValueError: if it is not as it was written.
    """
    archive, digest = memoryview(content)[:-DIGITS], content[-DIGITS:]
    if hashlib.sha256(archive).hexdigest().encode() != digest:
        raise ValueError("its checksum does not hold")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
