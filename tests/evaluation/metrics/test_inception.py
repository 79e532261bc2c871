"""The Inception network against the reference, and its weights from files that are written here."""

import collections
import functools
import hashlib
import http.server
import io
import json
import pickle
import struct
import sys
import threading
import types
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.metrics import features, inception, inception_weights

NETWORK = inception.Inception()
IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)

# A small "network" with layers of every kind of name; its files are read like those of the whole network
LAYERS = {
    "Conv2d_2a_3x3": {"kernel": np.zeros((3, 3, 2, 3))},
    "Mixed_6b.branch7x7dbl_3": {"kernel": np.zeros((1, 7, 3, 2))},
    "Mixed_7c.branch3x3dbl_3b": {"kernel": np.zeros((3, 1, 2, 2))},
    "fc": {"kernel": np.zeros((4, 5))},
}


@functools.cache
def expected() -> Any:
    return jax.eval_shape(NETWORK.init, jax.random.key(0), IMAGE)["params"]


# --- the network -------------------------------------------------------------------------------------------


def reference_weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """The weights with which the reference's features were computed (shared/golden/README.md)."""

    def draw(name: str, shape: list[int]) -> np.ndarray:
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("running_var"):
            return generator.uniform(0.5, 1.5, shape)
        if name.endswith("bn.weight"):
            return generator.uniform(0.8, 1.2, shape)
        if name.endswith((".bias", "running_mean")):
            return 0.1 * generator.standard_normal(shape)
        gain = 1 if name == "fc.weight" else 2
        return generator.standard_normal(shape) * np.sqrt(gain / np.prod(shape[1:]))

    return {name: draw(name, shape).astype(np.float32) for name, shape in shapes.items() if shape}


def test_reference_implementation(golden):
    folder = golden("inception")
    shapes = json.loads((folder / "state_dict_shapes.json").read_text())
    params = inception_weights.fold(reference_weights(shapes), expected(), folder)
    with np.load(folder / "golden.npz") as golden:
        resized = [inception.resize(jnp.asarray(golden[size])) for size in ("x32", "x48x64")]
        for images, size in zip(resized, ("x32", "x48x64"), strict=True):
            # the same float32 operations in the same order
            rows = golden[f"{size}_resized_rows_0_150_298"]
            np.testing.assert_allclose(images[:, [0, 150, 298]], rows, rtol=1e-6)

        forward = jax.jit(functools.partial(NETWORK.apply, method="of_resized"))
        averages, logits = forward({"params": params}, jnp.concatenate(resized))
        outputs = {str(length): value for length, value in averages.items()} | {"logits_unbiased": logits}
        for name, value in outputs.items():
            both = np.concatenate([golden[f"x32_{name}"], golden[f"x48x64_{name}"]])
            # 94 layers in float32; another resize, pooling or epsilon is off by far more
            assert np.linalg.norm(value - both) < 1e-5 * np.linalg.norm(both), name


def test_layers_are_the_published_ones(golden):
    shapes = json.loads(golden("inception", "state_dict_shapes.json").read_text())
    layers = {name.removesuffix(".conv.weight") for name in shapes if name.endswith(".conv.weight")}
    assert {*expected()} == layers | {"fc"}


@pytest.mark.parametrize(("height", "width", "side"), [(5, 7, 11), (9, 4, 6), (6, 6, 6), (1, 2, 5)])
def test_resize_is_interpolation_from_the_corners(height, width, side):
    images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    resized = inception.resize(jnp.asarray(images), side)

    def at(image: np.ndarray, y: float, x: float) -> np.ndarray:
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        corners = image[[top, top, bottom, bottom], [left, right, left, right]].astype(float)
        weights = [(1 - y % 1) * (1 - x % 1), (1 - y % 1) * (x % 1), (y % 1) * (1 - x % 1), (y % 1) * (x % 1)]
        return weights @ corners

    by_hand = [
        [[at(image, i * height / side, j * width / side) for j in range(side)] for i in range(side)]
        for image in images
    ]
    # positions in float32: 1e-7 of a coordinate up to 10, times a step of up to 255 grey levels
    np.testing.assert_allclose(resized, by_hand, atol=1e-3)


