"""One run of a config: sample what is missing in a workdir, then measure all of it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

import configs
import models
import sde_lib
import solvers
from evaluation.metrics import figures
from evaluation.metrics.measurement import Measurement
from evaluation.runs import conditional, plots, results
from evaluation.runs.feature_store import FeatureStore
from evaluation.store import workdir as workdirs
from evaluation.store.files import make_folder, read_file, require_writable
from evaluation.store.processes import ALONE, Processes
from evaluation.store.samples import GREY_LEVELS, ROUNDINGS, Samples, SampleStore, to_uint8
from models import checkpoints
from sde_lib import ScoreFn
from sde_lib.checks import require, require_choice, require_count, require_seed, require_shared
from sde_lib.guidance import evaluations_of
from solvers.queues import lanes_for

PICTURED = 72  # samples in samples.png
# names in a workdir, beside results.jsonl
WRITES = ("samples", "samples.png", "features", "profile", "trace.png", "trace.gif")
BYTES = 24  # of a sample in its shard, besides the image: its id and four counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A config after all checks that need no work.

    Attributes:
        config: see configs/base.py.
        name: name of the config, for pictures and default folders.
        network: the network that the config describes.
        checkpoint: path of the weights.
        weights: their provenance: name, SHA-256, and those of the file that they were converted from.
        sde, solver: made from the config.
        identity, config_hash: everything that decides the samples, and its hash.
    """

    config: Any
    name: str
    network: models.Network
    checkpoint: Path
    weights: dict[str, Any]
    sde: sde_lib.SDE
    solver: solvers.Solver
    identity: dict[str, Any]
    config_hash: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of a sample."""
        return configs.image_shape(self.config.data)

    @property
    def title(self) -> str:
        """The config, its solver and the setting that matters most."""
        settings = vars(getattr(self.solver, "predictor", self.solver))
        setting = results.main_setting(settings)
        stated = "" if setting is None else f"   {setting} {settings[setting]:g}"
        return f"{self.name}   {self.config.solver.name}{stated}"

    @property
    def evaluations_per_call(self) -> int:
        """Evaluations of the network in a call of the score function, which guidance makes two of."""
        return evaluations_of(conditional.guided(self.config, _never_called, self.sde))

    def load_score_fn(self) -> ScoreFn:
        """The network's score with the checkpoint's weights, and with the config's guidance."""
        params, _ = models.restore_params(self.checkpoint, self.network, self.config)
        score_fn = self.network.score_fn(self.sde, jax.device_put(params))
        return conditional.guided(self.config, score_fn, self.sde)


def _never_called(x: Any, t: Any, condition: Any) -> Any:
    raise NotImplementedError


def check(config: Any) -> tuple[sde_lib.SDE, solvers.Solver]:
    """The config's process and solver, after all checks of its sampling that need no network.

    Raises:
        ValueError: for a setting out of range, or a solver that does not serve the process.
    """
    sde = sde_lib.from_config(config.sde)
    solver = solvers.from_config(config.solver, config.solver_defaults)
    counts = ("num_samples", "batch_size", "max_evaluations", "shard_size")
    require_count(**{f"config.eval.{key}": config.eval[key] for key in counts})
    require_seed("config.seed", config.seed)
    require_choice("config.eval.rounding", config.eval.rounding, ROUNDINGS)
    conditional.check(config)
    conditional.guided(config, _never_called, sde)
    require_shared("config.eval.batch_size", config.eval.batch_size, jax.local_device_count(), "devices")
    shape = configs.image_shape(config.data)
    # a solver refuses a process that it does not serve; here no numbers are computed
    jax.eval_shape(lambda key: solver.init(sde, key, shape, jnp.float32), jax.random.key(0))
    return sde, solver


def prepare(config: Any, *, name: str, checkpoint: str | None = None) -> Run:
    """Checks a config and finds its checkpoint.

    Raises:
        ValueError: as ``check``, and for an absent checkpoint.
    """
    sde, solver = check(config)
    network = models.build(config)
    given = checkpoint or config.model.checkpoint
    require(
        given is not None,
        "config.model.checkpoint",
        given,
        "the path of a checkpoint",
        "name one with --checkpoint=PATH, or make one with --mode=train; docs/checkpoints.md says where "
        "published ones are",
    )
    path = checkpoints.find(given)
    checkpoints.require_trained_like(path, config)
    weights = checkpoints.provenance(path)
    sha256 = weights["checkpoint_sha256"]
    identity, config_hash = results.config_identity(config, solver=solver, checkpoint_sha256=sha256)
    return Run(
        config=config,
        name=name,
        network=network,
        checkpoint=path,
        weights=weights,
        sde=sde,
        solver=solver,
        identity=identity,
        config_hash=config_hash,
    )


