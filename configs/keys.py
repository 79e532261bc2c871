"""What each key of a config decides: the samples, a training, whether weights fit, or likelihoods.

A key that decides the samples is part of the identity of a workdir with samples (evaluation/runs/results.py).
A key that decides a training is part of the identity of a workdir with a training (training/settings.py). A
key that decides the weights must have the value with which a checkpoint was trained, unless
``model.mismatch_allowed`` names the key (models/checkpoints.py). Likelihoods are decided by keys of their own
and by those that decide the samples, the solver's aside (evaluation/runs/likelihood.py).
Keys that decide nothing say how much is sampled, how it is batched, and where files are.
"""

from __future__ import annotations

from typing import Any

import configs
from sde_lib.presets import settings

SAMPLES, TRAINING, WEIGHTS, LIKELIHOODS = "samples", "training", "weights", "likelihoods"

# A setting of a process or a solver decides only where that process or solver has it, so the identity of
# samples takes these values from the objects; a solver's defaults are among them.
DECIDES: dict[str, tuple[str, ...]] = {
    "seed": (SAMPLES, TRAINING),
    "compilation_cache": (),
    "sde.name": (SAMPLES, TRAINING, WEIGHTS),
    "sde.sigma_min": (SAMPLES, TRAINING, WEIGHTS),
    "sde.sigma_max": (SAMPLES, TRAINING, WEIGHTS),
    "sde.beta_min": (SAMPLES, TRAINING, WEIGHTS),
    "sde.beta_max": (SAMPLES, TRAINING, WEIGHTS),
    "sde.s": (SAMPLES, TRAINING, WEIGHTS),
    "sde.schedule": (SAMPLES, TRAINING, WEIGHTS),
    "sde.beta_start": (SAMPLES, TRAINING, WEIGHTS),
    "sde.beta_end": (SAMPLES, TRAINING, WEIGHTS),
    "sde.num_levels": (SAMPLES, TRAINING, WEIGHTS),
    "sde.eps": (SAMPLES,),  # training has an end time of its own
    "sde.T": (SAMPLES, TRAINING, WEIGHTS),
    "solver.name": (SAMPLES,),
    "solver.denoise": (SAMPLES,),
    "solver.eps_rel": (SAMPLES,),
    "solver.eps_abs": (SAMPLES,),
    "solver.safety": (SAMPLES,),
    "solver.exponent": (SAMPLES,),
    "solver.first_step": (SAMPLES,),
    "solver.norm": (SAMPLES,),
    "solver.extrapolate": (SAMPLES,),
    "solver.use_previous": (SAMPLES,),
    "solver.error_estimate": (SAMPLES,),
    "solver.noise_on_rejection": (SAMPLES,),
    "solver.num_steps": (SAMPLES,),
    "solver.num_evaluations": (SAMPLES,),
    "solver.data_deviation": (SAMPLES,),
    "solver.grid": (SAMPLES,),
    "solver.rho": (SAMPLES,),
    "solver.predictor": (SAMPLES,),
    "solver.snr": (SAMPLES,),
    "solver.corrector_steps": (SAMPLES,),
    "solver.eta": (SAMPLES,),
    "solver.order": (SAMPLES,),
    "solver.polynomial": (SAMPLES,),
    "solver.tau": (SAMPLES,),
    "solver.predictor_order": (SAMPLES,),
    "solver.corrector_order": (SAMPLES,),
    "solver.rtol": (SAMPLES,),
    "solver.atol": (SAMPLES,),
    "solver.churn": (SAMPLES,),
    "solver.churn_min": (SAMPLES,),
    "solver.churn_max": (SAMPLES,),
    "solver.churn_noise": (SAMPLES,),
    "solver_defaults.first_step": (),
    "solver_defaults.eps_abs": (),
    "solver_defaults.data_deviation": (),
    "solver_defaults.noise_on_rejection": (),
    "guidance.scale": (SAMPLES,),
    "guidance.interval": (SAMPLES,),
    "guidance.rescale": (SAMPLES,),
    "model.name": (SAMPLES, TRAINING, WEIGHTS),
    "model.checkpoint": (),  # the hash of its content decides instead
    "model.mismatch_allowed": (),
    "model.nf": (SAMPLES, TRAINING, WEIGHTS),
    "model.ch_mult": (SAMPLES, TRAINING, WEIGHTS),
    "model.num_res_blocks": (SAMPLES, TRAINING, WEIGHTS),
    "model.attn_resolutions": (SAMPLES, TRAINING, WEIGHTS),
    "model.dropout": (TRAINING,),
    "model.patch_size": (SAMPLES, TRAINING, WEIGHTS),
    "model.resamp_with_conv": (SAMPLES, TRAINING, WEIGHTS),
    "model.conditional": (SAMPLES, TRAINING, WEIGHTS),
    "model.fir": (SAMPLES, TRAINING, WEIGHTS),
    "model.fir_kernel": (SAMPLES, TRAINING, WEIGHTS),
    "model.skip_rescale": (SAMPLES, TRAINING, WEIGHTS),
    "model.resblock_type": (SAMPLES, TRAINING, WEIGHTS),
    "model.progressive": (SAMPLES, TRAINING, WEIGHTS),
    "model.progressive_input": (SAMPLES, TRAINING, WEIGHTS),
    "model.progressive_combine": (SAMPLES, TRAINING, WEIGHTS),
    "model.embedding_type": (SAMPLES, TRAINING, WEIGHTS),
    "model.fourier_scale": (SAMPLES, TRAINING),  # the frequencies themselves are among the weights
    "model.init_scale": (TRAINING,),
    "model.scale_by_sigma": (SAMPLES, TRAINING, WEIGHTS),
    "model.norm_groups": (SAMPLES, TRAINING, WEIGHTS),
    "model.norm_epsilon": (SAMPLES, TRAINING, WEIGHTS),
    "model.attn_every_up_block": (SAMPLES, TRAINING, WEIGHTS),
    "model.attn_head_dim": (SAMPLES, TRAINING, WEIGHTS),
    "model.freq_shift": (SAMPLES, TRAINING, WEIGHTS),
    "model.downsample_padding": (SAMPLES, TRAINING, WEIGHTS),
    "model.num_classes": (SAMPLES, TRAINING, WEIGHTS),
    "model.prediction": (SAMPLES, TRAINING, WEIGHTS),
    "model.time": (SAMPLES, TRAINING, WEIGHTS),
    "model.sigma_data": (SAMPLES, TRAINING, WEIGHTS),
    "model.dtype": (SAMPLES, TRAINING),
    "data.name": (SAMPLES, TRAINING, WEIGHTS),
    "data.path": (TRAINING,),
    "data.split": (TRAINING,),
    "data.image_size": (SAMPLES, TRAINING, WEIGHTS),
    "data.image_width": (SAMPLES, TRAINING, WEIGHTS),
    "data.num_channels": (SAMPLES, TRAINING, WEIGHTS),
    "data.crop": (TRAINING, WEIGHTS),
    "data.resize": (TRAINING, WEIGHTS),
    "data.centered": (SAMPLES, TRAINING, WEIGHTS),
    "data.random_flip": (TRAINING,),
    "data.uniform_dequantization": (TRAINING,),
    "training.batch_size": (TRAINING,),
    "training.num_steps": (),  # a training may go on for longer
    "training.checkpoint_every": (),
    "training.snapshot_every": (),
    "training.log_every": (),
    "training.weighting": (TRAINING,),
    "training.learning_rate": (TRAINING,),
    "training.warmup_steps": (TRAINING,),
    "training.gradient_clip": (TRAINING,),
    "training.ema_rate": (TRAINING,),
    "training.ema_warmup": (TRAINING,),
    "training.accumulate": (TRAINING,),  # by the dropout of its parts, and by rounding
    "training.label_dropout": (TRAINING,),
    "eval.num_samples": (),
    "eval.batch_size": (),
    "eval.classes": (SAMPLES,),
    "eval.max_evaluations": (SAMPLES,),
    "eval.rounding": (SAMPLES,),
    "eval.features": (),
    "eval.inception_weights": (),
    "eval.shard_size": (),
    "eval.reference": (),
    "eval.fid_infinity": (),
    "eval.compared": (),
    "likelihood.rtol": (LIKELIHOODS,),
    "likelihood.atol": (LIKELIHOODS,),
    "likelihood.divergence": (LIKELIHOODS,),
    "likelihood.num_probes": (LIKELIHOODS,),
}

