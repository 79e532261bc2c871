"""NCSN++ on CIFAR-10, VP.

python main.py --config=configs/vp/cifar10_ncsnpp_adaptive.py --workdir=DIR --mode=train

No checkpoint and no FID with this solver are published for it.
"""

from configs.vp.cifar10_adaptive import get_config as ddpmpp_config


def get_config():
    config = ddpmpp_config()
    config.model.fir = True
    config.model.progressive_input = "residual"
    return config
