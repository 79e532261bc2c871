r"""NCSN++ on CIFAR-10, VE.

Published: FID 2.91 at 738 evaluations a sample (eps_rel 0.01), 2.87 at 490 (0.02), 3.23 at 271 (0.05).

python main.py --config=configs/ve/cifar10_adaptive.py \
    --checkpoint=checkpoints/ve/cifar10_ncsnpp_continuous/checkpoint_24

The published figures are of arXiv 2105.14080, Table 1 (VE), over 50,000 samples.
"""

from configs.base import get_config as base_config


def get_config():
    config = base_config()
    config.sde.name = "ve"
    config.sde.sigma_max = 50.0
    config.solver_defaults.first_step = 0.5
    config.solver_defaults.data_deviation = 0.25
    config.model.fir = True
    config.model.progressive_input = "residual"
    config.model.embedding_type = "fourier"
    config.model.scale_by_sigma = True
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.num_channels = 3
    config.data.random_flip = True
    config.training.ema_rate = 0.999
    return config
