"""The figures of benchmarks/third_party.py on images whose own are known; resumption; the missing package."""

import importlib.util
import json
from typing import Any

import jax
import numpy as np
import pytest
from jax.tree_util import Partial

from benchmarks import third_party
from benchmarks.third_party import (
    AGAIN,
    BANDS,
    BRIGHTNESS,
    LARGE,
    PROCESS,
    RATIOS,
    Network,
    compared,
    floor,
    flux,
    geometric_ratio,
    main,
    marked,
    power,
    ratio,
)
from evaluation.metrics.sliced_wasserstein import sliced_wasserstein

N, SIDE = 400, 16


def galaxies(seed, *, brightness=1.0, noise=0.1, n=N):
    """A disc of random brightness and place on noise, as the logarithms that the networks have."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE][:, None] - SIDE / 2 - rng.uniform(-2, 2, (2, n, 1, 1))
    disc = np.exp(-(x**2 + y**2) / 8)
    light = brightness * rng.lognormal(sigma=0.3, size=(n, 1, 1)) * disc
    return np.log1p(light) / BRIGHTNESS + noise * rng.standard_normal((n, SIDE, SIDE))


@pytest.fixture(scope="module")
def chance():
    first, again = galaxies(0), galaxies(1)
    return compared(again, first) | floor(first, again)


def test_white_noise_has_its_variance_as_power_in_every_band():
    images = 3 + 0.5 * np.random.default_rng(0).standard_normal((N, SIDE, SIDE))
    # a band has at least 8 frequencies, half of which are the conjugates of others: exponential variables
    error = 0.25 * np.sqrt(2 / 8 / N)
    np.testing.assert_allclose(power(images).mean(axis=0), 0.25, atol=4 * error)


@pytest.mark.parametrize(
    ("cycles", "band"), [((0, 1), 0), ((1, 0), 0), ((2, 1), 1), ((3, 3), 2), ((6, 5), 3)]
)
def test_a_wave_is_in_the_band_of_its_frequency(cycles, band):
    phase = 2 * np.pi * (np.mgrid[:SIDE, :SIDE] * np.array(cycles)[:, None, None]).sum(axis=0) / SIDE
    found = power(3 * np.cos(phase)[None])[0]
    # all frequencies together have the variance of the pixels: 3²/2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(SIDE)] * 2))
    count = np.sum((np.digitize(frequency, third_party.EDGES) == band) & (frequency > 0))
    expected = np.zeros(len(BANDS))
    expected[band] = 4.5 * SIDE**2 / count
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_flux_is_the_sum_of_the_brightness():
    brightness = np.random.default_rng(0).uniform(0, 5, (3, SIDE, SIDE))
    images = (np.log1p(brightness) / BRIGHTNESS).astype(np.float32)
    np.testing.assert_allclose(flux(images), brightness.sum(axis=(1, 2)), rtol=1e-5)  # of single precision


@pytest.mark.parametrize(("of", "scale"), [(ratio, 0.3), (geometric_ratio, 0.8)])
def test_the_standard_error_of_a_ratio_is_its_scatter(of, scale):
    rng = np.random.default_rng(0)
    found = [of(rng.lognormal(0.2, scale, 300), rng.lognormal(0, scale, 200)) for _ in range(400)]
    logs, errors = np.log([value for value, _ in found]), np.array([error for _, error in found])
    assert logs.mean() == pytest.approx(0.2, abs=4 * errors.mean() / 20)  # 400 draws
    assert errors.mean() == pytest.approx(logs.std(), rel=4 / np.sqrt(800))


def test_other_draws_of_the_same_images_are_not_marked(chance):
    assert marked(chance, chance) == set()
    assert marked(compared(galaxies(2), galaxies(0)), chance) == set()
    assert 0.3 < chance["low"] / chance["floor"] < 1 < chance["high"] / chance["floor"] < 3
    assert chance["high"] < chance["beyond"]


def test_brighter_images_are_marked(chance):
    record = compared(galaxies(2, brightness=1.3), galaxies(0))
    assert {"distance", "flux", "spread", "coarse"} <= marked(record, chance)
    assert record["flux"] == pytest.approx(1.3, abs=LARGE * 1.3 * record["flux_error"])
    assert record["spread"] == pytest.approx(1.3, abs=LARGE * 1.3 * record["spread_error"])


def test_noise_that_was_left_is_in_the_last_band(chance):
    record = compared(galaxies(2, noise=0.11), galaxies(0))
    assert "residual" in marked(record, chance)
    assert not {"flux", "spread", "coarse", "distance"} & marked(record, chance)
    assert record["residual"] == pytest.approx(1.21, rel=0.05)  # the disc has next to nothing there


def test_a_few_images_of_noise_are_marked_as_such(chance):
    x = galaxies(2)
    x[:20] = galaxies(3, noise=0.5, n=20)
    record = compared(x, galaxies(0))
    assert record["noisy"] >= 20
    assert "noisy" in marked(record, chance)


def test_the_floor_is_the_distance_of_two_such_sets(chance):
    pairs = [(galaxies(2 * i), galaxies(2 * i + 1)) for i in range(10, 20)]
    found = np.mean([sliced_wasserstein(x.reshape(N, -1), y.reshape(N, -1)) for x, y in pairs])
    # a distance scatters by about a quarter, and so does the pair of sets behind the floor
    assert found == pytest.approx(chance["floor"], rel=0.4)


def test_a_missing_package_is_named_before_any_work(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "galaxygrad" else find(name)
    )
    with pytest.raises(SystemExit, match=r"galaxygrad must be installed.*: pip install galaxygrad==0\.1\.9"):
        main(["--workdir", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


def test_unknown_networks_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--networks", "HSC_23"])
    assert "did you mean 'HSC_32'?" in capsys.readouterr().err


def test_too_few_samples_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--num_samples", "1"])
    assert "--num_samples must be a whole number >= 16 (got 1): " in capsys.readouterr().err


def gaussian_score(x, t):
    """Of data of deviation 0.5."""
    marginal: Any = jax.vmap(PROCESS.marginal)(t)
    alpha, sigma = (value[:, None, None, None] for value in marginal)
    return -x / (0.25 * alpha**2 + sigma**2)


@pytest.mark.slow
def test_a_killed_run_is_resumed_and_its_figures_are_right(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(third_party, "require_galaxygrad", lambda: None)
    monkeypatch.setattr(third_party, "score_fn", lambda name: Partial(gaussian_score))
    monkeypatch.setitem(third_party.NETWORKS, "HSC_32", Network(side=12))
    path = tmp_path / "figures.json"
    arguments = ["--quick", "--solvers", "er_sde 20", "--num_samples", "128"]
    arguments += ["--workdir", str(tmp_path), "--json", str(path)]
    main(arguments)
    printed = capsys.readouterr().out
    figures = json.loads(path.read_text())["figures"]
    for row in (AGAIN, "er_sde 20"):
        assert figures[f"HSC_32.{row}.failed"] == 0
        # the law is nearly the same for all: within five standard errors, and a tenth for 20 and 50 steps
        for name in RATIOS:
            value, error = (figures[f"HSC_32.{row}.{name}{end}"] for end in ("", "_error"))
            assert abs(np.log(value)) < 5 * error + 0.1, (row, name)
    assert (tmp_path / "third_party.png").stat().st_size > 10_000
    assert (tmp_path / "third_party_images.png").stat().st_size > 10_000

    rows = tmp_path / "third_party.jsonl"
    *whole, last = rows.read_text().splitlines()
    rows.write_text("\n".join([*whole, last[:30]]) + "\n")  # killed while it wrote the last line
    chunk = max((tmp_path / "samples").iterdir(), key=lambda file: file.stat().st_mtime)
    chunk.unlink()
    drawn_anew = []
    draw = third_party.sample
    monkeypatch.setattr(third_party, "sample", lambda *a, **k: drawn_anew.append(a[2]) or draw(*a, **k))
    main(arguments)
    assert drawn_anew == [third_party.SOLVERS["er_sde 20"]]
    assert capsys.readouterr().out == printed
