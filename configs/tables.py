"""The paper's tables as data (arXiv 2105.14080): its numbers, and the settings that reproduce each cell.

python main.py --mode=reproduce --table=digits

A table is a list of cells. A cell is a model, a method with its settings, and its published numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

Settings = dict[str, Any]  # config key, dotted -> value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A trained network that the tables use.

    Attributes:
        title: the paper's name for it.
        config: file of configs/, without its ending.
        checkpoint: path from the working directory or the project's root; a published PyTorch file also ends
            in .pth.
        snr: signal-to-noise ratio of the Langevin corrector; 0.16 for VE and 0.01 for VP on CIFAR-10, 0.075
            at 256x256.
        langevin_steps: predictor steps of the predictor–corrector.
    """

    title: str
    config: str
    checkpoint: str
    snr: float
    langevin_steps: int = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """The published numbers of a cell.

    Attributes:
        nfe: evaluations by the published count (see ``evaluation.metrics.figures.nfe_lockstep``).
        fid: the published FID.
        confirmed: whether the numbers were found in the authors' own material; otherwise they are only
            recalled, and marked as such.
        fid_elsewhere: the other FID, if the authors' material gives two for the same cell.
    """

    nfe: int
    fid: float
    confirmed: bool = True
    fid_elsewhere: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table, and the settings to reproduce it.

    Attributes:
        model: key of MODELS.
        method: key of METHODS.
        variant: a label that distinguishes it from other cells of the method.
        settings: the config keys that differ from the model's config.
        published: the published numbers, or None if there are none.
        eps_rel: Adaptive's tolerance; for another method, that of the Adaptive cell that it is compared with
            at equal evaluations.
        steps_of_adaptive: whether ``solver.num_steps`` is the measured mean NFE of that Adaptive cell, less
            one for the denoising, instead of a published number.
        seeds: number of seeds; 0 to seeds − 1 are sampled.
        expected_nfe: approximate evaluations a sample, to estimate the remaining time.
        own_line: whether the cell is a line of its own in the plot, instead of a point on its method's line.
    """

    model: str
    method: str
    variant: str
    settings: Settings
    published: Published | None = None
    eps_rel: float | None = None
    steps_of_adaptive: bool = False
    seeds: int = 1
    expected_nfe: int
    own_line: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the paper, or of the same experiment on other networks.

    Attributes:
        title: printed above the table.
        num_samples: number of samples for each cell.
        cells: in the order of display.
        notes: printed below the table; what a reader needs to know to compare the numbers.
    """

    title: str
    num_samples: int
    cells: tuple[Cell, ...]
    notes: tuple[str, ...]


# One published loop evaluates the samples of every method and data set; NFE does not depend on the rounding
AS_PUBLISHED: Settings = {"eval.rounding": "truncate"}

METHODS = {
    "reverse_diffusion_langevin": "Reverse diffusion + Langevin",
    "euler_maruyama": "Euler-Maruyama",
    "ddim": "DDIM",
    "adaptive": "Adaptive",
    "probability_flow_rk45": "Probability flow, RK45",
}

MODELS = {
    "vp": Model(
        title="VP",
        config="vp/cifar10_adaptive",
        checkpoint="checkpoints/vp/cifar10_ddpmpp_continuous/checkpoint_8",
        snr=0.01,
    ),
    "vp_deep": Model(
        title="VP-deep",
        config="vp/cifar10_deep_adaptive",
        checkpoint="checkpoints/vp/cifar10_ddpmpp_deep_continuous/checkpoint_8",
        snr=0.01,
    ),
    "ve": Model(
        title="VE",
        config="ve/cifar10_adaptive",
        checkpoint="checkpoints/ve/cifar10_ncsnpp_continuous/checkpoint_24",
        snr=0.16,
    ),
    "ve_deep": Model(
        title="VE-deep",
        config="ve/cifar10_deep_adaptive",
        checkpoint="checkpoints/ve/cifar10_ncsnpp_deep_continuous/checkpoint_12",
        snr=0.16,
    ),
    "church": Model(
        title="LSUN-Church (VE)",
        config="ve/church_256_adaptive",
        checkpoint="checkpoints/ve/church_ncsnpp_continuous/checkpoint_126",
        snr=0.075,
        langevin_steps=2000,
    ),
    "ffhq": Model(
        title="FFHQ (VE)",
        config="ve/ffhq_256_adaptive",
        checkpoint="checkpoints/ve/ffhq_256_ncsnpp_continuous/checkpoint_48",
        snr=0.075,
        langevin_steps=2000,
    ),
    "digits_ve": Model(title="VE", config="ve/digits_adaptive", checkpoint="assets/digits_ve", snr=0.16),
    "digits_vp": Model(title="VP", config="vp/digits_adaptive", checkpoint="assets/digits_vp", snr=0.01),
}