def sample_and_evaluate(
    run: Run,
    workdir: epath.PathLike,
    *,
    measurement: Measurement | None = None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """The result of a run: found in the workdir, or sampled, measured and added to it.

    After an interruption, the same call continues from the shards that are there; a larger ``num_samples``
    adds only what is missing. Several processes with one workdir share the sampling and the features. Of
    ``processes`` that know of each other, the first computes the figures and the others wait for its result.

    Args:
        run: from ``prepare``.
        workdir: gets identity.json, samples/, samples.png, results.jsonl and, until the result is there,
            features/.
        measurement: what to measure; without it there is neither FID nor Inception Score.
        processes: the processes that were started together.

    Raises:
        ValueError: for a workdir that holds another config's samples or somebody else's files of the names
            above, too few samples for the figures, or a first process that ended without a result.
        OSError: for a disk that refuses a file, or, before anything is sampled, that is read-only or has no
            room for the samples; what was written before stays whole.
    """
    workdir = epath.Path(workdir)
    num_samples = run.config.eval.num_samples
    if measurement is not None:
        measurement.check(num_samples, run.image_shape)
    if not processes.is_first:  # if the configs differ, the workdir belongs to the first process's
        processes.wait_for(lambda: read_file(workdir / "identity.json"), what=f"{workdir}/identity.json")
    results.read(workdir)  # refuses somebody else's file of this name before the workdir is marked
    workdirs.claim(workdir, run.identity, writes=WRITES)
    known = functools.partial(results.find, workdir, **_wanted(run, measurement))
    shard_size = run.config.eval.shard_size
    store = SampleStore(workdir / "samples", config_hash=run.config_hash, shard_size=shard_size)
    features = None
    if measurement is not None:
        features = FeatureStore(workdir / "features", network=measurement.network, samples=store)
    if (result := known()) is None:
        with store:
            cost = _sample_missing(run, store, processes)
        if features is not None:
            features.fill(num_samples, needed=lambda: known() is None, processes=processes)
        if not processes.is_first:
            result = processes.wait_for(known, what=f"a result in {workdir}/results.jsonl")
        elif (result := known()) is None:  # no other process was faster
            line = _measure(run, workdir, store, measurement, features, cost)
            if (result := known()) is None:
                results.append(workdir, line)
                result = results.read(workdir)[-1]
    if features is not None:
        features.remove()  # by every process, since a slower one may have computed them again
    return result


def _wanted(run: Run, measurement: Measurement | None) -> dict[str, Any]:
    """The arguments by which ``results.find`` knows a run's result."""
    wanted: dict[str, Any] = {"config_hash": run.config_hash, "num_samples": run.config.eval.num_samples}
    if measurement is None:
        return {"wanted": wanted | {"features": None, "reference": None}}
    wanted |= {"features": measurement.features_name, "reference": measurement.reference_name}
    wanted["reference_content"] = measurement.reference_content
    having = []
    if measurement.num_compared is not None:
        wanted |= {"compared": measurement.num_compared, "compared_content": measurement.compared_content}
        having.append("sliced_wasserstein")  # which the results of earlier versions lack
    if measurement.fid_infinity and measurement.reference is not None:
        having.append("fid_infinity")
    return {"wanted": wanted, "having": having}


def _measure(
    run: Run,
    workdir: epath.Path,
    store: SampleStore,
    measurement: Measurement | None,
    features: FeatureStore | None,
    cost: dict[str, Any],
) -> results.Result:
    """The figures of a run's samples, and a picture of the first of them."""
    settings = run.config.eval
    measured = figures.evaluate(
        store.shards(settings.num_samples),
        num_samples=settings.num_samples,
        batch_size=settings.batch_size,
        evaluations_per_step=run.evaluations_per_call * run.solver.evaluations_per_step,
        measurement=measurement,
        num_classes=run.config.model.num_classes,
        features_of=None if features is None else features.of,
    )
    stated = ("solver.", "guidance.", "eval.classes", "eval.rounding")
    chosen = {key: value for key, value in run.identity.items() if key.startswith(stated)}
    if measurement is not None:
        chosen |= results.compared_with(run.config)
    if run.evaluations_per_call > 1:
        chosen["score_calls_mean"] = measured["nfe_mean"] / run.evaluations_per_call
    first = next(store.shards(min(PICTURED, settings.num_samples)))
    plots.save_grid(workdir / "samples.png", first.images, title=run.title, caption=summary(measured))
    return results.Result.of(
        measured,
        config_hash=run.config_hash,
        checkpoint_sha256=run.identity["checkpoint_sha256"],
        features=None if measurement is None else measurement.features_name,
        reference=None if measurement is None else measurement.reference_name,
        reference_content=None if measurement is None else measurement.reference_content,
        **cost,
        extra={"config": run.name, **chosen, **run.weights},
    )


def _sample_missing(run: Run, store: SampleStore, processes: Processes) -> dict[str, Any]:
    """Samples what the store lacks; returns what that cost, None where nothing was missing."""
    settings = run.config.eval
    nothing = {"lane_utilization": None, "samples_per_second": None, "seconds_compile": None}
    missing = len(store.missing(settings.num_samples))
    require_writable(store.folder, size=missing * (math.prod(run.image_shape) + BYTES))
    if missing == 0:
        return nothing
    draw, _ = drawing(run)
    parts = fill(
        store,
        settings.num_samples,
        draw=draw,
        classes_of=conditional.classes_of(run.config),
        processes=processes,
        progress=processes.is_first,
    )
    if not parts:  # other processes were faster
        return nothing
    useful = sum(int(part.nfe.sum()) for part in parts)
    sampled = sum(len(part.nfe) for part in parts)
    return {
        "lane_utilization": useful / sum(part.lane_evaluations for part in parts),
        "samples_per_second": sampled / sum(part.seconds_sampling for part in parts),
        "seconds_compile": sum(part.seconds_compile for part in parts),
    }


def drawing(run: Run) -> tuple[Callable[..., Iterator[solvers.Solution]], int]:
    """``solvers.stream`` with a run's settings and grey levels as output; and its number of lanes."""
    settings = run.config.eval
    lanes = lanes_for(settings.num_samples, settings.batch_size, jax.local_device_count())
    draw = functools.partial(
        solvers.stream,
        run.load_score_fn(),
        run.sde,
        run.solver,
        key=jax.random.key(run.config.seed),
        shape=run.image_shape,
        conditions=conditional.classes_of(run.config),
        lanes=lanes,
        output=GREY_LEVELS[run.config.data.centered, settings.rounding],
        denoise=run.config.solver.denoise,
        max_evaluations=settings.max_evaluations,
    )
    return draw, lanes


def fill(
    store: SampleStore,
    num_samples: int,
    *,
    draw: Callable[..., Iterator[solvers.Solution]],
    classes_of: conditional.ClassesOf | None = None,
    processes: Processes = ALONE,
    progress: bool = False,
) -> list[solvers.Solution]:
    """Samples this process's share of what a store lacks; returns the solutions without their images.

    Args:
        store: gets the samples.
        num_samples: number of samples that the store has at the end.
        draw: ``solvers.stream`` without sample_ids, total and progress; its output is uint8.
        classes_of: the class of each sample, to be stored with it.
        processes: the processes that share the work. They take over the share of one that dies.
        progress: show a bar.
    """
    parts = []
    while store.any_left(num_samples, seconds=processes.seconds):
        for part in draw(
            # one shard after another, each as the folder is when the devices are about to need its ids
            sample_ids=store.pending(num_samples, process=processes.index, processes=processes.count),
            total=-(-len(store.missing(num_samples)) // processes.count),  # of this process, about
            progress=progress,
        ):
            classes = None if classes_of is None else classes_of(part.sample_ids)
            store.add(Samples.of(part, classes))
            parts.append(dataclasses.replace(part, x=part.x[:0]))  # the images are in the store
    return parts


def snapshot(config: Any, *, name: str, folder: epath.PathLike) -> Callable[[int, ScoreFn], None]:
    """A function of (step, score_fn) for training to call: it draws samples with the config's solver.

    Raises:
        ValueError: as ``check``, so that no sampling is refused after hours of training.
    """
    sde, solver = check(config)
    num_classes = config.model.num_classes
    classes = jnp.arange(PICTURED) % num_classes if num_classes else None

    def save(step: int, score_fn: ScoreFn) -> None:
        solution = solvers.sample(
            score_fn,
            sde,
            solver,
            key=jax.random.key(config.seed),
            shape=configs.image_shape(config.data),
            num_samples=PICTURED,
            batch_size=config.eval.batch_size,
            conditions=classes,
        )
        make_folder(folder)
        plots.save_grid(
            epath.Path(folder) / f"step_{step:08d}.png",
            to_uint8(solution.x, centered=config.data.centered),
            title=f"{name}   after {step:,} training steps",
            caption=f"NFE {solution.nfe.mean():.1f} mean, {solution.nfe.max()} max",
        )

    return save


def cost(result: dict[str, Any]) -> str:
    """The cost of sampling in a line for people."""
    if result["samples_per_second"] is None:
        return "nothing was missing"
    return (
        f"compiled in {result['seconds_compile']:.1f} s, then {result['samples_per_second']:.1f} samples/s, "
        f"lane utilization {result['lane_utilization']:.3f}"
    )


def summary(result: dict[str, Any]) -> str:
    """A result in a line for people."""
    parts = []
    if result["fid"] is not None:
        parts.append(f"FID {result['fid']:.3f}")
    if result.get("fid_infinity") is not None:
        parts.append(f"FID of infinitely many {result['fid_infinity']:.3f}")
    if result["is_mean"] is not None:
        parts.append(f"IS {result['is_mean']:.2f} ± {result['is_std']:.2f}")
    if "accuracy" in result:
        parts.append(f"accuracy {result['accuracy']:.3f}")
    if "kid" in result:
        parts.append(f"KID {result['kid']:.4f}, sliced Wasserstein {result['sliced_wasserstein']:.3f}")
        parts.append(f"precision {result['precision']:.2f}, recall {result['recall']:.2f}")
    if result["nfe_mean"] is not None:
        calls = result.get("score_calls_mean")
        twice = "" if calls is None else f" ({calls:.1f} calls of the score)"
        parts.append(f"NFE {result['nfe_mean']:.1f} mean, {result['nfe_max']} max{twice}")
    parts.append(f"{result['num_samples']:,} samples")
    if result["failed"]:
        parts.append(f"{result['failed']} FAILED")
    return "   ".join(parts)
