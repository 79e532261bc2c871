"""Every place that images are read from, on data sets written here; and what is said of bad ones."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs.base import get_config
from data import batches, datasets, sources
from tests.conftest import SHARED
from tests.data.sources import (
    png,
    prepare,
    random_images,
    write_folder,
    write_mnist,
    write_npz,
    write_zip,
)

ROOT = Path(__file__).resolve().parents[2]
WRITERS = {"folder": write_folder, "zip": write_zip, "npz": write_npz}
SUFFIX = {"folder": "", "zip": ".zip", "npz": ".npz"}


def _data(path=None, **changes):
    data: Any = get_config().data
    data.update({"name": "faces", "num_channels": 3} | changes)
    data.path = None if path is None else str(path)
    return data


def _sorted(images):
    return sorted(image.tobytes() for image in images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", WRITERS)
def test_files_are_read_in_the_order_of_their_names(kind, channels, tmp_path):
    images = random_images(7, channels=channels)
    path = WRITERS[kind](tmp_path / f"images{SUFFIX[kind]}", images)
    data = _data(path, num_channels=channels)
    np.testing.assert_array_equal(datasets.load(data), images)
    opened = datasets.open_images(data)
    assert (opened.name, opened.split, opened.count) == ("faces", "train", 7)
    samples = datasets.open_samples(str(path), data)
    np.testing.assert_array_equal(np.concatenate(list(datasets.pieces(samples, limit=3))), images)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of prepared data sets: cifar10 with 20 images in train and 10 in test, and a church."""
    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    prepare(folder, "cifar10", random_images(30))
    prepare(folder, "lsun/church_outdoor", random_images(3, size=12))
    return folder


def test_prepared_data_sets_are_found_and_read(root, monkeypatch):
    images = random_images(30)
    train = datasets.load(_data(root, name="cifar10"))
    assert _sorted(train) == _sorted(images[10:])  # the writer shuffles
    test = datasets.load(_data(root, name="cifar10", split="test"))
    assert _sorted(test) == _sorted(images[:10])
    part = datasets.load(_data(root, name="cifar10", split="train[5:9]"))
    np.testing.assert_array_equal(part, train[5:9])
    one = datasets.load(_data(root / "cifar10" / "1.0.0", name="anything"))
    np.testing.assert_array_equal(one, train)
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    np.testing.assert_array_equal(datasets.load(_data(name="cifar10")), train)
    church = datasets.open_images(_data(name="lsun/church_outdoor", image_size=12))
    assert (church.count, church.shape) == (2, (12, 12, 3))


def test_the_newest_version_is_taken(tmp_path):
    old = prepare(tmp_path, "mnist", random_images(6))
    for version in ("10.0.0", "9.0.0"):
        (old.parent / version).mkdir()
        (old.parent / version / "dataset_info.json").write_text("")
    found = sources.prepared_folder("mnist", str(tmp_path))
    assert found is not None
    assert found.name == "10.0.0"


def test_prepared_data_sets_are_read_without_tensorflow(root, tmp_path):
    """Even where it is installed: here is one that ends whoever imports it."""
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    code = (
        "from configs.base import get_config; from data import batches, datasets\n"
        f"data = get_config().data; data.name = 'cifar10'; data.num_channels = 3; data.path = {str(root)!r}\n"
        "images = datasets.open_images(data)\n"
        "streamed = batches.batches(images, seed=0, batch_size=4, first_step=1, last_step=3)\n"
        "print(sum(len(batch) for batch in streamed))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["12"], done.stderr


def test_a_data_set_that_is_absent_is_named_with_what_to_run_and_where(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "absent"))
    for name in ("mnist", "cifar10", "celeb_a", "celeb_a_hq/256", "lsun/church_outdoor", "lsun/bedroom"):
        message = (
            rf"config.data.name must be .* present in {tmp_path}/absent \(got '{name}'\): .*"
            f"tfds build {name} --file_format=array_record --data_dir={tmp_path}/absent"
        )
        with pytest.raises(FileNotFoundError, match=message):
            datasets.open_images(_data(name=name))


