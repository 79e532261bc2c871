"""Likelihoods, and latents and back, by the probability-flow ODE (arXiv 2011.13456, section 4.3).

The ODE carries the density of data at t = eps to the prior at t = T, along v = f − g² s/2:

    dx/dt = v(x, t);      log p(x(eps)) = log N(x(T); 0, prior_std² I) + ∫ ∇·v dt,  from eps to T

The divergence is exact, with a derivative along each of the D dimensions; or it is Hutchinson's estimate, the
mean of e·(∂v/∂x)e over several random e of ±1 (same source, appendix D.2). Each e stays the same along the
path, whose integrand is therefore smooth.

The driver runs this as it runs any sampling: RK45 takes each sample from T to eps of a process that is made
for it, ``Path``. The time of that process is the log-SNR that is left to go. With lambda = log(alpha/sigma)
and g² = −2 sigma² dlambda/dt (sde_lib/paths.py), the ODE is

    dx/dlambda = −(2 sigma²/g²) v

RK45 carries x and the integral of ∇·v/D, one for each e. So the tolerance of the integrals is one in nats a
dimension.

The density is that of the process at t = eps, at the point x as it is given. This is the convention of the
published code. It differs from the density of the data by the noise at eps; for the published VE, sigma(eps)
is 0.01, two to three grey levels of images in [0, 1].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float64, PRNGKeyArray

from sde_lib import SDE, ScoreFn, probability_flow_drift
from sde_lib.checks import is_known, require, require_choice, require_count, require_number
from sde_lib.guidance import evaluations_of
from sde_lib.processes import Sample, Scalar
from sde_lib.pytrees import as_partial, register_dataclass
from solvers.arguments import ON_THE_HOST, as_arrays
from solvers.driver import Solution, sample, stream
from solvers.interface import Status
from solvers.noise import sample_key
from solvers.queues import SampleIds, ids_asked_for
from solvers.rk45 import RK45
from solvers.rows import Start
from solvers.sums import inner_product

Divergence = Literal["exact", "hutchinson"]

TOLERANCE = 1e-5  # as published
PROBES = 8  # by default
DERIVATIVES = 64  # of the exact divergence that are computed together

# Keeps the probes apart from the noise of samples, whose keys are folded from the same root.
_STREAM = 0x7072_6F62


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihood:
    """The log-likelihood of each sample.

    Attributes:
        log_prob: log p(x) in nats, of the density in data units, [n]; NaN for a sample that failed.
        standard_error: of ``log_prob``, from the spread of Hutchinson's estimates, [n]; 0 for the exact
            divergence. The error of the ODE's steps is not in it.
        latent: the sample at t = T, [n, ...].
        sample_ids: the id of each sample, [n].
        nfe: network evaluations of each sample, [n]. The derivatives are not counted.
        status: a ``solvers.Status`` for each sample, [n].
    """

    log_prob: np.ndarray
    standard_error: np.ndarray
    latent: np.ndarray
    sample_ids: np.ndarray
    nfe: np.ndarray
    status: np.ndarray

    def bits_per_dim(self, bin_width: float = 1.0) -> np.ndarray:
        """``bits_per_dim`` of each sample, [n]."""
        return bits_per_dim(self.log_prob, math.prod(self.latent.shape[1:]), bin_width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transported:
    """Samples at the other end of the probability flow.

    Attributes:
        x: the samples, [n, ...].
        nfe: network evaluations of each sample, [n].
        status: a ``solvers.Status`` for each sample, [n].
    """

    x: np.ndarray
    nfe: np.ndarray
    status: np.ndarray


def bits_per_dim(
    log_prob: Float64[np.ndarray, " n"], dims: int, bin_width: float = 1.0
) -> Float64[np.ndarray, " n"]:
    """−log2 of the probability of a bin around x, over the number of dimensions.

    For x = w (k + u) + constant with a whole number k in each dimension and u ~ U(0, 1), which is uniform
    dequantization, the mean over u bounds −log2 P(k) a dimension from above (Theis et al., arXiv 1511.01844,
    section 3.1). Images of 256 grey levels have w = 1/256 in [0, 1] and 2/256 in [−1, 1]. This adds 8 and 7
    bits to those of the density.

    Args:
        log_prob: log p(x) in nats.
        dims: number of dimensions of x.
        bin_width: w in data units; at 1, the result is that of the density itself.

    Example:
        >>> import numpy as np
        >>> from solvers.likelihood import bits_per_dim
        >>> print(bits_per_dim(np.zeros(1), 2, 1 / 256))  # density 1 on [0, 1]^2: 256 levels, all as likely
        [8.]
    """
    return -(log_prob / dims + math.log(bin_width)) / math.log(2)


def check_accuracy(*, divergence: Divergence, num_probes: int | None, rtol: float, atol: float) -> None:
    """Raises ValueError for settings that ``log_likelihood`` refuses."""
    _likelihood_flow((1,), divergence, None if divergence == "exact" else jax.random.key(0), num_probes)
    RK45(rtol=rtol, atol=atol)


def log_likelihood(
    score_fn: ScoreFn,
    sde: SDE,
    x: Any,
    *,
    key: PRNGKeyArray | None = None,
    sample_ids: Sequence[int] | np.ndarray | None = None,
    conditions: Any = None,
    divergence: Divergence = "exact",
    num_probes: int | None = None,
    rtol: float = TOLERANCE,
    atol: float = TOLERANCE,
    **settings: Any,
) -> Likelihood:
    """log p(x) of samples at t = eps, by the probability-flow ODE with steps of each sample's own.

    Args:
        score_fn: (x [b, ...], t [b]) -> score [b, ...], or (x, t, condition) with ``conditions``. JAX must be
            able to differentiate it once.
        sde: the process that the score belongs to.
        x: [n, ...], in data units; its type is that of the computation.
        key: of the probes, for "hutchinson" alone.
        sample_ids: the id of each sample, by default 0 to n − 1. The probes of a sample depend on the key and
            its id alone.
        conditions: a pytree of arrays with one row for each sample.
        divergence: "exact" takes as many derivatives as x has dimensions, at every evaluation; "hutchinson"
            takes ``num_probes``.
        num_probes: 8 by default. At least 2, since their spread gives the standard error.
        rtol, atol: tolerances of RK45, relative and absolute, the latter in data units and in nats a
            dimension.
        settings: ``batch_size``, ``max_evaluations``, ``devices`` and ``progress`` of ``solvers.sample``.

    Returns:
        The likelihoods, in the order of x.

    Raises:
        ValueError: for an x that is not finite, an unknown divergence, a key or a number of probes that is
            missing or not used; and as ``solvers.sample``.

    Example:
        >>> import jax.numpy as jnp, sde_lib
        >>> from solvers import log_likelihood
        >>> score_fn = lambda x, t: -x  # of standard normal data
        >>> found = log_likelihood(score_fn, sde_lib.VPSDE(), jnp.zeros((1, 2)))
        >>> print(found.log_prob.round(3))  # −log(2 pi)
        [-1.838]
    """
    x = _checked_samples(x)
    _prior_std(sde)  # refused before any work
    flow = _likelihood_flow(x.shape[1:], divergence, key, num_probes)
    path = Path(sde=sde, begin=sde.eps, end=sde.T)
    ids = _ids_of(x, sample_ids)
    solution = sample(
        **_sampling(flow, path, score_fn, key, (rtol, atol), x.dtype),
        sample_ids=ids,
        conditions=_given(ids, conditions),
        start=Start(flow.begin(x), as_arrays(path, x.dtype).T),
        **settings,
    )
    return _likelihood(solution, sde, flow)


def stream_log_likelihoods(
    score_fn: ScoreFn,
    sde: SDE,
    x: Callable[[np.ndarray], Any],
    *,
    shape: tuple[int, ...],
    sample_ids: SampleIds,
    lanes: int,
    key: PRNGKeyArray | None = None,
    conditions: Callable[[np.ndarray], Any] | None = None,
    divergence: Divergence = "exact",
    num_probes: int | None = None,
    rtol: float = TOLERANCE,
    atol: float = TOLERANCE,
    dtype: Any = jnp.float32,
    **settings: Any,
) -> Iterator[Likelihood]:
    """Yields likelihoods as samples finish, in no fixed order, for more samples than fit in memory.

    Args:
        x: ids [n] -> samples [n, ...], called when the devices are about to need them.
        shape: of one sample.
        sample_ids, lanes: see ``solvers.stream``.
        conditions: ids [n] -> a pytree of arrays with one row for each.
        dtype: of the computation.
        settings: ``max_evaluations``, ``devices``, ``progress`` and ``total`` of ``solvers.stream``.
        score_fn, sde, key, divergence, num_probes, rtol, atol: see ``log_likelihood``.

    Raises:
        ValueError: as ``log_likelihood``; for settings, at the call and not only when the first is taken.
    """
    _prior_std(sde)  # refused before any work
    flow = _likelihood_flow(shape, divergence, key, num_probes)
    path = Path(sde=sde, begin=sde.eps, end=sde.T)
    end = as_arrays(path, dtype).T

    def start(ids: np.ndarray) -> Start:
        return Start(flow.begin(jnp.asarray(x(ids), dtype)), end)

    def given(ids: np.ndarray) -> dict[str, Any]:
        return _given(ids, None if conditions is None else conditions(ids))

    parts = stream(
        **_sampling(flow, path, score_fn, key, (rtol, atol), dtype),
        sample_ids=sample_ids,
        lanes=lanes,
        conditions=given,
        start=start,
        **settings,
    )
    return (_likelihood(part, sde, flow) for part in parts)


def encode(
    score_fn: ScoreFn,
    sde: SDE,
    x: Any,
    *,
    t: float | None = None,
    conditions: Any = None,
    rtol: float = TOLERANCE,
    atol: float = TOLERANCE,
    **settings: Any,
) -> Transported:
    """The latents of samples: the probability flow from t = eps to T, or to another time t.

    Args:
        score_fn, sde, x, conditions, rtol, atol, settings: as for ``log_likelihood``.
        t: the time of the latents, above eps and up to T, the default.

    Raises:
        ValueError: as ``log_likelihood``, and for a t out of range.

    Example:
        >>> import jax.numpy as jnp, sde_lib
        >>> from solvers import decode, encode
        >>> score_fn = lambda x, t: -x  # of standard normal data, for which VP changes nothing
        >>> latent = encode(score_fn, sde_lib.VPSDE(), jnp.ones((1, 2))).x
        >>> print(latent.round(3), decode(score_fn, sde_lib.VPSDE(), latent).x.round(3))
        [[1. 1.]] [[1. 1.]]
    """
    x = _checked_samples(x)
    path = Path(sde=sde, begin=sde.eps, end=_checked_time(sde, t))
    return _transported(path, score_fn, x, conditions, (rtol, atol), settings)


def decode(
    score_fn: ScoreFn,
    sde: SDE,
    x: Any,
    *,
    t: float | None = None,
    conditions: Any = None,
    rtol: float = TOLERANCE,
    atol: float = TOLERANCE,
    **settings: Any,
) -> Transported:
    """The way back from the latents x at time t, by default T, to samples at eps; see ``encode``."""
    x = _checked_samples(x)
    path = Path(sde=sde, begin=_checked_time(sde, t), end=sde.eps)
    return _transported(path, score_fn, x, conditions, (rtol, atol), settings)


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Path:
    """A way along the probability flow of a process, as a process for RK45 and the driver.

    Its time s is the log-SNR that is left to go, from T down to eps = 0. Without drift and with g = √2, the
    velocity of its own probability flow is minus the score; so ``_Flow`` returns −dx/ds.

    Attributes:
        sde: the process.
        begin, end: the times of ``sde`` at which the way begins and ends.
    """

    sde: SDE
    begin: Scalar
    end: Scalar

    @property
    def eps(self) -> float:
        return 0.0

    @property
    def T(self) -> Scalar:
        return jnp.abs(self._to_go())

    def at(self, s: Scalar) -> tuple[Scalar, Scalar]:
        """The time t of ``sde`` at s, and dt/ds."""
        sign = jnp.sign(self._to_go())
        t = self.sde.inverse_log_snr(self.sde.log_snr(self.end) + sign * s)
        t = jnp.clip(t, jnp.minimum(self.begin, self.end), jnp.maximum(self.begin, self.end))
        _, sigma = self.sde.marginal(t)
        return t, -sign * 2 * (sigma / self.sde.diffusion(t)) ** 2

    def _to_go(self) -> Scalar:
        return self.sde.log_snr(self.begin) - self.sde.log_snr(self.end)

    def drift(self, x: Sample, t: Scalar) -> Sample:
        return jnp.zeros_like(x)

    def diffusion(self, t: Scalar) -> Scalar:
        return jnp.sqrt(2.0 * jnp.ones_like(t))

    def marginal(self, t: Scalar) -> tuple[Scalar, Scalar]:
        return jnp.ones_like(t), jnp.sqrt(2 * t)

    def log_snr(self, t: Scalar) -> Scalar:
        return -jnp.asarray(t)

    def inverse_log_snr(self, log_snr: Scalar) -> Scalar:
        return -jnp.asarray(log_snr)

    def prior(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Sample:
        return jnp.zeros(shape, dtype)

    def network_time(self, t: Scalar) -> Scalar:
        return t

    def score(self, output: Sample, t: Scalar) -> Sample:
        return output


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Flow:
    """−d/ds of samples, and of the integrals of their divergence, as a score function of ``Path``.

    Attributes:
        shape: of one sample.
        integrals: 1 for the exact divergence, the number of probes for Hutchinson's, 0 for the samples alone.
        exact: whether the divergence is.
        evaluations: of the network, in a call.
    """

    shape: tuple[int, ...]
    integrals: int = 0
    exact: bool = False
    evaluations: int = 1

    @property
    def dims(self) -> int:
        """D."""
        return math.prod(self.shape)

    @property
    def state_shape(self) -> Any:
        """What ``begin`` makes, without the leading axis."""
        return {"x": self.shape, "integrals": (self.integrals,)} if self.integrals else self.shape

    def begin(self, x: Array) -> Any:
        """The state of samples [n, ...] at the beginning of the path."""
        if not self.integrals:
            return x
        return {"x": x, "integrals": jnp.zeros((len(x), self.integrals), x.dtype)}

    def __call__(
        self, score_fn: Partial, path: Path, root: PRNGKeyArray | None, state: Any, s: Array, given: Any
    ) -> Any:
        conditions = (given["condition"],) if "condition" in given else ()
        t, rate = jax.vmap(path.at)(s)

        def backwards(x: Array) -> Array:
            def of_sample(x: Sample, t: Scalar, rate: Scalar, score: Sample) -> Sample:
                return -rate * probability_flow_drift(path.sde, x, t, score)

            return jax.vmap(of_sample)(x, t, rate, score_fn(x, t, *conditions))

        if not self.integrals:
            return backwards(state)
        x = state["x"]
        moved, derivative = jax.linearize(backwards, x)

        def along(e: Array) -> Array:
            """e·(∂v/∂x)e/D of each sample."""
            return jax.vmap(inner_product)(e, derivative(e)) / self.dims

        if self.exact:

            def along_axis(i: Array) -> Array:
                axis = jax.nn.one_hot(i, self.dims, dtype=x.dtype).reshape(self.shape)
                return along(jnp.broadcast_to(axis, x.shape))

            parts = jax.lax.map(along_axis, jnp.arange(self.dims), batch_size=DERIVATIVES)
            return {"x": moved, "integrals": parts.sum(0)[:, None]}
        probes = jax.vmap(self._probes, (None, 0, None))(root, given["id"], x.dtype)
        return {"x": moved, "integrals": jax.vmap(along, 1, 1)(probes)}

    def _probes(self, root: Any, sample_id: Array, dtype: Any) -> Array:
        """Every e of one sample."""
        return jax.random.rademacher(sample_key(root, sample_id), (self.integrals, *self.shape), dtype)


def _sampling(
    flow: _Flow,
    path: Path,
    score_fn: ScoreFn,
    key: PRNGKeyArray | None,
    tolerances: tuple[float, float],
    dtype: Any,
) -> dict[str, Any]:
    """The arguments of the driver for going along a path."""
    rtol, atol = tolerances
    path = as_arrays(path, dtype)
    flow = dataclasses.replace(flow, evaluations=evaluations_of(score_fn))
    root = None if key is None else jax.random.fold_in(key, _STREAM)
    return {
        "score_fn": Partial(flow, as_partial(score_fn), path, root),
        "sde": path,
        "solver": RK45(rtol=rtol, atol=atol),
        "key": jax.random.key(0),  # of a prior that is not drawn
        "shape": flow.state_shape,
        "denoise": False,
        "dtype": dtype,
    }


def _given(ids: np.ndarray, condition: Any) -> dict[str, Any]:
    """What the flow gets with each sample."""
    return {"id": ids} if condition is None else {"id": ids, "condition": condition}


def _prior_std(sde: SDE) -> float:
    """The deviation of the normal prior that samples start from."""
    std = getattr(sde, "prior_std", None)
    allowed = "a process with prior_std, the standard deviation of its normal prior"
    fix = "add the property; only likelihoods need it"
    require(std is not None, "sde", type(sde).__name__, allowed, fix)
    return float(std)  # pyright: ignore[reportArgumentType]


def _likelihood(solution: Solution, sde: SDE, flow: _Flow) -> Likelihood:
    latent = solution.x["x"]
    std, dims = _prior_std(sde), flow.dims
    scaled = latent.reshape(len(latent), dims).astype(np.float64) / std
    log_prior = -0.5 * np.sum(scaled**2, axis=1) - dims * math.log(std * math.sqrt(2 * math.pi))
    divergences = dims * solution.x["integrals"].astype(np.float64)
    error = np.zeros(len(latent))
    if not flow.exact:
        error = divergences.std(axis=1, ddof=1) / math.sqrt(flow.integrals)
    completed = solution.status == Status.COMPLETED
    return Likelihood(
        log_prob=np.where(completed, log_prior + divergences.mean(1), np.nan),
        standard_error=np.where(completed, error, np.nan),
        latent=latent,
        sample_ids=solution.sample_ids,
        nfe=solution.nfe,
        status=solution.status,
    )


def _transported(
    path: Path, score_fn: ScoreFn, x: Array, conditions: Any, tolerances: tuple[float, float], settings: Any
) -> Transported:
    flow, ids = _Flow(shape=x.shape[1:]), _ids_of(x, None)
    solution = sample(
        **_sampling(flow, path, score_fn, None, tolerances, x.dtype),
        sample_ids=ids,
        conditions=_given(ids, conditions),
        start=Start(flow.begin(x), as_arrays(path, x.dtype).T),
        **settings,
    )
    return Transported(x=solution.x, nfe=solution.nfe, status=solution.status)


def _checked_samples(x: Any) -> Array:
    fix = "give samples with a leading axis, in data units"
    single = jax.tree_util.all_leaves([x]) or isinstance(x, list | tuple)
    require(single, "x", type(x).__name__, "one array", fix)
    x = jnp.asarray(x)
    require(is_known(x), "x", "traced", "concrete", ON_THE_HOST)
    fits = x.ndim >= 2 and len(x) > 0 and jnp.issubdtype(x.dtype, jnp.floating)
    described = f"shape {x.shape} and type {x.dtype}"
    allowed = "at least one sample, [n, ...], of a floating-point type"
    require(fits, "x", described, allowed, fix)
    broken = int(jnp.sum(~jnp.isfinite(x)))
    require(broken == 0, "x", f"{broken} values that are not", "finite", "leave out the samples with them")
    return x


def _ids_of(x: Array, sample_ids: Sequence[int] | np.ndarray | None) -> np.ndarray:
    """One id for each sample."""
    ids = ids_asked_for(len(x) if sample_ids is None else None, sample_ids)
    fix = "give one id for each row of x"
    require(len(ids) == len(x), "number of sample_ids", len(ids), f"{len(x)}, the number of samples", fix)
    return ids


def _checked_time(sde: SDE, t: Any) -> Any:
    if t is None:
        return sde.T
    eps, T = float(sde.eps), float(sde.T)
    allowed = f"a time above eps = {eps:g} and up to T = {T:g}"
    require_number("t", t, lambda t: eps < t <= T, allowed, "leave it out for T")
    return t


def _likelihood_flow(shape: tuple[int, ...], divergence: Divergence, key: Any, num_probes: Any) -> _Flow:
    require_choice("divergence", divergence, get_args(Divergence))
    if divergence == "exact":
        fix = "leave it out, or set divergence to 'hutchinson'"
        for name, value in (("key", key), ("num_probes", num_probes)):
            require(value is None, name, value, "None with divergence 'exact'", fix)
        return _Flow(shape=shape, integrals=1, exact=True)
    num_probes = PROBES if num_probes is None else num_probes
    require_count(num_probes=num_probes)
    fix = "set it to 2 or more, since the spread of several gives the standard error"
    require(num_probes >= 2, "num_probes", num_probes, "at least 2", fix)
    allowed = "one key of JAX with divergence 'hutchinson'"
    require(key is not None, "key", key, allowed, "pass jax.random.key(0), say")
    return _Flow(shape=shape, integrals=int(num_probes))
