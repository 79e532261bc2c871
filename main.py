"""Samples, measures and trains score-based models from a config.

python main.py --config=configs/ve/digits_adaptive.py --mode=eval --workdir=DIR --config.solver.eps_rel=0.05
"""

import functools
import shlex
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent)
if ROOT not in sys.path:  # an installed command starts elsewhere; the rooms are beside this file
    sys.path.insert(0, ROOT)

try:
    from absl import app, flags, logging
    from ml_collections import config_flags
except ModuleNotFoundError as error:
    sys.exit(
        f"main.py: {error.name} is not installed; pip install 'gotta-go-fast[cli]' brings all that it needs"
    )

from configs import command_line  # noqa: E402

MODES = {
    "eval": "sample what is missing in the workdir, then compute FID, IS and NFE (the default)",
    "sample": "sample what is missing, without FID and IS",
    "likelihood": "compute the bits per dimension of held-out images, or of --images",
    "trace": "draw the first --num_samples samples, with a picture of every step and an animation",
    "sweep": "run every cell of --sweep; writes one table and one plot of FID against NFE",
    "reproduce": "run a table of the paper, given by --table, and print it beside the published numbers",
    "report": "make one page of HTML of what --workdir holds, a run, a sweep or a table: report.html",
    "stats": "compute the reference statistics of the config's data and store them",
    "train": "train the config's model, from --checkpoint if given; resumes after an interruption",
    "convert": "write --checkpoint to --out in this project's format",
}
PROCESSES = ("multihost", "coordinator", "num_processes", "process_id", "connect_seconds")
USED = {
    "eval": {"config", "workdir", "checkpoint", "images", "profile", *PROCESSES},
    "sample": {"config", "workdir", "checkpoint", "profile", *PROCESSES},
    "likelihood": {"config", "workdir", "checkpoint", "images"},
    "trace": {"config", "workdir", "checkpoint", "num_samples"},
    "sweep": {"config", "workdir", "checkpoint", "sweep"},
    "reproduce": {"workdir", "table", "num_samples", "seeds", "batch_size"},
    "report": {"workdir"},
    "stats": {"config"},
    "train": {"config", "workdir", "checkpoint"},
    "convert": {"config", "checkpoint", "out", "dtype"},
}

CONFIG = config_flags.DEFINE_config_file("config", None, "A config file of configs/.", lock_config=True)
MODE = flags.DEFINE_string("mode", "eval", "; ".join(f"{mode}: {what}" for mode, what in MODES.items()) + ".")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for the results, local or gs://BUCKET/FOLDER; runs/CONFIG-HASH by default."
)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Weights to use instead of config.model.checkpoint.")
IMAGES = flags.DEFINE_string(
    "images", None, "For --mode=eval and likelihood: a folder, .zip or .npz of images to measure."
)
OUT = flags.DEFINE_string("out", None, "For --mode=convert: the new checkpoint's folder.")
DTYPE = flags.DEFINE_string("dtype", "float32", "For --mode=convert: of the weights, float32 or bfloat16.")
SWEEP = flags.DEFINE_multi_string(
    "sweep", [], 'For --mode=sweep: values of keys, all combined: "solver.eps_rel=0.02,0.05 seed=0,1,2".'
)
TABLE = flags.DEFINE_string("table", None, "For --mode=reproduce: 1, 2, appendix, or digits (runs anywhere).")
NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", None, "For --mode=reproduce: samples a cell; for --mode=trace: samples, 6 by default."
)
SEEDS = flags.DEFINE_integer("seeds", None, "For --mode=reproduce: seeds a cell.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "For --mode=reproduce: lanes, instead of the config's.")
MULTIHOST = flags.DEFINE_bool("multihost", False, "One of several processes: on a TPU pod, Slurm or MPI.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "Without these: HOST:PORT of process 0, a free port.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator: number of processes.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator: index of this process, from 0.")
CONNECT_SECONDS = flags.DEFINE_float("connect_seconds", 90.0, "How long processes wait for each other.")
PROFILE = flags.DEFINE_bool(
    "profile", False, "For --mode=eval and sample: first record two seconds of sampling in WORKDIR/profile."
)


def main(argv: list[str]) -> None:
    # the modes import what they need after the flags were found right: JAX takes seconds to load
    from sde_lib.checks import require, require_choice

    require(len(argv) == 1, "arguments", argv[1:], "flags only", "write --config=… --mode=… --workdir=…")
    require_choice("--mode", MODE.value, MODES)
    command_line.require_used(MODE.value, USED)
    if "config" in USED[MODE.value]:
        fix = f"add --config={command_line.EXAMPLE} or another"
        require(CONFIG.value is not None, "--config", None, "a config file of configs/", fix)
        command_line.require_keys_used(MODE.value, of_images=IMAGES.present)
    from evaluation.runs import modes

    given = modes.Given(
        config=CONFIG.value,
        config_path=CONFIG.value and config_flags.get_config_filename(flags.FLAGS["config"]),
        workdir=WORKDIR.value,
        checkpoint=CHECKPOINT.value,
        command=shlex.join(["python", *sys.argv]),
    )
    modes.keep_compiled_programs(given)
    several = MULTIHOST.value or any(flags.FLAGS[name].value is not None for name in PROCESSES[1:-1])
    match MODE.value:
        case "eval" if flags.FLAGS["images"].present:
            alone = not several and not PROFILE.value
            fix = "drop --profile, --multihost, --coordinator, --num_processes and --process_id"
            require(alone, "--images", IMAGES.value, "without --profile, and measured by one process", fix)
            modes.evaluate_images(given, IMAGES.value or "")
        case "eval" | "sample":
            found = connect() if several else None
            modes.sample(given, measured=MODE.value == "eval", profiled=PROFILE.value, processes=found)
        case "likelihood":
            modes.likelihood(given, IMAGES.value)
        case "trace":
            modes.trace(given, num_samples=NUM_SAMPLES.value)
        case "sweep":
            modes.sweep(given, SWEEP.value)
        case "reproduce":
            counts = {"num_samples": NUM_SAMPLES.value, "seeds": SEEDS.value, "batch_size": BATCH_SIZE.value}
            modes.reproduce(given, TABLE.value or "", **counts)
        case "report":
            modes.write_report(given)
        case "stats":
            modes.store_statistics(given)
        case "train":
            modes.train(given)
        case "convert":
            modes.convert(given, OUT.value or "", dtype=DTYPE.value)


def connect():
    """Finds the other processes, before anything else is asked of JAX."""
    from evaluation.store import processes

    return processes.connect(
        coordinator=COORDINATOR.value,
        num_processes=NUM_PROCESSES.value,
        process_id=PROCESS_ID.value,
        seconds=CONNECT_SECONDS.value,
    )


def guarded_main(argv: list[str]) -> None:
    """Reports bad input in one line; ``--verbosity=1`` adds the traceback."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        main(argv)
    except (ValueError, OSError, FloatingPointError) as error:
        logging.debug("refused at:", exc_info=True)
        command_line.refuse(str(error))
    except KeyboardInterrupt:
        print("main.py: interrupted; what is finished is kept, and the same command resumes", file=sys.stderr)
        sys.exit(130)


def console() -> None:
    """The installed command ``gotta-go-fast``."""
    for stream in (sys.stdout, sys.stderr):  # a terminal without "±" must not end a finished run
        stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    app.run(guarded_main, flags_parser=functools.partial(command_line.parse, used=USED))


if __name__ == "__main__":
    console()