def test_bad_splits_and_formats_are_refused(root, tmp_path):
    for split in ("val", "train[:"):
        message = (
            f"config.data.split must be one of 'train', 'test', or a slice of one (got {split!r}): choose"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            datasets.open_images(_data(root, name="cifar10", split=split))
    with pytest.raises(ValueError, match=r"config.data.split must be 'train', .* \(got 'test'\)"):
        datasets.open_images(_data(name="digits", split="test", num_channels=1))
    folder = tmp_path / "mnist" / "1.0.0"
    folder.mkdir(parents=True)
    for file in (root / "cifar10" / "1.0.0").iterdir():
        (folder / file.name).write_bytes(file.read_bytes().replace(b"array_record", b"tfrecord"))
    with pytest.raises(
        ValueError, match=r"must be array_record \(got 'tfrecord'\): run: tfds convert_format"
    ):
        datasets.open_images(_data(tmp_path, name="mnist"))


def test_images_of_mixed_sizes_are_refused_by_name(tmp_path):
    folder = write_folder(tmp_path / "images", random_images(4))
    (folder / "more" / "big.png").write_bytes(png(random_images(1, size=9)[0]))
    message = (
        r"size of .*more/big.png must be \(8, 8\), .* \(got \(9, 9\)\): "
        "set config.data.image_size = 9, .*config.data.resize"
    )
    with pytest.raises(ValueError, match=message):
        datasets.load(_data(folder))
    assert datasets.load(_data(folder, resize="box")).shape == (5, 8, 8, 3)


@pytest.mark.parametrize(
    ("channels", "allowed", "fix"),
    [(1, 1, "set config.data.num_channels = 1, or write all images as RGB"), (4, 4, "without an alpha")],
)
def test_grey_images_and_alpha_channels_are_refused(channels, allowed, fix, tmp_path):
    folder = write_folder(tmp_path / "images", random_images(2, channels=channels))
    message = rf"config.data.num_channels must be {allowed}, .*000.png \(got 3\): .*{fix}"
    with pytest.raises(ValueError, match=message):
        datasets.open_images(_data(folder))


def test_a_colour_table_is_rgb_and_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(random_images(1)[0]).quantize(5).save(tmp_path / "table.png")
    assert datasets.load(_data(tmp_path)).shape == (1, 8, 8, 3)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"mode of .*deep.png must be 8-bit .* \(got 'I;16'\)"):
        datasets.load(_data(tmp_path))


def _broken(content):
    return content[: len(content) // 2]


def test_a_corrupt_image_is_named(tmp_path, root):
    images = random_images(4)
    folder = write_folder(tmp_path / "images", images)
    (folder / "more" / "003.png").write_bytes(_broken(png(images[3])))
    with pytest.raises(ValueError, match=r"more/003.png must be a readable image"):
        datasets.load(_data(folder))
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("a.png", png(images[0]))
        archive.writestr("b.png", _broken(png(images[1])))
    with pytest.raises(ValueError, match=r"images.zip/b.png must be a readable image"):
        datasets.load(_data(tmp_path / "images.zip"))
    # streamed to training, too
    streamed = batches.batches(
        datasets.open_images(_data(folder)), seed=0, batch_size=4, first_step=1, last_step=1
    )
    with pytest.raises(ValueError, match=r"more/003.png must be a readable image"):
        list(streamed)


def test_a_zip_whose_bytes_changed_is_refused(tmp_path):
    path = write_zip(tmp_path / "images.zip", random_images(3))
    content = bytearray(path.read_bytes())
    at = content.index(b"IDAT") + 40  # in the last image, which was written first
    content[at] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"images.zip/images/002.png must be readable \(got .*Bad CRC"):
        datasets.load(_data(path))
    path.write_bytes(content[:-40])
    with pytest.raises(
        ValueError, match=r"images.zip must be a readable file \(got .*File is not a zip file"
    ):
        datasets.open_images(_data(path))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 8, 8, 3))}, r"dtype of .* must be uint8 .* \(got 'float64'\)"),
        (
            {"images": np.zeros((2, 8, 8), np.uint8)},
            r"shape of .* \(got \(2, 8, 8\)\): .*images\[\.\.\., None\]",
        ),
        (
            {"images": np.zeros((0, 8, 8, 3), np.uint8)},
            r"number of images in .* must be at least 1 \(got 0\)",
        ),
        ({"a": np.zeros(1), "b": np.zeros(1)}, r"content of .* one called 'images' \(got \['a', 'b'\]\)"),
        ({"images": np.array([{}], object)}, "got 'Python objects'"),
    ],
)
def test_arrays_that_are_no_images_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "images.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        datasets.open_images(_data(tmp_path / "images.npz"))


def test_places_without_images_are_refused(tmp_path):
    (tmp_path / "readme.txt").write_text("no image")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    for path in (tmp_path, tmp_path / "empty.zip"):
        with pytest.raises(
            ValueError, match=rf"number of images in {path} must be at least 1 \(got 0\): .*[.]png"
        ):
            datasets.open_images(_data(path))
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=r"torn.npz must be a readable file"):
        datasets.open_images(_data(tmp_path / "torn.npz"))
    for name, allowed in (("absent", "an existing folder"), ("readme.txt", "a folder")):
        message = rf"config.data.path must be {allowed}, .* \(got '{tmp_path}/{name}'\)"
        with pytest.raises(ValueError, match=message):
            datasets.open_images(_data(tmp_path / name))


