"""Compare this project's adaptive samplers with other ways to choose step sizes, on the same scores.

python -m benchmarks.peers [--quick] [--json FILE] [--problems mixture,digits] [--rounds 3]

All samplers draw from two VP problems. One is the exact score of the mixture around the digits
(benchmarks/mixture.py, bandwidth 0.1), whose samples end at t = eps as in benchmarks/exact_score.py; the
other is the shipped network of the digits, whose samples are denoised. The samplers take turns on one device,
and every round has its own seed.

    adaptive, adaptive_exponential  this project's solvers, in lanes that never wait
    lockstep        the paper's Algorithm 1 as its published implementation runs it: every try of a step costs
                    two evaluations, also after a rejection, and a batch waits for its slowest sample
    one_step_size   Algorithm 1 as ``two_step_adaptive`` of BayesFlow runs it (bayesflow/utils/integrate.py):
                    the batch has one step size, for the largest error of any number of any sample; steps are
                    between 1/1000 and 1/50 of the interval, and one of the least size is taken in any case
    diffrax_…       diffrax's solvers with its PID controller, as in solvers/off_the_shelf.py: a step size for
                    each sample, and a batch waits for its slowest sample

A name ends with the relative tolerance (of diffrax, its rtol); the absolute one is two grey levels. "own"
stands for BayesFlow's defaults, 0.1 and 0.02576. Lockstep and one_step_size are told again here, as the paper
writes them: both implementations set x'_prev to x in cases where the paper keeps it. For each sampler:

    calls       evaluations of the score on a batch, until all samples are done
    nfe         evaluations that a sample needs for itself
    spent       evaluations of all lanes, waiting or not, over the number of samples
    time, cpu   seconds of sampling, by the clock and of the processor, over those of the first sampler in the
                same round; the median over the rounds. Other work on the machine disturbs the clock more.
    likelihood, residual, frechet, fid      quality, as in benchmarks/exact_score.py and docs/evaluation.md:
                means over the rounds; likelihood_sd and fid_sd are the standard deviations over them
    failed      samples that did not complete, in all rounds

    <problem>.<sampler>.<measure>           the names in --json
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from tqdm import tqdm

import configs
import models
import sde_lib
import solvers
from benchmarks.exact_score import OffTheShelf, figures_of_samples
from benchmarks.mixture import SHAPE, digits_mixture
from benchmarks.report import machine, names_in, table_of_runs, write_json
from evaluation.metrics import fid
from evaluation.runs import measurement
from evaluation.store.samples import to_uint8
from sde_lib import SDE, VPSDE, ScoreFn, reverse_drift
from sde_lib.pytrees import STATIC, register_dataclass
from solvers import Adaptive, AdaptiveExponential, Solution, Status, off_the_shelf

EPS_ABS, FIRST_STEP = 2 / 256, 0.01  # of VP, as in its configs
SAFETY, EXPONENT = 0.9, 0.9
MIN_STEPS, MAX_STEPS = 50, 1000  # by which BayesFlow limits its steps
TRIES = 5000  # a batch that needs more has failed


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tries:
    """Algorithm 1 on a batch that tries one step after the other, with two evaluations of all samples each.

    Attributes:
        eps_rel, eps_abs: the tolerances.
        one_step_size: whether all samples share the step size, as in BayesFlow.
    """

    eps_rel: float
    eps_abs: float = EPS_ABS
    one_step_size: bool = dataclasses.field(default=False, metadata=STATIC)


SAMPLERS: dict[str, Any] = {
    "adaptive, 2 %": Adaptive(eps_rel=0.02, eps_abs=EPS_ABS, first_step=FIRST_STEP),
    "adaptive, 5 %": Adaptive(eps_rel=0.05, eps_abs=EPS_ABS, first_step=FIRST_STEP),
    "adaptive_exponential": AdaptiveExponential(),
    "lockstep, 2 %": Tries(eps_rel=0.02),
    "lockstep, 5 %": Tries(eps_rel=0.05),
    "one_step_size, 5 %": Tries(eps_rel=0.05, one_step_size=True),
    "one_step_size, own": Tries(eps_rel=0.1, eps_abs=0.02576, one_step_size=True),
    "diffrax_sra1, 5 %": OffTheShelf(solver_name="sra1", rtol=0.05, atol=EPS_ABS),
    "diffrax_shark, 5 %": OffTheShelf(solver_name="shark", rtol=0.05, atol=EPS_ABS),
    "diffrax_heun, 5 %": OffTheShelf(solver_name="heun", rtol=0.05, atol=EPS_ABS),
}
EXACT = "exact samples"
QUICK = ("adaptive, 5 %", "lockstep, 5 %", "one_step_size, own", "diffrax_sra1, 5 %")
FORMS = {"calls": ",.0f", "nfe": ".1f", "spent": ".1f", "time": ".2f", "cpu": ".2f"}
FORMS |= {"likelihood": ".2f", "likelihood_sd": ".2f", "residual": ".3f", "frechet": ".4f"}
FORMS |= {"fid": ".3f", "fid_sd": ".3f", "failed": ".0f"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """What all samplers draw from, and in batches of what size.

    Attributes:
        quality: figures of samples.
        exact: (key, number) -> exact samples, where they are known.
    """

    score_fn: ScoreFn
    sde: SDE
    num_samples: int
    batch_size: int
    denoise: bool
    quality: Callable[[np.ndarray], dict[str, float]]
    exact: Callable[[PRNGKeyArray, int], np.ndarray] | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="four samplers of the mixture, in a minute")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--problems", help=f"some of {', '.join(PROBLEMS)}, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parsed = parser.parse_args(arguments)
    problems = names_in(
        parser, "--problems", parsed.problems, PROBLEMS, ["mixture"] if parsed.quick else PROBLEMS
    )
    names, rounds = (QUICK, 1) if parsed.quick else (tuple(SAMPLERS), parsed.rounds)

    print(f"{machine()}\n")
    figures: dict[str, float] = {}
    for name in problems:
        problem = PROBLEMS[name]()
        if parsed.quick:
            problem = dataclasses.replace(problem, num_samples=128, batch_size=64)
        found = {f"{name}.{key}": value for key, value in measure(problem, names, rounds=rounds).items()}
        measured = {key.rpartition(".")[2] for key in found}
        forms = {measure: form for measure, form in FORMS.items() if measure in measured}
        print(f"{problem.num_samples:,} samples in batches of {problem.batch_size}, rounds: {rounds}\n")
        print(table_of_runs(found, (), about=("problem", "sampler"), forms=forms) + "\n")
        figures |= found
    if parsed.json:
        write_json(parsed.json, figures)


def mixture() -> Problem:
    """The exact score of the mixture around the digits."""
    sde = VPSDE()
    truth = digits_mixture(sde, 0.1)

    def quality(x: np.ndarray) -> dict[str, float]:
        found = figures_of_samples(truth, sde, x)
        likelihood = found.pop("log_likelihood")
        return {"likelihood": likelihood, "residual": found["residual"], "frechet": found["frechet"]}

    return Problem(
        score_fn=truth.score_fn(sde),
        sde=sde,
        num_samples=2048,
        batch_size=256,
        denoise=False,
        quality=quality,
        exact=lambda key, number: np.asarray(truth.samples(sde, sde.eps, key=key, num_samples=number)),
    )


def digits() -> Problem:
    """The shipped network of the digits."""
    config = configs.load("vp/digits_adaptive")
    num_samples = 1024
    measured = measurement.from_config(config, num_samples=num_samples)
    network, reference = measured.network, measured.reference
    assert reference is not None  # the shipped networks come with the statistics of their data
    source = fid.Source.of(network, data="samples", split="all")

    def quality(x: np.ndarray) -> dict[str, float]:
        features, _ = network(to_uint8(x, centered=config.data.centered))
        return {"fid": fid.fid(fid.Moments.of(features, source), reference)}

    return Problem(
        score_fn=models.load_score_fn(config),
        sde=sde_lib.from_config(config.sde),
        num_samples=num_samples,
        batch_size=128,
        denoise=True,
        quality=quality,
    )


PROBLEMS: dict[str, Callable[[], Problem]] = {"mixture": mixture, "digits": digits}


def measure(problem: Problem, names: Sequence[str], *, rounds: int) -> dict[str, float]:
    """The figures of all samplers by <sampler>.<measure>; the first one's time is the unit."""
    records: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    one_batch = dataclasses.replace(problem, num_samples=problem.batch_size)
    for name in names:
        drawn(one_batch, SAMPLERS[name], key=jax.random.key(0))  # compiles
    for seed in tqdm(range(rounds), unit="round", disable=None):
        for name in names:
            start = time.process_time()
            solution = drawn(problem, SAMPLERS[name], key=jax.random.key(seed))
            seconds = {"time": solution.seconds_sampling, "cpu": time.process_time() - start}
            record = problem.quality(solution.x[solution.status == Status.COMPLETED])
            record |= {"calls": solution.network_calls, "nfe": float(solution.nfe.mean())}
            record |= {"spent": solution.lane_evaluations / problem.num_samples, "failed": solution.failed}
            records[name].append(record | seconds)
    units = records[names[0]]
    figures: dict[str, float] = {}
    if problem.exact is not None:
        drawn_exactly = [problem.exact(jax.random.key(seed), problem.num_samples) for seed in range(rounds)]
        records = {EXACT: [problem.quality(x) for x in drawn_exactly]} | records
    for name, found in records.items():
        row = {key: float(np.mean([record[key] for record in found])) for key in found[0]}
        if name != EXACT:
            row["failed"] *= rounds
            for key in ("time", "cpu"):
                ratios = [record[key] / unit[key] for record, unit in zip(found, units, strict=True)]
                row[key] = float(np.median(ratios))
        for key in {"likelihood", "fid"} & row.keys() if rounds > 1 else ():
            row[f"{key}_sd"] = float(np.std([record[key] for record in found], ddof=1))
        figures |= {f"{name}.{key}": row[key] for key in FORMS if key in row}
    return figures


