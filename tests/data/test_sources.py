"""Every place that images are read from, on data sets written here; and what is said of bad ones."""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
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
    samples = np.concatenate(list(datasets.pieces(datasets.open_samples(str(path), data), limit=3)))
    np.testing.assert_array_equal(samples, images[np.random.default_rng(0).permutation(7)])
    upper = tmp_path / f"UPPER{SUFFIX[kind].upper()}"
    path.rename(upper)
    np.testing.assert_array_equal(datasets.load(_data(upper, num_channels=channels)), images)


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
    with pytest.raises(
        ValueError, match=r"mode of .*deep.png must be 8-bit .* \(got 'I;16 of more than 8 bits"
    ):
        datasets.load(_data(tmp_path))
    deep = b"P6 8 8 65535 " + bytes(2 * 8 * 8 * 3)  # colours, of which Pillow drops the last 8 bits
    with pytest.raises(ValueError, match=r"mode of deep must be 8-bit .* \(got 'RGB of more than 8 bits"):
        sources.decode(deep, "deep")
    with pytest.raises(ValueError, match=r"mode of deep must be 8-bit .* \(got 'RGB of more than 8 bits"):
        sources.decode(_deep_png(), "deep")
    assert sources.decode(b"P6 8 8 15 " + bytes(8 * 8 * 3), "shallow").shape == (8, 8, 3)


