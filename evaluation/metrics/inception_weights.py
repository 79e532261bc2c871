"""The trained weights of the 2015-12-05 Inception network: where they are, and how each format is read.

The same weights go around as TensorFlow's frozen graph (alone, in its .tgz, or in a SavedModel folder) and as
a PyTorch file. None needs its framework here: a frozen graph is a protocol buffer of which few fields matter,
and the PyTorch file is read by the unpickler that knows tensors and refuses all else.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import math
import os
import pickle
import re
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.store.files import atomic_file, make_folder
from models import published_torch
from sde_lib.checks import require

FILE = "pt_inception-2015-12-05-6726825d.pth"
ADDRESS = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

# Names under which the weights are found in the cache folder, the first one being what is downloaded
KNOWN_FILES = (
    FILE,
    "weights-inception-2015-12-05-6726825d.pth",
    "classify_image_graph_def.pb",
    "inception-2015-12-05.tgz",
)
GRAPH_FILE = "classify_image_graph_def.pb"

GET = "docs/inception.md says where to get them"

GZIP, ZIP = b"\x1f\x8b", b"PK"  # what files of these kinds start with
BATCH_NORM = {  # the PyTorch file's names for the graph's
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
BATCH_NORM_EPSILON = 1e-3  # the graph's


Params = dict[str, dict[str, np.ndarray]]  # layer -> "kernel" [h, w, in, out] and "bias" [out]


def load(weights: str | None, expected: Mapping[str, Mapping[str, Any]]) -> tuple[Params, str]:
    """The network's parameters, float32, and their SHA-256.

    Args:
        weights: ``config.eval.inception_weights``: a .pth, .pb or .tgz file, or a SavedModel folder. None
            takes the cache folder's, or downloads them to it.
        expected: the network's parameters, as anything that has a shape.

    Raises:
        FileNotFoundError: where there is no such file, or none at all and no network; the message has the
            address, the checksum and where to put it.
        ValueError: for a file that is damaged, has another checksum than its name says, or holds another
            network; naming which.
    """
    path = find(weights)
    params = fold(read(path, expected), expected, path)
    return params, sha256_of(params)


def cache_folder() -> Path:
    """Where the weights are kept: $XDG_CACHE_HOME/gotta-go-fast/inception, ~/.cache where that is unset."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gotta-go-fast" / "inception"


def find(weights: str | None) -> Path:
    """The weights' path: as given, else in the cache folder, else downloaded to it."""
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.exists():
            raise FileNotFoundError(
                f"config.eval.inception_weights = {weights!r}: allowed is a .pth, .pb or .tgz file or a "
                "SavedModel folder that exists; leave it unset for the cache folder's, or to download them"
            )
        return path
    for name in KNOWN_FILES:
        if (cache_folder() / name).is_file():
            return cache_folder() / name
    return download(cache_folder() / FILE)


def download(path: Path, address: str = ADDRESS, sha256: str = SHA256) -> Path:
    """Fetches a file of known checksum to ``path``, whole or not at all."""
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
                    f"SHA-256 of {address}",
                    digest.hexdigest(),
                    f"{sha256} only",
                    f"nothing was kept; try again, or put the right file at {path}",
                )
    except (urllib.error.URLError, TimeoutError, _Lost) as error:
        raise FileNotFoundError(
            f"the Inception network's weights are not at {path}, and downloading them failed ({error}). "
            f"Fetch {address} (SHA-256 {sha256}) where there is a network and put it there, or name a file "
            "that you have by config.eval.inception_weights (docs/inception.md)"
        ) from error
    return path


class _Lost(Exception):
    """The connection broke while receiving; not an OSError, which ``atomic_file`` takes for the disk's."""