@pytest.mark.parametrize("size", [5, 8])
def test_pooling_counts_no_border(size):
    # all below zero: a border of zeros would be the maximum
    x = np.random.default_rng(0).standard_normal((1, size, size, 2), np.float32) - 5
    pools = inception.average_around, inception.maximum_around, inception.maximum
    average, largest, apart = (np.asarray(jax.jit(pool)(x)) for pool in pools)
    for i, j in np.ndindex(size, size):
        window = x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].reshape(-1, 2)
        np.testing.assert_allclose(average[0, i, j], window.mean(0), rtol=1e-6)
        np.testing.assert_array_equal(largest[0, i, j], window.max(0))
    assert apart.shape == (1, (size - 1) // 2, (size - 1) // 2, 2)
    for i, j in np.ndindex(*apart.shape[1:3]):
        window = x[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].reshape(-1, 2)
        np.testing.assert_array_equal(apart[0, i, j], window.max(0))


@pytest.mark.parametrize(("name", "length"), inception.FEATURES.items())
def test_every_length_of_features_for_images_of_any_size(name, length):
    images = jax.ShapeDtypeStruct((2, 48, 64, 3), jnp.uint8)
    network = inception.Inception(num_features=length)
    averages, logits = jax.eval_shape(network.apply, {"params": expected()}, images)
    assert averages.shape == (2, length)
    assert logits.shape == (2, 1008)
    assert name in features.NAMES


def feature_network() -> features.FeatureNetwork:
    return features.FeatureNetwork(
        name="inception",
        sha256="",
        preprocessing=inception.PREPROCESSING,
        num_features=2048,
        num_classes=inception.NUM_CLASSES,
        image_shape=inception.IMAGE_SHAPE,
        forward=jax.tree_util.Partial(NETWORK.apply),
    )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 9, 3), np.float32), r"images.dtype must be uint8 .*\(got 'float32'\)"),
        (np.zeros((2, 8, 9, 1), np.uint8), r"must be \(n, any, any, 3\).*np.repeat\(images, 3, axis=-1\)"),
        (np.zeros((2, 8, 9, 4), np.uint8), r"drop the alpha channel with images\[..., :3\]"),
        (np.zeros((8, 9, 3), np.uint8), r"must be \(n, any, any, 3\) .*\(got \(8, 9, 3\)\)"),
    ],
)
def test_only_rgb_images_of_whole_grey_levels(images, message):
    feature_network().check(np.zeros((2, 8, 9, 3), np.uint8))
    with pytest.raises(ValueError, match=message):
        feature_network().check(images)


# --- files with weights ------------------------------------------------------------------------------------


def arrays(layers: dict[str, Any]) -> dict[str, np.ndarray]:
    """Random arrays with the names of the PyTorch file."""
    generator = np.random.default_rng(0)
    made = {}
    for layer, leaves in layers.items():
        kernel = generator.standard_normal(leaves["kernel"].shape[::-1], np.float32)
        if layer == "fc":
            return made | {"fc.weight": kernel, "fc.bias": np.ones(len(kernel), np.float32)}
        made[f"{layer}.conv.weight"] = kernel.transpose(0, 1, 3, 2)
        for part in inception_weights.BATCH_NORM:
            made[f"{layer}.bn.{part}"] = generator.uniform(0.5, 2, len(kernel)).astype(np.float32)
    return made


ARRAYS = arrays(LAYERS)


class Storage:
    def __init__(self, key: str, array: np.ndarray) -> None:
        self.key, self.array = key, array


class Tensor:
    def __init__(self, storage: Storage) -> None:
        self.storage = storage


class Pickler(pickle.Pickler):
    """Describes tensors as PyTorch does, under its names, which ``torch_names`` lends."""

    extra = ()

    def persistent_id(self, obj: Any) -> Any:
        storage_type = sys.modules["torch"].FloatStorage
        return (
            ("storage", storage_type, obj.key, "cpu", obj.array.size, *self.extra)
            if isinstance(obj, Storage)
            else None
        )

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        array = obj.storage.array
        strides = tuple(stride // 4 for stride in array.strides)
        arguments = (obj.storage, 0, array.shape, strides, False, collections.OrderedDict())
        return sys.modules["torch._utils"]._rebuild_tensor_v2, arguments


class LegacyPickler(Pickler):
    extra = (None,)


@pytest.fixture
def torch_names(monkeypatch):
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})  # pyright: ignore
    exec("def _rebuild_tensor_v2(*a): ...", utils.__dict__)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def storages() -> dict[str, Storage]:
    return {name: Storage(f"94{i}", np.ascontiguousarray(a)) for i, (name, a) in enumerate(ARRAYS.items())}


