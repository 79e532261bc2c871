"""From shards to figures: the same numbers however the samples came, and the published NFE."""

import dataclasses

import numpy as np
import pytest

from training import classifiers
from evaluation.evaluate import evaluate, nfe_lockstep
from evaluation.features import load_features
from evaluation.fid import fid, moments_of_images
from evaluation.inception_score import inception_score
from evaluation.plots import save_grid
from evaluation.samples import Samples, SampleStore


@pytest.fixture(scope="module")
def network():
    return load_features("digits")


def some_digits(ids: np.ndarray) -> Samples:
    images, _ = classifiers.labelled_digits()
    return Samples(
        sample_ids=ids,
        images=images[ids],
        nfe=ids + 20,
        accepted=ids // 2 + 5,
        rejected=ids % 2,
        status=(ids == 3).astype(int),
    )


def figures(shards, network, reference, num_samples=300):
    return evaluate(
        shards,
        num_samples=num_samples,
        batch_size=64,
        evaluations_per_step=2,
        network=network,
        reference=reference,
    )


def test_figures_are_those_of_all_samples_at_once(network):
    images, _ = classifiers.labelled_digits()
    reference = moments_of_images(images[300:], network, data="digits", split="the others")
    samples = some_digits(np.arange(300))
    found = figures([samples[:100], samples[100:101], samples[101:]], network, reference)
    whole = moments_of_images(images[:300], network, data="digits", split="first 300")
    assert found["fid"] == pytest.approx(fid(whole, reference), rel=1e-10)
    expected_is = inception_score(network(images[:300])[1])
    assert (found["is_mean"], found["is_std"]) == pytest.approx(expected_is, rel=1e-10)
    assert {k: found[k] for k in ("num_samples", "nfe_mean", "nfe_max", "rejected", "failed")} == {
        "num_samples": 300,
        "nfe_mean": 20 + 299 / 2,
        "nfe_max": 319,
        "rejected": 0.5,
        "failed": 1,
    }


def test_interruptions_do_not_show_in_the_figures(network, tmp_path):
    images, _ = classifiers.labelled_digits()
    reference = moments_of_images(images, network, data="digits", split="all")
    found = []
    for name, pieces in (("at once", 1), ("interrupted", 9)):
        order = np.arange(300) if pieces == 1 else np.random.default_rng(0).permutation(300)
        for ids in np.array_split(order, pieces):
            with SampleStore(tmp_path / name, identity="a", shard_size=128) as store:
                store.add(some_digits(ids))
        store = SampleStore(tmp_path / name, identity="a", shard_size=128)
        found.append(figures(store.shards(300), network, reference))
    assert found[0] == found[1]  # bitwise


def test_counts_need_no_feature_network():
    found = evaluate([some_digits(np.arange(5))], num_samples=5, batch_size=2, evaluations_per_step=1)
    assert (found["fid"], found["is_mean"], found["is_std"]) == (None, None, None)
    assert found["nfe_mean"] == 22


def test_lockstep_waits_for_the_slowest_of_each_batch():
    # batches (1, 5), (2, 3), (4): slowest 5, 3, 4
    assert nfe_lockstep(np.array([1, 5, 2, 3, 4]), 2, 2) == 2 * (5 + 3 + 4) / 3
    assert nfe_lockstep(np.array([1, 5, 2, 3, 4]), 100, 2) == 10


def test_bad_input_is_refused_before_features_are_computed(network):
    def never():
        pytest.fail("shards were read")
        yield

    images, _ = classifiers.labelled_digits()
    reference = moments_of_images(images[:50], network, data="digits", split="first 50")
    other = dataclasses.replace(reference, source=dataclasses.replace(reference.source, features_sha256="00"))
    with pytest.raises(ValueError, match="features_sha256"):
        figures(never(), network, other)
    with pytest.raises(ValueError, match=r"config.eval.num_samples = 4: allowed is at least 10"):
        figures(never(), network, reference, num_samples=4)
    with pytest.raises(ValueError, match="samples = 5: allowed is 7"):
        evaluate([some_digits(np.arange(5))], num_samples=7, batch_size=2, evaluations_per_step=1)


def test_few_samples_give_a_warning(network):
    images, _ = classifiers.labelled_digits()
    reference = moments_of_images(images, network, data="digits", split="all")
    with pytest.warns(UserWarning, match="FID of 100 samples"):
        figures([some_digits(np.arange(100))], network, reference, num_samples=100)


@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (64, 8, 8, 1), (5, 32, 32, 3), (2, 48, 64, 3)])
def test_grid_is_a_picture_of_bounded_size(tmp_path, shape):
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    save_grid(tmp_path / "samples.png", images, title="a title", caption="a caption")
    header = (tmp_path / "samples.png").read_bytes()[:24]
    assert header[1:4] == b"PNG"
    width, height = int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
    assert 1000 <= width <= 2000
    assert height <= 2000


def test_grid_keeps_each_pixel_a_square(tmp_path):
    from matplotlib.image import imread

    image = np.array([[0, 255], [100, 200]], np.uint8).reshape(1, 2, 2, 1)
    save_grid(tmp_path / "samples.png", image, title="")
    picture = np.rint(255 * imread(tmp_path / "samples.png")[..., :3]).astype(np.uint8)
    # 240 pixels a side at most, under the margin and one line
    square = picture[84:324, 32:272]
    assert np.array_equal(square, image[0].repeat(120, axis=0).repeat(120, axis=1).repeat(3, axis=2))


def test_grid_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/samples.png"):
        save_grid(tmp_path / "file" / "samples.png", np.zeros((1, 8, 8, 1), np.uint8), title="")
