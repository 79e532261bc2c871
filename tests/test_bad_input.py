"""Bad input at the command line: one line that names the thing, its value, what it must be and the fix.

Every row is a command in a folder that holds somebody's files; afterwards these are as they were.
"""

from pathlib import Path

import numpy as np
import pytest

from tests import commands

VE, VP = (f"--config=configs/{name}/digits_adaptive.py" for name in ("ve", "vp"))
CLASSES = "--config=configs/vp/digits_classes.py"


def setting(solver: str, key: str, value: object, *more: str) -> list[str]:
    return [VE, f"--config.solver.name={solver}", f"--config.solver.{key}={value}", *more]


def not_above_zero(solver: str, key: str, *more: str) -> list[tuple[list[str], str]]:
    return [
        (
            setting(solver, key, value, *more),
            f"config.solver.{key} must be a number > 0 (got {shown}): set {key} above zero",
        )
        for value, shown in (("0", "0.0"), ("-1", "-1.0"), ("nan", "nan"), ("inf", "inf"))
    ]


def not_a_count(key: str, command: list[str]) -> list[tuple[list[str], str]]:
    name = key.rpartition(".")[2]
    return [
        (
            [*command, f"--config.{key}={value}"],
            f"config.{key} must be a whole number >= 1 (got {value}): set config.{key} to 1 or more"
            if key.startswith("eval")
            else f"config.{key} must be a whole number >= 1 (got {value}): set {name} to 1 or more",
        )
        for value in (0, -3)
    ]


def foreign(solver: str, key: str, value: object, shown: str) -> tuple[list[str], str]:
    return (
        setting(solver, key, value),
        f"config.solver.{key} must be None with config.solver.name = '{solver}', which has no such setting "
        f"(got {shown}): leave it out, or choose a solver that has it: ",
    )


def unused(flag: str, value: str, mode: str, *, config: bool = True) -> tuple[list[str], str]:
    return (
        [*([VE] if config else []), f"--mode={mode}", f"--{flag}={value}"],
        f"--{flag} must be absent with --mode={mode} (got ",
    )