def write_zipped_torch(path: Path) -> Path:
    parts = storages()
    described = io.BytesIO()
    state = collections.OrderedDict((name, Tensor(storage)) for name, storage in parts.items())
    state._metadata = collections.OrderedDict({"": {"version": 1}})  # pyright: ignore
    Pickler(described, protocol=2).dump(state)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", described.getvalue())
        for storage in parts.values():
            archive.writestr(f"weights/data/{storage.key}", storage.array.tobytes())
    return path


def write_legacy_torch(path: Path) -> Path:
    parts = storages()
    with path.open("wb") as file:
        for head in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
            pickle.dump(head, file, protocol=2)
        LegacyPickler(file, protocol=2).dump({name: Tensor(storage) for name, storage in parts.items()})
        keys = sorted(storage.key for storage in parts.values())
        pickle.dump(keys, file, protocol=2)
        for storage in sorted(parts.values(), key=lambda storage: storage.key):
            file.write(struct.pack("<q", storage.array.size) + storage.array.tobytes())
    return path


WRITERS = {
    "zipped.pth": write_zipped_torch,
    "legacy.pth": write_legacy_torch,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_holds_the_same(name, tmp_path, torch_names):
    path = WRITERS[name](tmp_path / name)
    found = inception_weights.read(path)
    assert {*found} >= {*ARRAYS} - {"fc.bias"}
    for wanted in {*ARRAYS} - {"fc.bias"}:
        np.testing.assert_array_equal(found[wanted], ARRAYS[wanted])
    _, sha256 = inception_weights.load(str(path), LAYERS)
    assert sha256 == inception_weights.sha256_of(inception_weights.fold(ARRAYS, LAYERS, path))


def test_batch_normalization_is_multiplied_in():
    params = inception_weights.fold(ARRAYS, LAYERS, Path("made up"))
    layer = "Mixed_6b.branch7x7dbl_3"
    weight, bias, mean, variance = (
        ARRAYS[f"{layer}.bn.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
    )
    x = np.random.default_rng(1).standard_normal(7 * 3).astype(np.float32)
    plain = ARRAYS[f"{layer}.conv.weight"].transpose(0, 2, 3, 1).reshape(2, -1) @ x
    normalized = (plain - mean) / np.sqrt(variance + 1e-3) * weight + bias
    folded = x @ params[layer]["kernel"].reshape(-1, 2) + params[layer]["bias"]
    np.testing.assert_allclose(folded, normalized, rtol=1e-5)  # sums of 21 terms in float32
    np.testing.assert_array_equal(params["fc"]["kernel"], ARRAYS["fc.weight"].T)


def test_the_hash_sees_every_number_and_its_place():
    params = inception_weights.fold(ARRAYS, LAYERS, Path("made up"))
    other = jax.tree.map(np.copy, params)
    assert inception_weights.sha256_of(other) == inception_weights.sha256_of(params)
    other["fc"]["kernel"][0, [0, 1]] = other["fc"]["kernel"][0, [1, 0]]
    assert inception_weights.sha256_of(other) != inception_weights.sha256_of(params)


# --- bad files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("share", [0.3, 0.98])
def test_a_file_that_was_cut_short(name, share, tmp_path, torch_names):
    path = WRITERS[name](tmp_path / name)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match=f"must be a whole PyTorch file.*{path.name}'"):
        inception_weights.load(str(path), LAYERS)


@pytest.mark.parametrize("name", ["empty.pth", "noise.pth", "noise.pb", "noise.tgz"])  # of TensorFlow
def test_a_file_of_something_else(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"" if "empty" in name else b"\x1f\x8b noise" if "tgz" in name else b"noise" * 99)
    with pytest.raises(ValueError, match=f"must be a whole PyTorch file.*{name}'"):
        inception_weights.load(str(path), LAYERS)


def test_a_pickle_that_wants_to_act_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self) -> Any:
            return eval, (f"open({str(tmp_path / 'was run')!r}, 'w')",)

    path = tmp_path / "weights.pth"
    path.write_bytes(
        b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}, Bomb(), []))
    )
    with pytest.raises(ValueError, match=r"the file needs __builtin__.eval .*: nothing was imported or run"):
        inception_weights.load(str(path), LAYERS)
    assert not (tmp_path / "was run").exists()


