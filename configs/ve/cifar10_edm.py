r"""NCSN++ on CIFAR-10, trained and preconditioned as in EDM.

python main.py --config=configs/ve/cifar10_edm.py --checkpoint=checkpoints/edm-cifar10-32x32-uncond-ve.pkl

The file is at https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/. It could not be downloaded where this was
written: what is tested is small networks in files of this format.

Published: FID 1.98 at 35 evaluations a sample (arXiv 2206.00364, Table 2), the least of three times 50,000
samples. They were drawn by Heun's method: --config.solver.name=heun. No FID is published for this solver.
"""

from configs.ve.cifar10_adaptive import get_config as ve_config
from configs.vp.cifar10_edm import as_edm


def get_config():
    config = as_edm(ve_config())
    config.sde.sigma_max = None  # of the published VE process
    config.model.embedding_type = "fourier_of_label"
    config.model.scale_by_sigma = False
    return config