FLAGS = [
    (
        ["--mode=eval"],
        "--config must be a config file of configs/ (got None): add --config=configs/ve/digits",
    ),
    ([], "--config must be a config file of configs/ (got None): add --config="),
    (["--config="], "--config must be a config file that exists (got ''): "),
    (["--config=configs/ve/digit_adaptive.py"], "did you mean configs/ve/digits_adaptive.py?"),
    (["--config=configs/ve"], "--config must be a config file that exists (got 'configs/ve'): "),
    (["--config=SYNTAX"], "with a function get_config (got 'syntax.py'): correct it; SyntaxError: "),
    (["--config=EMPTY"], "with a function get_config (got 'empty.py'): define a function get_config in it"),
    (["--config=RAISES"], "(got 'raises.py'): correct it; ZeroDivisionError: division by zero"),
    (["--config=IMPORTS"], "(got 'imports.py'): correct it; ModuleNotFoundError: No module named 'nowhere'"),
    (["--config=NONE"], "(got 'none.py'): let get_config return the config of configs/base.py with its "),
    (["--config=PART"], "(got 'part.py'): its config lacks "),
    (
        ["--config=MISTYPED"],
        "its config has a key that nothing reads, solver.eps_rell; did you mean solver.eps_rel?",
    ),
    (["--config=ARGUMENT"], "(got 'argument.py'): correct it; TypeError: get_config() missing 1 required"),
    ([VE, "extra"], "arguments must be flags only (got ['extra']): write --config=… --mode=… --workdir=…"),
    ([VE, "--mode=evl"], "--mode must be one of 'eval', 'sample', "),
    ([VE, "--mode=evl"], "(got 'evl'): did you mean 'eval'?"),
    ([VE, "--moed=eval"], "Unknown command line flag 'moed'. Did you mean: mode ?"),
    ([VE, "--mode=", "--profile"], "--mode must be one of "),
    ([VE, "--config.solver.eps_rell=0.1"], 'Did you mean "eps_rel" instead of "eps_rell"?'),
    ([VE, "--config.solver.eps_rel=small"], "--config.solver.eps_rel=small: could not convert"),
    ([VE, "--config.eval.num_samples=1.5"], "--config.eval.num_samples=1.5: invalid literal for int()"),
    ([VE, "--config.solvers.name=ddim"], "solvers"),
    ([VE, "--config.=64"], "the config has no key '': configs/base.py lists all keys"),
    ([VE, "--config.eval..num_samples=64"], "the config has no key 'eval..num_samples'"),
    # the last value of a setting counts, also after None
    ([VE, "--config.solver.eps_rel=None", "--config.solver.eps_rel=-1"], "config.solver.eps_rel must be "),
    ([VE, "--config.solver.eps_rel=None", "--config.solver.eps_rel", "-1"], "config.solver.eps_rel must be "),
    (
        [VE, "--config.data.image_size=None"],
        "--config.data.image_size must be a value (got 'None'): leave it out",
    ),
    ([VE, "--num_processes=two", "--process_id=0"], "--num_processes=two"),
    (
        [VE, "--images=FOLDER", "--num_processes=2"],
        "--images must be without --profile, and measured by one process (got ",
    ),
    ([VE, "--images=FOLDER", "--profile"], "--images must be without --profile, and measured by one process"),
    ([VE, "--coordinator=here", "--num_processes=2", "--process_id=0"], "--coordinator must be "),
    ([VE, "--coordinator=a:1"], "--num_processes"),
    ([VE, "--coordinator=a:1", "--num_processes=2", "--process_id=2"], "--process_id must be "),
    ([VE, "--coordinator=a:1", "--num_processes=0", "--process_id=0"], "--num_processes must be "),
    (
        [VE, "--coordinator=a:1", "--num_processes=2", "--process_id=1", "--connect_seconds=0"],
        "--connect_seconds must be a number > 0 (got 0.0)",
    ),
    unused("config.training.num_steps", "5", "eval"),
    unused("config.training.num_steps", "5", "sweep"),
    unused("config.likelihood.rtol", "0.1", "sample"),
    unused("config.solver.eps_rel", "0.1", "likelihood"),
    unused("config.eval.rounding", "truncate", "likelihood"),
    unused("config.likelihood.rtol", "0.1", "trace"),
    unused("config.eval.features", "digits", "train"),
    unused("config.eval.num_samples", "5", "stats"),
    unused("config.sde.name", "vp", "stats"),
    unused("config.solver.name", "ddim", "convert"),
    (
        [VE, "--images=FOLDER", "--config.solver.eps_rel=0.1"],
        "--config.solver.eps_rel must be absent with --mode=eval --images (got 0.1): drop it; it acts with "
        "--mode=eval, --mode=sample, --mode=trace, --mode=sweep, --mode=train",
    ),
    (
        [VE, "--mode=likelihood", "--images=FOLDER", "--config.data.split=test"],
        "--config.data.split must be absent with --mode=likelihood --images (got 'test'): drop it",
    ),
    unused("table", "1", "eval"),
    unused("sweep", "seed=0,1", "eval"),
    unused("out", "new", "sample"),
    unused("images", "FOLDER", "sample"),
    unused("images", "FOLDER", "train"),
    unused("num_samples", "5", "eval"),
    unused("num_samples", "5", "likelihood"),
    unused("images", "FOLDER", "trace"),
    unused("profile", "true", "likelihood"),
    ([VE, "--mode=trace", "--num_samples=0"], "--num_samples must be a whole number >= 1 (got 0)"),
    ([VE, "--mode=trace", "--num_samples=few"], "--num_samples=few"),
    unused("seeds", "5", "sweep"),
    unused("batch_size", "5", "train"),
    unused("profile", "true", "train"),
    unused("profile", "true", "stats"),
    unused("num_processes", "2", "train"),
    unused("coordinator", "a:1", "sweep"),
    unused("multihost", "true", "convert"),
    unused("checkpoint", "absent", "stats"),
    unused("checkpoint", "absent", "reproduce", config=False),
    (
        ["--mode=reproduce", VE, "--table=1"],
        "--config must be absent with --mode=reproduce (got a config): drop",
    ),
    (["--mode=reproduce"], "--table must be one of '1', '2', 'appendix', 'digits' (got ''): "),
    (["--mode=reproduce", "--table=digit"], "(got 'digit'): did you mean 'digits'?"),
    (
        ["--mode=reproduce", "--table=1", "--num_samples=0"],
        "--num_samples must be a whole number >= 1 (got 0)",
    ),
    (["--mode=reproduce", "--table=1", "--seeds=-1"], "--seeds must be a whole number >= 1 (got -1)"),
    (["--mode=reproduce", "--table=1", "--batch_size=0"], "--batch_size must be a whole number >= 1 (got 0)"),
    (
        [VE, "--mode=convert"],
        "--checkpoint must be the checkpoint to convert (got ''): add --checkpoint=PATH",
    ),
    (
        [VE, "--mode=convert", "--checkpoint=assets/digits_ve"],
        "--out must be a folder that does not exist yet (got ''): add --out=DIR",
    ),
    (
        [VE, "--mode=convert", "--checkpoint=assets/digits_ve", "--out=new", "--dtype=float16"],
        "dtype must be one of 'float32', 'bfloat16' (got 'float16')",
    ),
    ([VE, "--mode=sweep"], "--sweep must be at least one product (got []): add one such as --sweep="),
    ([VE, "--mode=sweep", "--sweep=seed"], "--sweep must be KEY=VALUE,VALUE,… (got 'seed'): write"),
    ([VE, "--mode=sweep", "--sweep=sed=1"], "--sweep key must be a field of the config (got 'sed'): did you"),
    ([VE, "--mode=sweep", "--sweep=seed=a"], "--sweep seed must be a whole number (got 'a'): correct it"),
    ([VE, "--mode=sweep", "--sweep=seed=1,1"], "--sweep seed must be different values (got '1,1'): drop"),
    (
        [VE, "--mode=sweep", "--sweep=seed=1 seed=2"],
        "--sweep seed must be given once a product (got '2'): join",
    ),
    ([VE, "--mode=sweep", "--sweep=solver.name=ddm"], "(got 'ddm'): did you mean 'ddim'?"),
    (
        [VE, "--mode=sweep", "--sweep=solver.name=ddim solver.eps_rel=0.1"],
        "config.solver.eps_rel must be None",
    ),
]

