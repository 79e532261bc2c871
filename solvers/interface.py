"""What a solver is: ask for a score, be told it, until the sample is done.

    state = solver.init(sde, key, shape, dtype)
    while state.status == Status.RUNNING:
        x, t = solver.ask(state)
        state = solver.tell(sde, state, score_fn(x, t))

There is no batch axis: ``x`` has the sample's shape and ``t`` is a scalar. ``jax.vmap`` makes lanes of it.
"""

from __future__ import annotations

import enum
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from sde_lib import SDE

Sample = Float[Array, "*shape"]
Time = Float[Array, ""]
Count = Int[Array, ""]
Flag = Bool[Array, ""]


class Status(enum.IntEnum):
    """How a sample stands; everything above COMPLETED is a failure of that sample alone."""

    RUNNING = -1
    COMPLETED = 0  # reached eps (and was denoised, where that was asked for)
    NON_FINITE = 1  # the score or the sample became NaN or infinite; x is the last finite value
    MAX_EVALUATIONS = 2  # the cap on evaluations came first
    STEP_TOO_SMALL = 3  # the step fell below the floating-point resolution of t


@runtime_checkable
class State(Protocol):
    """What the driver reads of a solver's state; the rest is the solver's own."""

    @property
    def x(self) -> Any:
        """The sample at time ``t``."""
        ...

    @property
    def t(self) -> Any:
        """Forward time, from T down to eps."""
        ...

    @property
    def status(self) -> Any:
        """``Status.RUNNING`` until t = eps, then ``Status.COMPLETED``; STEP_TOO_SMALL when stuck."""
        ...

    @property
    def accepted(self) -> Any:
        """Steps taken."""
        ...

    @property
    def rejected(self) -> Any:
        """Steps tried in vain."""
        ...


@runtime_checkable
class Solver(Protocol):
    """A frozen dataclass pytree: tolerances are leaves, so that changing one does not recompile."""

    evaluations_per_step: ClassVar[int]  # of a step that is tried anew in full, as lockstep samplers do

    def init(self, sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Any:
        """The state at t = T: a sample of the prior. ``key`` belongs to this sample alone."""
        ...

    def ask(self, state: Any) -> tuple[Sample, Time]:
        """Where the score is wanted next."""
        ...

    def tell(self, sde: SDE, state: Any, score: Sample) -> Any:
        """Uses the score at the point asked for; counts a step as accepted or rejected when it ends."""
        ...
