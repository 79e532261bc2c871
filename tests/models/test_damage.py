"""Damaged checkpoint files end in a ValueError or give the right weights, whatever the damage."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from tests.models import edm_files, tiny

KINDS = ("jax", "torch", "legacy", "edm")
FEW, MANY = 40, 3000  # examples for each kind


@dataclasses.dataclass(repr=False)  # hypothesis would print all weights
class Place:
    """A config, the path and the intact content of a checkpoint file, and the weights in it."""

    config: Any
    path: Path
    intact: bytes
    params: Any


@pytest.fixture(scope="module", params=KINDS)
def place(request, tmp_path_factory) -> Place:
    of_edm = {
        "fir": True,
        "progressive_input": "residual",
        "embedding_type": "fourier",
        "scale_by_sigma": True,
    }
    options = {**of_edm, "fourier_scale": 16.0} if request.param == "edm" else {}
    config = tiny.config(sde="ve", ch_mult=(1,), attn_resolutions=(), **options)
    ema, raw = tiny.params(config), tiny.params(config, seed=1)
    path = tmp_path_factory.mktemp("damage") / "checkpoint_7"
    if request.param == "jax":
        tiny.write_jax(path, ema, raw)
    elif request.param == "edm":
        edm_files.write(path, {"ema": edm_files.network(config, ema, "VEPrecond")})
    else:
        order = list(models.build(config).abstract_params())
        tiny.write_torch(path, order, ema, raw, legacy=request.param == "legacy")
    return Place(config, path, path.read_bytes(), ema)


def restored(place: Place, content: bytes) -> Any:
    """The weights in a file of this content, or None if it is refused."""
    place.path.write_bytes(content)
    try:
        return models.restore_params(place.path, models.build(place.config), place.config)[0]
    except ValueError as error:
        if str(place.path) not in str(error):
            raise
        return None


def assert_whole_or_refused(place: Place, data: Any) -> None:
    intact = place.intact
    content = bytearray(intact)
    if data.draw(st.booleans(), "truncated"):
        length = data.draw(st.integers(0, len(intact) - 1), "length")
        assert restored(place, intact[:length]) is None
        return
    # Half of the damage goes where names and shapes are, of which files have a few and tensors' bytes many
    words = [at for at in range(len(intact)) if intact[at : at + 4].isalpha()]
    positions = st.one_of(st.sampled_from(words), st.integers(0, len(intact) - 1))
    damage = st.tuples(positions, st.integers(0, 255))
    for position, byte in data.draw(st.lists(damage, min_size=1, max_size=4), "damage"):
        content[position] = byte
    found = restored(place, bytes(content))
    if found is None:
        return
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, place.params)
    if intact.startswith(b"PK"):  # the others have no checksum: other numbers are numbers, too
        jax.tree.map(np.testing.assert_array_equal, found, place.params)


@settings(max_examples=FEW, derandomize=True, database=None, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_right(place, data):
    assert_whole_or_refused(place, data)


@pytest.mark.slow
@settings(max_examples=MANY, database=None, deadline=None)
@given(data=st.data())
def test_many_damaged_files(place, data):
    assert_whole_or_refused(place, data)
