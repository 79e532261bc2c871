"""From shards to figures: the same numbers in whatever order the samples came, and the published NFE."""

import dataclasses

import numpy as np
import pytest

from evaluation.metrics import neighbours
from evaluation.metrics.features import load_features
from evaluation.metrics.fid import Extrapolation, Moments, fid
from evaluation.metrics.figures import evaluate, nfe_lockstep
from evaluation.metrics.inception_score import inception_score
from evaluation.metrics.kid import kid
from evaluation.metrics.measurement import Measurement
from evaluation.metrics.neighbours import precision_recall
from evaluation.metrics.reference import compute
from evaluation.metrics.sliced_wasserstein import sliced_wasserstein
from evaluation.runs.plots import save_grid
from evaluation.store.samples import Samples, SampleStore
from training import classifiers


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


def statistics(network, images: np.ndarray, split: str = "all") -> Moments:
    return compute([images], network, data="digits", split=split)


def figures(shards, network, reference, num_samples=300, replicates=0, **options):
    measurement = Measurement(network=network, reference=reference, replicates=replicates, **options)
    return evaluate(
        shards, num_samples=num_samples, batch_size=64, evaluations_per_step=2, measurement=measurement
    )


def test_figures_are_those_of_all_samples_at_once(network):
    images, _ = classifiers.labelled_digits()
    reference = statistics(network, images[300:], "the others")
    samples = some_digits(np.arange(300))
    found = figures([samples[:100], samples[100:101], samples[101:]], network, reference)
    whole = statistics(network, images[:300], "first 300")
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


def test_logits_that_say_nothing_give_no_score(network):
    """Those of weights without the last layer: all images would have a score of 1."""

    def forward(images):
        features, logits = network.forward(images)
        return features, 0 * logits

    images, _ = classifiers.labelled_digits()
    reference = statistics(network, images[300:], "the others")
    truncated = dataclasses.replace(network, forward=forward)
    with pytest.warns(
        UserWarning, match="no Inception Score by 'digits': its logits are equal for all classes"
    ):
        found = figures([some_digits(np.arange(300))], truncated, reference, replicates=2)
    assert found["is_mean"] is found["is_std"] is found["is_interval"] is None
    assert found["fid"] > 0


def test_interruptions_do_not_show_in_the_figures(network, tmp_path):
    images, _ = classifiers.labelled_digits()
    reference = statistics(network, images)
    found = []
    for name, pieces in (("at once", 1), ("interrupted", 9)):
        order = np.arange(300) if pieces == 1 else np.random.default_rng(0).permutation(300)
        for ids in np.array_split(order, pieces):
            with SampleStore(tmp_path / name, config_hash="a", shard_size=128) as store:
                store.add(some_digits(ids))
        store = SampleStore(tmp_path / name, config_hash="a", shard_size=128)
        options = {"replicates": 4, "fid_infinity": True, "compared": lambda: network(images[:20])[0]}
        found.append(figures(store.shards(300), network, reference, **options))
    assert found[0] == found[1]  # bitwise


def test_optional_figures_are_those_of_the_functions(network):
    images, _ = classifiers.labelled_digits()
    reference = statistics(network, images)
    data = network(images[-120:])[0]
    samples = some_digits(np.arange(300))
    shards = [samples[:70], samples[70:130], samples[130:]]
    found = figures(shards, network, reference, fid_infinity=True, compared=lambda: data)
    features, _ = network(images[:300])
    kept = features[:120]
    assert {name: found[name] for name in ("precision", "recall", "density", "coverage")} == precision_recall(
        kept, data
    )
    assert (found["compared"], found["kid"], found["kid_std"]) == (120, *kid(kept, data, block_size=60))
    assert found["sliced_wasserstein"] == sliced_wasserstein(kept, data)
    line = Extrapolation(num_samples=300, reference=reference)
    line.add(None, features, Measurement(network=network).source)
    assert found["fid_infinity"] == pytest.approx(line.result(found["fid"]), rel=1e-8)
    # what is there without them is the same to the last bit, and no more
    plain = figures(shards, network, reference)
    assert plain.items() <= found.items()
    assert found.keys() - plain.keys() == {
        "fid_infinity",
        "compared",
        "compared_content",
        "kid",
        "kid_std",
        "sliced_wasserstein",
        *precision_recall(kept, data),
    }


def test_intervals_are_around_the_figures_and_not_of_the_shards(network):
    images, _ = classifiers.labelled_digits()
    reference = statistics(network, images)
    samples = some_digits(np.arange(300))
    whole = figures([samples], network, reference, replicates=16)
    parts = figures([samples[:110], samples[110:]], network, reference, replicates=16)
    for name, figure in (("nfe_interval", "nfe_mean"), ("is_interval", "is_mean"), ("fid_interval", "fid")):
        assert whole[name] == pytest.approx(parts[name], rel=1e-8)  # but for the order of sums
        low, high = whole[name]
        assert low < high
        assert high > 0.5 * whole[figure]
    low, high = whole["nfe_interval"]
    # 1.96 deviations of the mean of 20, 21, ..., 319, which 16 replicates show to 18 %
    assert high - low == pytest.approx(2 * 1.96 * 300 / np.sqrt(12 * 300), rel=0.6)
    assert low < whole["nfe_mean"] < high