def drawn(problem: Problem, sampler: Any, *, key: PRNGKeyArray) -> Solution:
    """The problem's samples by one of ``SAMPLERS``, on one device."""
    settings: dict[str, Any] = {"key": key, "shape": SHAPE, "num_samples": problem.num_samples}
    settings |= {"batch_size": problem.batch_size, "denoise": problem.denoise}
    match sampler:
        case Tries():
            return in_tries(problem.score_fn, problem.sde, sampler, **settings)
        case OffTheShelf():
            own = {**dataclasses.asdict(sampler), "first_step": FIRST_STEP}
            return off_the_shelf.sample(problem.score_fn, problem.sde, **own, **settings)
        case _:
            devices = jax.local_devices()[:1]
            return solvers.sample(problem.score_fn, problem.sde, sampler, devices=devices, **settings)


def in_tries(
    score_fn: ScoreFn,
    sde: SDE,
    sampler: Tries,
    *,
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    num_samples: int,
    batch_size: int,
    denoise: bool,
) -> Solution:
    """Batches one after the other; their number times ``batch_size`` is ``num_samples``."""
    start = time.perf_counter()
    solve = _solve_batch.lower(
        score_fn, sde, sampler, key, shape=(batch_size, *shape), denoise=denoise
    ).compile()
    since = time.perf_counter()
    batches = [
        jax.device_get(solve(score_fn, sde, sampler, jax.random.fold_in(key, number)))
        for number in range(num_samples // batch_size)
    ]
    x, tries, accepted, completed = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    calls = sum(2 * int(batch[1].max()) + denoise for batch in batches)
    return Solution(
        x=x,
        sample_ids=np.arange(num_samples, dtype=np.uint32),
        nfe=2 * tries + denoise,
        accepted=accepted,
        rejected=tries - accepted,
        status=np.where(completed, Status.COMPLETED, Status.MAX_EVALUATIONS),
        device_calls=np.array([calls]),
        lane_evaluations=batch_size * calls,
        seconds_compile=since - start,
        seconds_sampling=time.perf_counter() - since,
    )


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Batch:
    x: Float[Array, "b *shape"]
    x_previous: Float[Array, "b *shape"]  # x'_prev
    t: Float[Array, " b"]
    h: Float[Array, " b"]
    tries: Int[Array, " b"]
    accepted: Int[Array, " b"]
    number: Int[Array, ""]  # of tries of the batch


@functools.partial(jax.jit, static_argnames=("shape", "denoise"))
def _solve_batch(
    score_fn: ScoreFn, sde: SDE, sampler: Tries, key: PRNGKeyArray, *, shape: tuple[int, ...], denoise: bool
) -> tuple[Array, Array, Array, Array]:
    """The samples of one batch, their tries and accepted steps, and whether each has come to its end."""
    size, interval = shape[0], sde.T - sde.eps
    least, most = interval / MAX_STEPS, interval / MIN_STEPS  # of BayesFlow's steps

    def over_pixels(values: Array) -> Array:
        return values.reshape(-1, *(1,) * (len(shape) - 1))

    def try_step(batch: _Batch) -> _Batch:
        x, t, h = batch.x, batch.t, batch.h
        running, last = t > sde.eps, h >= t - sde.eps
        ahead = jnp.where(last, sde.eps, t - h)
        z = jax.random.normal(jax.random.fold_in(key, batch.number), shape)

        def increment(x: Array, t: Array) -> Array:  # −h f(x, t) + g(t) √h z
            drift = jax.vmap(reverse_drift, (None, 0, 0, 0))(sde, x, t, score_fn(x, t))
            noise = over_pixels(jax.vmap(sde.diffusion)(t) * jnp.sqrt(h)) * z
            return noise - over_pixels(h) * drift

        k1 = increment(x, t)
        x_lower = x + k1
        error = (increment(x_lower, ahead) - k1) / 2
        magnitude = jnp.maximum(jnp.abs(batch.x_previous), jnp.abs(x_lower))
        ratio = error / jnp.maximum(sampler.eps_abs, sampler.eps_rel * magnitude)
        if sampler.one_step_size:
            e = jnp.full(size, jnp.max(jnp.abs(ratio)))
            accept = (e <= 1) | (h <= least) | last
            h_next = jnp.clip(SAFETY * h * e**-EXPONENT, least, most)
        else:
            e = jnp.sqrt(jnp.mean(ratio**2, axis=tuple(range(1, x.ndim))))
            accept = running & (e <= 1)
            h_next = SAFETY * h * e**-EXPONENT
        t_next = jnp.where(accept, ahead, t)
        return _Batch(
            x=jnp.where(over_pixels(accept), x_lower + error, x),
            x_previous=jnp.where(over_pixels(accept), x_lower, batch.x_previous),
            t=t_next,
            h=jnp.where(t_next > sde.eps, jnp.minimum(t_next - sde.eps, h_next), 0),
            tries=batch.tries + running,
            accepted=batch.accepted + accept,
            number=batch.number + 1,
        )

    keys = jax.random.split(jax.random.fold_in(key, TRIES), size)
    x = jax.vmap(lambda key: sde.prior(key, shape[1:], jnp.float32))(keys)
    none = jnp.zeros(size, jnp.int32)
    batch = jax.lax.while_loop(
        lambda batch: jnp.any(batch.t > sde.eps) & (batch.number < TRIES),
        try_step,
        _Batch(
            x=x,
            x_previous=x,
            t=jnp.full(size, sde.T, jnp.float32),
            h=jnp.full(size, most if sampler.one_step_size else FIRST_STEP, jnp.float32),
            tries=none,
            accepted=none,
            number=jnp.int32(0),
        ),
    )
    x = batch.x
    if denoise:
        x = jax.vmap(sde_lib.denoise, (None, 0, 0, 0))(sde, x, batch.t, score_fn(x, batch.t))
    return x, batch.tries, batch.accepted, batch.t <= sde.eps


if __name__ == "__main__":
    main()
