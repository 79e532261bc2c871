"""Tree structures include the class; those of JAX's own do not, and programs get mixed up."""

import dataclasses
import itertools
from pathlib import Path

import jax
import pytest

import solvers
from sde_lib.pytrees import STATIC, register_dataclass
from solvers.presets import GRIDS, SOLVERS
from tests.problems import SDES

ROOT = Path(__file__).resolve().parent.parent.parent
THINGS = [*SDES.values(), *(grid() for grid in GRIDS.values()), *(solver() for solver in SOLVERS.values())]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Pair:
    first: float
    second: float
    name: str = dataclasses.field(default="", metadata=STATIC)

    def __post_init__(self):
        if self.first == 13:
            raise ValueError("13")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Other:
    first: float
    second: float
    name: str = dataclasses.field(default="", metadata=STATIC)


def test_leaves_are_fields_and_static_ones_are_structure():
    pair = Pair(1.0, 2.0, "a")
    assert jax.tree.leaves(pair) == [1.0, 2.0]
    assert jax.tree.map(lambda leaf: 2 * leaf, pair) == Pair(2.0, 4.0, "a")
    assert jax.tree.structure(pair) == jax.tree.structure(Pair(3.0, 4.0, "a"))
    assert jax.tree.structure(pair) != jax.tree.structure(Pair(1.0, 2.0, "b"))
    assert [str(path[0]) for path, _ in jax.tree_util.tree_leaves_with_path(pair)] == [".first", ".second"]


def test_two_classes_of_one_shape_have_two_structures():
    assert jax.tree.structure(Pair(1.0, 2.0)) != jax.tree.structure(Other(1.0, 2.0))


@pytest.mark.parametrize(
    ("a", "b"), list(itertools.combinations(THINGS, 2)), ids=lambda thing: type(thing).__name__
)
def test_no_two_of_the_librarys_classes_share_a_structure(a, b):
    assert jax.tree.structure(a) != jax.tree.structure(b)


def test_transformations_skip_the_checks_of_init():
    assert jax.tree.map(lambda _: 13, Pair(1.0, 2.0)).first == 13
    with pytest.raises(ValueError, match="13"):
        Pair(13, 2)


def test_nothing_is_registered_the_other_way():
    modules = [
        path
        for folder in ("sde_lib", "solvers", "models", "training", "evaluation", "benchmarks")
        for path in (ROOT / folder).glob("*.py")
    ]
    found = [str(path) for path in modules if "@jax.tree_util.register_dataclass" in path.read_text()]
    assert not found
    assert solvers.__file__ in map(str, modules)