SOLVERS = [
    ([VE, "--config.solver.name=adaptiv"], "config.solver.name must be one of 'adaptive', "),
    ([VE, "--config.solver.name=adaptiv"], "(got 'adaptiv'): did you mean 'adaptive'?"),
    *not_above_zero("adaptive", "eps_rel"),
    *not_above_zero("adaptive", "eps_abs"),
    *not_above_zero("adaptive", "safety"),
    *not_above_zero("adaptive", "exponent"),
    *not_above_zero("adaptive", "first_step"),
    (
        setting("adaptive", "safety", 1),
        "config.solver.safety must be above 0 and below 1 (got 1.0): set safety to 0.9",
    ),
    (
        setting("adaptive", "norm", "l3"),
        "config.solver.norm must be one of 'l2_scaled', 'l2', 'linf' (got 'l3')",
    ),
    (setting("adaptive", "error_estimate", "hein"), "(got 'hein'): did you mean 'heun'?"),
    (setting("adaptive", "noise_on_rejection", "keep"), "config.solver.noise_on_rejection must be one of "),
    (setting("adaptive", "extrapolate", "maybe"), "--config.solver.extrapolate=maybe"),
    *not_above_zero("adaptive_exponential", "eps_rel"),
    *not_above_zero("adaptive_exponential", "eps_abs"),
    (setting("adaptive_exponential", "eta", 2), "config.solver.eta must be "),
    (setting("adaptive_exponential", "eta", -0.1), "config.solver.eta must be "),
    (setting("ddim", "eta", 1.5), "config.solver.eta must be "),
    *(
        row
        for solver in ("euler_maruyama", "reverse_diffusion", "ancestral", "heun", "edm", "ddim", "deis")
        for row in not_a_count("solver.num_steps", [VE, f"--config.solver.name={solver}"])
    ),
    *not_a_count("solver.corrector_steps", [VE, "--config.solver.name=predictor_corrector"]),
    *not_a_count("solver.num_steps", [VE, "--config.solver.name=predictor_corrector"]),
    *not_a_count("solver.num_steps", [VE, "--config.solver.name=annealed_langevin"]),
    *not_above_zero("predictor_corrector", "snr"),
    *not_above_zero("annealed_langevin", "snr"),
    *not_above_zero("rk45", "rtol"),
    *not_above_zero("rk45", "atol"),
    *not_above_zero("heun", "rho", "--config.solver.grid=edm"),
    (
        setting("heun", "grid", "uniform"),
        "config.solver.grid must be one of 'uniform_t', 'uniform_log_snr', 'edm'",
    ),
    (
        setting("heun", "rho", 5, "--config.solver.grid=uniform_t"),
        "config.solver.rho must be None with grid = 'uniform_t' (got 5.0): leave it out, or set grid=edm",
    ),
    (setting("dpm_solver_pp", "order", 4), "config.solver.order must be "),
    (setting("unipc", "order", 1), "config.solver.order must be "),
    (setting("unipc", "num_steps", 1), "config.solver.num_steps must be at least "),
    (setting("edm", "churn", -1), "config.solver.churn must be "),
    (setting("predictor_corrector", "predictor", "euler"), "config.solver.predictor must be one of "),
    (
        [VP, "--config.sde.name=subvp", "--config.solver.name=ancestral", "--config.solver.num_steps=3"],
        "sde",
    ),
    foreign("ddim", "eps_rel", 0.9, "0.9"),
    foreign("ddim", "norm", "l2", "'l2'"),
    foreign("rk45", "num_steps", 5, "5"),
    foreign("adaptive", "num_steps", 5, "5"),
    foreign("adaptive", "eta", 0.5, "0.5"),
    foreign("adaptive", "grid", "edm", "'edm'"),
    foreign("adaptive_exponential", "safety", 0.5, "0.5"),
    foreign("adaptive_exponential", "order", 2, "2"),
    foreign("euler_maruyama", "snr", 0.1, "0.1"),
    foreign("heun", "churn", 1, "1.0"),
    foreign("edm", "extrapolate", "true", "True"),
    foreign("unipc", "rtol", 0.1, "0.1"),
]

