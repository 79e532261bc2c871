"""Samples, measures and trains score-based models from a config.

python main.py --config=configs/ve/digits_adaptive.py --mode=eval --workdir=DIR --config.solver.eps_rel=0.05
"""

import difflib
import functools
import importlib
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

ROOT = Path(__file__).resolve().parent
DEFAULT_CONFIG = "configs/ve/digits_adaptive.py"

MODES = {
    "eval": "sample what is missing in the workdir, then FID, IS and NFE (the default)",
    "sample": "sample what is missing, without FID and IS",
    "sweep": "every cell of --sweep, in one table and one plot of FID against NFE",
    "reproduce": "--table of the paper, ours beside the published; needs no --config",
    "stats": "moments of the config's data, that FID is to; computed once and stored",
    "train": "train the config's model; killed, it goes on from its last checkpoint",
    "convert": "write --checkpoint in this project's format to --out",
}

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
MODE = flags.DEFINE_string("mode", "eval", "; ".join(f"{mode}: {what}" for mode, what in MODES.items()) + ".")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where results go, a local folder or gs://BUCKET/FOLDER; runs/CONFIG-HASH by default."
)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Weights to use instead of config.model.checkpoint.")
IMAGES = flags.DEFINE_string(
    "images", None, "For --mode=eval: measure these, a folder, a .zip or an .npz file, instead of sampling."
)
OUT = flags.DEFINE_string("out", None, "A new folder for --mode=convert.")
SWEEP = flags.DEFINE_multi_string(
    "sweep",
    [],
    'For --mode=sweep: values of config keys, all combined, as "solver.eps_rel=0.02,0.05 seed=0,1,2". '
    "Several --sweep add up: one for each solver with its own settings.",
)
TABLE = flags.DEFINE_string("table", None, "For --mode=reproduce: 1, 2, appendix, or digits (runs anywhere).")
NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", None, "For --mode=reproduce: of each cell, not the table's."
)
SEEDS = flags.DEFINE_integer("seeds", None, "For --mode=reproduce: how many for each cell, not the table's.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "For --mode=reproduce: lanes, instead of the config's.")
MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "One of several processes on one --workdir, found by JAX: a TPU pod, Slurm or MPI."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Instead of --multihost, with the next two: HOST:PORT of process 0, any free port."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes were started together.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
CONNECT_SECONDS = flags.DEFINE_float("connect_seconds", 50.0, "How long processes look for each other.")
PROFILE = flags.DEFINE_bool(
    "profile", False, "For --mode=eval and sample: record two seconds of it first, in WORKDIR/profile."
)
OF_ONE_MODE = {
    "sweep": "sweep",
    "out": "convert",
    "images": "eval",
    **dict.fromkeys(("table", "num_samples", "seeds", "batch_size"), "reproduce"),
}


def main(argv: list[str]) -> None:
    # JAX takes seconds to load, so the modes do that themselves, after the flags were found right
    from sde_lib.checks import require, require_choice

    require(len(argv) == 1, "arguments", argv[1:], "flags only", "write --config=… --mode=… --workdir=…")
    require_choice("--mode", MODE.value, MODES)
    for flag, mode in OF_ONE_MODE.items():
        given, fix = flags.FLAGS[flag].present, f"drop it, or take --mode={mode}"
        require(
            not given or MODE.value == mode, f"--{flag}", flags.FLAGS[flag].value, f"--mode={mode} only", fix
        )
    several = MULTIHOST.value or any(
        flag.value is not None for flag in (COORDINATOR, NUM_PROCESSES, PROCESS_ID)
    )
    samples = MODE.value in ("eval", "sample") and IMAGES.value is None
    require(
        samples or not PROFILE.value,
        "--profile",
        PROFILE.value,
        "--mode=eval or sample only, without --images: it records the sampling",
        "drop it",
    )
    require(
        samples or not several,
        "--mode",
        MODE.value,
        "eval or sample, without --images, for several processes: the others use the devices of one",
        "drop --multihost, --coordinator, --num_processes and --process_id",
    )
    if MODE.value == "reproduce":
        return reproduce()
    require(CONFIG.value is not None, "--config", None, "a file of configs/", f"such as {DEFAULT_CONFIG}")
    keep_compiled_programs(CONFIG.value.compilation_cache)
    modes = {
        "sweep": sweep,
        "stats": stats,
        "train": train,
        "convert": convert,
    }
    if MODE.value in modes:
        return modes[MODE.value]()
    if IMAGES.value is not None:
        return evaluate_images(IMAGES.value)
    sample(several=several)


def connected():
    """This process among those that were started with it."""
    from evaluation.store import processes

    return processes.connect(
        coordinator=COORDINATOR.value,
        num_processes=NUM_PROCESSES.value,
        process_id=PROCESS_ID.value,
        seconds=CONNECT_SECONDS.value,
    )


def measures(config) -> dict[str, Any]:
    """What FID and the Inception Score of a config are made with."""
    from evaluation.metrics import features, reference
    from evaluation.metrics.figures import check_options

    network = features.load_features(config.eval.features, config.eval.inception_weights)
    data, count = reference_data(config), config.eval.compared
    if count:  # better now than after the sampling
        check_options(
            num_samples=config.eval.num_samples,
            num_features=network.num_features,
            compared=count,
            num_images=datasets.open_images(config.data).count,
        )

    @functools.cache  # a sweep asks once for each cell
    def compared():
        return reference.first_features(data["pieces"](), network, count=count)

    moments = reference.find(network, **data)
    return {"network": network, "reference": moments, "compared": compared if count else None}


def reference_data(config) -> dict[str, Any]:
    """What evaluation/metrics/reference.py asks to know of a config."""

    data, split = datasets.describe(config.data)
    return {
        "given": config.eval.reference,
        "data": data,
        "split": split,
        "pieces": lambda: datasets.pieces(datasets.open_images(config.data)),
    }


def stats() -> None:
    from evaluation.metrics import features, reference

    config = CONFIG.value
    network = features.load_features(config.eval.features, config.eval.inception_weights)
    path, moments = reference.store(network, **reference_data(config))
    print(f"{moments.name}, features {network.name} {network.sha256[:8]} ({network.preprocessing})\n{path}")


def evaluate_images(path: str) -> None:
    from evaluation.runs import images, run

    opened = datasets.open_samples(path, CONFIG.value.data)
    folder = workdir(default_workdir("images"))
    result = images.evaluate_images(
        datasets.pieces(opened, limit=CONFIG.value.eval.shard_size),
        path=path,
        count=opened.count,
        workdir=folder,
        fid_infinity=CONFIG.value.eval.fid_infinity,
        **measures(CONFIG.value),
    )
    print(f"{path}\n{run.summary(result)}\n{folder}/results.jsonl")


def sample(*, several: bool) -> None:
    """The samples of a config, and for --mode=eval how good they are; by one process or several."""
    from evaluation.store.processes import ALONE

    processes = connected() if several else ALONE  # before anything else is asked of JAX
    from evaluation.runs import run

    prepared = run.prepare(CONFIG.value, name=config_name(), checkpoint=CHECKPOINT.value)
    folder = workdir(default_workdir(prepared.config_hash[:8]))
    scores = measures(CONFIG.value) if MODE.value == "eval" else {}
    if PROFILE.value and processes.is_first:
        from evaluation.runs.profile import record_sampling

        print(record_sampling(prepared, folder))
    result = run.sample_and_evaluate(prepared, folder, **scores, processes=processes)
    if not processes.is_first:
        return print(f"{processes.name} is done; process 0 wrote {folder}/results.jsonl")
    files = f"{folder}/results.jsonl  {folder}/samples.png"
    print(f"{prepared.title}\n{run.summary(result)}\n{run.cost(result)}\n{files}")


def sweep() -> None:
    from evaluation.runs.sweep import sweep

    folder = workdir(default_workdir("sweep"))
    table = sweep(
        CONFIG.value,
        SWEEP.value,
        folder,
        name=config_name(),
        command=command_line(),
        checkpoint=CHECKPOINT.value,
        **measures(CONFIG.value),
    )
    print(f"{table}\nwritten to {folder}/sweep.*")


def reproduce() -> None:
    from configs import base, tables
    from evaluation.runs.reproduce import reproduce
    from sde_lib.checks import require, require_choice, require_count

    for flag in ("config", "checkpoint"):
        given, fix = flags.FLAGS[flag].value, f"drop --{flag}; docs/reproduce.md says where checkpoints go"
        require(given is None, f"--{flag}", given, "none with --mode=reproduce: a table has its own", fix)
    name = TABLE.value or ""
    require_choice("--table", name, tables.TABLES)
    counts = {"num_samples": NUM_SAMPLES.value, "seeds": SEEDS.value, "batch_size": BATCH_SIZE.value}
    require_count(**{f"--{flag}": value for flag, value in counts.items() if value is not None})
    keep_compiled_programs(base.get_config().compilation_cache)
    folder = workdir(f"runs/table_{name}")
    table = reproduce(
        name,
        tables.TABLES[name],
        folder,
        models=tables.MODELS,
        methods=tables.METHODS,
        get_config=config_of,
        measures=measures,
        command=command_line(),
        **counts,
    )
    print(f"{table}\nwritten to {folder}/table_{name}.*")


def train() -> None:
    import training
    from evaluation.runs import run

    folder = workdir(default_workdir("train"))
    picture = run.snapshot(CONFIG.value, name=config_name(), folder=folder / "snapshots")
    path = training.train(CONFIG.value, folder, on_snapshot=picture, command=command_line())
    print(f"{path}\nsample from it: python main.py --config={config_path()} --checkpoint={path}")


def convert() -> None:
    import models
    from sde_lib.checks import require

    source, target = CHECKPOINT.value or "", OUT.value or ""
    require(source != "", "--checkpoint", source, "the checkpoint to convert", "add --checkpoint=PATH")
    require(target != "", "--out", target, "a folder that is not there yet", "add --out=DIR")
    print(models.convert(source, target, CONFIG.value, command=command_line()))


def keep_compiled_programs(folder: str) -> None:
    """Lets a second run, and a sweep, start without compiling anew."""
    import jax

    if folder:
        jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))


