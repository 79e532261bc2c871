r"""DDPM++ on CIFAR-10, sub-VP.

python main.py --config=configs/subvp/cifar10_adaptive.py \
    --checkpoint=checkpoints/subvp/cifar10_ddpmpp_continuous/checkpoint_26

No FID is published for it with this solver; 2.61 with 1000 predictor steps (arXiv 2011.13456, Table 3).
"""

from configs.vp.cifar10_adaptive import get_config as vp_config


def get_config():
    config = vp_config()
    config.sde.name = "subvp"
    return config