CONFIG = [
    ([VE, "--config.sde.name=v"], "config.sde.name must be one of 've', 'vp', 'subvp', 'edm', "),
    (
        [VE, "--config.guidance.scale=2"],
        "config.guidance.scale must be 1.0 with config.model.num_classes = 0",
    ),
    ([VE, "--config.eval.classes=3"], "config.eval.classes must be 'balanced' with config.model.num_classes"),
    (
        [CLASSES, "--config.eval.classes=10"],
        "config.eval.classes must be 'balanced', 'all', or a class from 0 ",
    ),
    (
        [CLASSES, "--config.guidance.rescale=0.5"],
        "config.guidance.rescale must be 0.0 with config.guidance.s",
    ),
    (["--mode=sample", "--checkpoint=absent"], "checkpoint must be an existing file or folder"),
    ([VE, "--config.sde.beta_max=9"], "config.sde.beta_max must be None with config.sde.name = 've'"),
    ([VE, "--config.model.prediction=noise"], "config.model.prediction must be one of 'score', 'epsilon', "),
    ([VE, "--config.model.time=index"], "config.model.time must be 't', 'log_sigma' or a function"),
    ([VE, "--config.model.prediction=v"], "config.model.sigma_data must be None for prediction 'v'"),
    ([VP, "--config.model.time=t"], "config.model.time': None} (got {'config.model.time': 't'})"),
    ([VE, "--config.sde.sigma_min=0"], "config.sde.sigma_min must be a number > 0 (got 0.0)"),
    (
        [VE, "--config.sde.sigma_min=9"],
        "config.sde.sigma_min must be a level below sigma_max = 5.0 (got 9.0)",
    ),
    ([VE, "--config.sde.sigma_max=nan"], "config.sde.sigma_max must be a number > 0 (got nan)"),
    ([VE, "--config.sde.eps=0"], "config.sde.eps must be a time above zero and below T = 1.0 (got 0.0)"),
    ([VE, "--config.sde.eps=2"], "config.sde.eps must be a time above zero and below T = 1.0 (got 2.0)"),
    ([VP, "--config.sde.beta_min=-1"], "config.sde.beta_min must be a number > 0 (got -1.0)"),
    ([VP, "--config.sde.beta_min=30"], "config.sde.beta_min must be a rate up to beta_max = 20.0 (got 30.0)"),
    ([VP, "--config.sde.T=0.5"], "config.sde.T must be "),
    ([VE, "--config.sde.sigma_max=50"], "config.sde.sigma_max"),
    ([VE, "--config.sde.sigma_max=50"], "mismatch_allowed"),
    *not_a_count("eval.num_samples", [VE]),
    *not_a_count("eval.batch_size", [VE]),
    *not_a_count("eval.max_evaluations", [VE]),
    *not_a_count("eval.shard_size", [VE]),
    ([VE, "--config.eval.num_samples=5"], "config.eval.num_samples must be at least 10"),
    ([VE, "--config.eval.rounding=floor"], "config.eval.rounding must be one of 'nearest', 'truncate'"),
    ([VE, "--config.eval.features=digit"], "config.eval.features must be one of "),
    (
        [VE, "--config.eval.features=absent_module:f"],
        "config.eval.features must be MODULE:FUNCTION, of a ",
    ),
    (
        [VE, "--config.eval.features=mnist"],
        "config.eval.features must be a feature network for images of shape",
    ),
    ([VE, "--config.eval.compared=2"], "config.eval.compared must be "),
    ([VE, "--config.eval.compared=9999"], "config.eval.compared must be "),
    (
        [VE, "--config.eval.num_samples=100", "--config.eval.fid_infinity"],
        "config.eval.fid_infinity must be ",
    ),
    ([VE, "--config.eval.reference=absent.npz"], "config.eval.reference must be "),
    ([VE, "--config.eval.reference=FOLDER"], "config.eval.reference must be "),
    ([VE, "--config.eval.reference=TEXT"], "config.eval.reference must be "),
    ([VE, "--config.eval.features=inception", "--config.eval.inception_weights=absent.pth"], "absent.pth"),
    ([VE, "--config.seed=-1"], "config.seed must be "),
    ([VE, "--config.seed=4294967296"], "config.seed must be "),
    ([VE, "--config.seed=9223372036854775808"], "config.seed must be "),
    ([VE, "--config.model.name=unet"], "config.model.name must be one of 'ncsnpp', 'ddpm' (got 'unet')"),
    ([VE, "--config.model.dtype=float16"], "config.model.dtype must be one of 'float32', 'bfloat16'"),
    ([VE, "--config.model.nf=32"], "config.model.nf"),
    ([VE, "--config.model.nf=0"], "config.model.nf must be "),
    ([VE, "--config.model.ch_mult=()"], "config.model.ch_mult"),
    ([VE, "--config.model.num_res_blocks=0"], "config.model.num_res_blocks must be "),
    ([VE, "--config.model.resblock_type=bigan"], "config.model.resblock_type must be one of "),
    ([VE, "--config.model.progressive=output"], "config.model.progressive must be one of "),
    ([VE, "--config.model.embedding_type=sine"], "config.model.embedding_type must be one of "),
    ([VP, "--config.model.scale_by_sigma"], "config.model.scale_by_sigma must be "),
    ([VE, "--mode=sample", "--config.data.image_size=16"], "config.data.image_size"),
    ([VE, "--mode=sample", "--config.data.num_channels=3"], "config.data.num_channels"),
    (
        [VE, "--config.model.checkpoint=None"],
        "config.model.checkpoint must be the path of a checkpoint (got None)",
    ),
    ([VE, "--checkpoint=absent"], "checkpoint must be "),
    ([VE, "--checkpoint=assets"], "checkpoint must be "),
    ([VE, "--checkpoint=FOLDER"], "checkpoint must be "),
    ([VE, "--checkpoint=TEXT"], "checkpoint "),
    ([VE, "--checkpoint=assets/digits_vp"], "config.sde.name"),
    ([VE, "--workdir=TEXT"], "--workdir must be a folder"),
    ([VE, "--workdir=TEXT/run"], "text.txt"),
]