def command_line() -> str:
    return shlex.join(["python", *sys.argv])


def config_path() -> str:
    return config_flags.get_config_filename(flags.FLAGS["config"])


def config_of(name: str) -> Any:
    """The config that ``config_name`` calls so."""
    return importlib.import_module(f"configs.{name.replace('/', '.')}").get_config()


def config_name() -> str:
    """As "ve/digits_adaptive"."""
    path = Path(config_path())
    return f"{path.parent.name}/{path.stem}"


def workdir(default: str) -> Any:
    """--workdir as a path, or the default; refused before any work is spent where it cannot be a folder."""
    from evaluation.store.files import work_folder

    return work_folder(WORKDIR.value or default)


def default_workdir(last: str) -> str:
    return f"runs/{config_name().replace('/', '_')}-{last}"


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with every refusal in one line that says what to write instead."""
    for path in (argument.partition("=")[2] for argument in argv if argument.startswith("--config=")):
        if not Path(path).is_file():
            known = sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("configs/*/[!_]*.py"))
            near = difflib.get_close_matches(path, known, n=1)
            fix = f"did you mean {near[0]}?" if near else f"such as {DEFAULT_CONFIG}"
            refuse(f"--config = {path!r}: there is no such file; allowed is a file of configs/: {fix}")
    try:
        return flags.FLAGS(argv)
    except (KeyError, AttributeError) as error:  # how ml_collections says that a config has no such key
        said = error.args[0]
        text = (said.args[0] if isinstance(said, KeyError) else str(said)).replace("\n", ": ")
        refuse(f"the config has no key {text} configs/base.py lists all keys")
    except flags.Error as error:
        refuse(f"{error}; --help lists the flags, configs/base.py the keys of a config with their types")


def refuse(message: str) -> NoReturn:
    print(f"main.py: {message}", file=sys.stderr)
    sys.exit(2)


def guarded_main(argv: list[str]) -> None:
    """Shows what is wrong with the input in one line; ``--verbosity=1`` adds where it was found."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        main(argv)
    except (ValueError, OSError, FloatingPointError) as error:
        logging.debug("refused at:", exc_info=True)
        refuse(str(error))


if __name__ == "__main__":
    app.run(guarded_main, flags_parser=parse_flags)
