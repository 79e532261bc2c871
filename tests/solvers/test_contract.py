"""The contract of every solver, in one table over all solvers and the three SDEs.

One sample is drawn for every pair of solver and SDE. Tests that compile the driver for each pair run with one
SDE per solver, in turn, and with the others under the ``slow`` marker.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.tree_util import Partial

from sde_lib import SubVPSDE
from solvers import (
    DDIM,
    DEIS,
    EDM,
    ERSDE,
    RK45,
    AdaptiveExponential,
    AncestralSampling,
    AnnealedLangevin,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ReverseDiffusion,
    SASolver,
    SDEDPMSolverPP,
    Status,
    UniPC,
    driver,
    sample,
)
from solvers.noise import sample_key
from solvers.presets import SOLVERS
from tests.compilations import counted
from tests.problems import ADAPTIVE, SDES, Gaussian

pytestmark = pytest.mark.optimized

STEPS = 8
CAP = 1000  # evaluations of one sample, so that an endless loop fails

# name: (a solver, settings to change, which must not recompile)
TABLE = {
    "adaptive": (ADAPTIVE, {"eps_rel": 0.1, "safety": 0.8}),
    "adaptive_hold": (ADAPTIVE, {"eps_rel": 0.1, "noise_on_rejection": "hold"}),
    "adaptive_redraw": (ADAPTIVE, {"eps_rel": 0.1, "noise_on_rejection": "redraw"}),
    "adaptive_exponential": (AdaptiveExponential(), {"eps_rel": 0.05, "eta": 0.5}),
    "adaptive_exponential_ode": (AdaptiveExponential(eta=0.0), {"eps_rel": 0.05, "eta": 0.5}),
    "euler_maruyama": (EulerMaruyama(num_steps=STEPS), {"num_steps": 5}),
    "reverse_diffusion": (ReverseDiffusion(num_steps=STEPS), {"num_steps": 5}),
    "ancestral": (AncestralSampling(num_steps=STEPS), {"num_steps": 5}),
    "predictor_corrector": (
        PredictorCorrector(predictor=EulerMaruyama(num_steps=STEPS), snr=0.05),
        {"snr": 0.1, "corrector_steps": 2, "predictor": EulerMaruyama(num_steps=5)},
    ),
    "annealed_langevin": (AnnealedLangevin(num_steps=STEPS, snr=0.05), {"snr": 0.1, "num_steps": 5}),
    "rk45": (RK45(rtol=1e-3, atol=1e-3), {"rtol": 1e-2, "atol": 1e-2}),
    "heun": (Heun(num_steps=STEPS), {"num_steps": 5}),
    "edm": (EDM(num_steps=STEPS, churn=4.0), {"num_steps": 5, "churn": 2.0, "churn_noise": 1.1}),
    "ddim": (DDIM(num_steps=STEPS, eta=0.5), {"num_steps": 5, "eta": 1.0}),
    "dpm_solver_pp": (DPMSolverPP(num_steps=STEPS), {"num_steps": 5}),
    "dpm_solver_pp_2": (DPMSolverPP(num_steps=STEPS, order=2), {"num_steps": 5}),
    "sde_dpm_solver_pp": (SDEDPMSolverPP(num_steps=STEPS), {"num_steps": 5}),
    "unipc": (UniPC(num_steps=STEPS), {"num_steps": 5}),
    "unipc_2": (UniPC(num_steps=STEPS, order=2), {"num_steps": 5}),
    "deis": (DEIS(num_steps=STEPS), {"num_steps": 5}),
    "er_sde": (ERSDE(num_steps=STEPS), {"num_steps": 5}),
    "sa_solver": (SASolver(num_steps=STEPS), {"num_steps": 5, "tau": 0.5}),
}
STATIC = {"noise_on_rejection"}
OF_TWO_KINDS = {"adaptive", "unipc"}  # one draws noise and rejects steps, one draws none and keeps a history


def solver_of(name, sde_name):
    solver, others = TABLE[name]
    solver = solver[sde_name] if isinstance(solver, dict) else solver
    return dataclasses.replace(solver, **{key: value for key, value in others.items() if key in STATIC})


def changed(name, sde_name):
    others = {key: value for key, value in TABLE[name][1].items() if key not in STATIC}
    return dataclasses.replace(solver_of(name, sde_name), **others)


PAIRS = [(name, sde) for name in TABLE for sde in SDES if (name, sde) != ("ancestral", "subvp")]


def in_turn(quick_ones=TABLE):
    """All pairs. Of each class, one setting with one SDE is quick, if among these names; the rest is slow."""
    names, first = list(SDES), {}
    for name, sde in PAIRS:
        kind = type(solver_of(name, sde))
        turn = names[list(TABLE).index(name) % len(names)]
        quick_sde = "ve" if (name, turn) == ("ancestral", "subvp") else turn
        quick = first.setdefault(kind, name) == name and sde == quick_sde and name in quick_ones
        yield pytest.param(name, sde, marks=() if quick else pytest.mark.slow, id=f"{name}-{sde}")


def by_hand(solver, sde, key, shape, dtype):
    """Draws a sample without the driver; returns the final state and the number of evaluations."""
    # with the leaves that the driver passes
    solver, sde = driver.as_arrays((solver, sde), dtype)
    return _by_hand(solver, sde, key, shape=shape, dtype=dtype)


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _by_hand(solver, sde, key, shape, dtype):
    def step(carry):
        state, calls = carry
        x, t = solver.ask(state)
        return solver.tell(sde, state, Gaussian().score(sde, x, t).astype(dtype)), calls + 1

    def goes_on(carry):
        return (carry[0].status == Status.RUNNING) & (carry[1] < CAP)

    state = solver.init(sde, key, shape, dtype)
    return lax.while_loop(goes_on, step, (state, jnp.int32(0)))


def spoilable(sde, below):
    """An exact score that is NaN at times below ``below`` (never for 0) in the lane that starts with id 3."""
    return Partial(_spoilable, sde, jnp.float32(below))


def _spoilable(sde, below, x, t, means):
    score = jax.vmap(lambda x, t, mean: Gaussian(mean=mean).score(sde, x, t))(x, t, means)
    broken = (jnp.arange(len(t)) == 3) & (t < below)
    return jnp.where(broken.reshape(-1, *(1,) * (x.ndim - 1)), jnp.nan, score)


def draw(solver, sde_name, below=0.0, **settings):
    sde = SDES[sde_name]
    settings = {"key": jax.random.key(0), "shape": (8, 8, 1), "num_samples": 70, **settings}
    ids = settings.get("sample_ids") or range(70)
    # every sample has data of its own, and number 4 those of ``by_hand``
    settings["conditions"] = np.float32(Gaussian().mean + (np.array(ids) - 4) / 100)
    return sample(spoilable(sde, below), sde, solver, denoise=False, max_evaluations=CAP, **settings)


def test_every_solver_is_in_the_table():
    assert {type(solver_of(name, "vp")) for name in TABLE} == set(SOLVERS.values())


@pytest.mark.parametrize(("name", "sde_name"), list(in_turn()))
def test_it_lands_on_eps_without_compiling_twice(name, sde_name):
    sde, dtype = SDES[sde_name], jnp.dtype("float32")
    by_hand(solver_of(name, sde_name), sde, jax.random.key(1), (2,), dtype)
    for solver in (solver_of(name, sde_name), changed(name, sde_name)):
        with counted() as compiled:
            state, calls = by_hand(solver, sde, jax.random.key(1), (2,), dtype)
        assert not compiled
        assert state.status == Status.COMPLETED
        assert state.t == np.float32(sde.eps)
        assert np.isfinite(state.x).all()
        assert state.accepted > 0
        assert state.accepted + state.rejected <= calls


@pytest.mark.parametrize(("name", "sde_name"), list(in_turn()))
@pytest.mark.parametrize("shape", [(2,), (8, 8, 1), (32, 32, 3)])
@pytest.mark.parametrize(("x64", "dtype"), [(False, "float32"), (True, "float32"), (True, "float64")])
def test_shapes_and_dtypes_are_kept(name, sde_name, shape, x64, dtype):
    """Traced, not run: a loop cannot be traced if its state changes a dtype or shape."""
    with jax.enable_x64(x64):
        solver, sde = solver_of(name, sde_name), SDES[sde_name]
        state, _ = jax.eval_shape(lambda: by_hand(solver, sde, jax.random.key(0), shape, jnp.dtype(dtype)))
    assert state.x.shape == shape
    numbers = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in numbers} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(("name", "sde_name"), list(in_turn(OF_TWO_KINDS)))
def test_the_driver_changes_nothing_but_the_pace(name, sde_name):
    """70 samples of 8 x 8: two batch sizes (16 and 64 rows), another order, other settings, and a NaN."""
    solver = solver_of(name, sde_name)
    many = draw(solver, sde_name, batch_size=64)
    seven = draw(solver, sde_name, batch_size=7)
    assert (many.status == Status.COMPLETED).all()
    for field in ("x", "nfe", "accepted", "rejected"):
        np.testing.assert_array_equal(getattr(many, field), getattr(seven, field), field)
    ids = [5, 0, 7, 3, 1, 2, 8]
    shuffled = draw(solver, sde_name, batch_size=7, num_samples=None, sample_ids=ids)
    np.testing.assert_array_equal(shuffled.x, seven.x[ids])

    # every evaluation is counted: the loop without the driver takes as many
    key = sample_key(jax.random.key(0), jnp.uint32(4))
    state, calls = by_hand(solver, SDES[sde_name], key, (8, 8, 1), jnp.dtype("float32"))
    assert calls == many.nfe[4]
    # equal to rounding: another program rounds differently, and an adaptive method may decide differently
    np.testing.assert_allclose(state.x, many.x[4], atol=2e-3)

    spoilt = draw(solver, sde_name, below=0.5, batch_size=7)
    assert spoilt.status[3] == Status.NON_FINITE
    assert np.isfinite(spoilt.x).all()
    clean = spoilt.status == Status.COMPLETED  # all but those drawn in the broken lane
    assert clean.sum() > 10
    np.testing.assert_array_equal(spoilt.x[clean], seven.x[clean])

    with counted() as compiled:
        draw(changed(name, sde_name), sde_name, batch_size=7)
    assert not compiled


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "adaptive_exponential" else pytest.mark.slow) for name in TABLE],
)
def test_the_last_rows_of_a_batch_are_like_the_others(name):
    """Of samples with few elements, compilers treat the last rows apart, and then round as they please."""
    sde = SDES["vp"]
    settings: Any = {"key": jax.random.key(0), "shape": (8,), "num_samples": 512, "max_evaluations": CAP}
    solver, score_fn = solver_of(name, "vp"), Gaussian().score_fn(sde)
    many, few = (sample(score_fn, sde, solver, batch_size=size, **settings) for size in (64, 16))
    np.testing.assert_array_equal(many.x, few.x)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sde_name"), PAIRS)
def test_samples_have_the_moments_of_the_data(name, sde_name):
    """One 32 x 32 x 3 image: five deviations of the estimates (exceeded once in 1.7 million), 3 % of bias."""
    solver = solver_of(name, sde_name)
    steps = {"num_steps": 200}
    if isinstance(solver, AnnealedLangevin):  # enough steps at each level for x to follow
        steps = {"num_steps": 80, "corrector_steps": 12, "snr": 0.15}
    if isinstance(solver, PredictorCorrector):
        solver = dataclasses.replace(solver, predictor=dataclasses.replace(solver.predictor, **steps))
    elif hasattr(solver, "num_steps"):
        solver = dataclasses.replace(solver, **steps)
    state, _ = by_hand(solver, SDES[sde_name], jax.random.key(2), (32, 32, 3), jnp.dtype("float32"))
    assert state.status == Status.COMPLETED
    assert abs(state.x.mean() - 0.3) < 5 * 0.2 / 3072**0.5 + 0.006
    assert abs(state.x.std() - 0.2) < 5 * 0.2 / 6144**0.5 + 0.006


def test_ancestral_sampling_is_not_for_sub_vp():
    with pytest.raises(
        ValueError, match=r"sde must be VESDE, VPSDE or DiscreteVP for AncestralSampling \(got 'SubVPSDE'\)"
    ):
        AncestralSampling(num_steps=STEPS).init(SubVPSDE(), jax.random.key(0), (2,), jnp.float32)
