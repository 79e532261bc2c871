"""The classes of images, from every place that knows them."""

from __future__ import annotations

import dataclasses
import json
import zipfile

import numpy as np
import pytest
from sklearn.datasets import load_digits

from configs.base import get_config
from data import batches, datasets
from tests.data.sources import png, prepare, random_images, write_idx, write_mnist

LABELS = np.array([2, 0, 1, 1, 2, 0])


def _data(path=None, **changes):
    data = get_config().data
    data.update({"name": "faces", "num_channels": 3} | changes)
    data.path = None if path is None else str(path)
    return data


def _class_folders(path, images, labels=LABELS):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = path / f"class_{'abc'[label]}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(png(image))
    return path


def _zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def _listed(path, images, listed):
    """As EDM writes its data sets: in folders of a number of images each, with a list of their classes."""
    files = {f"{i // 4:05d}/img{i:08d}.png": png(image) for i, image in enumerate(images)}
    if listed == "classes":
        listed = {"labels": [[name, int(label)] for name, label in zip(files, LABELS, strict=True)]}
    content = listed if isinstance(listed, str) else json.dumps(listed)
    return _zipped(path, files | {"dataset.json": content})


def _pairs(images, labels):
    return {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}


def _assert_labelled(data, images, num_classes=3):
    """The classes of the images are LABELS, whatever the order in which they are read."""
    opened = datasets.held(datasets.open_images(data, num_classes))
    assert opened.labels is not None
    assert opened.labels.dtype == np.int32
    assert opened.array is not None
    assert _pairs(opened.array, opened.labels) == _pairs(images, LABELS)
    assert datasets.open_images(data).labels is None  # not asked for


def test_a_folder_for_each_class(tmp_path):
    images = random_images(6)
    folder = _class_folders(tmp_path / "train", images)
    _assert_labelled(_data(folder), images)
    files = {f"train/{file.relative_to(folder)}": file.read_bytes() for file in folder.rglob("*.png")}
    _assert_labelled(_data(_zipped(tmp_path / "images.zip", files)), images)


def test_the_list_of_edm_comes_before_the_folders(tmp_path):
    images = random_images(6)
    path = _listed(tmp_path / "images.zip", images, "classes")
    _assert_labelled(_data(path), images)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "images")
    _assert_labelled(_data(tmp_path / "images"), images)
    none = _listed(tmp_path / "none.zip", images, {"labels": None})
    with pytest.raises(ValueError, match=r"must be 0 for faces, whose images have no classes \(got 3\)"):
        datasets.open_images(_data(none), 3)


def test_digits_and_mnists_own_files(tmp_path):
    digits = datasets.open_images(_data(name="digits", num_channels=1), 10)
    np.testing.assert_array_equal(digits.labels, load_digits(return_X_y=True)[1])
    images = random_images(6, channels=1)
    folder = write_mnist(tmp_path, images[..., 0], LABELS)
    _assert_labelled(_data(folder, num_channels=1), images)
    write_idx(folder / "train-labels-idx1-ubyte", LABELS[:5])
    datasets.open_images(_data(folder, num_channels=1))
    with pytest.raises(ValueError, match=r"must be a whole number for each of the 6 images \(got 'uint8 of"):
        datasets.open_images(_data(folder, num_channels=1), 3)


@pytest.mark.parametrize("names", [("images", "labels"), ("arr_0", "labels"), ("arr_0", "arr_1")])
def test_arrays(names, tmp_path):
    images = random_images(6)
    np.savez(tmp_path / "images.npz", **dict(zip(names, (images, LABELS.astype(np.uint8)), strict=True)))  # pyright: ignore[reportArgumentType]
    _assert_labelled(_data(tmp_path / "images.npz"), images)


def test_prepared_data_sets(tmp_path):
    images = random_images(9)
    prepare(tmp_path, "cifar10", images)  # with the classes 0, 1, 2, 0, … of the last six for training
    opened = datasets.held(datasets.open_images(_data(tmp_path, name="cifar10"), 3))
    assert opened.array is not None
    assert opened.labels is not None
    assert _pairs(opened.array, opened.labels) == _pairs(images[3:], np.arange(6) % 3)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("{", r"dataset.json must be \{\"labels\": .*: replace it with an intact copy"),
        ({"labels": [["a.png", 0.5]]}, r"dataset.json must be .* \(got TypeError"),
        ({"labels": [["a.png", 1]]}, r"must be a class for every image .*: add a class of each of the 6"),
    ],
)
def test_a_list_that_does_not_fit_is_refused_where_it_is_used(listed, message, tmp_path):
    data = _data(_listed(tmp_path / "images.zip", random_images(6), listed))
    with pytest.raises(ValueError, match=message):
        datasets.open_images(data, 3)
    assert datasets.open_images(data).count == 6


@pytest.mark.parametrize(
    "arrays", [{}, {"labels": LABELS / 2}, {"labels": LABELS[:5]}, {"labels": np.array(["a"] * 6)}]
)
def test_arrays_that_are_no_classes_are_refused(arrays, tmp_path):
    np.savez(tmp_path / "images.npz", images=random_images(6), **arrays)
    with pytest.raises(ValueError, match="whose images have no classes" if not arrays else "a whole number"):
        datasets.open_images(_data(tmp_path / "images.npz"), 3)


def test_images_of_no_folder_have_no_classes(tmp_path):
    _class_folders(tmp_path, random_images(6))
    (tmp_path / "one.png").write_bytes(png(random_images(1)[0]))
    with pytest.raises(
        ValueError, match=r"^config.model.num_classes must be 0 for faces, .*: set it to 0, or"
    ):
        datasets.open_images(_data(tmp_path), 3)


@pytest.mark.parametrize(("label", "fix"), [(2, "set config.model.num_classes to 3, or"), (-1, "correct")])
def test_a_class_out_of_range_is_refused_by_the_name_of_its_image(label, fix, tmp_path):
    labels = np.array([0, 1, label])
    np.savez(tmp_path / "images.npz", images=random_images(3), labels=labels)
    message = rf"^label of image 2 of .*images.npz must be a class from 0 to 1, .* \(got {label}\): {fix}"
    with pytest.raises(ValueError, match=message):
        datasets.open_images(_data(tmp_path / "images.npz"), 2)


def test_a_batch_has_the_classes_of_its_images(tmp_path):
    images = random_images(6)
    opened = datasets.held(datasets.open_images(_data(_class_folders(tmp_path, images)), 3))
    settings = {"seed": 1, "batch_size": 4}
    for step, batch in enumerate(batches.batches(opened, first_step=1, last_step=4, **settings), start=1):
        labels = batches.batch_labels(opened, step=step, **settings)
        assert labels is not None
        assert _pairs(batch, labels).items() <= _pairs(images, LABELS).items()
    assert batches.batch_labels(dataclasses.replace(opened, labels=None), step=1, **settings) is None


def test_shuffled_images_keep_their_classes(tmp_path):
    images = random_images(6)
    opened = datasets.open_images(_data(_class_folders(tmp_path, images)), 3)
    shuffled = datasets.held(datasets.shuffled(opened))
    assert shuffled.array is not None
    assert shuffled.labels is not None
    assert _pairs(shuffled.array, shuffled.labels) == _pairs(images, LABELS)
