"""The command that makes a result again, found from the identity that its workdir keeps.

An identity holds every setting that decides the samples, and not what was typed. The command is the config's
file with the settings in which the identity differs from it, and is only given if it leads to the same hash.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import configs
import solvers
from configs import keys
from evaluation.runs import likelihood, results
from models import checkpoints
from sde_lib.checks import require
from solvers.presets import GRIDS, SOLVERS

# class -> its name in a config: an identity names a grid and a predictor by their classes
NAMES = {made.__name__: name for name, made in [*SOLVERS.items(), *GRIDS.items()]}
SHIPPED = re.compile(r"\w+/\w+")  # name of a file in configs/
CONFIG, CHECKPOINT, IMAGES = "CONFIG", "CHECKPOINT", "IMAGES"  # what a reader has to fill in


def command(result: Mapping[str, Any], identity: Mapping[str, Any]) -> tuple[str, str]:
    """The command line that makes a result again in a new workdir, and what to fill in where it has capitals.

    Args:
        result: a line of results.jsonl.
        identity: of the workdir; unused for images from another source, whose result says where they are.

    Raises:
        ValueError: if it cannot be known, with the reason.
    """
    if "num_images" in result:
        return _of_likelihood(result, identity)
    if "images" in result:
        measured_by = f"whose features are {result.get('features')} and whose reference is "
        fill_in = f"{CONFIG}: a config {measured_by}{result.get('reference')}"
        return _line("", f"--config={CONFIG}", f"--images={result['images']}"), fill_in
    config, settings = _found(result, identity, lambda config: _of_samples(config, result))
    measured = {"eval.num_samples": result.get("num_samples")}
    if result.get("features"):
        measured["eval.features"] = str(result["features"]).rpartition(":")[0]
        measured["eval.compared"] = result.get("compared", 0)
        measured["eval.fid_infinity"] = "fid_infinity" in result
        measured |= {key: result[key] for key in results.COMPARED if key in result}
    settings |= {key: value for key, value in measured.items() if configs.flat(config)[key] != value}
    weights, fill_in = _weights(config, result)
    mode = "" if result.get("features") else "--mode=sample"
    return _line(mode, _file(result), *_flags(settings), *weights), fill_in


def _of_likelihood(result: Mapping[str, Any], identity: Mapping[str, Any]) -> tuple[str, str]:
    content = {key: identity.get(key) for key in ("checkpoint_sha256", "images", "images_sha256")}
    config, settings = _found(result, identity, lambda config: likelihood.identity_of(config, **content))
    settings["eval.num_samples"] = result.get("num_images")
    name, split, _ = str(result.get("images")).rsplit(":", 2)
    images = []
    weights, fill_in = _weights(config, result)
    if split == "all":  # which data.datasets.open_samples calls them
        images.append(f"--images={IMAGES}")
        fill_in = "; ".join(filter(None, [fill_in, f"{IMAGES}: the images called {name}"]))
    else:
        given = {key: result[key] for key in results.COMPARED if key in result} | {"data.split": split}
        before = configs.flat(config) | {"data.split": "test"}
        settings |= {key: value for key, value in given.items() if before[key] != value}
    return _line("--mode=likelihood", _file(result), *_flags(settings), *images, *weights), fill_in


def _of_samples(config: Any, result: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    solver = solvers.from_config(config.solver, config.solver_defaults)
    return results.config_identity(config, solver=solver, checkpoint_sha256=result.get("checkpoint_sha256"))


def _found(result: Mapping[str, Any], identity: Mapping[str, Any], identity_of: Any) -> tuple[Any, dict]:
    """A result's config as its file has it, and the settings that were changed."""
    name, config_hash = result.get("config"), result["config_hash"]
    shipped = isinstance(name, str) and SHIPPED.fullmatch(name) is not None
    require(shipped, "config", name, "one of configs/", "keep the command line of your own configs")
    try:
        config = configs.load(str(name))
        changed = config.copy_and_resolve_references()
        settings = _changes(changed, dict(settings_of(identity)), identity_of)
    except (ImportError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"config {name!r} does not take its settings: {error}") from None
    same = identity_of(changed)[1] == config_hash
    fix = "it was changed since, or is not the one of this name in configs/"
    require(same, f"config {name!r} with the run's settings", config_hash, "of this hash", fix)
    before = configs.flat(config)
    return config, {key: value for key, value in settings.items() if before[key] != value}


def _changes(config: Any, wanted: dict[str, Any], identity_of: Any) -> dict[str, Any]:
    """Gives a config the settings of an identity; returns those that were set."""
    given = configs.flat(config)
    names = {key: wanted[key] for key in ("sde.name", "solver.name") if key in wanted}
    groups = tuple(key.removesuffix("name") for key in names)
    # settings that the process or the solver does not have go first, or its name would be refused
    foreign = dict.fromkeys(key for key in given if key.startswith(groups) and key not in wanted)
    config.update_from_flattened_dict(foreign | names)
    own = dict(settings_of(identity_of(config)[0]))
    settings = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in wanted.items()
        if key in given and own.get(key) != value
    }
    settings |= {key: keys.ADDED[key] for key in own if key not in wanted and key in keys.ADDED}
    config.update_from_flattened_dict(settings)
    return foreign | names | settings


def settings_of(identity: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The config's settings of an identity, those within a grid or a predictor included."""
    for key, value in identity.items():
        if isinstance(value, Mapping) and value.get("name") in NAMES:
            yield key, NAMES[value["name"]]
            yield from settings_of({f"solver.{name}": part for name, part in value.items() if name != "name"})
        else:
            yield key, value


def _weights(config: Any, result: Mapping[str, Any]) -> tuple[list[str], str]:
    if result.get("checkpoint_sha256") == _sha256(config.model.checkpoint):
        return [], ""
    name = f"{result.get('checkpoint')}, SHA-256 {result.get('checkpoint_sha256')}"
    return [f"--checkpoint={CHECKPOINT}"], f"{CHECKPOINT}: the path of {name}"


@functools.cache  # the cells of a sweep share it
def _sha256(path: str | None) -> str | None:
    try:
        return None if path is None else checkpoints.checkpoint_sha256(checkpoints.find(path))
    except (ValueError, OSError):
        return None


def _file(result: Mapping[str, Any]) -> str:
    return f"--config=configs/{result['config']}.py"


def _flags(settings: Mapping[str, Any]) -> list[str]:
    return [f"--config.{key}={value}" for key, value in settings.items()]


def _line(*arguments: str) -> str:
    return shlex.join(["python", "main.py", *filter(None, arguments)])
