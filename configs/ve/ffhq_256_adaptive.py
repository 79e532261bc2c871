r"""NCSN++ on FFHQ at 256x256, VE: FID 15.67 at 643 evaluations a sample (eps_rel 0.02).

python main.py --config=configs/ve/ffhq_256_adaptive.py \
    --checkpoint=checkpoints/ve/ffhq_256_ncsnpp_continuous/checkpoint_48.pth

The published figure is of arXiv 2105.14080, Table 2, over 5,000 samples and with other
Inception features than on CIFAR-10.
"""

from configs.ve.church_256_adaptive import get_config as church_config


def get_config():
    config = church_config()
    config.sde.sigma_max = 348.0
    config.solver_defaults.first_step = 0.01
    config.data.name = "ffhq"  # where its images are is said by config.data.path
    config.data.resize = "box"  # means of 4x4 pixels, as in the published TFRecords
    return config
