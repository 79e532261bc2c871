r"""The original DDPM network on CIFAR-10, VP.

python main.py --config=configs/vp/cifar10_ddpm_adaptive.py \
    --checkpoint=checkpoints/vp/cifar10_ddpm_continuous/checkpoint_8

No FID is published for it with this solver; 3.69 with the probability-flow ODE (arXiv 2011.13456, Table 2).
"""

from configs.vp.cifar10_adaptive import get_config as ddpmpp_config


def get_config():
    config = ddpmpp_config()
    config.model.name = "ddpm"
    config.model.num_res_blocks = 2
    return config
