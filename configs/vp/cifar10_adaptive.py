r"""DDPM++ on CIFAR-10, VP.

Published: FID 2.70 at 329 evaluations a sample (eps_rel 0.01), 2.74 at 274 (0.02), 2.59 at 179 (0.05).

python main.py --config=configs/vp/cifar10_adaptive.py \
    --checkpoint=checkpoints/vp/cifar10_ddpmpp_continuous/checkpoint_8

The published figures are of arXiv 2105.14080, Table 1 (VP), over 50,000 samples.
"""

from configs.base import get_config as base_config


def get_config():
    config = base_config()
    config.sde.name = "vp"
    config.solver_defaults.eps_abs = 2 / 256
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.num_channels = 3
    config.data.centered = True
    config.data.random_flip = True
    return config
