"""Data sets that tests write: image files, zips, npz arrays, and tensorflow-datasets by its own writer."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def random_images(count: int, size: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "png")
    return file.getvalue()


def write_folder(folder: Path, images: np.ndarray) -> Path:
    """Half of the images at its top and half in a folder below, whose names sort behind."""
    (folder / "more").mkdir(parents=True)
    for i, image in enumerate(images):
        name = f"{i:03d}.png" if i < len(images) // 2 else f"more/{i:03d}.png"
        (folder / name).write_bytes(png(image))
    (folder / "labels.json").write_text("{}")
    return folder


def write_zip(path: Path, images: np.ndarray) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for i in reversed(range(len(images))):  # the order is that of the names
            archive.writestr(f"images/{i:03d}.png", png(images[i]))
        archive.writestr("readme.txt", "no image")
    return path


def write_npz(path: Path, images: np.ndarray) -> Path:
    np.savez(path, images=images, labels=np.zeros(len(images)))
    return path


def write_idx(path: Path, array: np.ndarray) -> Path:
    """In the format of MNIST's own files, compressed if the name says so."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_mnist(folder: Path, images: np.ndarray, labels: np.ndarray, split: str = "train") -> Path:
    """Grey images [n, h, w] and their classes under MNIST's names; the labels are not compressed."""
    folder.mkdir(parents=True, exist_ok=True)
    first = {"train": "train", "test": "t10k"}[split]
    write_idx(folder / f"{first}-images-idx3-ubyte.gz", images)
    write_idx(folder / f"{first}-labels-idx1-ubyte", labels)
    return folder


def prepare(root: Path, name: str, images: np.ndarray, file_format: str = "array_record") -> Path:
    """What ``tfds build`` leaves: root/name/version, with the splits train and test (a third)."""
    import tensorflow_datasets as tfds

    dataset, _, config = name.partition("/")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=images.shape[1:], encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
    )

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            third = len(images) // 3
            return {"train": self._examples(images[third:]), "test": self._examples(images[:third])}

        def _generate_examples(self):
            raise NotImplementedError

        def _examples(self, part):
            for i, image in enumerate(part):
                yield i, {"image": png(image), "label": i % 3}

    Builder.name = dataset
    Builder.url_infos = {}  # else tfds looks for checksums, with a package that it does not require
    Builder(data_dir=str(root), file_format=file_format).download_and_prepare()
    return root / name / "1.0.0"
