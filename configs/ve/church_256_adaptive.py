r"""NCSN++ on LSUN churches at 256x256, VE.

Published: FID 25.67 at 1104 evaluations a sample (eps_rel 0.01), 26.46 at 1030 (0.02).

python main.py --config=configs/ve/church_256_adaptive.py \
    --checkpoint=checkpoints/ve/church_ncsnpp_continuous/checkpoint_126

The published figures are of arXiv 2105.14080, Table 2, over 5,000 samples and with other
Inception features than on CIFAR-10. The network is that of all data sets at 256x256.
"""

from configs.base import get_config as base_config


def get_config():
    config = base_config()
    config.sde.name = "ve"
    config.sde.sigma_max = 380.0
    config.solver_defaults.first_step = 0.5
    config.solver_defaults.data_deviation = 0.25
    config.model.ch_mult = (1, 1, 2, 2, 2, 2, 2)
    config.model.num_res_blocks = 2
    config.model.dropout = 0.0
    config.model.fir = True
    config.model.progressive = "output_skip"
    config.model.progressive_input = "input_skip"
    config.model.embedding_type = "fourier"
    config.model.scale_by_sigma = True
    config.data.name = "lsun/church_outdoor"
    config.data.image_size = 256
    config.data.num_channels = 3
    config.data.resize = "bilinear"  # the shorter side is 256 already: the central square is taken as it is
    config.data.random_flip = True
    config.training.batch_size = 64
    config.training.num_steps = 2_400_000
    config.training.ema_rate = 0.999
    config.eval.num_samples = 5000
    config.eval.batch_size = 16
    config.eval.shard_size = 128
    return config
