"""Guidance against closed forms: the classes are Gaussian mixtures with exact scores."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sde_lib import VPSDE
from sde_lib.guidance import classifier, classifier_free, evaluations_of
from solvers import AdaptiveExponential, EulerMaruyama, UniformLogSNR, sample
from tests.problems import PATHS, SDES

VP = VPSDE()
SOME = {"ve": SDES["ve"], "vp": VP, "flow": PATHS["flow"]}
CENTRES = np.array([[1.0, 0.0, 0.5], [-0.5, 1.0, 0.0], [0.2, -1.0, 0.3], [0.0, 0.4, -1.2]], np.float32)
CLASSES = np.array([0, 0, 1, 1], np.int32)  # of the centres
STD = 0.4
NONE = -1


def log_density(sde: Any, x: Any, t: Any, label: Any) -> Any:
    """log p_t(x | class) of one sample, up to a constant of all classes; class −1 is all of the data."""
    alpha, sigma = sde.marginal(t)
    squares = jnp.sum((x - alpha * CENTRES) ** 2, axis=1) / ((alpha * STD) ** 2 + sigma**2)
    inside = (label == CLASSES) | (label == NONE)
    return jax.scipy.special.logsumexp(jnp.where(inside, -squares / 2, -jnp.inf)) - jnp.log(jnp.sum(inside))


@jax.jit
def score_of_class(sde: Any, x: Any, t: Any, labels: Any) -> Any:
    return jax.vmap(jax.grad(log_density, argnums=1), (None, 0, 0, 0))(sde, x, t, labels)


def score_of_all(sde: Any, x: Any, t: Any) -> Any:
    return score_of_class(sde, x, t, jnp.full(len(x), NONE))


def log_probability(sde: Any, x: Any, t: Any, labels: Any) -> Any:
    """log p(class | x): both classes are equally frequent."""
    each = jax.vmap(log_density, (None, 0, 0, 0))
    return each(sde, x, t, labels) - each(sde, x, t, jnp.full(len(x), NONE)) - math.log(2)


@jax.jit
def called(score_fn: Any, *given: Any) -> Any:
    return score_fn(*given)


def free(sde: Any = VP, **settings: Any) -> Partial:
    return classifier_free(Partial(score_of_class, sde), sde, null=NONE, **settings)


def by_classifier(sde: Any = VP, **settings: Any) -> Partial:
    return classifier(Partial(score_of_all, sde), Partial(log_probability, sde), **settings)


def batch(sde: Any = VP, number: int = 16) -> tuple[Any, Any, Any]:
    """Noisy samples, their times from eps to T, and their classes."""
    rng = np.random.default_rng(0)
    t = np.linspace(sde.eps, sde.T, number)
    alpha, sigma = jax.vmap(sde.marginal)(jnp.asarray(t))
    x = np.asarray(alpha)[:, None] * CENTRES[rng.integers(4, size=number)]
    x = x + np.hypot(STD, np.asarray(sigma))[:, None] * rng.standard_normal((number, 3))
    return jnp.asarray(x), jnp.asarray(t), jnp.asarray(rng.integers(2, size=number))


def exact(sde: Any, scale: float, x: Any, t: Any, labels: Any) -> Any:
    """The gradient of (1 − w) log p(x) + w log p(x | class), by differentiating this sum."""

    def tilted(x: Any, t: Any, label: Any) -> Any:
        return (1 - scale) * log_density(sde, x, t, NONE) + scale * log_density(sde, x, t, label)

    return jax.vmap(jax.grad(tilted))(x, t, labels)


@pytest.mark.parametrize("make", [free, by_classifier])
@pytest.mark.parametrize("name", SOME)
@pytest.mark.usefixtures("double_precision")
def test_both_kinds_of_guidance_give_the_score_of_the_tilted_density(make, name):
    """p(x) p(class | x)^w; with the true class probabilities, the two kinds are the same."""
    sde = SOME[name]
    given = batch(sde)
    for scale in (0.0, 1.0, 2.5, -0.5):
        expected = exact(sde, scale, *given)
        got = called(make(sde, scale=scale), *given)
        # a classifier's gradient is a difference of two scores, each rounded at about 1e-16
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12 * float(jnp.abs(expected).max()))


def test_classifier_guidance_of_a_conditional_network_adds_to_its_score():
    x, t, labels = batch()
    guided = classifier(
        Partial(score_of_class, VP), Partial(log_probability, VP), scale=1.5, conditional=True
    )
    expected = score_of_class(VP, x, t, labels) + 1.5 * (
        score_of_class(VP, x, t, labels) - score_of_all(VP, x, t)
    )
    np.testing.assert_allclose(called(guided, x, t, labels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [free, by_classifier])
def test_a_row_does_not_depend_on_its_neighbours(make):
    """To the bit: whatever the other rows hold, and wherever it stands."""
    guided = jax.jit(make(scale=2.0, **({"rescale": 0.7, "interval": (0.1, 5.0)} if make is free else {})))
    x, t, labels = batch()
    whole = guided(x, t, labels)
    np.testing.assert_array_equal(guided(x[::-1], t[::-1], labels[::-1]), whole[::-1])
    others = (x.at[1:].add(3.0), t.at[1:].mul(0.5), labels.at[1:].set(1 - labels[1:]))
    np.testing.assert_array_equal(guided(*others)[0], whole[0])


def test_one_call_of_the_network_has_twice_the_rows():
    shapes = []

    def network(x, t, condition):
        shapes.append((x.shape, t.shape, jax.tree.map(jnp.shape, condition)))
        return x * condition["scale"][:, None]

    null = {"scale": 0.0, "text": np.zeros(5)}
    condition = {"scale": jnp.array([2.0, 3.0]), "text": jnp.ones((2, 5))}
    guided = classifier_free(network, VP, null=null, scale=10.0)
    score = guided(jnp.ones((2, 4)), jnp.ones(2), condition)
    assert shapes == [((4, 4), (4,), {"scale": (4,), "text": (4, 5)})]
    np.testing.assert_array_equal(score, np.repeat([[20.0], [30.0]], 4, axis=1))


def test_guidance_acts_inside_its_interval_of_noise_levels_alone():
    """Above the lower level, and up to the upper one."""
    sde = SDES["ve"]
    levels = jnp.array([0.125, 0.25, 0.26, 1.0, 4.0, 4.1, 16.0])
    times = jax.vmap(lambda level: sde.inverse_log_snr(-jnp.log(level)))(levels)
    levels = jax.vmap(sde.marginal)(times)[1]  # as they come out of the process, rounded
    x, labels = jnp.zeros((7, 3)), jnp.zeros(7, int)
    guided = called(free(sde, scale=3.0, interval=(levels[1], levels[4])), x, times, labels)
    everywhere = called(free(sde, scale=3.0), x, times, labels)
    inside = np.array([False, False, True, True, True, False, False])
    np.testing.assert_array_equal(guided[inside], everywhere[inside])
    np.testing.assert_allclose(guided[~inside], score_of_class(sde, x, times, labels)[~inside], rtol=1e-6)
    assert np.abs(guided - everywhere).max(axis=1)[~inside].min() > 1e-3


@pytest.mark.usefixtures("double_precision")
def test_rescaling_gives_the_denoised_image_its_deviation_without_guidance():
    """All of it at 1, half of the way at 1/2; its mean moves in proportion."""
    x, t, labels = batch()
    levels: Any = jax.vmap(VP.marginal)(t)
    alpha, sigma = (level[:, None] for level in levels)

    def denoised(score: Any) -> Any:
        return (x + sigma**2 * score) / alpha

    plain, guided = (
        denoised(score_of_class(VP, x, t, labels)),
        denoised(called(free(scale=4.0), x, t, labels)),
    )
    wanted = jnp.std(plain, axis=1) / jnp.std(guided, axis=1)
    assert jnp.abs(wanted - 1).max() > 0.3
    for phi in (0.5, 1.0):
        factor = phi * wanted + 1 - phi
        rescaled = denoised(called(free(scale=4.0, rescale=phi), x, t, labels))
        np.testing.assert_allclose(rescaled, factor[:, None] * guided, rtol=1e-9, atol=1e-12)


def test_an_image_without_deviation_is_not_rescaled():
    guided = classifier_free(lambda x, t, c: -x, VP, null=0.0, scale=2.0, rescale=1.0)
    score = guided(jnp.ones((1, 1)), jnp.ones(1), jnp.zeros(1))
    np.testing.assert_allclose(score, -1.0, rtol=1e-6)


def test_a_sample_may_be_a_tree():
    def network(x, t, c):
        return {"a": -x["a"] + c[:, None], "b": -x["b"]}

    x = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 1, 2))}
    score = classifier_free(network, VP, null=0.0, scale=2.0)(x, jnp.ones(2), jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(score["a"], [[1.0] * 3, [3.0] * 3])
    np.testing.assert_array_equal(score["b"], -np.ones((2, 1, 2)))
    guided = classifier(
        lambda x, t: jax.tree.map(jnp.negative, x), lambda x, t, c: c * jnp.sum(x["a"], axis=1), scale=2.0
    )
    score = guided(x, jnp.ones(2), jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(score["a"], [[1.0] * 3, [3.0] * 3])


def test_evaluations_multiply():
    network = Partial(score_of_class, VP)
    once = classifier_free(network, VP, null=NONE, scale=2.0)
    assert [evaluations_of(f) for f in (score_of_class, network, once)] == [1, 1, 2]
    assert evaluations_of(classifier_free(once, VP, null=NONE, scale=2.0)) == 4
    assert evaluations_of(classifier(once, Partial(log_probability, VP), scale=1.0, conditional=True)) == 2


def test_equal_guidance_shares_a_compiled_program():
    structures = {jax.tree.structure(free(scale=scale, interval=(0.1, scale))) for scale in (2.0, 3.0)}
    assert len(structures) == 1
    assert jax.tree.structure(free(scale=2.0)) not in structures


def test_samples_of_a_class_by_a_classifier_have_its_moments():
    """At scale 1 they are exact samples of the class in their own lane, by the mean of each coordinate."""
    labels = np.arange(2048) % 2
    solution = sample(
        by_classifier(scale=1.0),
        VP,
        EulerMaruyama(num_steps=300, grid=UniformLogSNR()),
        key=jax.random.key(0),
        shape=(3,),
        conditions=labels,
        num_samples=len(labels),
        batch_size=256,
        denoise=False,
    )
    assert solution.failed == 0
    alpha, sigma = (float(value) for value in VP.marginal(VP.eps))
    for label in (0, 1):
        x, centres = solution.x[labels == label], alpha * CENTRES[label == CLASSES]
        covariance = np.cov(centres.T, bias=True) + ((alpha * STD) ** 2 + sigma**2) * np.eye(3)
        z = np.linalg.solve(np.linalg.cholesky(covariance), (x - centres.mean(axis=0)).T)
        # 4.5 standard errors each: of 6 means, and of 6 second moments of which the 4th is at most 3
        assert np.abs(z.mean(axis=1)).max() < 4.5 / math.sqrt(z.shape[1])
        assert np.abs((z**2).mean(axis=1) - 1).max() < 4.5 * math.sqrt(2 / z.shape[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": math.nan}, "scale must be a finite number"),
        ({"scale": math.inf}, "scale must be a finite number"),
        ({"scale": "2"}, "scale must be a finite number"),
        ({"scale": [1.0, 2.0]}, "scale must be a finite number"),
        ({"scale": 2.0, "rescale": 1.5}, "rescale must be a number in [0, 1] (got 1.5)"),
        ({"scale": 2.0, "rescale": -0.1}, "rescale must be a number in [0, 1]"),
        ({"scale": 2.0, "rescale": math.nan}, "rescale must be a number in [0, 1]"),
        ({"scale": 2.0, "rescale": None}, "rescale must be a number in [0, 1]"),
        ({"scale": 2.0, "interval": (1.0, 1.0)}, "interval must be two noise levels"),
        ({"scale": 2.0, "interval": (2.0, 1.0)}, "interval must be two noise levels"),
        ({"scale": 2.0, "interval": (-1.0, 1.0)}, "interval must be two noise levels"),
        ({"scale": 2.0, "interval": (0.0, math.nan)}, "interval must be two noise levels"),
        ({"scale": 2.0, "interval": 3.0}, "interval must be two noise levels"),
        ({"scale": 2.0, "interval": (1.0, 2.0, 3.0)}, "interval must be two noise levels"),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        free(**settings)


@pytest.mark.usefixtures("as_users_run_it")
def test_a_classifiers_scale_is_a_number():
    with pytest.raises(ValueError, match="scale must be a finite number"):
        by_classifier(scale="1")


@pytest.mark.parametrize(
    ("null", "condition", "message"),
    [
        (-1, {"label": jnp.zeros(2, int)}, "null must be a tree like that of the condition"),
        ((-1, -1), jnp.zeros(2, int), "null must be a tree like that of the condition"),
        (None, jnp.zeros(2, int), "null must be a tree like that of the condition"),
        ([-1], [jnp.zeros((2, 3), int)], "null must be like one row of the condition, of shape (3,)"),
        (np.array([-1]), jnp.zeros(2, int), "null must be like one row of the condition, of shape ()"),
        (0.5, jnp.zeros(2, int), "null must be like one row of the condition, of shape () and type int32"),
    ],
)
def test_a_null_of_another_structure_is_refused_when_the_program_is_made(null, condition, message):
    guided = classifier_free(lambda x, t, c: x, VP, null=null, scale=2.0)
    with pytest.raises(ValueError, match=re.escape(message)):
        sample(
            guided,
            VP,
            AdaptiveExponential(),
            key=jax.random.key(0),
            shape=(3,),
            conditions=condition,
            num_samples=2,
        )


def test_a_log_probability_is_one_number_a_sample():
    guided = classifier(lambda x, t: -x, lambda x, t, c: jnp.sum(x), scale=1.0)
    with pytest.raises(
        ValueError, match=re.escape("must be one number a sample, of shape (2,) (got 'shape ()')")
    ):
        guided(jnp.ones((2, 3)), jnp.ones(2), jnp.zeros(2))
