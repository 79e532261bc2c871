"""Arrays in a file that reveals any change to its content, down to a single bit."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

DIGITS = 64  # of a SHA-256


def pack(arrays: Mapping[str, ArrayLike]) -> bytes:
    """The arrays as an .npz archive whose comment, its last 64 bytes, is the SHA-256 of everything before.

    Example:
        >>> unpack(pack({"nfe": [12, 30]}))
        {'nfe': array([12, 30])}
    """
    archive = io.BytesIO()
    np.savez(archive, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
    content = archive.getbuffer()
    content[-2:] = DIGITS.to_bytes(2, "little")  # an archive ends with the length of its comment, 0 so far
    return b"".join([content, hashlib.sha256(content).hexdigest().encode()])


def unpack(content: bytes) -> dict[str, np.ndarray]:
    """The arrays in a file that ``pack`` made.

    Raises:
        ValueError: if the content has changed since.
    """
    archive, digest = memoryview(content)[:-DIGITS], content[-DIGITS:]
    if hashlib.sha256(archive).hexdigest().encode() != digest:
        raise ValueError("its checksum does not match")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
