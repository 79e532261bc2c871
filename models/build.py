"""From a config to its network: parameters, and the score function that the solvers call."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, PRNGKeyArray

from configs import image_shape
from models.ddpm import DDPM
from models.layers import AnyArray
from models.ncsnpp import NCSNpp
from sde_lib import SDE, from_config
from sde_lib.checks import require, require_choice
from sde_lib.predictions import Reading

Params = dict[str, Any]  # nested: module name -> ... -> parameter name -> array

# Options that one of the two networks lacks, and the value of each that means so
_LACKING: dict[str, dict[str, Any]] = {
    "ddpm": {
        "fir": False,
        "progressive": "none",
        "progressive_input": "none",
        "scale_by_sigma": False,
        "patch_size": 1,
    },
    "ncsnpp": {
        "norm_groups": 32,
        "norm_epsilon": 1e-6,
        "attn_every_up_block": False,
        "attn_head_dim": None,
        "downsample_padding": 0,
        "freq_shift": 1,
    },
}
PUBLISHED = Reading(prediction="published", time="published", sigma_data=None)
# Fields of a module that are config.data's; the others are config.model's
_DATA_FIELDS = ("image_size", "image_width", "num_channels", "centered")


@dataclasses.dataclass(frozen=True)
class Network:
    """A score network without its weights; equal networks share compiled programs.

    Attributes:
        module: the flax module, whose output is ``apply({"params": params}, x [b, h, w, c], label [b])``. A
            class-conditional one gets the classes [b], too.
        reading: what the label is, and how the output stands for the score.

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
    reading: Reading = PUBLISHED

    def init(self, key: PRNGKeyArray) -> Params:
        """Random float32 parameters to start a training with; a third of the time under ``jax.jit``."""
        image = jnp.zeros((1, *image_shape(self.module)))
        classes = (jnp.zeros(1, jnp.int32),) if self.module.num_classes else ()
        return dict(self.module.init(key, image, jnp.ones((1,)), *classes)["params"])

    def abstract_params(self) -> Params:
        """The parameters as ``jax.ShapeDtypeStruct``, without computing any; layers in order of use."""
        return dict(_abstract_params(self))

    def score(
        self,
        sde: SDE,
        params: Params,
        x: Float[AnyArray, "b h w c"],
        t: Float[AnyArray, " b"],
        classes: Int[AnyArray, " b"] | None = None,
        *,
        dropout_key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b h w c"]:
        """The score of x at times t, float32.

        With ``sigma_data`` the network is preconditioned as in EDM, so that it only learns what a Gaussian of
        that deviation does not explain: see sde_lib/predictions.py.

        Args:
            sde: the process that the score belongs to.
            params: the network's parameters.
            x: a batch of images, perturbed by the process.
            t: their times.
            classes: their classes, -1 for none, of a class-conditional network.
            dropout_key: for training: randomness of the dropout, which is off without it.
        """
        training = {} if dropout_key is None else {"train": True, "rngs": {"dropout": dropout_key}}
        labels = () if classes is None else (classes,)

        def output(x: Array, label: Array) -> Any:
            return self.module.apply({"params": params}, x, label, *labels, **training)

        return self.reading.score_of(output, sde, x, t)

    def score_fn(self, sde: SDE, params: Params) -> Partial:
        """The score as a function of a batch: ``score_fn(x [b, h, w, c], t [b]) -> [b, h, w, c]``, float32.

        That of a class-conditional network is ``score_fn(x, t, classes [b])``.

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
        self,
        sde: Any,
        params: Params,
        x: Float[AnyArray, "b h w c"],
        t: Float[AnyArray, " b"],
        classes: Int[AnyArray, " b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        return self.network.score(sde, params, x, t, classes)


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
    other = "ddpm" if model.name == "ncsnpp" else "ncsnpp"
    for name, absent in _LACKING[model.name].items():
        require(
            model[name] == absent,
            f"config.model.{name}",
            model[name],
            f"{absent!r} with config.model.name={model.name!r}, which has no such option",
            f"set config.model.{name} to {absent!r}, or config.model.name to {other!r}",
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
    network, sde = Network(kind(**fields), _reading(model)), from_config(config.sde)
    try:
        network.module.check()
        network.reading.check(sde)
    except ValueError as error:
        group = "data" if str(error).startswith(_DATA_FIELDS) else "model"
        raise ValueError(f"config.{group}.{error}") from None
    try:
        network.abstract_params()
    except ValueError as error:  # channels that no normalisation can divide
        raise ValueError(f"config.model: {error}") from None
    return network


def _reading(model: Any) -> Reading:
    prediction = model.prediction or ("published" if model.sigma_data is None else "edm")
    return Reading(prediction=prediction, time=model.time or "published", sigma_data=model.sigma_data)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
