"""One run of a config: sample what is missing in a workdir, then measure all of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

import models
import sde_lib
import solvers
from evaluation.metrics import figures as figures
from evaluation.metrics.bootstrap import REPLICATES
from evaluation.metrics.features import FeatureNetwork
from evaluation.metrics.fid import Moments
from evaluation.metrics.inception_score import require_enough
from evaluation.runs import plots, results
from evaluation.runs.feature_store import FeatureStore
from evaluation.store.files import make_folder, read_file, require_writable
from evaluation.store.processes import ALONE, Processes
from evaluation.store.samples import GREY_LEVELS, Samples, SampleStore, to_uint8
from models import checkpoints
from sde_lib import ScoreFn
from sde_lib.checks import require, require_count, require_shared
from solvers.queues import lanes_for

PICTURED = 72  # samples in samples.png
BYTES = 24  # of a sample in its shard, beside the image: its id and four counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A config with everything checked that can be before work is spent.

    Attributes:
        config: see configs/base.py.
        name: of the config, for pictures and default folders.
        checkpoint: the weights' path.
        weights: which they are: name, SHA-256, and those of the file that they were converted from.
        sde, solver: made from the config.
        identity, config_hash: of everything that determines the samples.
    """

    config: Any
    name: str
    checkpoint: Path
    weights: dict[str, Any]
    sde: sde_lib.SDE
    solver: solvers.Solver
    identity: dict[str, Any]
    config_hash: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of a sample."""
        data = self.config.data
        return data.image_size, data.image_size, data.num_channels

    @property
    def title(self) -> str:
        """The config, its solver and the one setting that matters most."""
        settings = vars(getattr(self.solver, "predictor", self.solver))
        setting = next(name for name in ("eps_rel", "num_steps", "rtol") if name in settings)
        return f"{self.name}   {self.config.solver.name}   {setting} {settings[setting]:g}"


def prepare(config: Any, *, name: str, checkpoint: str | None = None) -> Run:
    """Checks a config and finds its checkpoint.

    Raises:
        ValueError: for a setting out of range or a checkpoint that is not there; it names the key, its value,
            what was allowed and the fix.
    """
    sde = sde_lib.from_config(config.sde)
    solver = solvers.from_config(config.solver, config.solver_defaults)
    require_count(
        **{
            f"config.eval.{key}": config.eval[key]
            for key in ("num_samples", "batch_size", "max_evaluations", "shard_size")
        }
    )
    require_shared("config.eval.batch_size", config.eval.batch_size, jax.local_device_count(), "devices")
    models.build(config)
    given = checkpoint or config.model.checkpoint
    require(
        given is not None,
        "config.model.checkpoint",
        given,
        "the path of a checkpoint",
        "name one with --checkpoint=PATH, or make one with --mode=train",
    )
    weights = checkpoints.identity(given)
    sha256 = weights["checkpoint_sha256"]
    identity, config_hash = results.config_identity(config, sde=sde, solver=solver, checkpoint_sha256=sha256)
    return Run(
        config=config,
        name=name,
        checkpoint=checkpoints.find(given),
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
    network: FeatureNetwork | None = None,
    reference: Moments | None = None,
    compared: Callable[[], np.ndarray] | None = None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """The result of a run: from the workdir where it is there, else sampled, measured and added to it.

    Killed at any moment and called again it goes on from the shards that are there; a larger ``num_samples``
    samples only what is missing. Called by several processes with one workdir, they share the sampling and
    the features, and of ``processes`` that know of each other the first alone makes the figures of these: the
    others wait for its result.

    Args:
        run: from ``prepare``.
        workdir: gets identity.json, samples/, samples.png, results.jsonl and, until the result is there,
            features/.
        network: whose features FID and the Inception Score are of; without it there is neither.
        reference: moments of the data under that network; without them there is no FID.
        compared: gives features of ``config.eval.compared`` images of the data, for KID and its kin.
        processes: those that were started together.

    Raises:
        ValueError: for a workdir that holds another config's samples, too few samples for the scores, or
            a first process that ended without a result.
        OSError: for a disk that refuses a file, or, before anything is sampled, that is read-only or has no
            room for the samples; what was written before stays whole.
    """
    workdir = epath.Path(workdir)
    settings = run.config.eval
    if network is not None:
        require_enough(settings.num_samples)
        network.check(np.empty((0, *run.image_shape), np.uint8))
        figures.check_options(
            num_samples=settings.num_samples,
            num_features=network.num_features,
            fid_infinity=settings.fid_infinity,
            compared=settings.compared,
        )
    if not processes.is_first:  # of different configs, the first one's is to have the workdir
        processes.wait_for(lambda: read_file(workdir / "identity.json"), what=f"{workdir}/identity.json")
    results.claim_workdir(workdir, run.identity)
    features = None if network is None else f"{network.name}:{network.sha256}"
    compared_to = None if reference is None else reference.name

    def known() -> dict[str, Any] | None:
        return results.find(
            workdir,
            config_hash=run.config_hash,
            num_samples=settings.num_samples,
            features=features,
            reference=compared_to,
            compared=settings.compared if compared is not None else 0,
            fid_infinity=settings.fid_infinity and reference is not None,
        )

    if (result := known()) is None:
        folder = workdir / "samples"
        with SampleStore(folder, identity=run.config_hash, shard_size=settings.shard_size) as store:
            cost = _sample_missing(run, store, processes)
        features_of = None
        if network is not None:
            kept = FeatureStore(workdir / "features", network=network, samples=store)
            kept.fill(settings.num_samples, needed=lambda: known() is None, processes=processes)
            features_of = kept.of
        if not processes.is_first:
            result = processes.wait_for(known, what=f"a result in {workdir}/results.jsonl")
        elif (result := known()) is None:  # nor has another process been faster
            measured = figures.evaluate(
                store.shards(settings.num_samples),
                num_samples=settings.num_samples,
                batch_size=settings.batch_size,
                evaluations_per_step=run.solver.evaluations_per_step,
                network=network,
                features_of=features_of,
                reference=reference,
                replicates=REPLICATES,
                fid_infinity=settings.fid_infinity,
                compared=compared,
            )
            solver = {key: value for key, value in run.identity.items() if key.startswith("solver.")}
            line = results.Result.of(
                measured,
                config_hash=run.config_hash,
                checkpoint_sha256=run.identity["checkpoint_sha256"],
                git_commit=results.git_commit(),
                features=features,
                reference=compared_to,
                devices=results.devices(),
                versions=results.versions(),
                extra={"config": run.name, **solver, **run.weights},
                **cost,
            )
            first = next(store.shards(min(PICTURED, settings.num_samples)))
            plots.save_grid(workdir / "samples.png", first.images, title=run.title, caption=summary(measured))
            if (result := known()) is None:
                results.append(workdir, line)
                result = results.read(workdir)[-1]
    # by each process, as one that is slower may have made it again
    with contextlib.suppress(Exception):  # what stays is no harm
        (workdir / "features").rmtree(missing_ok=True)
    return result


def _sample_missing(run: Run, store: SampleStore, processes: Processes) -> dict[str, Any]:
    """Samples what the store lacks; returns what that cost, None where nothing was lacking."""
    settings = run.config.eval
    nothing = {"lane_utilization": None, "samples_per_second": None, "seconds_compile": None}
    missing = len(store.missing(settings.num_samples))
    require_writable(store.folder, size=missing * (math.prod(run.image_shape) + BYTES))
    if missing == 0:
        return nothing
    draw, _ = drawing(run)
    parts = fill(store, settings.num_samples, draw=draw, processes=processes, progress=processes.is_first)
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
    """``solvers.stream`` with all that a run says of it, grey levels as output; and its number of lanes."""
    settings = run.config.eval
    lanes = lanes_for(settings.num_samples, settings.batch_size, jax.local_device_count())
    draw = functools.partial(
        solvers.stream,
        models.load_score_fn(run.config, run.checkpoint),
        run.sde,
        run.solver,
        key=jax.random.key(run.config.seed),
        shape=run.image_shape,
        lanes=lanes,
        output=GREY_LEVELS[run.config.data.centered],
        denoise=run.config.solver.denoise,
        max_evaluations=settings.max_evaluations,
    )
    return draw, lanes


def fill(
    store: SampleStore,
    num_samples: int,
    *,
    draw: Callable[..., Iterator[solvers.Solution]],
    processes: Processes = ALONE,
    progress: bool = False,
) -> list[solvers.Solution]:
    """Samples what a store lacks, this process its share; returns what that took, without the images.

    Args:
        store: gets the samples.
        num_samples: to be in it at the end.
        draw: ``solvers.stream`` but for sample_ids, total and progress; its output has to be uint8.
        processes: those that share the work, and take over what one of them leaves that dies.
        progress: show a bar.
    """
    parts = []
    while store.any_left(num_samples, seconds=processes.seconds):
        for part in draw(
            # a shard's ids after another's, each as the folder is when the devices are about to need it
            sample_ids=store.pending(num_samples, process=processes.index, processes=processes.count),
            total=-(-len(store.missing(num_samples)) // processes.count),  # of this process, about
            progress=progress,
        ):
            store.add(Samples.of(part))
            parts.append(dataclasses.replace(part, x=part.x[:0]))  # the images are in the store
    return parts


def snapshot(config: Any, *, name: str, folder: epath.PathLike) -> Callable[[int, ScoreFn], None]:
    """What training calls with (step, score_fn): a picture of samples by the config's own solver."""
    sde = sde_lib.from_config(config.sde)
    solver = solvers.from_config(config.solver, config.solver_defaults)
    data = config.data

    def save(step: int, score_fn: ScoreFn) -> None:
        solution = solvers.sample(
            score_fn,
            sde,
            solver,
            key=jax.random.key(config.seed),
            shape=(data.image_size, data.image_size, data.num_channels),
            num_samples=PICTURED,
            batch_size=config.eval.batch_size,
        )
        make_folder(folder)
        plots.save_grid(
            epath.Path(folder) / f"step_{step:08d}.png",
            to_uint8(solution.x, centered=data.centered),
            title=f"{name}   after {step:,} training steps",
            caption=f"NFE {solution.nfe.mean():.1f} mean, {solution.nfe.max()} max",
        )

    return save


def cost(result: dict[str, Any]) -> str:
    """What the sampling of a result took, in a line for people."""
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
    if "kid" in result:
        parts.append(f"KID {result['kid']:.4f}")
        parts.append(f"precision {result['precision']:.2f}, recall {result['recall']:.2f}")
    if result["nfe_mean"] is not None:
        parts.append(f"NFE {result['nfe_mean']:.1f} mean, {result['nfe_max']} max")
    parts.append(f"{result['num_samples']:,} samples")
    if result["failed"]:
        parts.append(f"{result['failed']} FAILED")
    return "   ".join(parts)