def _deep_png() -> bytes:
    """A black RGB image of 8x8 pixels and 16 bits a channel, which Pillow cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header, rows = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0), bytes(8 * (1 + 8 * 6))
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


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
    with pytest.raises(
        ValueError, match=r"images.zip/images/002.png must be a readable file \(got .*Bad CRC"
    ):
        datasets.load(_data(path))
    path.write_bytes(content[:-40])
    with pytest.raises(
        ValueError, match=r"images.zip must be a readable file \(got .*File is not a zip file"
    ):
        datasets.open_images(_data(path))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"images": np.zeros((2, 8, 8, 3))},
            r"dtype of .* must be uint8 .* \(got 'float64'\): convert it, from \[0, 1\] with np.rint\(255 \*",
        ),
        ({"images": np.zeros((2, 3, 8, 8), np.float16)}, r"dtype of .* \(got 'float16'\): convert it"),
        ({"images": np.zeros((2, 8, 8, 3), complex)}, r"dtype of .* \(got 'complex128'\): store grey levels"),
        ({"images": np.zeros((2, 8, 8, 3), "U3")}, r"dtype of .* \(got '<U3'\): store grey levels as uint8"),
        ({"images": np.zeros((2, 8, 8, 3), bool)}, r"dtype of .* \(got 'bool'\): store grey levels as uint8"),
        ({"images": np.array([{}], object)}, r"dtype of .* \(got 'object'\): store grey levels as uint8"),
        (
            {"images": np.zeros((2, 8, 8), np.uint8)},
            r"shape of .* \(got \(2, 8, 8\)\): .*images\[\.\.\., None\]",
        ),
        (
            {"images": np.zeros((0, 8, 8, 3), np.uint8)},
            r"number of images in .* must be at least 1 \(got 0\)",
        ),
        (
            {"a": np.zeros(1), "b": np.zeros(1)},
            r"content of .* one called 'images' or 'arr_0' \(got \['a', 'b'\]\)",
        ),
    ],
)
def test_arrays_that_are_no_images_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "images.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        datasets.open_images(_data(tmp_path / "images.npz"))


def test_the_arrays_of_guided_diffusion_and_channels_before_rows_are_read(tmp_path):
    images = random_images(5)
    path = tmp_path / "samples.npz"
    for arrays in (
        {"arr_0": images, "arr_1": np.arange(5)},  # with labels
        {"anything": images.transpose(0, 3, 1, 2)},
        {"images": images, "arr_0": np.zeros(5)},
    ):
        np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]
        np.testing.assert_array_equal(datasets.load(_data(path)), images)
    np.savez(path, images[..., :1].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(datasets.load(_data(path, num_channels=1)), images[..., :1])


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
        for use in (datasets.open_images, datasets.describe):
            with pytest.raises(ValueError, match=message):
                use(_data(tmp_path / name))


def test_an_empty_or_absent_path_is_refused_whatever_the_name(monkeypatch, tmp_path):
    write_folder(tmp_path / "images", random_images(2))
    monkeypatch.chdir(tmp_path / "images")  # which an empty path would stand for
    for name in ("digits", "cifar10", "faces"):
        for path in ("", "/nonexistent"):
            message = rf"^config.data.path must be an existing folder, .* \(got '{path}'\): correct the path"
            for use in (datasets.open_images, datasets.describe, datasets.fingerprint):
                with pytest.raises(ValueError, match=message):
                    use(_data(path, name=name))
    with pytest.raises(ValueError, match=r"^--images must be an existing folder, .* \(got ''\)"):
        datasets.open_samples("", _data())


def test_the_central_square_is_cropped_padded_or_resized(tmp_path):
    image = random_images(1, size=12)[0][:10]  # 10 high and 12 wide
    np.savez(tmp_path / "images.npz", images=image[None])
    path = tmp_path / "images.npz"
    with pytest.raises(
        ValueError,
        match=r"size of .* \(got \(10, 12\)\): set config.data.image_size = 10 and .*_width = 12, or resize",
    ):
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
    changes = {"name": "celeb_a", "split": "test", "crop": 140, "resize": "bilinear", "image_size": 64}
    assert datasets.describe(_data(**changes)) == {
        "data": "celeb_a crop 140 64x64 bilinear",
        "split": "test",
        "image_size": 64,
        "num_channels": 3,
        "content": None,
    }
    described = datasets.describe(_data(name="digits", num_channels=1, image_size=8))
    assert (described["data"], described["split"]) == ("digits", "train")
    assert described["content"] == datasets.fingerprint(_data(name="digits"))


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
    described = datasets.describe(_mnist(tmp_path))
    assert (described["data"], described["split"]) == ("mnist 32x32 pad", "train")


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


def test_links_to_folders_are_followed_and_their_cycles_are_not(tmp_path, capsys):
    images = random_images(6)
    folder = write_folder(tmp_path / "images", images[:4])
    write_folder(tmp_path / "elsewhere", images[4:])
    (folder / "z").symlink_to(tmp_path / "elsewhere")
    (folder / "more" / "up").symlink_to(folder)
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere")
    np.testing.assert_array_equal(datasets.load(_data(folder)), images)
    assert "2 a folder that was read under another name" in capsys.readouterr().err


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    folder, scan = write_folder(tmp_path / "images", random_images(4)), os.scandir

    def refuse(path):
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"images/more must be a readable folder \(got PermissionError"):
        datasets.open_images(_data(folder))


def test_what_is_hidden_or_no_image_is_skipped_with_one_line(tmp_path, capsys):
    images, folder = random_images(2), tmp_path / "images"
    hidden, others = [".a.png", "b/._c.png", ".git/d.png"], ["notes.txt", "b/list.JSON", "README"]
    for name in ("a.png", "b/c.png", *hidden, *others):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(images[0] if name == "a.png" else images[1]))
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            archive.write(file, f"./{file.relative_to(folder)}")  # as some programs write names
        archive.write(folder / "a.png", "__MACOSX/a.png")
    for path, number in ((folder, 3), (tmp_path / "images.zip", 4)):
        for _ in range(2):  # a command opens a place more than once
            np.testing.assert_array_equal(datasets.load(_data(path)), images)
        (line,) = capsys.readouterr().err.splitlines()
        start, _, suffixes = line.rpartition("(")
        assert start == (
            f"{path}: read 2 images, skipped {number + 3} other files or folders: {number} hidden "
            "(a name that begins with a dot), 3 not an image "
        )
        assert sorted(suffixes.removesuffix(")").split(", ")) == [".json", ".txt", "no suffix"]
    datasets.load(_data(write_npz(tmp_path / "whole.npz", images)))
    assert capsys.readouterr().err == ""


def test_every_still_format_is_read_and_an_animation_is_not(tmp_path):
    grey = random_images(1, channels=1)[0, ..., 0]
    rgb = Image.fromarray(random_images(1)[0])
    rgb.save(tmp_path / "a.ppm")
    rgb.save(tmp_path / "b.jfif", "jpeg", quality=100, subsampling=0)
    rgb.quantize(8).save(tmp_path / "c.gif")
    loaded = datasets.load(_data(tmp_path)).astype(int)
    np.testing.assert_array_equal(loaded[0], np.asarray(rgb))
    assert np.abs(loaded[1] - np.asarray(rgb)).mean() < 4
    np.testing.assert_array_equal(loaded[2], np.asarray(rgb.quantize(8).convert("RGB")))
    for path in tmp_path.iterdir():
        path.unlink()
    Image.fromarray(grey).save(tmp_path / "d.pgm")
    np.testing.assert_array_equal(datasets.load(_data(tmp_path, num_channels=1))[0, ..., 0], grey)
    frames = [Image.fromarray(image) for image in random_images(3)]
    for suffix in ("gif", "png", "webp"):
        frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:])
        message = rf"moving.{suffix} must be a still image \(got 'several frames'\): store each frame"
        with pytest.raises(ValueError, match=message):
            sources.at_path(str(tmp_path), "--images").read(1)
        (tmp_path / f"moving.{suffix}").unlink()


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (6, lambda x: np.rot90(x, -1)),
    ],
)
def test_an_image_is_turned_as_its_camera_says(orientation, turned, tmp_path):
    image, exif = random_images(1)[0], Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(tmp_path / "photograph.png", exif=exif)
    np.testing.assert_array_equal(datasets.load(_data(tmp_path))[0], turned(image))


def _fingerprints(tmp_path, images, name="images"):
    """Of the same images in each kind of place."""
    folder = tmp_path / name
    folder.mkdir()
    places = [WRITERS[kind](folder / f"images{SUFFIX[kind]}", images) for kind in WRITERS]
    places.append(write_mnist(folder / "mnist", images[..., 0], np.arange(len(images))))
    found = [datasets.fingerprint(_data(place)) for place in places]
    assert all(re.fullmatch("[0-9a-f]{64}", digest or "") for digest in found)
    return found


def test_a_fingerprint_is_of_the_content_wherever_it_is(tmp_path):
    images = random_images(5)
    first = _fingerprints(tmp_path, images, "first")
    assert _fingerprints(tmp_path, images, "second") == first
    changed = images.copy()
    changed[4, 7, 7, 0] ^= 1  # one bit of the last pixel
    for other in (changed, images[:4], images[::-1]):
        assert not set(first) & set(_fingerprints(tmp_path, other, f"other{len(os.listdir(tmp_path))}"))


def test_a_fingerprint_leaves_out_what_is_not_read(tmp_path):
    images = random_images(5)
    folder, archive = write_folder(tmp_path / "images", images), write_zip(tmp_path / "images.zip", images)
    arrays = write_npz(tmp_path / "images.npz", images)
    before = [datasets.fingerprint(_data(place)) for place in (folder, archive, arrays)]
    (folder / "labels.json").write_text("changed")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("another.txt", "no image")
    np.savez_compressed(arrays, images=images)
    assert [datasets.fingerprint(_data(place)) for place in (folder, archive, arrays)] == before
    (folder / "000.png").rename(folder / "renamed.png")
    assert datasets.fingerprint(_data(folder)) != before[0]


def test_the_fingerprint_of_a_prepared_data_set_needs_no_reader(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # importing it would fail
    place = tmp_path / "cifar10" / "1.0.0"
    shutil.copytree(root / "cifar10" / "1.0.0", place)
    data = _data(tmp_path, name="cifar10")
    train = datasets.fingerprint(data)
    assert train == datasets.fingerprint(_data(root, name="cifar10"))
    assert train != datasets.fingerprint(_data(root, name="cifar10", split="test"))
    (test,) = place.glob("*-test.*")
    test.write_bytes(test.read_bytes() + b"longer")
    assert datasets.fingerprint(data) == train
    (file,) = place.glob("*-train.*")
    file.write_bytes(file.read_bytes() + b"longer")
    changed = datasets.fingerprint(data)
    assert changed != train
    (place / "dataset_info.json").write_text("{}")
    assert datasets.fingerprint(data) not in (train, changed)
    for name in ("lsun/bedroom", "a data set of another machine"):
        assert datasets.fingerprint(_data(name=name)) is None


def _peak(function):
    """The most memory of Python objects, in bytes, while a function is refused; with the message."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as refused:  # noqa: PT011
            function()
        return tracemalloc.get_traced_memory()[1], str(refused.value)
    finally:
        tracemalloc.stop()