def confirmed(nfe: int, fid: float, fid_elsewhere: float | None = None) -> Published:
    return Published(nfe=nfe, fid=fid, fid_elsewhere=fid_elsewhere)


def recalled(nfe: int, fid: float) -> Published:
    return Published(nfe=nfe, fid=fid, confirmed=False)


# (method, eps_rel) -> the published numbers, in the order of the table's models
Numbers = Mapping[tuple[str, float | None], tuple[Published, ...]]

TABLE_1: Numbers = {  # vp, vp_deep, ve, ve_deep
    ("reverse_diffusion_langevin", None): (
        confirmed(1999, 4.27),
        confirmed(1999, 4.69),
        confirmed(1999, 2.40),
        confirmed(1999, 2.21),
    ),
    ("euler_maruyama", None): (
        confirmed(1000, 2.55),
        confirmed(1000, 2.49),
        confirmed(1000, 2.98, fid_elsewhere=2.89),
        confirmed(1000, 3.14),
    ),
    ("ddim", None): (recalled(1000, 2.86), recalled(1000, 2.69)),
    ("adaptive", 0.01): (
        confirmed(329, 2.70),
        confirmed(330, 2.56),
        confirmed(738, 2.91),
        confirmed(736, 3.06),
    ),
    ("euler_maruyama", 0.01): (
        confirmed(329, 10.28),
        confirmed(330, 10.00),
        confirmed(738, 2.99),
        confirmed(736, 3.17),
    ),
    ("ddim", 0.01): (recalled(329, 4.81), recalled(330, 4.76)),
    ("adaptive", 0.02): (
        confirmed(274, 2.74),
        confirmed(274, 2.60),
        confirmed(490, 2.87),
        confirmed(488, 2.99),
    ),
    ("euler_maruyama", 0.02): (
        confirmed(274, 14.18),
        confirmed(274, 13.67),
        confirmed(490, 3.05),
        confirmed(488, 3.21),
    ),
    ("ddim", 0.02): (recalled(274, 5.75), recalled(274, 5.74)),
    ("adaptive", 0.05): (
        confirmed(179, 2.59),
        confirmed(180, 2.44),
        confirmed(271, 3.23),
        confirmed(270, 3.40),
    ),
    ("euler_maruyama", 0.05): (
        confirmed(179, 25.49),
        confirmed(180, 25.05),
        confirmed(271, 3.48),
        confirmed(270, 3.76),
    ),
    ("ddim", 0.05): (recalled(179, 9.20), recalled(180, 9.25)),
    ("adaptive", 0.10): (
        confirmed(147, 2.95),
        confirmed(151, 2.73),
        confirmed(170, 8.85),
        confirmed(170, 10.15),
    ),
    ("euler_maruyama", 0.10): (
        confirmed(147, 31.38),
        confirmed(151, 31.93),
        confirmed(170, 5.12),
        confirmed(170, 5.56),
    ),
    ("ddim", 0.10): (recalled(147, 11.53), recalled(151, 11.38)),
    ("adaptive", 0.50): (
        recalled(49, 72.29),
        recalled(48, 82.42),
        recalled(52, 266.75),
        recalled(50, 307.32),
    ),
    ("euler_maruyama", 0.50): (
        recalled(49, 92.99),
        recalled(48, 95.77),
        recalled(52, 169.32),
        recalled(50, 271.27),
    ),
    ("ddim", 0.50): (recalled(49, 37.24), recalled(48, 38.71)),
    ("probability_flow_rk45", None): (
        confirmed(142, 3.11),
        confirmed(145, 2.86),
        confirmed(183, 7.64),
        confirmed(181, 5.53),
    ),
}

TABLE_2: Numbers = {  # church, ffhq
    ("reverse_diffusion_langevin", None): (recalled(3999, 29.14), recalled(3999, 16.42)),
    ("euler_maruyama", None): (recalled(2000, 42.11), recalled(2000, 18.57)),
    ("adaptive", 0.01): (confirmed(1104, 25.67), recalled(1020, 15.68)),
    ("euler_maruyama", 0.01): (recalled(1104, 68.24), recalled(1020, 20.45)),
    ("adaptive", 0.02): (confirmed(1030, 26.46), confirmed(643, 15.67)),
    ("euler_maruyama", 0.02): (recalled(1030, 73.47), recalled(643, 42.42)),
    ("adaptive", 0.05): (recalled(648, 28.47), recalled(336, 18.07)),
    ("euler_maruyama", 0.05): (recalled(648, 145.96), recalled(336, 114.23)),
    ("adaptive", 0.10): (recalled(201, 45.92), recalled(198, 24.02)),
    ("euler_maruyama", 0.10): (recalled(201, 417.77), recalled(198, 284.61)),
    ("probability_flow_rk45", None): (recalled(434, 214.47), recalled(369, 135.50)),
}

