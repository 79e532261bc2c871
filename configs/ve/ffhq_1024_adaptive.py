r"""NCSN++ on FFHQ at 1024x1024, VE.

python main.py --config=configs/ve/ffhq_1024_adaptive.py \
    --checkpoint=checkpoints/ve/ffhq_1024_ncsnpp_continuous/checkpoint_60.pth

No FID is published for it with this solver.
"""

from configs.ve.ffhq_256_adaptive import get_config as ffhq_256_config


def get_config():
    config = ffhq_256_config()
    config.sde.sigma_max = 1348.0
    config.model.nf = 16
    config.model.ch_mult = (1, 2, 4, 8, 16, 32, 32, 32)
    config.model.num_res_blocks = 1
    config.data.image_size = 1024
    config.training.batch_size = 8
    config.training.ema_rate = 0.9999
    config.eval.batch_size = 1
    config.eval.shard_size = 8
    return config
