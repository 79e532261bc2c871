"""VP on MNIST at 32x32 (its 28x28 images with a black margin of two pixels), a network for two CPU cores.

python main.py --config=configs/vp/mnist_adaptive.py
"""

from configs.ve.mnist_adaptive import get_config as ve_config


def get_config():
    config = ve_config()
    config.sde.name = "vp"
    config.sde.eps = 1e-3
    config.solver.first_step = 0.01
    config.solver.eps_abs = 2 / 256
    config.model.checkpoint = "assets/mnist_vp"
    config.model.embedding_type = "positional"
    config.model.sigma_data = 1.0
    config.data.centered = True
    return config
