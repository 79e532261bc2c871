r"""NCSN++ on LSUN bedrooms at 256x256, VE.

python main.py --config=configs/ve/bedroom_256_adaptive.py \
    --checkpoint=checkpoints/ve/bedroom_ncsnpp_continuous/checkpoint_127

No FID is published for it with this solver.
"""

from configs.ve.church_256_adaptive import get_config as church_config


def get_config():
    config = church_config()
    config.sde.sigma_max = 378.0
    config.data.name = "lsun/bedroom"
    return config
