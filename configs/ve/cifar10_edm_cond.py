r"""NCSN++ on CIFAR-10, with its classes as conditions, trained and preconditioned as in EDM.

python main.py --config=configs/ve/cifar10_edm_cond.py --checkpoint=checkpoints/edm-cifar10-32x32-cond-ve.pkl

The file is at https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/. It could not be downloaded where this was
written: what is tested is small networks in files of this format.

Published: FID 1.79 at 35 evaluations a sample (arXiv 2206.00364, Table 2), the least of three times 50,000
samples. They were drawn by Heun's method: --config.solver.name=heun. No FID is published for this solver.
"""

from configs.ve.cifar10_edm import get_config as edm_config


def get_config():
    config = edm_config()
    config.model.num_classes = 10
    return config
