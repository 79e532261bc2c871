"""VP on scikit-learn's 8x8 digits, the embedded default.

python main.py --config=configs/vp/digits_adaptive.py
"""

from configs.ve.digits_adaptive import get_config as ve_config


def as_vp(config, *, checkpoint):
    """A small VE network's config with all that VP changes in it."""
    config.sde.name = "vp"
    config.sde.sigma_max = None
    config.solver_defaults.first_step = 0.01
    config.solver_defaults.eps_abs = 2 / 256
    config.solver_defaults.data_deviation = 0.5
    config.model.checkpoint = checkpoint
    config.model.embedding_type = "positional"
    config.model.sigma_data = 1.0
    config.data.centered = True
    return config


def get_config():
    return as_vp(ve_config(), checkpoint="assets/digits_vp")
