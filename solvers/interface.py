"""The interface of a solver: it asks for a score and is told it, until the sample is finished.

    state = solver.init(sde, key, shape, dtype)
    while state.status == Status.RUNNING:
        x, t = solver.ask(state)
        state = solver.tell(sde, state, score_fn(x, t))

There is no batch axis: ``x`` has the shape of one sample and ``t`` is a scalar. The driver applies
``jax.vmap``.
"""

from __future__ import annotations

import enum
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from sde_lib import SDE
from sde_lib.processes import Sample

Time = Float[Array, ""]
Count = Int[Array, ""]
Flag = Bool[Array, ""]


class Status(enum.IntEnum):
    """The status of a sample; every value above COMPLETED is a failure, of that sample alone.

    Example:
        >>> from solvers import Status
        >>> Status(2).name
        'MAX_EVALUATIONS'
    """

    RUNNING = -1
    COMPLETED = 0  # at eps, and denoised if that was asked for
    NON_FINITE = 1  # the score or the sample became NaN or infinite; x is the last finite value
    MAX_EVALUATIONS = 2  # the cap on evaluations was reached first
    STEP_TOO_SMALL = 3  # the step fell below the floating-point resolution of t


@runtime_checkable
class Solver(Protocol):
    """A frozen dataclass pytree of settings; tolerances are leaves, so that changing one does not recompile.

    A solver's state is a dataclass pytree of its own. The driver reads these fields of it and no others:

        x           the sample at time t
        t           forward time, from T down to eps
        status      ``Status.RUNNING`` until t = eps, then ``Status.COMPLETED``;
                    ``Status.STEP_TOO_SMALL`` if the step no longer changes t
        accepted    number of steps taken
        rejected    number of steps tried and rejected

    ``solvers.trace`` reads one more where there is one: e, the error of the last step judged, in units of the
    tolerance. A solver whose settings depend on the size of the data has one more method, ``review(size)``:
    for finished samples of this root mean square, it returns a message if the settings do not suit them.

    Attributes:
        evaluations_per_step: score evaluations of one attempted step, when every attempt starts from scratch,
            as in samplers that run a batch in lockstep.
    """

    evaluations_per_step: ClassVar[int]

    def init(self, sde: SDE, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Any:
        """The state at t = T: a sample of the prior. ``key`` belongs to this sample alone."""
        ...

    def ask(self, state: Any) -> tuple[Sample, Time]:
        """The point (x, t) at which the score is needed next."""
        ...

    def tell(self, sde: SDE, state: Any, score: Sample) -> Any:
        """The next state, given the score at the point asked for; counts a step when the step ends."""
        ...