def _receive(answer: Any) -> bytes:
    try:
        return answer.read(1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise _Lost(str(error) or type(error).__name__) from error


def read(path: Path, layers: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays in a file or folder, under the names and in the layout of the PyTorch file.

    Args:
        path: of one of the formats, told by what is inside.
        layers: the network's, for the names that they have in a graph.

    Raises:
        ValueError: for a damaged file, a wrong checksum, or a format that is none of the known.
    """
    if path.is_dir():
        return _from_tensorflow(_saved_model(path), layers)
    _check_named_sha256(path)
    with path.open("rb") as file:
        first = file.read(2)
    if first == GZIP:
        return _from_tensorflow(_constants(_graph_nodes(_graph_in_archive(path)), path), layers)
    if path.suffix == ".pb":
        return _from_tensorflow(_constants(_graph_nodes(memoryview(path.read_bytes())), path), layers)
    return _zipped_torch(path) if first == ZIP else _legacy_torch(path)


def fold(arrays: Mapping[str, np.ndarray], expected: Mapping[str, Mapping[str, Any]], path: Path) -> Params:
    """Our parameters: each convolution with its batch normalization multiplied in, and the classes' matrix.

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
        "the weights",
        str(path),
        f"those of the 2015-12-05 Inception network; {len(wrong)} of {len(shapes)} arrays are missing or of "
        f"another shape ({', '.join(wrong[:5])})",
        f"another Inception v3 would give another FID; {GET}",
    )
    broken = [name for name in shapes if not np.isfinite(arrays[name]).all()]
    require(not broken, "the weights", str(path), f"finite numbers, not NaN as in {broken[:5]}", GET)
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
    """Of names and numbers: the same for the same weights out of any format."""
    digest = hashlib.sha256()
    for layer in sorted(params):
        for name, array in sorted(params[layer].items()):
            digest.update(f"{layer}/{name}{array.shape}".encode())
            digest.update(array.astype("<f4").tobytes())
    return digest.hexdigest()


def _check_named_sha256(path: Path) -> None:
    """PyTorch's files carry the first digits of their checksum in their name; of these we know all."""
    named = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    if named is None:
        return
    expected = SHA256 if SHA256.startswith(named[1]) else named[1]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    require(
        found.startswith(expected),
        f"SHA-256 of {path}",
        found,
        f"{expected}{'' if len(expected) == 64 else '…'}, by its name",
        "the file is damaged or another: remove it, and get it again (docs/inception.md)",
    )


# --- PyTorch ------------------------------------------------------------------------------------------------


def _zipped_torch(path: Path) -> dict[str, np.ndarray]:
    root, state = published_torch.load_state(path)
    with zipfile.ZipFile(path) as archive:
        return {
            name: published_torch.read_tensor(archive, root, tensor)
            for name, tensor in _tensors(state).items()
        }


def _legacy_torch(path: Path) -> dict[str, np.ndarray]:
    """PyTorch's format before 1.6: five pickles one after the other, then the bytes of each storage.

    The pickles: a magic number, the format's version, facts about the machine, the objects, and the keys of
    the storages in the order of their bytes. Each storage starts with the number of its elements.
    """
    content = memoryview(path.read_bytes())
    stream = io.BytesIO(content)

    def following_pickle() -> Any:
        return published_torch.TensorUnpickler(stream).load()

    try:
        if following_pickle() != 0x1950A86A20F9469CFC6C:
            raise pickle.UnpicklingError("its magic number is wrong")
        if following_pickle() != 1001:
            raise pickle.UnpicklingError("its version is unknown")
        following_pickle()
        tensors = _tensors(following_pickle())
        keys = following_pickle()
        dtypes = {tensor.storage.key: np.dtype(tensor.storage.dtype) for tensor in tensors.values()}
        storages, position = {}, stream.tell()
        for key in map(str, keys):
            (count,) = np.frombuffer(content, "<i8", 1, position)
            storages[key] = np.frombuffer(content, dtypes[key].newbyteorder("<"), count, position + 8)
            position += 8 + storages[key].nbytes
        return {name: _view(storages[tensor.storage.key], tensor) for name, tensor in tensors.items()}
    except published_torch.Refused as refused:
        raise ValueError(
            f"{path}: its pickle wants to import {refused}; allowed are tensors and containers only, so "
            f"nothing was run; {GET}"
        ) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception | str) -> ValueError:
    return ValueError(
        f"{path}: allowed is a whole .pth, .pb or .tgz file with the Inception network's weights, but "
        f"reading it fails ({error}); {GET}"
    )