# Keys that were added when samples and trainings had already been stored. At these values everything is as it
# was without the key, and identities leave it out, so that stored ones stay valid.
ADDED: dict[str, Any] = {
    "data.image_width": None,
    "eval.classes": "balanced",
    "eval.rounding": "nearest",
    "guidance.scale": 1.0,
    "guidance.interval": None,
    "guidance.rescale": 0.0,
    "model.norm_groups": 32,
    "model.norm_epsilon": 1e-6,
    "model.attn_every_up_block": False,
    "model.attn_head_dim": None,
    "model.freq_shift": 1,
    "model.downsample_padding": 0,
    "model.num_classes": 0,
    "model.patch_size": 1,
    "model.prediction": None,
    "model.time": None,
    "solver.polynomial": "t",
    "training.ema_warmup": False,
    "training.accumulate": 1,
    "training.label_dropout": 0.1,
}

_FIGURES = tuple(
    f"eval.{name}" for name in ("features", "inception_weights", "reference", "fid_infinity", "compared")
)
_SOLVING = ("solver.", "solver_defaults.", "guidance.")
_SAMPLING = tuple(
    f"eval.{name}"
    for name in ("num_samples", "batch_size", "classes", "max_evaluations", "rounding", "shard_size")
)

# What each mode of main.py does not use of a config, by the beginnings of keys: nobody sets one of these at
# the command line who does not expect it to act.
UNUSED: dict[str, tuple[str, ...]] = {
    "eval": ("training.", "likelihood."),
    "eval --images": ("training.", "likelihood.", *_SOLVING, "sde.", "eval.num_samples", "eval.classes"),
    "sample": ("training.", "likelihood."),
    "likelihood": ("training.", "solver.", "solver_defaults.", *_FIGURES, "eval.rounding", "eval.classes"),
    "trace": ("training.", "likelihood."),  # a report names it with the settings of its run
    "sweep": ("training.", "likelihood."),
    "train": ("likelihood.", *_FIGURES),  # the command that it prints at its end samples with the others
    "stats": ("training.", "likelihood.", *_SOLVING, *_SAMPLING, "sde."),
    "convert": ("training.", "likelihood.", *_SOLVING, "eval."),
}
UNUSED["likelihood --images"] = (*UNUSED["likelihood"], "data.path", "data.split")


def deciding(what: str) -> list[str]:
    """The keys that decide ``what``: SAMPLES, TRAINING, WEIGHTS or LIKELIHOODS."""
    return [key for key, decided in DECIDES.items() if what in decided]


def values(config: Any, what: str) -> dict[str, Any]:
    """The values of a whole config that decide ``what``, by dotted key.

    Of the ``sde`` group these are the settings that the process has, with its defaults filled in.

    Example:
        >>> decided = values(configs.load("ve/digits_adaptive"), WEIGHTS)
        >>> decided["sde.sigma_min"], "sde.beta_min" in decided
        (0.01, False)
    """
    given = {key: value for key, value in configs.flat(config).items() if not key.startswith("sde.")}
    given |= {f"sde.{name}": value for name, value in settings(config.sde).items()}
    return {key: given[key] for key in deciding(what) if key in given}


def identity(config: Any, what: str) -> dict[str, Any]:
    """``values`` without the keys that say nothing new."""
    return saying_something(values(config, what))


def saying_something(decided: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted key, without those that say nothing new: see ``ADDED``."""
    return {key: value for key, value in decided.items() if key not in ADDED or value != ADDED[key]}