def test_small_files_that_grow_without_bounds_are_refused_before_they_do(tmp_path, monkeypatch):
    path = tmp_path / "images.zip"
    data = _data(path)
    monkeypatch.setattr(sources, "LARGEST", 2**20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.png", bytes(2**25))
    size, message = _peak(lambda: datasets.open_images(data))
    assert message.startswith(f"bytes of {path}/zeros.png must be at most {2**20} (got {2**25}): resize the")
    assert size < 2**20
    # the same, where the directory says that there are a thousand bytes
    content = path.read_bytes()
    assert content.count((2**25).to_bytes(4, "little")) == 2  # before the file, and in the directory
    path.write_bytes(content.replace((2**25).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    size, message = _peak(lambda: datasets.open_images(data))
    assert re.search(r"zeros.png must be a readable file \(got BadZipFile", message)
    assert size < 2**20
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("wide.png", png(np.zeros((2**10, 2**10, 3), np.uint8)))
    size, message = _peak(lambda: datasets.open_images(data))
    decoded = f"bytes of {path}/wide.png when decoded must be at most {2**20} (got {3 * 2**20}): resize"
    assert message.startswith(decoded)
    assert size < 2**20


def test_an_image_beyond_what_pillow_opens_is_refused_in_the_same_form(tmp_path):
    header = b"P5 20000 20000 255\n"
    (tmp_path / "huge.pgm").write_bytes(header)
    with pytest.raises(ValueError, match=r"huge.pgm must be a readable image \(got DecompressionBombError"):
        datasets.open_images(_data(tmp_path))


def test_the_header_of_an_array_must_fit_its_bytes(tmp_path):
    path = tmp_path / "images.npz"
    header = io.BytesIO()
    shape = (10**9, 1000, 1000, 3)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(100))
    message = rf"bytes of the images in .*images.npz must be {3 * 10**15}, as its shape .* \(got 100\)"
    with pytest.raises(ValueError, match=message):
        datasets.open_images(_data(path))


@pytest.mark.parametrize(("image_size", "num_channels"), [(0, 3), (-8, 3), (8, 0)])
def test_sizes_below_one_are_refused(image_size, num_channels, tmp_path):
    folder = write_folder(tmp_path / "images", random_images(2))
    changes = {"image_size": image_size, "num_channels": num_channels, "resize": "box"}
    with pytest.raises(
        ValueError, match=r"config.data.(image_size|num_channels) must be a whole number >= 1"
    ):
        datasets.open_images(_data(folder, **changes))
