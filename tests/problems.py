"""Problems with scores and solutions in closed form."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from sde_lib import SDE, VESDE, VPSDE, CosineVP, DiscreteVP, EDMProcess, RectifiedFlow, SubVPSDE
from solvers import Adaptive

SDES: dict[str, Any] = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}
# Sampling starts from other times than 1, or ends at others than 1e-5 and 1e-3.
PATHS: dict[str, Any] = {
    "edm": EDMProcess(),
    "flow": RectifiedFlow(),
    "cosine": CosineVP(),
    "table": DiscreteVP.from_betas(np.linspace(1e-4, 0.02, 1000)),  # that of DDPM
}
# the paper's tolerances and first steps
ADAPTIVE = {
    "ve": Adaptive(eps_rel=0.05, eps_abs=1 / 256, first_step=0.5),
    "vp": Adaptive(eps_rel=0.05, eps_abs=2 / 256, first_step=0.01),
    "subvp": Adaptive(eps_rel=0.05, eps_abs=2 / 256, first_step=0.01),
}


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Data ~ N(mean, std^2 I), with Gaussian marginals and a Gaussian reverse process at every t."""

    mean: float = 0.3
    std: float = 0.2

    def marginal(self, sde: SDE, t: Any) -> tuple[Any, Any]:
        """(mean, standard deviation) of x(t)."""
        alpha, sigma = sde.marginal(t)
        return alpha * self.mean, jnp.sqrt((alpha * self.std) ** 2 + sigma**2)

    def score(self, sde: SDE, x: Any, t: Any) -> Any:
        """The score of one sample x at a scalar t."""
        alpha, sigma = sde.marginal(t)
        return (alpha * self.mean - x) / ((alpha * self.std) ** 2 + sigma**2)

    def score_fn(self, sde: SDE) -> Partial:
        """The score of a batch, as the driver calls it; equal problems give equal functions."""
        return Partial(_batched_score, self, sde)


jax.tree_util.register_static(Gaussian)


def _batched_score(problem: Gaussian, sde: SDE, x: Any, t: Any) -> Any:
    return jax.vmap(lambda x, t: problem.score(sde, x, t))(x, t)
