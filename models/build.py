"""From a config to its network: parameters, and the score function that the solvers call."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from models.ddpm import DDPM
from models.layers import AnyArray
from models.ncsnpp import NCSNpp
from sde_lib import SDE
from sde_lib.checks import require, require_choice, require_positive

Params = dict[str, Any]  # nested: module name -> ... -> parameter name -> array

# Options that DDPM lacks, and the value of each that means so
_NOT_IN_DDPM = {"fir": False, "progressive": "none", "progressive_input": "none", "scale_by_sigma": False}
_DATA_FIELDS = ("image_size", "num_channels", "centered")  # of a module; its other fields are config.model's


@dataclasses.dataclass(frozen=True)
class Network:
    """A score network without its weights; equal networks share compiled programs.

    Attributes:
        module: the flax module. Its output is ``module.apply({"params": params}, x [b, h, w, c], label [b])``
            with the label ``sde.network_time(t)``.
        sigma_data: standard deviation of the images for the preconditioning of EDM, or None for a network
            whose output stands for the score by ``sde.score``; see ``score``.

    Example:
        >>> import jax, sde_lib
        >>> from models import NCSNpp, Network
        >>> module = NCSNpp(8, 1, True, nf=4, ch_mult=(1,), num_res_blocks=1, attn_resolutions=())
        >>> network = Network(module)
        >>> params = jax.jit(network.init)(jax.random.key(0))
        >>> score_fn = network.score_fn(sde_lib.VPSDE(), params)
        >>> score = jax.jit(lambda score_fn, x, t: score_fn(x, t))
        >>> score(score_fn, jnp.zeros((2, 8, 8, 1)), jnp.ones(2)).shape
        (2, 8, 8, 1)
    """

    module: NCSNpp | DDPM
    sigma_data: float | None = None

    def init(self, key: PRNGKeyArray) -> Params:
        """Random float32 parameters to start a training with; a third of the time under ``jax.jit``."""
        image = jnp.zeros((1, self.module.image_size, self.module.image_size, self.module.num_channels))
        return dict(self.module.init(key, image, jnp.ones((1,)))["params"])

    def abstract_params(self) -> Params:
        """The parameters as ``jax.ShapeDtypeStruct``, without computing any; layers in order of use."""
        return dict(_abstract_params(self))

    def score(
        self,
        sde: SDE,
        params: Params,
        x: Float[AnyArray, "b h w c"],
        t: Float[AnyArray, " b"],
        *,
        dropout_key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b h w c"]:
        """The score of x at times t, float32.

        Without ``sigma_data`` it is ``sde.score`` of the network's output, as for published networks. With
        ``sigma_data`` the network is preconditioned as in EDM (Karras et al., arXiv 2206.00364, eq. 7 and
        table 1): with y = x/alpha, s = sigma/alpha, r^2 = s^2 + sigma_data^2,

            D(y; s) = (sigma_data/r)^2 y + (s sigma_data/r) network(y/r),    score = (alpha D − x)/sigma^2,

        so that the network only learns what a Gaussian of that deviation does not explain.

        Args:
            sde: the process that the score belongs to.
            params: the network's parameters.
            x: a batch of images, perturbed by the process.
            t: their times.
            dropout_key: for training: randomness of the dropout, which is off without it.
        """
        x, t = jnp.asarray(x), jnp.asarray(t)
        training = {} if dropout_key is None else {"train": True, "rngs": {"dropout": dropout_key}}
        label: Any = jax.vmap(sde.network_time)(t)

        def output(x: Array) -> Any:
            return self.module.apply({"params": params}, x, label, **training)

        if self.sigma_data is None:
            return jax.vmap(sde.score)(output(x), t)
        marginal: Any = jax.vmap(sde.marginal)(t)
        alpha, sigma = (value[:, None, None, None] for value in marginal)
        y, s = x / alpha, sigma / alpha
        r = jnp.sqrt(s**2 + self.sigma_data**2)
        # (alpha D − x)/sigma^2 with the terms in y collected, which would cancel for small sigma
        return (self.sigma_data / r * output(y / r) - s / r**2 * y) / sigma

    def score_fn(self, sde: SDE, params: Params) -> Partial:
        """The score as a function of a batch: ``score_fn(x [b, h, w, c], t [b]) -> [b, h, w, c]``, float32.

        It is a ``sde_lib.ScoreFn`` and a pytree, whose leaves are the parameters and the process's numbers.
        Passed to ``jax.jit`` as an argument, it compiles only once for all weights and all values of
        sigma_max and its like.
        """
        return Partial(_ScoreOf(self), sde, params)


@dataclasses.dataclass(frozen=True)
class _ScoreOf:
    """The static part of a score function. Bound methods of equal networks would not be equal."""

    network: Network

    def __call__(
        self, sde: Any, params: Params, x: Float[AnyArray, "b h w c"], t: Float[AnyArray, " b"]
    ) -> Float[Array, "b h w c"]:
        return self.network.score(sde, params, x, t)


@functools.lru_cache
def _abstract_params(network: Network) -> Params:
    order: list[str] = []

    def init(key: PRNGKeyArray) -> Params:
        params = network.init(key)
        order.extend(params)  # here, because JAX returns dictionaries with sorted keys
        return params

    shapes = jax.eval_shape(init, jax.random.key(0))
    return {name: shapes[name] for name in order}


def build(config: Any) -> Network:
    """The network that a whole config (see configs/base.py) describes; equal configs give equal networks.

    Raises:
        ValueError: for an option that is out of range or does not go with the others.
    """
    model, data = config.model, config.data
    require_choice("config.model.name", model.name, ("ncsnpp", "ddpm"))
    require_choice("config.model.dtype", model.dtype, ("float32", "bfloat16"))
    kind = NCSNpp if model.name == "ncsnpp" else DDPM
    if kind is DDPM:
        for name, absent in _NOT_IN_DDPM.items():
            require(
                model[name] == absent,
                f"config.model.{name}",
                model[name],
                f"{absent!r} with config.model.name='ddpm', which has no such option",
                f"set config.model.{name} to {absent!r}, or config.model.name to 'ncsnpp'",
            )
    require(
        not model.scale_by_sigma or config.sde.name == "ve",
        "config.model.scale_by_sigma",
        model.scale_by_sigma,
        f"False with config.sde.name={config.sde.name!r}, whose network labels are not noise levels",
        "set config.model.scale_by_sigma=False",
    )
    own = {field.name for field in dataclasses.fields(kind)}
    fields: dict[str, Any] = {name: _hashable(value) for name, value in model.items() if name in own}
    fields |= {name: data[name] for name in _DATA_FIELDS}
    fields["dtype"] = jnp.dtype(model.dtype)
    network = Network(kind(**fields), model.sigma_data)
    try:
        network.module.check()
        if network.sigma_data is not None:
            require_positive(sigma_data=network.sigma_data)
    except ValueError as error:
        group = "data" if str(error).startswith(_DATA_FIELDS) else "model"
        raise ValueError(f"config.{group}.{error}") from None
    try:
        network.abstract_params()
    except ValueError as error:  # channels that no normalisation can divide
        raise ValueError(f"config.model: {error}") from None
    return network


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
