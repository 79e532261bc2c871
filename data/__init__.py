"""Data sets: where images are read from, how they are brought to one size, and the batches of a training.

- ``data.datasets`` opens the data set that a config names; start here.
- ``data.batches`` cuts it into training batches and scales these for the network.
- ``data.sources`` reads the files: prepared tensorflow-datasets, folders, .zip, .npz and IDX files.

Both training and evaluation read images through this package.

Example:
    >>> from configs.base import get_config
    >>> from data import datasets
    >>> images = datasets.open_images(get_config().data)  # scikit-learn's digits
    >>> images.count, images.shape
    (1797, (8, 8, 1))
    >>> images.read(0).dtype
    dtype('uint8')
"""