def test_no_interval_where_samples_are_too_few(network):
    images, _ = classifiers.labelled_digits()
    reference = statistics(network, images)
    with pytest.warns(UserWarning, match="FID of 29 samples"):
        found = figures([some_digits(np.arange(29))], network, reference, num_samples=29, replicates=4)
    assert (found["fid_interval"], found["is_interval"], found["nfe_interval"]) == (None, None, None)
    found = figures([some_digits(np.arange(299))], network, reference, num_samples=299, replicates=4)
    assert found["is_interval"] is None
    assert None not in (found["fid_interval"], found["nfe_interval"])


def test_counts_need_no_feature_network():
    cost = {"batch_size": 2, "evaluations_per_step": 1, "measurement": None}
    found = evaluate([some_digits(np.arange(5))], num_samples=5, **cost)
    assert (found["fid"], found["is_mean"], found["is_std"]) == (None, None, None)
    assert found["nfe_mean"] == 22
    assert (found["fid_interval"], found["is_interval"], found["nfe_interval"]) == (None, None, None)
    assert not {"fid_infinity", "kid"} & found.keys()
    found = evaluate([some_digits(np.arange(30))], num_samples=30, **cost)
    assert (found["fid_interval"], found["is_interval"]) == (None, None)
    assert found["nfe_interval"] is not None


def test_without_a_reference_there_is_no_fid(network):
    found = figures([some_digits(np.arange(300))], network, None, replicates=4, fid_infinity=True)
    assert (found["fid"], found["fid_interval"], found["fid_infinity"]) == (None, None, None)
    assert found["is_mean"] > 1
    assert found["is_interval"] is not None


def test_lockstep_waits_for_the_slowest_of_each_batch():
    # batches (1, 5), (2, 3), (4): slowest 5, 3, 4
    assert nfe_lockstep(np.array([1, 5, 2, 3, 4]), 2, 2) == 2 * (5 + 3 + 4) / 3
    assert nfe_lockstep(np.array([1, 5, 2, 3, 4]), 100, 2) == 10


@pytest.mark.filterwarnings("ignore:FID of")
def test_bad_input_is_refused_before_features_are_computed(network):
    def never():
        pytest.fail("shards were read")
        yield

    images, _ = classifiers.labelled_digits()
    reference = statistics(network, images[:50], "first 50")
    other = dataclasses.replace(reference, source=dataclasses.replace(reference.source, features_sha256="00"))
    with pytest.raises(ValueError, match="features_sha256"):
        figures(never(), network, other)
    with pytest.raises(ValueError, match=r"num_samples must be at least 10: .*got 4"):
        figures(never(), network, reference, num_samples=4)
    with pytest.raises(ValueError, match=r"num_samples must be 5, the number of samples in shards .got 7"):
        evaluate(
            [some_digits(np.arange(5))],
            num_samples=7,
            batch_size=2,
            evaluations_per_step=1,
            measurement=None,
        )
    with pytest.raises(ValueError, match=r"fid_infinity must be False for 239 samples: a line needs 240"):
        figures(never(), network, reference, num_samples=239, fid_infinity=True)
    with pytest.raises(ValueError, match=r"compared must be .* to 40, as there are 40 samples .got 50"):
        figures(never(), network, reference, num_samples=40, compared=lambda: np.zeros((50, 48), np.float32))


SHAPE = (8, 8, 1)


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        (
            {"num_compared": -1},
            {},
            r"compared must be 0 for none, or 4 .* to 300, as there are 300 samples .got -1",
        ),
        ({"num_compared": 3}, {}, r"compared must be 0 for none, or 4 .*got 3"),
        ({"num_compared": 301}, {}, r"compared must be .*got 301.: set compared to 300, or to 0"),
        (
            {"num_compared": 200},
            {"num_images": 150},
            r"to 150, as there are 300 samples and 150 images .got 200",
        ),
        ({"fid_infinity": True}, {"num_samples": 239}, r"fid_infinity must be False for 239 samples"),
        ({}, {"num_samples": 9}, r"num_samples must be at least 10: 2 for .* 10 splits .*got 9"),
        ({"splits": 400}, {}, r"num_samples must be at least 400: "),
        (
            {},
            {"image_shape": (32, 32, 3)},
            r"features must be a feature network for images of shape .32, 32, 3. ",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_in_advance(network, options, arguments, message):
    measurement = Measurement(network=network, **options)
    with pytest.raises(ValueError, match=message):
        measurement.check(**{"num_samples": 300, "image_shape": SHAPE} | arguments)


def test_a_reference_of_other_features_is_refused_in_advance(network):
    images, _ = classifiers.labelled_digits()
    reference = statistics(dataclasses.replace(network, preprocessing="halved"), images[:50])
    with pytest.raises(ValueError, match=r"reference must be of the same .*preprocessing = 'halved' instead"):
        Measurement(network=network, reference=reference).check(300, SHAPE)


def test_what_can_be_measured_is_not_refused(network):
    images, _ = classifiers.labelled_digits()
    Measurement(network=network, num_compared=10).check(10, SHAPE)
    whole = Measurement(
        network=network, reference=statistics(network, images), fid_infinity=True, num_compared=300
    )
    whole.check(300, SHAPE, num_images=300)
    neighbours.require_enough(4, 4)


def test_few_samples_give_a_warning(network):
    images, _ = classifiers.labelled_digits()
    reference = statistics(network, images)
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
