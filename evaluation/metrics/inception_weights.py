"""The trained weights of the 2015-12-05 Inception network: finding, reading and checking them.

They come as the PyTorch file that published FIDs are computed with. It is read without PyTorch, by
models/torch_files.py.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.store import files
from evaluation.store.files import atomic_file, make_folder
from models import torch_files
from sde_lib.checks import refusal, require

FILE = "pt_inception-2015-12-05-6726825d.pth"
ADDRESS = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

# Names under which the weights are looked for in the cache folder; the first is that of the download
KNOWN_FILES = (FILE, "weights-inception-2015-12-05-6726825d.pth")

GET = "docs/inception.md says where to get them"

BATCH_NORM = ("weight", "bias", "running_mean", "running_var")  # its arrays in the file
BATCH_NORM_EPSILON = 1e-3  # that of the original graph


Params = dict[str, dict[str, np.ndarray]]  # layer -> "kernel" [h, w, in, out] and "bias" [out]


def load(weights: str | None, expected: Mapping[str, Mapping[str, Any]]) -> tuple[Params, str]:
    """The network's parameters, float32, and their SHA-256.

    Args:
        weights: a .pth file; by default the one in the cache folder, which is downloaded if it is absent.
        expected: the network's parameters, or anything of their shapes.

    Raises:
        FileNotFoundError: for a file that does not exist, or if there is none and no network to download it
            from; the message has the address, the checksum and where to put the file.
        ValueError: for a file that is damaged, has another checksum than its name says, or holds another
            network.
    """
    path = find(weights)
    params = fold(read(path), expected, path)
    return params, sha256_of(params)


def cache_folder() -> Path:
    """The folder of the weights: $XDG_CACHE_HOME/gotta-go-fast/inception, by default below ~/.cache."""
    return files.cache_folder("inception")


def find(weights: str | None) -> Path:
    """The path of the weights: the given one, or that in the cache folder, or that of a download to there."""
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            fix = "leave it unset to use the file in the cache folder, or to download it"
            raise FileNotFoundError(refusal("inception_weights", weights, "a .pth file that exists", fix))
        return path
    for name in KNOWN_FILES:
        if (cache_folder() / name).is_file():
            return cache_folder() / name
    return download(cache_folder() / FILE)


def download(path: Path, address: str = ADDRESS, sha256: str = SHA256) -> Path:
    """Downloads a file of known checksum to ``path``, whole or not at all.

    Raises:
        FileNotFoundError: if the download fails.
        ValueError: if the file has another checksum.
    """
    digest = hashlib.sha256()
    print(f"downloading {address} to {path}", file=sys.stderr)
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            make_folder(path.parent)
            with atomic_file(path) as file:
                while piece := _receive(answer):
                    digest.update(piece)
                    file.write(piece)
                require(
                    digest.hexdigest() == sha256,
                    "inception_weights",
                    address,
                    f"a file whose SHA-256 is {sha256}, but that of the download is {digest.hexdigest()}",
                    f"try again (nothing was kept), or put the right file at {path}",
                )
    except (urllib.error.URLError, TimeoutError, _Lost) as error:
        allowed = f"a file that exists or can be downloaded, but downloading it failed ({error})"
        fix = (
            f"fetch {address} (SHA-256 {sha256}) on a machine with a network and put it there, or set "
            "inception_weights to a file that you have (docs/inception.md)"
        )
        raise FileNotFoundError(refusal("inception_weights", str(path), allowed, fix)) from error
    return path


class _Lost(Exception):
    """The connection broke while receiving; not an OSError, which ``atomic_file`` blames on the disk."""


def _receive(answer: Any) -> bytes:
    try:
        return answer.read(1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise _Lost(str(error) or type(error).__name__) from error


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a PyTorch file, under their names there.

    Raises:
        ValueError: for a damaged file, one with another checksum than its name says, or one that holds
            something else than tensors (nothing is run).
    """
    _check_named_sha256(path)
    state, read_tensors = torch_files.load_state(path)
    named = state if isinstance(state, dict) else {"the file": state}
    for name, value in named.items():
        if isinstance(value, torch_files.Foreign):
            torch_files.refuse_foreign(path, str(name)[:80], value)
    return read_tensors(
        {name: tensor for name, tensor in named.items() if isinstance(tensor, torch_files.Tensor)}
    )


def fold(arrays: Mapping[str, np.ndarray], expected: Mapping[str, Mapping[str, Any]], path: Path) -> Params:
    """Our parameters: each convolution with its batch normalisation multiplied in, and the matrix of logits.

    Args:
        arrays: those of the file.
        expected: our parameters, or anything of their shapes.
        path: the file, for messages.

    Raises:
        ValueError: for arrays of another network or that are not finite, with up to five names.
    """
    shapes = {"fc.weight": expected["fc"]["kernel"].shape[::-1]}
    layers = [layer for layer in expected if layer != "fc"]
    for layer in layers:
        height, width, inputs, outputs = expected[layer]["kernel"].shape
        shapes[f"{layer}.conv.weight"] = (outputs, inputs, height, width)
        shapes |= {f"{layer}.bn.{part}": (outputs,) for part in BATCH_NORM}
    wrong = [
        f"{name} {arrays[name].shape if name in arrays else 'missing'} instead of {shape}"
        for name, shape in shapes.items()
        if name not in arrays or arrays[name].shape != shape
    ]
    require(
        not wrong,
        "inception_weights",
        str(path),
        f"those of the 2015-12-05 Inception network, but {len(wrong)} of {len(shapes)} arrays are missing or "
        f"have another shape ({', '.join(wrong[:5])})",
        f"do not use another Inception v3, which gives another FID; {GET}",
    )
    broken = [name for name in shapes if not np.isfinite(arrays[name]).all()]
    allowed = f"finite numbers, but there are NaN or infinite ones in {broken[:5]}"
    require(not broken, "inception_weights", str(path), allowed, f"get the file again; {GET}")
    params = {"fc": {"kernel": np.ascontiguousarray(arrays["fc.weight"].T, np.float32)}}
    for layer in layers:
        scale, shift, mean, variance = (
            arrays[f"{layer}.bn.{part}"].astype(np.float64) for part in BATCH_NORM
        )
        factor = scale / np.sqrt(variance + BATCH_NORM_EPSILON)
        kernel = arrays[f"{layer}.conv.weight"].transpose(2, 3, 1, 0) * factor
        params[layer] = {
            "kernel": np.ascontiguousarray(kernel, np.float32),
            "bias": (shift - mean * factor).astype(np.float32),
        }
    return params


def sha256_of(params: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """SHA-256 of the names and numbers: the same for the same weights in any file."""
    digest = hashlib.sha256()
    for layer in sorted(params):
        for name, array in sorted(params[layer].items()):
            digest.update(f"{layer}/{name}{array.shape}".encode())
            digest.update(array.astype("<f4").tobytes())
    return digest.hexdigest()


def _check_named_sha256(path: Path) -> None:
    """PyTorch's files carry the first digits of their checksum in their name."""
    named = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    if named is None:
        return
    expected = SHA256 if SHA256.startswith(named[1]) else named[1]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    is_ = "is" if expected == SHA256 else "begins with"
    require(
        found.startswith(expected),
        "inception_weights",
        str(path),
        f"a file whose SHA-256 {is_} {expected}, as its name says, but it is {found}",
        f"remove the file, which is damaged or another one, and get it again; {GET}",
    )
