"""The config that a checkpoint itself states: its network, its process and the range of its images.

main.py takes it where a checkpoint is given without a config. Settings are overridden as for any config:

python main.py --mode=sample --checkpoint=PATH --config.solver.eps_rel=0.05
"""

from configs.base import get_config as base_config
from models import checkpoints
from sde_lib.checks import require
from sde_lib.presets import settings_of


def get_config(path):
    """The config for the checkpoint at ``path``; refused for one that does not state its network."""
    stated = checkpoints.stated(checkpoints.find(path))
    require(
        "model" in stated and "sde" in stated,
        "checkpoint",
        path,
        "one that states its network and process, where no --config is given",
        "add the --config that it was trained with (docs/checkpoints.md lists them)",
    )
    config = base_config()
    config.data.name = "unknown"  # unless stated: its statistics would be another data set's
    of_process = {"name", *settings_of(stated["sde"]["name"])}
    for group in ("model", "data", "sde"):
        keys = of_process if group == "sde" else config[group].keys()
        known = {key: value for key, value in stated.get(group, {}).items() if key in keys}
        config[group].update({key: tuple(v) if isinstance(v, list) else v for key, v in known.items()})
    config.model.checkpoint = path
    config.solver.name = "adaptive_exponential"
    config.solver_defaults.eps_abs = 2 / 256 if config.data.centered else 1 / 256
    config.solver_defaults.data_deviation = 0.5 if config.data.centered else 0.25
    return config
