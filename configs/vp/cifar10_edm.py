r"""DDPM++ on CIFAR-10, trained and preconditioned as in EDM.

python main.py --config=configs/vp/cifar10_edm.py --checkpoint=checkpoints/edm-cifar10-32x32-uncond-vp.pkl

The file is at https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/. It could not be downloaded where this was
written: what is tested is small networks in files of this format.

Published: FID 1.97 at 35 evaluations a sample (arXiv 2206.00364, Table 2), the least of three times 50,000
samples. They were drawn by Heun's method: --config.solver.name=heun. No FID is published for this solver.
"""

from configs.vp.cifar10_adaptive import get_config as vp_config


def get_config():
    return as_edm(vp_config())


def as_edm(config):
    """A published network's config with all that EDM changes in it, but for the embedding of NCSN++."""
    config.sde.name = "edm"
    config.solver_defaults.first_step = 0.5  # of the noise level, from 80
    config.solver_defaults.eps_abs = 2 / 256
    config.solver_defaults.data_deviation = 0.5
    config.model.ch_mult = (2, 2, 2)
    config.model.dropout = 0.13
    config.model.prediction = "edm"
    config.model.time = "log_sigma"
    config.model.sigma_data = 0.5
    config.data.centered = True
    config.training.weighting = "edm"
    return config
