"""Whatever somebody sets in a config, preparing a run succeeds or says in one line what is wrong."""

import math
import re

import jaxtyping
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import configs
from configs.keys import DECIDES
from evaluation.runs import run
from evaluation.runs.sweep import with_settings
from solvers.presets import SOLVERS

SMALL = st.integers(-2, 40)
NUMBERS = st.one_of(st.floats(width=32), st.sampled_from([0.0, 1e-9, 0.5, 1.0, 2.0, math.inf, math.nan]))
WORDS = st.one_of(
    st.sampled_from(["", "none", "edm", "heun", "l2", "±", "uniform_t", "ve"]), st.text(max_size=5)
)
VALUES = {
    int: st.one_of(SMALL, st.sampled_from([2**31, 2**32, 2**63, -(2**63)])),
    float: NUMBERS,
    bool: st.booleans(),
    str: WORDS,
    tuple: st.lists(st.integers(-1, 4), max_size=3).map(tuple),
}
NAMES = ["ve/digits_adaptive", "vp/digits_adaptive"]
# nobody waits for a network of 2^31 channels
LARGE = ("model.nf", "data.image_size", "data.image_width", "data.num_channels")


@pytest.fixture(autouse=True, scope="module")
def without_checks_of_types():
    """Wrong types meet the project's own messages, as for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def values_of(key: str) -> st.SearchStrategy:
    config = configs.load(NAMES[0])
    group, _, field = key.rpartition(".")
    kind = (config[group] if group else config).get_type(field)
    return SMALL if key in LARGE else VALUES[kind]


OVERRIDES = st.lists(
    st.sampled_from(sorted(DECIDES)).flatmap(lambda key: st.tuples(st.just(key), values_of(key))), max_size=3
).map(dict)


def prepared_or_refused(name: str, solver: str, overrides: dict) -> None:
    config = with_settings(configs.load(name), {"solver.name": solver} | overrides)
    try:
        said = run.prepare(config, name=name).config_hash
    except (ValueError, FileNotFoundError) as refused:
        said = str(refused)
    assert re.fullmatch(r"[0-9a-f]{16}|.* must be .*\(got .*", said)  # a dot is no line break


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sampled_from(NAMES), st.sampled_from(sorted(SOLVERS)), OVERRIDES)
def test_any_override_is_taken_or_refused(name, solver, overrides):
    prepared_or_refused(name, solver, overrides)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(NAMES), st.sampled_from(sorted(SOLVERS)), OVERRIDES)
def test_many_more_overrides_are_taken_or_refused(name, solver, overrides):
    prepared_or_refused(name, solver, overrides)
