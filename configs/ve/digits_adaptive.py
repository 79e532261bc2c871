"""VE on scikit-learn's 8x8 digits, the embedded default.

python main.py --config=configs/ve/digits_adaptive.py
"""

from configs.base import get_config as base_config


def get_config():
    config = base_config()
    config.sde.name = "ve"
    config.sde.sigma_max = 10.0
    config.solver.first_step = 0.5
    config.model.nf = 32
    config.model.ch_mult = (1, 2)
    config.model.num_res_blocks = 1
    config.model.attn_resolutions = (4,)
    config.model.embedding_type = "fourier"
    config.model.scale_by_sigma = True
    config.training.num_steps = 20_000
    config.training.checkpoint_every = 1000
    config.training.snapshot_every = 5000
    config.training.warmup_steps = 500
    config.training.learning_rate = 1e-3
    config.training.ema_rate = 0.999
    config.eval.num_samples = 1024
    config.eval.batch_size = 64
    config.eval.features = "digits"
    config.eval.shard_size = 256
    return config