def _tensors(state: Any) -> dict[str, published_torch.Tensor]:
    """The tensors among a file's objects; none where it holds something else than a table of them."""
    named = state.items() if isinstance(state, dict) else ()
    return {str(name): tensor for name, tensor in named if isinstance(tensor, published_torch.Tensor)}


def _view(storage: np.ndarray, tensor: published_torch.Tensor) -> np.ndarray:
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if min((tensor.offset, *tensor.shape, *tensor.strides)) < 0 or last >= len(storage):
        raise ValueError("a tensor goes beyond its storage")
    strides = [stride * storage.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides, writeable=False)


# --- TensorFlow ---------------------------------------------------------------------------------------------

# Blocks in the order of the graph: mixed, mixed_1, ..., mixed_10
BLOCKS = [f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")]
STEM = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"]


def graph_scope(layer: str) -> str:
    """A layer's name in the graph: "mixed_4/tower_1/conv_2" for "Mixed_6b.branch7x7dbl_3".

    A branch that is a single convolution is conv; the others are tower, tower_1 and tower_2, the pooled one
    last, with the convolutions conv, conv_1, ...; where a branch forks, its ends are mixed/conv and
    mixed/conv_1.
    """
    if layer in STEM:
        return _numbered("conv", STEM.index(layer))
    block, branch = layer.split(".branch")
    kind, _, step = branch.partition("_")
    if branch == "_pool":
        inner = "tower_2/conv"
    elif not step:
        inner = "conv"
    else:
        second = kind in ("3x3dbl", "7x7dbl", "7x7x3") and block != "Mixed_6a"
        fork = {"a": "mixed/conv", "b": "mixed/conv_1"}.get(step[-1])
        inner = f"tower{'_1' if second else ''}/{fork or _numbered('conv', int(step) - 1)}"
    return f"{_numbered('mixed', BLOCKS.index(block))}/{inner}"


def _numbered(name: str, number: int) -> str:
    return f"{name}_{number}" if number else name


def _from_tensorflow(constants: Mapping[str, np.ndarray], layers: Iterable[str]) -> dict[str, np.ndarray]:
    """A graph's arrays under the PyTorch file's names and in its layout; what is absent stays absent."""
    last = "softmax/weights"
    # a graph that was imported into another one has a prefix
    prefix = next((name.removesuffix(last) for name in constants if name.endswith(last)), "")
    arrays = {}
    for layer in layers:
        if layer == "fc":
            names = {"fc.weight": f"{prefix}{last}"}
        else:
            scope = prefix + graph_scope(layer)
            names = {
                f"{layer}.bn.{ours}": f"{scope}/batchnorm/{theirs}" for ours, theirs in BATCH_NORM.items()
            }
            names[f"{layer}.conv.weight"] = f"{scope}/conv2d_params"
        for ours, theirs in names.items():
            if theirs in constants:
                array = constants[theirs]
                arrays[ours] = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return arrays


def _graph_in_archive(path: Path) -> memoryview:
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if Path(member.name).name == GRAPH_FILE and (file := archive.extractfile(member)):
                    return memoryview(file.read())
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise _damaged(path, error) from error
    raise _damaged(path, f"it holds no {GRAPH_FILE}")


def _saved_model(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a SavedModel: its graph's constants, or else its variables by TensorFlow itself."""
    path = folder / "saved_model.pb"
    require(
        path.is_file(),
        "config.eval.inception_weights",
        str(folder),
        "a folder that holds a saved_model.pb",
        "name the .pth, .pb or .tgz file itself, or the SavedModel's own folder",
    )
    constants = _constants(_saved_model_nodes(memoryview(path.read_bytes())), path)
    if any(name.endswith("softmax/weights") for name in constants):
        return constants
    try:
        import tensorflow  # type: ignore
    except ImportError as error:
        raise ValueError(
            f"config.eval.inception_weights = {str(folder)!r}: its weights are variables, not constants of "
            "the graph, and only TensorFlow reads those; install tensorflow, or name a .pth, .pb or .tgz "
            "file (docs/inception.md)"
        ) from error
    model = tensorflow.saved_model.load(str(folder))
    variables = [variable for function in model.signatures.values() for variable in function.variables]
    return {variable.name.removesuffix(":0"): variable.numpy() for variable in variables}


# Field numbers are those of TensorFlow's saved_model.proto, meta_graph.proto, graph.proto, function.proto,
# node_def.proto, attr_value.proto, tensor.proto and tensor_shape.proto


def _graph_nodes(graph: memoryview) -> Iterator[Any]:
    yield from _fields(graph, 1)  # GraphDef.node
    for library in _fields(graph, 2):  # GraphDef.library
        for function in _fields(library, 1):  # FunctionDefLibrary.function
            yield from _fields(function, 3)  # FunctionDef.node_def


def _saved_model_nodes(saved_model: memoryview) -> Iterator[Any]:
    for meta_graph in _fields(saved_model, 2):  # SavedModel.meta_graphs
        for graph in _fields(meta_graph, 2):  # MetaGraphDef.graph_def
            yield from _graph_nodes(graph)


def _constants(nodes: Iterable[memoryview], path: Path) -> dict[str, np.ndarray]:
    """The float32 constants among serialized NodeDefs, by their names."""
    constants = {}
    try:
        for node in nodes:
            if b"".join(_fields(node, 2)) != b"Const":  # NodeDef.op
                continue
            name = b"".join(_fields(node, 1)).decode()  # NodeDef.name
            for attribute in _fields(node, 5):  # NodeDef.attr, entries of a map
                if b"".join(_fields(attribute, 1)) == b"value":  # its key
                    for value in _fields(attribute, 2):  # its value
                        for tensor in _fields(value, 8):  # AttrValue.tensor
                            if list(_fields(tensor, 1)) == [1]:  # TensorProto.dtype is DT_FLOAT
                                constants.setdefault(name, _float_tensor(tensor))
    except (ValueError, IndexError, TypeError) as error:
        raise _damaged(path, error) from error
    return constants


def _float_tensor(tensor: memoryview) -> np.ndarray:
    shape = []
    for tensor_shape in _fields(tensor, 2):  # TensorProto.tensor_shape
        for dimension in _fields(tensor_shape, 2):  # TensorShapeProto.dim
            shape.append(sum(_fields(dimension, 1)))  # Dim.size, left out where it is 0
    # TensorProto.tensor_content, or else .float_val, whose last number stands for all that are left out
    content = b"".join(_fields(tensor, 4)) or b"".join(_fields(tensor, 5))
    numbers = np.frombuffer(content, "<f4")
    count = math.prod(shape)
    if not count == len(numbers) and not 0 < len(numbers) < count:
        raise ValueError(f"a tensor of shape {shape} has {len(numbers)} numbers")
    return np.pad(numbers, (0, count - len(numbers)), mode="edge").reshape(shape)


def _fields(message: memoryview, number: int) -> Iterator[Any]:
    """The values of one field of a serialized protocol buffer: whole numbers, or bytes for other types."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        key = varint()
        wire_type = key & 7
        if wire_type == 0:
            value = varint()
        elif wire_type in (1, 2, 5):
            length = {1: 8, 5: 4}.get(wire_type) or varint()
            value = message[position : position + length]
            position += length
            if position > len(message):
                raise ValueError("it ends within a message")
        else:
            raise ValueError("it is no protocol buffer")
        if key >> 3 == number:
            yield value
