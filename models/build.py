"""From a config to a network, to its parameters, and to the score function that the solvers call."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from models.ddpm import DDPM
from models.layers import AnyArray
from models.ncsnpp import NCSNpp
from sde_lib import SDE
from sde_lib.checks import require, require_choice

Network = NCSNpp | DDPM
Params = dict[str, Any]  # nested: module name -> ... -> parameter name -> array
ScoreFunction = Partial  # score_fn(x [b, h, w, c], t [b]) -> [b, h, w, c]

# What DDPM does not have, and the value that says so
_NOT_IN_DDPM = {"fir": False, "progressive": "none", "progressive_input": "none", "scale_by_sigma": False}


def build(config: Any) -> Network:
    """The network that a whole config (see configs/base.py) describes; equal configs give equal modules.

    ``module.apply({"params": params}, x [b, h, w, c], label [b])`` is its output, where label is
    ``sde.network_time(t)``; for training add ``train=True, rngs={"dropout": key}``.

    Raises:
        ValueError: naming the key, its value, what was allowed and the fix.
    """
    model, data = config.model, config.data
    require_choice("config.model.name", model.name, ("ncsnpp", "ddpm"))
    require_choice("config.model.dtype", model.dtype, ("float32", "bfloat16"))
    network = NCSNpp if model.name == "ncsnpp" else DDPM
    if network is DDPM:
        for name, absent in _NOT_IN_DDPM.items():
            require(
                model[name] == absent,
                f"config.model.{name}",
                model[name],
                f"{absent!r} with config.model.name = 'ddpm', which does not have it",
                "set it so, or config.model.name='ncsnpp'",
            )
    require(
        not model.scale_by_sigma or config.sde.name == "ve",
        "config.model.scale_by_sigma",
        model.scale_by_sigma,
        f"False with config.sde.name = {config.sde.name!r}, whose network labels are no noise levels",
        "set config.model.scale_by_sigma=False",
    )
    own = {field.name for field in dataclasses.fields(network)}
    fields: dict[str, Any] = {name: _hashable(value) for name, value in model.items() if name in own}
    fields |= {name: data[name] for name in ("image_size", "num_channels", "centered")}
    fields["dtype"] = jnp.dtype(model.dtype)
    module = network(**fields)
    try:
        module.check()
    except ValueError as error:
        raise ValueError(f"config.{error}") from None
    return module


def init_params(config: Any, key: PRNGKeyArray) -> Params:
    """Random parameters for a start of training, float32; ``jax.jit`` it to start in a third of the time."""
    return _init(build(config), key)


def abstract_params(config: Any) -> Params:
    """The parameters' shapes as ``jax.ShapeDtypeStruct``, at no cost; modules in the order of their use."""
    module: Any = build(config)  # hashable, which a flax module's type does not say
    return dict(_abstract_params(module))


@functools.lru_cache
def _abstract_params(module: Network) -> Params:
    order: list[str] = []

    def init(key: PRNGKeyArray) -> Params:
        params = _init(module, key)
        order.extend(params)  # JAX hands dictionaries on with sorted keys
        return params

    shapes = jax.eval_shape(init, jax.random.key(0))
    return {name: shapes[name] for name in order}


def score_fn(config: Any, sde: SDE, params: Params) -> ScoreFunction:
    """The score as a function of a batch: ``score(x [b, h, w, c], t [b]) -> [b, h, w, c]``, all float32.

    It is a pytree whose leaves are the parameters and the process's numbers: pass it to ``jax.jit`` as an
    argument, and neither other weights nor another sigma_max compile anew.
    """
    return Partial(_Score(build(config), config.model.sigma_data), sde, params)


@dataclasses.dataclass(frozen=True)
class _Score:
    """The static part of a score function; equal for equal modules, so that compiled programs are found."""

    module: nn.Module
    sigma_data: float | None

    def __call__(
        self, sde: Any, params: Params, x: Float[AnyArray, "b h w c"], t: Float[AnyArray, " b"]
    ) -> Float[Array, "b h w c"]:
        def network(x: Array, label: Array) -> Any:
            return self.module.apply({"params": params}, x, label)

        return score_of_network(network, sde, self.sigma_data, jnp.asarray(x), jnp.asarray(t))


def score_of_network(
    network: Callable[[Array, Array], Array],
    sde: SDE,
    sigma_data: float | None,
    x: Float[Array, "b h w c"],
    t: Float[Array, " b"],
) -> Float[Array, "b h w c"]:
    """The score that ``network`` (x, label) -> output stands for at a batch of (x, t).

    Published networks give it by ``sde.score``. With ``sigma_data`` the network is wrapped as in EDM (Karras
    et al., arXiv 2206.00364, eq. 7 and table 1): with y = x/alpha, s = sigma/alpha, r^2 = s^2 + sigma_data^2,

        D(y; s) = (sigma_data/r)^2 y + (s sigma_data/r) network(y/r),    score = (alpha D − x)/sigma^2,

    so that the network has only to tell what a Gaussian of that deviation does not know.
    """
    label: Any = jax.vmap(sde.network_time)(t)
    if sigma_data is None:
        return jax.vmap(sde.score)(network(x, label), t)
    marginal: Any = jax.vmap(sde.marginal)(t)
    alpha, sigma = (value[:, None, None, None] for value in marginal)
    y, s = x / alpha, sigma / alpha
    r = jnp.sqrt(s**2 + sigma_data**2)
    # (alpha D − x)/sigma^2 with the terms in y collected, which would cancel for small sigma
    return (sigma_data / r * network(y / r, label) - s / r**2 * y) / sigma


def _init(module: Network, key: PRNGKeyArray) -> Params:
    image = jnp.zeros((1, module.image_size, module.image_size, module.num_channels))
    return dict(module.init(key, image, jnp.ones((1,)))["params"])


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