# Approximate evaluations a sample of each row on the shipped networks
DIGITS_NFE: dict[tuple[str, float | None], dict[str, int]] = {
    ("reverse_diffusion_langevin", None): {"digits_ve": 2001, "digits_vp": 2001},
    ("euler_maruyama", None): {"digits_ve": 1001, "digits_vp": 1001},
    ("ddim", None): {"digits_vp": 1001},
    **{
        (method, eps_rel): {"digits_ve": ve, "digits_vp": vp}
        for eps_rel, ve, vp in (
            (0.01, 448, 349),
            (0.02, 325, 268),
            (0.05, 193, 151),
            (0.10, 125, 93),
            (0.50, 44, 33),
        )
        for method in ("adaptive", "euler_maruyama", "ddim")
    },
    ("probability_flow_rk45", None): {"digits_ve": 87, "digits_vp": 227},
}

# The ablations of the appendix, as changes to Adaptive at eps_rel 0.01, eps_abs 0.0078
LAMBA = {"solver.error_estimate": "lamba", "solver.exponent": 0.5}
ABLATIONS: dict[str, Settings] = {
    "default": {},
    "δ without x'_prev": {"solver.use_previous": False},
    "Lamba's error, r = 0.5": LAMBA,
    "Lamba's error, r = 0.5, no extrapolation": {**LAMBA, "solver.extrapolate": False},
    "Lamba's error, r = 0.5, no extrapolation, L∞": {
        **LAMBA,
        "solver.extrapolate": False,
        "solver.norm": "linf",
    },
    "Lamba's error, r = 0.5, no extrapolation, L∞, θ = 0.8": {
        **LAMBA,
        "solver.extrapolate": False,
        "solver.norm": "linf",
        "solver.safety": 0.8,
    },
    "no extrapolation": {"solver.extrapolate": False},
    "L∞": {"solver.norm": "linf"},
    "r = 0.5": {"solver.exponent": 0.5},
    "r = 0.8": {"solver.exponent": 0.8},
    "r = 1": {"solver.exponent": 1.0},
}


def method_settings(model: Model, method: str, eps_rel: float | None, num_steps: int) -> Settings:
    """The config keys that a method of the tables sets."""
    steps: Settings = {"solver.num_steps": num_steps, "solver.grid": "uniform_t"}
    return {
        "reverse_diffusion_langevin": {
            "solver.name": "predictor_corrector",
            **steps,
            "solver.predictor": "reverse_diffusion",
            "solver.corrector_steps": 1,
            "solver.snr": model.snr,
            "solver.num_steps": model.langevin_steps,
        },
        "euler_maruyama": {"solver.name": "euler_maruyama", **steps},
        "ddim": {"solver.name": "ddim", **steps, "solver.eta": 0.0},
        "adaptive": {"solver.name": "adaptive", "solver.eps_rel": eps_rel},
        "probability_flow_rk45": {"solver.name": "rk45", "solver.rtol": 1e-5, "solver.atol": 1e-5},
    }[method]


def variant(method: str, eps_rel: float | None) -> str:
    """The label that distinguishes a cell from others of its method."""
    if eps_rel is None:
        return ""
    return f"ε_rel = {eps_rel:.2f}" if method == "adaptive" else f"NFE of ε_rel = {eps_rel:.2f}"


def published_cells(numbers: Numbers, models: tuple[str, ...]) -> tuple[Cell, ...]:
    """The cells of a published table; rows with fewer numbers than models leave out the last models."""
    return tuple(
        Cell(
            model=model,
            method=method,
            variant=variant(method, eps_rel),
            settings=AS_PUBLISHED | method_settings(MODELS[model], method, eps_rel, published.nfe),
            published=published,
            eps_rel=eps_rel,
            expected_nfe=published.nfe,
        )
        for i, model in enumerate(models)
        for (method, eps_rel), row in numbers.items()
        for published in row[i : i + 1]
    )


def ablation_cells(models: tuple[str, ...]) -> tuple[Cell, ...]:
    common = {"solver.name": "adaptive", "solver.eps_rel": 0.01, "solver.eps_abs": 0.0078}
    return tuple(
        Cell(
            model=model,
            method="adaptive",
            variant=name,
            settings={**AS_PUBLISHED, **common, **settings},
            eps_rel=0.01,
            expected_nfe=500,
            own_line=True,
        )
        for model in models
        for name, settings in ABLATIONS.items()
    )


