"""The command line of ``main.py``: what is wrong with it is said in one line, with what to write instead."""

from __future__ import annotations

import difflib
import importlib
import runpy
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

import configs
from configs import base, keys

ROOT = Path(__file__).resolve().parent.parent
STATED = ROOT / "configs" / "checkpoint.py"  # the config that a checkpoint states
EXAMPLE = "configs/ve/digits_adaptive.py"
INPUT_REFUSED = 2  # exit status


def parse(argv: Sequence[str], used: Mapping[str, Collection[str]]) -> list[str]:
    """Parses the flags with absl; a refusal ends the program with status 2.

    A config is looked for in the working directory and then beside ``main.py``. A checkpoint without a config
    stands for the config that it states. ``--config.KEY=None`` sets a setting back to its default, which
    ml_collections cannot read.

    Args:
        argv: the command line.
        used: mode -> the flags that it uses.
    """
    argv = _with_stated_config(argv, used)
    given = [argument for argument in argv if argument.startswith("--config.")]
    last = {text.partition("=")[0]: text for text in given}  # of a key given twice, the last value counts
    for key in (flag.removeprefix("--config.") for flag in last):
        if not all(name.partition("[")[0].isidentifier() for name in key.split(".")):
            refuse(f"the config has no key {key!r}: configs/base.py lists all keys, such as eval.num_samples")
    cleared = [text for text in last.values() if text.endswith("=None")]
    read = [text for text in argv if not (text in given and text.endswith("=None"))]
    others = [_with_config_found(argument) for argument in read]
    try:
        rest = flags.FLAGS(others)
    except (KeyError, AttributeError) as error:  # how ml_collections says that a config has no such key
        said = error.args[0]
        text = (said.args[0] if isinstance(said, KeyError) else str(said)).replace("\n", ": ")
        refuse(f"the config has no key {text} configs/base.py lists all keys")
    except IndexError as error:  # a part of a setting, such as config.model.ch_mult[0]
        refuse(f"a setting must be given as a whole ({error}): write --config.model.ch_mult='(1, 2, 2)'")
    except flags.Error as error:
        refuse(f"{error}; --help lists the flags, configs/base.py the keys of a config with their types")
    for argument in cleared:
        _clear(argument.removeprefix("--config.").removesuffix("=None"))
    return rest


def _with_stated_config(argv: Sequence[str], used: Mapping[str, Collection[str]]) -> list[str]:
    """The arguments, with the config of the checkpoint where a mode takes one and only that is given."""
    path, mode = _value(argv, "checkpoint"), _value(argv, "mode") or str(flags.FLAGS["mode"].default)
    if path is None or _value(argv, "config") is not None or "config" not in used.get(mode, ()):
        return list(argv)
    try:
        # the flags read it again, and would tell an error as a traceback
        importlib.import_module("configs.checkpoint").get_config(path)
    except (ValueError, OSError) as error:
        refuse(str(error))
    return [argv[0], f"--config={STATED}:{path}", *argv[1:]]


def _value(argv: Sequence[str], flag: str) -> str | None:
    """The value of a flag before absl has parsed it; None if it is not given."""
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        name, equals, value = argument.partition("=")
        if name in (f"--{flag}", f"-{flag}"):
            return value if equals else following
    return None


def _with_config_found(argument: str) -> str:
    flag, _, path = argument.partition("=")
    if flag not in ("--config", "-config") or path.startswith(f"{STATED}:"):
        return argument
    place = next((place for place in (Path(path), ROOT / path) if place.is_file()), None)
    if place is None:
        known = sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("configs/*/[!_]*.py"))
        near = difflib.get_close_matches(path, known, n=1)
        fix = f"did you mean {near[0]}?" if near else f"name one such as {EXAMPLE}"
        refuse(f"--config must be a config file that exists (got {path!r}): {fix}")
    if reason := _why_no_config(place):
        refuse(f"--config must be a Python file with a function get_config (got {path!r}): {reason}")
    return f"{flag}={place}"


def _why_no_config(place: Path) -> str | None:
    """What to correct in a config file, or None: its function is called once, as ml_collections will."""
    try:
        get_config = runpy.run_path(str(place)).get("get_config")
        if not callable(get_config):
            return "define a function get_config in it"
        config = get_config()
    except Exception as error:  # whatever is wrong with somebody's own file
        return f"correct it; {type(error).__name__}: {error}"
    if not isinstance(config, ConfigDict):
        return f"let get_config return the config of configs/base.py with its changes, not {config!r}"
    known, present = configs.flat(base.get_config()), configs.flat(config)
    if missing := sorted(known.keys() - present.keys()):
        start = "start from the config of configs/base.py, or from another one of configs/"
        return f"its config lacks {len(missing)} keys, such as {missing[0]}; {start}"
    if unknown := sorted(present.keys() - known.keys()):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        fix = f"did you mean {near[0]}?" if near else "configs/base.py has all keys"
        return f"its config has a key that nothing reads, {unknown[0]}; {fix}"
    return None


def _clear(key: str) -> None:
    config = flags.FLAGS["config"].value
    defaults = configs.flat(base.get_config())
    near = difflib.get_close_matches(key, defaults, n=1)
    if config is None or key not in defaults:
        fix = f"did you mean {near[0]!r}?" if near else "choose one of configs/base.py"
        refuse(f"--config.{key} must be a key of the config (got 'None'): {fix}")
    if defaults[key] is not None:
        refuse(f"--config.{key} must be a value (got 'None'): leave it out for {defaults[key]!r}")
    config.update_from_flattened_dict({key: None})


def require_used(mode: str, used: Mapping[str, Collection[str]]) -> None:
    """Refuses a flag that is given and that this mode does not use.

    Args:
        mode: the value of ``--mode``.
        used: mode -> the flags that it uses; flags of no mode are not looked at.

    Raises:
        ValueError: naming the flag, its value, and the modes that use it.
    """
    for flag in sorted(set().union(*used.values()) - set(used[mode])):
        if flags.FLAGS[flag].present:
            value, modes = flags.FLAGS[flag].value, [name for name in used if flag in used[name]]
            shown = repr(value) if isinstance(value, str | int | float | list) else "a config"
            raise ValueError(
                f"--{flag} must be absent with --mode={mode} (got {shown}): drop it, or choose "
                + " or ".join(f"--mode={name}" for name in modes)
            )


def require_keys_used(mode: str, *, of_images: bool) -> None:
    """Refuses a key of the config that is set at the command line and that this mode does not use.

    Args:
        mode: the value of ``--mode``.
        of_images: whether the mode takes its images from ``--images``.

    Raises:
        ValueError: naming the key, its value, and the modes that use it.
    """
    name = f"{mode} --images" if of_images else mode
    for key, value in config_flags.get_override_values(flags.FLAGS["config"]).items():
        if key.startswith(keys.UNUSED[name]):
            modes = [other for other, unused in keys.UNUSED.items() if not key.startswith(unused)]
            raise ValueError(
                f"--config.{key} must be absent with --mode={name} (got {value!r}): drop it; "
                f"it acts with {', '.join(f'--mode={other}' for other in modes)}"
            )


def refuse(message: str) -> NoReturn:
    """Ends the program with a one-line message and exit status 2."""
    print(f"main.py: {message}", file=sys.stderr)
    sys.exit(INPUT_REFUSED)
