"""VP on scikit-learn's 8x8 digits, with their ten classes as conditions.

python main.py --config=configs/vp/digits_classes.py
"""

from configs.vp.digits_adaptive import get_config as digits_config


def get_config():
    config = digits_config()
    config.model.checkpoint = "assets/digits_classes"
    config.model.num_classes = 10
    config.training.num_steps = 10_000
    config.training.snapshot_every = 5000
    return config
