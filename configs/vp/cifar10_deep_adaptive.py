r"""DDPM++ on CIFAR-10, VP, twice as deep.

Published: FID 2.56 at 330 evaluations a sample (eps_rel 0.01), 2.44 at 180 (0.05).

python main.py --config=configs/vp/cifar10_deep_adaptive.py \
    --checkpoint=checkpoints/vp/cifar10_ddpmpp_deep_continuous/checkpoint_8

The published figures are of arXiv 2105.14080, Table 1 (VP-deep), over 50,000 samples.
"""

from configs.vp.cifar10_adaptive import get_config as shallow_config


def get_config():
    config = shallow_config()
    config.model.num_res_blocks = 8
    return config
