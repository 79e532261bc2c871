"""Bits per dimension of images under a density that is known, kept image by image."""

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from PIL import Image

import configs
from evaluation.runs import likelihood, results, run
from evaluation.runs.likelihood import dequantized, measure, open_held_out
from evaluation.store import workdir
from solvers.likelihood import stream_log_likelihoods
from tests.data.sources import random_images, write_folder, write_mnist


def standard_normal(x, t):
    """The score of data ~ N(0, I) with VP, at every time."""
    return -x


def config_of(**changes):
    config = configs.load("vp/digits_adaptive")
    config.data.split = "train"
    config.eval.update({"num_samples": 40, "batch_size": 16})
    config.likelihood.update({"rtol": 0.01, "atol": 0.01, "num_probes": 2})
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture
def prepared(monkeypatch):
    monkeypatch.setattr(run.Run, "load_score_fn", lambda self: Partial(standard_normal))
    return run.prepare(config_of(), name="vp/digits_adaptive")


def bits_of(images, number):
    """Of the standard normal density at the dequantized image in [−1, 1], of 256 levels of 2/256."""
    x = dequantized(images.read(number), seed=0, number=number, centered=True)
    return 0.5 * math.log2(2 * math.pi) + 0.5 * float(np.mean(x.astype(np.float64) ** 2)) / math.log(2) + 7


def entries_of(folder):
    return [json.loads(line) for line in (folder / likelihood.LIKELIHOODS).read_text().splitlines()]


def test_the_figures_are_those_of_the_density(prepared, folder):
    images, content = open_held_out(prepared.config, None)
    result = measure(prepared, folder, images=images, content=content)
    expected = np.array([bits_of(images, i) for i in range(40)])
    np.testing.assert_allclose(result["bits_per_dim"], expected.mean(), atol=1e-4)
    reach = 1.96 * expected.std(ddof=1) / 40**0.5
    np.testing.assert_allclose(
        result["bits_per_dim_interval"], [expected.mean() - reach, expected.mean() + reach], atol=1e-3
    )
    assert result["standard_error"] < 1e-6  # a probe of ±1 is exact for a multiple of the identity
    assert (result["num_images"], result["failed"]) == (40, 0)
    assert result["images"] == "digits:train:1797"
    assert len(result["images_sha256"]) == 64
    assert result["checkpoint_sha256"] == prepared.weights["checkpoint_sha256"]
    assert (result["likelihood.rtol"], result["likelihood.num_probes"]) == (0.01, 2)
    assert f"{expected.mean():.3f} bits/dim" in likelihood.summary(result)
    with Image.open((folder / "likelihood.png").open("rb")) as picture:
        assert picture.format == "PNG"


def test_nothing_is_measured_twice_and_an_interruption_keeps_what_is_finished(
    prepared, tmp_path, monkeypatch
):
    images, content = open_held_out(prepared.config, None)

    def broken(*arguments, **settings):
        for part in stream_log_likelihoods(*arguments, **settings):
            yield part
            if len(part.nfe):
                raise KeyboardInterrupt

    monkeypatch.setattr(likelihood, "stream_log_likelihoods", broken)
    with pytest.raises(KeyboardInterrupt):
        measure(prepared, tmp_path, images=images, content=content)
    first = entries_of(tmp_path)
    assert 0 < len(first) < 40
    path = tmp_path / likelihood.LIKELIHOODS
    path.write_bytes(path.read_bytes()[:-10])  # torn by a kill
    monkeypatch.setattr(likelihood, "stream_log_likelihoods", stream_log_likelihoods)
    measure(prepared, tmp_path, images=images, content=content)
    entries = entries_of(tmp_path)
    assert entries[: len(first) - 1] == first[:-1]
    assert sorted(entry["image"] for entry in entries) == list(range(40))
    for entry in entries:
        bits = -entry["log_prob"] / 64 / math.log(2) + 7
        np.testing.assert_allclose(bits, bits_of(images, entry["image"]), atol=1e-4)

    monkeypatch.setattr(likelihood, "stream_log_likelihoods", pytest.fail)
    measure(prepared, tmp_path, images=images, content=content)
    assert len(results.read(tmp_path)) == 1
    prepared.config.eval.num_samples = 30
    fewer = measure(prepared, tmp_path, images=images, content=content)
    assert fewer["num_images"] == 30


