r"""DDPM++ on CIFAR-10, sub-VP, twice as deep.

python main.py --config=configs/subvp/cifar10_deep_adaptive.py \
    --checkpoint=checkpoints/subvp/cifar10_ddpmpp_deep_continuous/checkpoint_18

No FID is published for it with this solver; 2.41 with 1000 predictor steps (arXiv 2011.13456, Table 3).
"""

from configs.subvp.cifar10_adaptive import get_config as shallow_config


def get_config():
    config = shallow_config()
    config.model.num_res_blocks = 8
    return config
