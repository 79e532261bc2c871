r"""NCSN++ on CIFAR-10, VE, twice as deep.

Published: FID 3.06 at 736 evaluations a sample (eps_rel 0.01), 2.99 at 488 (0.02).

python main.py --config=configs/ve/cifar10_deep_adaptive.py \
    --checkpoint=checkpoints/ve/cifar10_ncsnpp_deep_continuous/checkpoint_12

The published figures are of arXiv 2105.14080, Table 1 (VE-deep), over 50,000 samples.
"""

from configs.ve.cifar10_adaptive import get_config as shallow_config


def get_config():
    config = shallow_config()
    config.model.num_res_blocks = 8
    return config
