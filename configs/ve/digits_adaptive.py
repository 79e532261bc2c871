"""VE on scikit-learn's 8x8 digits, the embedded default.

python main.py --config=configs/ve/digits_adaptive.py
"""

from configs.base import get_config as base_config


def get_config():
    config = base_config()
    config.sde.name = "ve"
    # The largest distance between two digits in [0, 1] is 4.81 (Song & Ermon, arXiv 2006.09011, technique 1).
    config.sde.sigma_max = 5.0
    config.solver_defaults.first_step = 0.5
    config.solver_defaults.data_deviation = 0.25

    # Small, 150,000 weights, for sampling on two CPU cores: resampling without convolutions, and no attention
    # but the one at the smallest size, take a third off each evaluation.
    config.model.checkpoint = "assets/digits_ve"
    config.model.nf = 16
    config.model.ch_mult = (1, 2)
    config.model.num_res_blocks = 1
    config.model.attn_resolutions = ()
    config.model.resblock_type = "ddpm"
    config.model.resamp_with_conv = False
    config.model.dropout = 0.0  # a network this small does not learn the digits by heart
    config.model.embedding_type = "fourier"
    config.model.fourier_scale = 1.0  # 16, as published for ImageNet-sized networks, is learnt more slowly
    config.model.sigma_data = 0.5  # of the images in [0, 1] around 0; see models/build.py

    config.training.weighting = "edm"
    config.training.batch_size = 64
    config.training.num_steps = 16_000
    config.training.checkpoint_every = 1000
    config.training.snapshot_every = 4000
    config.training.warmup_steps = 500
    config.training.learning_rate = 1e-3
    config.training.ema_rate = 0.999

    config.eval.num_samples = 1024
    config.eval.batch_size = 64
    config.eval.features = "digits"
    config.eval.shard_size = 256
    return config