def test_weights_of_another_network(tmp_path, torch_names):
    path = write_legacy_torch(tmp_path / "weights.pth")
    larger = LAYERS | {"Mixed_5b.branch1x1": {"kernel": np.zeros((1, 1, 2, 2))}}
    with pytest.raises(
        ValueError, match=r"5 of 21 arrays.*Mixed_5b.branch1x1.conv.weight missing instead of"
    ):
        inception_weights.load(str(path), larger)
    wider = LAYERS | {"fc": {"kernel": np.zeros((4, 6))}}
    with pytest.raises(ValueError, match=r"fc.weight \(5, 4\) instead of \(6, 4\)"):
        inception_weights.load(str(path), wider)


def test_weights_that_are_not_finite():
    broken = ARRAYS | {"Conv2d_2a_3x3.bn.bias": np.full(3, np.nan, np.float32)}
    with pytest.raises(
        ValueError, match=r"NaN or infinite ones in \['Conv2d_2a_3x3.bn.bias'\] \(got 'made up'\)"
    ):
        inception_weights.fold(broken, LAYERS, Path("made up"))


def test_a_name_with_another_files_checksum(tmp_path, torch_names):
    content = write_legacy_torch(tmp_path / "weights.pth").read_bytes()
    right = tmp_path / f"weights-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    right.write_bytes(content)
    inception_weights.load(str(right), LAYERS)
    wrong = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    wrong.write_bytes(content)
    with pytest.raises(
        ValueError, match=f"whose SHA-256 is {inception_weights.SHA256}, as its name says.*{wrong}"
    ):
        inception_weights.load(str(wrong), LAYERS)


# --- where they are found ----------------------------------------------------------------------------------


def test_config_comes_before_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = tmp_path / "gotta-go-fast" / "inception" / inception_weights.KNOWN_FILES[1]
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert inception_weights.find(None) == kept
    named = tmp_path / "mine.pth"
    with pytest.raises(FileNotFoundError, match=r"inception_weights must be .*exists \(got '.*mine.pth'\)"):
        inception_weights.find(str(named))
    named.touch()
    assert inception_weights.find(str(named)) == named


@pytest.fixture
def server():
    """A server of one file, of which it sends only half at another address."""
    content = b"weights" * 300_000

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if "absent" in self.path:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if "half" in self.path else content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as machine:
        thread = threading.Thread(target=machine.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{machine.server_port}", hashlib.sha256(content).hexdigest()
        machine.shutdown()
        thread.join()


def test_download(server, tmp_path):
    address, sha256 = server
    path = inception_weights.download(tmp_path / "cache" / "weights.pth", f"{address}/weights", sha256)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256


@pytest.mark.parametrize("name", ["absent", "half", "other"])
def test_a_download_that_fails_leaves_nothing(name, server, tmp_path):
    address, sha256 = server
    path = tmp_path / "weights.pth"
    expected_sha256 = "0" * 64 if name == "other" else sha256
    kind, message = {
        "absent": (
            FileNotFoundError,
            f"inception_weights must .*404.*got '{path}'.: fetch {address}/absent .SHA-256 {sha256}",
        ),
        "half": ((FileNotFoundError, ValueError), f"{address}/half"),
        "other": (
            ValueError,
            f"whose SHA-256 is 0{{64}}, but .* is {sha256} .got '{address}/other'..*nothing was kept",
        ),
    }[name]
    with pytest.raises(kind, match=message):
        inception_weights.download(path, f"{address}/{name}", expected_sha256)
    assert not list(tmp_path.iterdir())


def test_without_a_network_the_message_says_all_that_is_needed(tmp_path, monkeypatch):
    def no_network(*_: Any, **__: Any) -> Any:
        raise inception_weights.urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(inception_weights.urllib.request, "urlopen", no_network)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        features.load_features("inception")
    message = str(caught.value)
    for needed in (inception_weights.ADDRESS, inception_weights.SHA256, str(tmp_path), "inception_weights"):
        assert needed in message
    assert "\n" not in message
