"""Features of shards: computed once by any process, and again only where the files do not hold them."""

import dataclasses
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from evaluation.metrics.features import FeatureNetwork, compiled
from evaluation.runs.feature_store import FeatureStore
from evaluation.store import claims
from evaluation.store.archives import pack, unpack
from evaluation.store.processes import Processes
from evaluation.store.samples import SampleStore
from tests.evaluation.store.test_samples import claim, made, names

NUM_SAMPLES = 20


def _pixels(images):
    pixels = images.reshape(len(images), 16).astype(jnp.float32)
    return pixels[:, :6], jnp.sin(pixels[:, 6:9])


NETWORK = FeatureNetwork(
    name="pixels",
    sha256="ab" * 32,
    preprocessing="none",
    num_features=6,
    num_classes=3,
    image_shape=(4, 4, 1),
    forward=compiled(Partial(_pixels)),
    batch_size=4,
)


@pytest.fixture
def stored(folder) -> SampleStore:
    """A store with all samples."""
    with SampleStore(folder / "samples", config_hash="a", shard_size=8) as store:
        store.add(made(np.arange(NUM_SAMPLES)))
    return store


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """How many images each call of the network was given."""
    counts, call = [], FeatureNetwork.__call__

    def counted(self, images, **options):
        counts.append(len(images))
        return call(self, images, **options)

    monkeypatch.setattr(FeatureNetwork, "__call__", counted)
    return counts


def opened(store: SampleStore, network: FeatureNetwork = NETWORK) -> FeatureStore:
    return FeatureStore(store.folder.parent / "features", network=network, samples=store)


def check_gives(features: FeatureStore, store: SampleStore, num_samples: int = NUM_SAMPLES) -> None:
    """What it gives is what the network gives, to the last bit."""
    for samples in store.shards(num_samples):
        for found, expected in zip(features.of(samples), _pixels(samples.images), strict=True):
            assert found.dtype == np.float32
            assert np.array_equal(found, expected)


def test_what_was_computed_once_is_not_computed_again(stored, computed):
    opened(stored).fill(NUM_SAMPLES)
    assert computed == [8, 8, 4]
    again = opened(stored)
    again.fill(NUM_SAMPLES)
    check_gives(again, stored)
    assert computed == [8, 8, 4]
    assert not names(again.folder, "*.claim")


@pytest.mark.parametrize(
    "harm", ["absent", "torn", "of other images", "of another network", "of another run"]
)
def test_files_that_do_not_hold_the_features_are_passed_over(stored, computed, harm):
    features = opened(stored)
    features.fill(NUM_SAMPLES)
    path = features.folder / "shard_000001.npz"
    content = path.read_bytes()
    if harm == "absent":
        path.unlink()
    elif harm == "torn":
        path.write_bytes(content[:-1])
    else:
        run, network, images = str(unpack(content)["identity"]).split()
        assert network == f"pixels:{'ab' * 32}"
        another = {
            "of other images": f"{run} {network} {images[::-1]}",
            "of another network": f"{run} other:00 {images}",
            "of another run": f"other {network} {images}",
        }[harm]
        path.write_bytes(pack(unpack(content) | {"identity": another, "features": np.zeros((8, 6))}))
    del computed[:]
    with warnings.catch_warnings(record=True) as said:
        check_gives(features, stored)
    assert [f"{path} is damaged" in str(warning.message) for warning in said] == [True] * (harm == "torn")
    assert computed == [8]


def test_more_samples_in_a_shard_are_other_images(stored, computed):
    opened(stored).fill(NUM_SAMPLES)
    stored.add(made([20]))
    stored.flush()
    del computed[:]
    check_gives(opened(stored), stored, 21)
    assert computed == [5]


def test_another_networks_features_are_beside_and_not_taken_for_these(stored, computed):
    opened(stored).fill(NUM_SAMPLES)
    other = opened(stored, dataclasses.replace(NETWORK, sha256="cd" * 32))
    other.fill(NUM_SAMPLES)
    assert computed == [8, 8, 4] * 2


def test_processes_share_the_shards_and_take_over_those_of_the_dead(stored, computed, monkeypatch):
    monkeypatch.setattr(claims, "POLL", 0.01)
    features = opened(stored)
    features.folder.mkdir(parents=True)
    claim(features.folder, 1)  # by process 1, which is never heard of again
    features.fill(NUM_SAMPLES, processes=Processes(index=0, count=2, seconds=0.2))
    assert computed == [8, 4, 8]
    check_gives(features, stored)
    assert not names(features.folder, "*.claim")


def test_who_comes_after_the_result_computes_nothing(stored, computed):
    answers = iter([True, False])
    features = opened(stored)
    features.fill(NUM_SAMPLES, needed=lambda: next(answers))
    assert computed == [8]
    assert names(features.folder) == ["shard_000000.npz"]


def test_a_disk_that_refuses_the_features_costs_only_time(stored, computed, monkeypatch):
    def full(path):
        raise OSError("no space left")

    monkeypatch.setattr("evaluation.runs.feature_store.atomic_file", full)
    features = opened(stored)
    with pytest.warns(UserWarning, match="no more features are kept: no space left"):
        features.fill(NUM_SAMPLES)
    assert not names(features.folder)
    check_gives(features, stored)
    assert computed == [8, 8, 8, 4]


@pytest.mark.parametrize(("batch_size", "index", "shown"), [(4, 0, True), (20, 0, False), (4, 1, False)])
def test_a_bar_where_there_is_more_than_a_batch(stored, capsys, batch_size, index, shown):
    network = dataclasses.replace(NETWORK, batch_size=batch_size)
    opened(stored, network).fill(NUM_SAMPLES, processes=Processes(index=index))
    said = capsys.readouterr().err
    assert ("features: 100%" in said and "20/20" in said and "image/s" in said) == shown


def test_only_what_it_wrote_is_removed(stored):
    features = opened(stored)
    features.remove()  # where nothing was written, nothing is an error
    features.fill(NUM_SAMPLES)
    own = [features.folder / "notes.txt", features.folder.parent / "mine.npz"]
    for path in own:
        path.write_text("a user's own")
    features.remove()
    assert names(features.folder, "*") == ["notes.txt"]
    assert all(path.read_text() == "a user's own" for path in own)
    own[0].unlink()
    features.remove()
    assert not features.folder.exists()
    own[1].unlink()
    features.fill(NUM_SAMPLES)
    features.remove()
    assert not features.folder.parent.exists()