def digits_cells() -> tuple[Cell, ...]:
    """The rows of Table 1 on the shipped networks, with DDIM on VP only, as in the paper.

    A cell of 1,000 steps costs as much as all others of its method together, and is sampled with one seed.
    """
    return tuple(
        Cell(
            model=model,
            method=method,
            variant=variant(method, eps_rel),
            settings=method_settings(MODELS[model], method, eps_rel, 1000),
            eps_rel=eps_rel,
            steps_of_adaptive=eps_rel is not None and method != "adaptive",
            seeds=2 if DIGITS_NFE[method, eps_rel][model] < 1000 else 1,
            expected_nfe=DIGITS_NFE[method, eps_rel][model],
        )
        for model in ("digits_ve", "digits_vp")
        for method, eps_rel in TABLE_1
        if method != "ddim" or model == "digits_vp"
    )


OUR_NFE = (
    "NFE is the mean number of network evaluations a sample, including the denoising and the rejected "
    "steps; a rejected step of Adaptive costs one evaluation here, not two as published. NFE lockstep counts "
    "our runs as published: the cost of a batch that waits for its slowest sample, without the denoising."
)
PUBLISHED_RUNS = (
    "The published fixed-step baselines gave the network wrong times whenever the number of steps was not "
    "1,000: they used the labels of a discrete model with 1,000 steps. Here all labels are those of "
    "continuous time, so Euler-Maruyama and DDIM differ from the published numbers that suffered from this."
)
PUBLISHED_DDIM = (
    "Published DDIM built a new β schedule with as many steps as evaluations, although the network was "
    "trained with the continuous one. Here DDIM uses the continuous signal and noise levels."
)
PUBLISHED_ADAPTIVE = (
    "Adaptive is Algorithm 1 as the paper states it. The published code overwrites x'_prev with x in every "
    "iteration, so that its δ depends on |x| and |x'|."
)
PUBLISHED_ROUNDING = (
    "The samples become grey levels by truncation, as published (eval.rounding). Elsewhere they become the "
    "nearest levels here."
)
PER_SAMPLE = (
    "RK45 chooses its steps for each sample, and the Langevin step size comes from each sample's norms; the "
    "published runs share both across a batch."
)
PUBLISHED_STEPS = (
    "Fixed-step rows beside Adaptive take the published number of steps, so that they can be compared with "
    "the published cells; they have as many evaluations as our Adaptive only where the two NFE columns agree."
)

TABLES = {
    "1": Table(
        title="Table 1: CIFAR-10",
        num_samples=50_000,
        cells=published_cells(TABLE_1, ("vp", "vp_deep", "ve", "ve_deep")),
        notes=(
            OUR_NFE,
            PUBLISHED_STEPS,
            PUBLISHED_RUNS,
            PUBLISHED_DDIM,
            PUBLISHED_ADAPTIVE,
            PUBLISHED_ROUNDING,
            PER_SAMPLE,
            "For VE with Euler-Maruyama at 1,000 steps the authors' own material gives both 2.98 and 2.89; "
            "the difference shown is from 2.98.",
        ),
    ),
    "2": Table(
        title="Table 2: 256x256",
        num_samples=5_000,
        cells=published_cells(TABLE_2, ("church", "ffhq")),
        notes=(
            OUR_NFE,
            PUBLISHED_STEPS,
            PUBLISHED_RUNS,
            PUBLISHED_ADAPTIVE,
            PUBLISHED_ROUNDING,
            PER_SAMPLE,
            "The published FID at this size uses other Inception features than on CIFAR-10, and ours uses "
            "the features named below. So the difference has two causes: the features and the samples.",
        ),
    ),
    "appendix": Table(
        title="Appendix: ablations of Adaptive on CIFAR-10, ε_rel = 0.01, ε_abs = 0.0078",
        num_samples=10_000,
        cells=ablation_cells(("vp", "ve")),
        notes=(
            OUR_NFE,
            "The published numbers of these cells are not available to us, so only ours are shown.",
            PUBLISHED_ADAPTIVE,
            PUBLISHED_ROUNDING,
            "L∞ with Lamba's error is run without extrapolation, as in Lamba's own algorithm.",
        ),
    ),
    "digits": Table(
        title="Table 1's experiment on the shipped networks: 8x8 digits",
        num_samples=256,
        cells=digits_cells(),
        notes=(
            OUR_NFE,
            "Rows with the NFE of an ε_rel have as many evaluations as Adaptive takes there on average.",
            "FID and IS use the features and classes of the digits' own classifier. They are comparable only "
            "with each other, at equal numbers of samples. ± is the standard deviation over the seeds; cells "
            "with one seed have none.",
        ),
    ),
}
