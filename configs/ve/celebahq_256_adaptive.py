r"""NCSN++ on CelebA-HQ at 256x256, VE.

python main.py --config=configs/ve/celebahq_256_adaptive.py \
    --checkpoint=checkpoints/ve/celebahq_256_ncsnpp_continuous/checkpoint_48.pth

No FID is published for it with this solver.
"""

from configs.ve.church_256_adaptive import get_config as church_config


def get_config():
    config = church_config()
    config.sde.sigma_max = 348.0
    config.solver_defaults.first_step = 0.01
    config.data.name = "celeb_a_hq/256"
    config.data.resize = None  # they come at this size
    return config