DATA = [
    ([VE, "--images="], "--images must be "),
    ([VE, "--images=absent"], "--images must be "),
    ([VE, "--images=TEXT"], "--images must be "),
    ([VE, "--images=s3://bucket/folder"], "--images must be an existing folder, .zip or .npz file (got 's3:"),
    (
        [VE, "--mode=stats", "--config.eval.reference=gs://bucket/new.npz"],
        "config.eval.reference must be a local file (got 'gs://bucket/new.npz'): store them in a local file",
    ),
    ([VE, "--images=FOLDER"], "images"),
    ([VE, "--mode=stats", "--config.data.name=mnst"], "config.data.name must be one of "),
    ([VE, "--mode=stats", "--config.data.name=mnist"], "config.data.name"),
    ([VE, "--mode=stats", "--config.data.split=test"], "config.data.split must be "),
    ([VE, "--mode=stats", "--config.data.path="], "config.data.path must be "),
    ([VE, "--mode=stats", "--config.data.path=absent"], "config.data.path must be "),
    ([VE, "--mode=stats", "--config.data.crop=0"], "config.data.crop must be "),
    ([VE, "--mode=stats", "--config.data.crop=9"], "config.data.crop must be "),
    ([VE, "--mode=stats", "--config.data.resize=nearest"], "config.data.resize must be one of "),
    ([VE, "--mode=stats", "--config.data.image_size=9"], "config.data.image_size"),
    ([VE, "--mode=stats", "--config.data.num_channels=3"], "config.data.num_channels must be 1"),
]