def test_a_workdir_with_other_likelihoods_is_refused(prepared, tmp_path):
    images, content = open_held_out(prepared.config, None)
    identity, _ = likelihood.identity_of(
        prepared.config,
        checkpoint_sha256=prepared.weights["checkpoint_sha256"],
        images=f"{images.name}:{images.split}:{images.count}",
        images_sha256=content,
    )
    workdir.claim(tmp_path, identity, file="likelihood.json", holds="likelihoods")
    other = dataclasses.replace(prepared, config=config_of(**{"likelihood.rtol": 0.1}))
    with pytest.raises(ValueError, match=r"holds likelihoods of this config .*likelihood.rtol = 0.1"):
        measure(other, tmp_path, images=images, content=content)
    with pytest.raises(ValueError, match=r"set back images_sha256 = 'else' \(there '[0-9a-f]{64}'\)"):
        measure(prepared, tmp_path, images=images, content="else")
    (tmp_path / likelihood.LIKELIHOODS).write_text("somebody's own\n")
    with pytest.raises(ValueError, match=r"line 1 of .* must be the likelihood of an image \(got b\"someb"):
        measure(prepared, tmp_path, images=images, content=content)


def test_the_classes_of_the_images_are_the_conditions_and_failed_images_are_counted(
    prepared, tmp_path, monkeypatch
):
    def not_for_threes(x, t, classes):
        return jnp.where((classes == 3).reshape(-1, 1, 1, 1), jnp.nan, -x)

    monkeypatch.setattr(run.Run, "load_score_fn", lambda self: Partial(not_for_threes))
    conditional = dataclasses.replace(prepared, config=config_of(**{"model.num_classes": 10}))
    images, content = open_held_out(conditional.config, None)
    result = measure(conditional, tmp_path, images=images, content=content)
    assert images.labels is not None
    (threes,) = np.nonzero(images.labels[:40] == 3)
    assert result["failed"] == len(threes) > 0
    assert sorted(e["image"] for e in entries_of(tmp_path) if e["log_prob"] is None) == list(threes)
    assert f"{len(threes)} FAILED" in likelihood.summary(result)


def test_held_out_images_are_those_of_the_test_split_or_of_a_path(tmp_path):
    config = config_of(**{"data.name": "mnist", "data.image_size": 28, "data.split": None})
    config.data.path = str(tmp_path / "mnist")
    for split, number in (("train", 3), ("test", 2)):
        images = random_images(number, 28, 1, seed=number)[..., 0]
        write_mnist(tmp_path / "mnist", images, np.zeros(number, np.uint8), split)
    found, content = open_held_out(config, None)
    assert (found.split, found.count) == ("test", 2)
    config.data.split = "train"
    assert open_held_out(config, None)[0].count == 3
    assert open_held_out(config, None)[1] != content

    config = config_of(**{"data.split": None})
    folder = write_folder(tmp_path / "images", random_images(4, 8, 1))
    assert open_held_out(config, str(folder))[0].count == 4
    allowed = r"must be a data set with held-out images \(got '{}'\): name such images with --images=PATH"
    with pytest.raises(ValueError, match="config.data.name " + allowed.format("digits")):
        open_held_out(config, None)
    config.data.path = str(folder)
    with pytest.raises(ValueError, match="config.data.path " + allowed.format(folder)):
        open_held_out(config, None)
    config.model.num_classes = 10
    with pytest.raises(ValueError, match=r"--images must be absent with config.model.num_classes = 10"):
        open_held_out(config, str(folder))


def test_dequantization_fills_the_grey_levels_and_belongs_to_the_image():
    image = random_images(1, 16, 3)[0]
    x = dequantized(image, seed=0, number=5, centered=False)
    assert ((image / 256 <= x) & (x <= (image + 1.0) / 256)).all()
    # a mean of 768 uniform numbers has a deviation of 0.0104
    assert abs(np.mean(256 * x - image) - 0.5) < 5 * 0.0104
    np.testing.assert_array_equal(dequantized(image, seed=0, number=5, centered=True), 2 * x - 1)
    for other in ({"seed": 1, "number": 5}, {"seed": 0, "number": 6}):
        assert not np.array_equal(dequantized(image, centered=False, **other), x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"likelihood.rtol": 0.0}, r"config.likelihood.rtol must be a number > 0 \(got 0.0\)"),
        ({"likelihood.divergence": "exact"}, r"config.likelihood.num_probes must be None with divergence"),
        ({"likelihood.num_probes": 1}, r"config.likelihood.num_probes must be at least 2 \(got 1\)"),
        ({"guidance.scale": 2.0}, r"config.guidance.scale must be 1.0, since scores with guidance"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        likelihood.check(config_of(**changes))
