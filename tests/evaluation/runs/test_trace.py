"""The pictures of traces."""

import numpy as np
import pytest
from jax.tree_util import Partial
from PIL import Image, ImageSequence

import configs
from evaluation.runs import modes, run
from evaluation.runs.trace import BETWEEN, COLUMNS, levels, tiled
from sde_lib import VPSDE


def test_a_trace_leaves_a_picture_and_an_animation(tmp_path, monkeypatch, capsys):
    config = configs.load("vp/digits_adaptive")
    config.solver.eps_rel = 0.1
    monkeypatch.setattr(run.Run, "load_score_fn", lambda self: Partial(lambda x, t: -x))
    given = {"checkpoint": None, "command": "", "config_path": "vp/digits_adaptive.py"}
    modes.trace(modes.Given(config=config, workdir=str(tmp_path), **given), num_samples=2)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("vp/digits_adaptive   adaptive   eps_rel 0.1")
    assert said[1].startswith("2 samples   NFE ")
    assert said[2] == f"{tmp_path}/trace.png  {tmp_path}/trace.gif"
    with Image.open(tmp_path / "trace.png") as picture:
        assert picture.size[0] > 1000
    with Image.open(tmp_path / "trace.gif") as animation:
        frames = sum(1 for _ in ImageSequence.Iterator(animation))
    assert frames == (COLUMNS - 1) * BETWEEN + 1
    assert (tmp_path / "identity.json").exists()

    config.seed = 1
    with pytest.raises(ValueError, match=r"set back config.seed = 1 \(there 0\)"):
        modes.trace(modes.Given(config=config, workdir=str(tmp_path), **given), num_samples=2)


def test_the_levels_go_from_noise_to_data():
    sde = VPSDE()
    found = levels(sde)
    ends = [float(sde.log_snr(t)) for t in (1.0, 1e-3)]
    np.testing.assert_allclose(found[[0, -1]], ends, rtol=1e-6)
    assert (np.diff(found) > 0).all()


def test_tiles_lie_in_rows_and_columns():
    images = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1).repeat(2, axis=2).repeat(2, axis=3)
    paper = tiled(images, gap=2)
    assert paper.shape == (8, 12, 3)
    np.testing.assert_array_equal(paper[1::4, 1::4, 0], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(paper[[0, 3]], 255)