TRAINING = [
    ([VE, "--mode=train", "--config.training.batch_size=0"], "config.training.batch_size must be "),
    ([VE, "--mode=train", "--config.training.num_steps=-1"], "config.training.num_steps must be "),
    (
        [VE, "--mode=train", "--config.training.checkpoint_every=0"],
        "config.training.checkpoint_every must be ",
    ),
    ([VE, "--mode=train", "--config.training.snapshot_every=0"], "config.training.snapshot_every must be "),
    ([VE, "--mode=train", "--config.training.log_every=0"], "config.training.log_every must be "),
    ([VE, "--mode=train", "--config.training.learning_rate=0"], "config.training.learning_rate must be "),
    ([VE, "--mode=train", "--config.training.learning_rate=nan"], "config.training.learning_rate must be "),
    ([VE, "--mode=train", "--config.training.gradient_clip=-1"], "config.training.gradient_clip must be "),
    ([VE, "--mode=train", "--config.training.warmup_steps=-1"], "config.training.warmup_steps must be "),
    ([VE, "--mode=train", "--config.training.ema_rate=1"], "config.training.ema_rate must be "),
    ([VE, "--mode=train", "--config.training.weighting=sigm"], "config.training.weighting must be one of "),
    ([VP, "--mode=train", "--config.model.sigma_data=None"], "config.training.weighting must be "),
    ([VE, "--mode=train", "--config.seed=4294967296"], "config.seed must be "),
    # what only the pictures of samples need is refused before the first step, too
    ([VE, "--mode=train", "--config.eval.batch_size=0"], "config.eval.batch_size must be a whole number"),
    ([VP, "--mode=train", "--config.solver.name=ancestral", "--config.sde.name=subvp"], "sde must be "),
    ([VE, "--mode=train", "--workdir=TEXT"], "--workdir must be a folder"),
    ([VE, "--mode=train", "--workdir=gs://bucket/folder"], "workdir"),
    ([VE, "--mode=train", "--checkpoint=absent"], "checkpoint must be "),
    ([VE, "--mode=train", "--config.data.path=absent"], "config.data.path must be "),
]

