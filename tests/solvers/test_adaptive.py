"""The paper's solver: one step against reference arrays, and its promises step by step."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solvers.adaptive
from sde_lib import VESDE, VPSDE, SubVPSDE
from solvers import Adaptive, Status
from solvers.adaptive import Norm
from tests.problems import ADAPTIVE, SDES, Gaussian

REFERENCE_SDES = {"ve": VESDE(), "ve_380": VESDE(sigma_max=380.0), "vp": VPSDE(), "subvp": SubVPSDE()}
REFERENCE_NORMS: dict[str, Norm] = {"L2_scaled": "l2_scaled", "L2": "l2", "Linf": "linf"}


def relative_error(ours, reference) -> float:
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


def test_one_step_is_the_reference_implementations(golden_dir, monkeypatch):
    folder = golden_dir / "adaptive_step"
    arrays = np.load(folder / "golden.npz")
    problem = Gaussian()
    for case in json.loads((folder / "cases.json").read_text())["cases"]:
        sde = REFERENCE_SDES[case["sde"]]
        solver = Adaptive(
            eps_rel=case["reltol"],
            eps_abs=case["abstol"],
            safety=case["safety"],
            exponent=case["exp"],
            norm=REFERENCE_NORMS[case["norm"]],
            extrapolate=case["extrapolation"],
            use_previous=case["error_use_prev"],
            error_estimate="heun" if case["sde_improved_euler"] else "lamba",
        )
        given = {key.partition("/")[2]: arrays[key] for key in arrays if key.startswith(case["name"] + "/")}
        for i in range(len(given["t"])):
            noise = jnp.asarray(given["z"][i])
            monkeypatch.setattr(solvers.adaptive, "standard_normal", lambda *_, noise=noise: noise)
            state = dataclasses.replace(
                solver.init(sde, jax.random.key(0), noise.shape, jnp.float32),
                x=jnp.asarray(given["x"][i]),
                t=jnp.asarray(given["t"][i]),
                h=jnp.asarray(given["h"][i]),
                x_previous=jnp.asarray(given["x_prev"][i]),
            )
            for _ in range(2):
                x, t = solver.ask(state)
                state = solver.tell(sde, state, problem.score(sde, x, t))
            assert state.accepted + state.rejected == 1
            for ours, name in (
                (state.x, "x_new"),
                (state.x_previous, "x_prev_new"),
                (state.t, "t_new"),
                (state.h, "h_new"),
            ):
                assert relative_error(ours, given[name][i]) < 1e-5, (case["name"], i, name)


@pytest.fixture(scope="module", params=SDES)
def trace(request):
    """Every state of one sample from T to eps, and the points asked for."""
    sde, solver, problem = SDES[request.param], ADAPTIVE[request.param], Gaussian()
    tell = jax.jit(lambda state, x, t: solver.tell(sde, state, problem.score(sde, x, t)))
    states = [solver.init(sde, jax.random.key(1), (4, 4, 1), jnp.float32)]
    asked = []
    while states[-1].status == Status.RUNNING and len(asked) < 1000:
        asked.append(solver.ask(states[-1]))
        states.append(tell(states[-1], *asked[-1]))
    return sde, states, asked


def test_a_rejected_step_asks_for_one_evaluation(trace):
    _, states, asked = trace
    last = states[-1]
    assert last.rejected > 0
    assert len(asked) == 2 * last.accepted + last.rejected


def test_after_a_rejection_only_a_smaller_step_is_asked_for(trace):
    _, states, asked = trace
    for i in range(1, len(asked)):
        if states[i].rejected > states[i - 1].rejected:
            assert states[i].t == states[i - 1].t
            assert states[i].h < states[i - 1].h
            np.testing.assert_array_equal(states[i].score, states[i - 1].score)
            assert asked[i][1] == states[i].t_proposed


def test_it_lands_on_eps_itself_and_never_goes_past_it(trace):
    sde, states, asked = trace
    eps = np.float32(sde.eps)
    assert states[-1].t == eps
    assert states[-1].status == Status.COMPLETED
    assert all(t >= eps for _, t in asked)


def test_redrawn_noise_changes_with_each_try_and_held_noise_does_not():
    sde = SDES["vp"]
    for policy in ("redraw", "hold"):
        # a first step far too long is rejected for certain
        solver = dataclasses.replace(ADAPTIVE["vp"], first_step=0.9, noise_on_rejection=policy)
        first = solver.init(sde, jax.random.key(0), (8,), jnp.float32)
        problem = Gaussian()
        states = [first]
        for _ in range(2):
            x, t = solver.ask(states[-1])
            states.append(solver.tell(sde, states[-1], problem.score(sde, x, t)))
        assert states[-1].rejected == 1
        assert np.array_equal(states[1].z, states[2].z) == (policy == "hold")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps_rel": 0.0}, "eps_rel = 0.0: allowed is a number > 0; set eps_rel above zero"),
        ({"eps_abs": -1.0}, "eps_abs = -1.0: allowed is a number > 0; set eps_abs above zero"),
        ({"safety": 1.5}, r"safety = 1.5: allowed is a number in \(0, 1\); the paper takes 0.9"),
        ({"norm": "l3"}, "norm = 'l3': allowed is one of 'l2_scaled', 'l2', 'linf'"),
        ({"error_estimate": "huen"}, r"error_estimate = 'huen': .* did you mean 'heun'\?"),
        ({"noise_on_rejection": "keep"}, "noise_on_rejection = 'keep': allowed is one of 'redraw', 'hold'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Adaptive(**settings)