def test_the_central_square_is_cropped_padded_or_resized(tmp_path):
    image = random_images(1, size=12)[0][:10]  # 10 high and 12 wide
    np.savez(tmp_path / "images.npz", images=image[None])
    path = tmp_path / "images.npz"
    with pytest.raises(ValueError, match=r"size of .* \(got \(10, 12\)\): resize the images"):
        datasets.load(_data(path))
    np.testing.assert_array_equal(datasets.load(_data(path, crop=8))[0], image[1:9, 2:10])
    # a box of 2x2 pixels is their mean, which Pillow rounds twice: along the rows, then along the columns
    means = datasets.load(_data(path, image_size=5, resize="box"))[0]
    blocks = image[:, 1:11].reshape(5, 2, 5, 2, 3).mean((1, 3))
    np.testing.assert_array_less(np.abs(means - blocks), 1 + 1e-9)
    padded = datasets.load(_data(path, image_size=15, resize="pad"))[0]
    np.testing.assert_array_equal(padded[2:12, 1:13], image)
    assert padded.sum() == image.sum()
    filters = [datasets.load(_data(path, image_size=7, resize=name)) for name in datasets.FILTERS]
    assert len(_sorted(filters)) == len(set(_sorted(filters)))
    flat = np.full((1, 10, 10, 1), 77, np.uint8)
    np.savez(path, images=flat)
    for name in datasets.FILTERS:  # every filter's weights add up to one
        resized = datasets.load(_data(path, num_channels=1, image_size=7, resize=name))
        np.testing.assert_array_equal(resized, np.full((1, 7, 7, 1), 77))


def test_bad_crops_and_filters_are_refused(tmp_path):
    path = write_npz(tmp_path / "images.npz", random_images(2))
    for changes, message in (
        ({"resize": "boxx"}, r"config.data.resize must be .* \(got 'boxx'\): did you mean 'box'"),
        ({"crop": 9}, r"config.data.crop must be at most 8, the shorter side of image 0 of .* \(got 9\)"),
        ({"crop": 0}, r"config.data.crop must be at least 1 pixel \(got 0\)"),
        ({"image_size": 7, "resize": "pad"}, r"\(got \(8, 8\)\): set config.data.image_size = 8"),
    ):
        with pytest.raises(ValueError, match=message):
            datasets.open_images(_data(path, **changes))


def test_what_was_done_to_the_images_is_part_of_their_name():
    assert datasets.describe(_data(name="cifar10")) == ("cifar10", "train")
    changes = {"name": "celeb_a", "split": "test", "crop": 140, "resize": "bilinear", "image_size": 64}
    assert datasets.describe(_data(**changes)) == ("celeb_a crop 140 64x64 bilinear", "test")


def _mnist(path, **changes):
    return _data(path, **({"name": "mnist", "image_size": 32, "num_channels": 1, "resize": "pad"} | changes))


def test_mnists_own_files_are_read_by_split(tmp_path):
    images = random_images(5, size=28, channels=1)[..., 0]
    write_mnist(tmp_path, images[:3], np.arange(3))
    write_mnist(tmp_path, images[3:], np.arange(2), split="test")
    for split, part in ((None, images[:3]), ("train", images[:3]), ("test", images[3:])):
        loaded = datasets.load(_mnist(tmp_path, split=split))
        np.testing.assert_array_equal(loaded[:, 2:30, 2:30, 0], part)
        assert loaded.sum() == part.sum()
    assert datasets.describe(_mnist(tmp_path)) == ("mnist 32x32 pad", "train")


def test_broken_idx_files_are_named(tmp_path):
    folder = write_mnist(tmp_path, random_images(3, size=28, channels=1)[..., 0], np.arange(3))
    with pytest.raises(ValueError, match=r"config.data.split must be .*'train'.* \(got 'validation'\)"):
        datasets.load(_mnist(folder, split="validation"))
    with pytest.raises(ValueError, match=r"files in .*t10k-images-idx3-ubyte and t10k-labels"):
        datasets.load(_mnist(folder, split="test"))
    images = folder / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    for content in (whole[:-9], whole[:5], b"no archive", b"", gzip.compress(gzip.decompress(whole)[:-1])):
        images.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(str(images)) + r".*replace it with an intact copy"):
            datasets.load(_mnist(folder))
    images.write_bytes(whole)
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match=r"files in .*train-labels-idx1-ubyte"):
        datasets.load(_mnist(folder))


def test_mnist_itself_is_read():
    folder = SHARED / "data" / "mnist"
    if not folder.is_dir():
        pytest.skip("the files of MNIST are not here")
    images = datasets.open_images(_mnist(folder, split="test"))
    assert (images.count, images.shape) == (10_000, (32, 32, 1))
    raw = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    last = np.frombuffer(raw[-28 * 28 :], np.uint8).reshape(28, 28)
    np.testing.assert_array_equal(images.read(9999)[2:30, 2:30, 0], last)


def test_cifar_tiles_come_out_of_a_folder_unchanged(tmp_path):
    path = SHARED / "data" / "cifar10" / "test_00.avif"
    if not path.exists():
        pytest.skip("the mosaics of CIFAR-10 are not here")
    mosaic = np.asarray(Image.open(path).convert("RGB"))[:32]
    tiles = mosaic.reshape(32, 50, 32, 3).swapaxes(0, 1)
    folder = write_folder(tmp_path / "cifar10", tiles)
    np.testing.assert_array_equal(datasets.load(_data(folder, image_size=32)), tiles)