LIKELIHOOD = [VE, "--mode=likelihood", "--config.data.split=train"]
LIKELIHOODS = [
    ([VE, "--mode=likelihood"], "config.data.name must be a data set with held-out images (got 'digits'): "),
    (
        [VE, "--mode=likelihood", "--config.data.path=FOLDER"],
        "config.data.path must be a data set with held-out images (got 'folder'): name such images with ",
    ),
    ([VE, "--mode=likelihood", "--images=absent"], "--images must be an existing folder"),
    ([*LIKELIHOOD, "--workdir=TEXT"], "--workdir must be a folder"),
    ([*LIKELIHOOD, "--config.likelihood.rtol=0"], "config.likelihood.rtol must be a number > 0 (got 0.0)"),
    ([*LIKELIHOOD, "--config.likelihood.atol=nan"], "config.likelihood.atol must be a number > 0 (got nan)"),
    ([*LIKELIHOOD, "--config.likelihood.rtol=tight"], "--config.likelihood.rtol=tight: could not convert"),
    (
        [*LIKELIHOOD, "--config.likelihood.divergence=exakt"],
        "config.likelihood.divergence must be one of 'exact', 'hutchinson' (got 'exakt')",
    ),
    (
        [*LIKELIHOOD, "--config.likelihood.num_probes=1"],
        "config.likelihood.num_probes must be at least 2 (got 1): set it to 2 or more",
    ),
    (
        [*LIKELIHOOD, "--config.likelihood.divergence=exact", "--config.likelihood.num_probes=4"],
        "config.likelihood.num_probes must be None with divergence 'exact' (got 4): leave it out",
    ),
]

ROWS = [*FLAGS, *SOLVERS, *CONFIG, *DATA, *TRAINING, *LIKELIHOODS]


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with somebody's files in it, and the configs that the rows name."""
    (tmp_path / "syntax.py").write_text("def get_config(:\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "raises.py").write_text("1 / 0\n")
    (tmp_path / "imports.py").write_text("import nowhere\n")
    (tmp_path / "none.py").write_text("def get_config():\n    pass\n")
    part = "from ml_collections import ConfigDict\nget_config = lambda: ConfigDict({'seed': 0})\n"
    (tmp_path / "part.py").write_text(part)
    mistyped = (
        "config = base.get_config().unlock()\nconfig.solver.eps_rell = 0.1\nget_config = lambda: config\n"
    )
    (tmp_path / "mistyped.py").write_text(f"from configs import base\n{mistyped}")
    (tmp_path / "argument.py").write_text("def get_config(path):\n    return path\n")
    (tmp_path / "text.txt").write_text("somebody's own")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.md").write_text("somebody's own")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    return tmp_path


NAMES = {"SYNTAX": "syntax.py", "EMPTY": "empty.py", "RAISES": "raises.py", "IMPORTS": "imports.py"}
NAMES |= {"NONE": "none.py", "PART": "part.py", "MISTYPED": "mistyped.py", "ARGUMENT": "argument.py"}
NAMES |= {"FOLDER": "folder", "TEXT": "text.txt"}


def files(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_the_table_is_long_enough():
    assert len(ROWS) >= 150


@pytest.mark.parametrize(("arguments", "message"), ROWS, ids=str)
def test_it_is_refused_in_a_line_and_nothing_is_lost(arguments, message, place):
    for name, file in NAMES.items():
        arguments = [argument.replace(name, file) for argument in arguments]
    before = files(place)
    refused = commands.main(*arguments, folder=place, environment={"TFDS_DATA_DIR": "/nowhere"})
    lines = refused.stderr.splitlines()
    assert refused.returncode == 2, refused.stderr
    assert "Traceback" not in refused.stderr
    assert lines[-1].startswith("main.py: ")
    assert message in lines[-1]
    assert files(place) == before
