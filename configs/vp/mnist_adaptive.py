"""VP on MNIST at 32x32 (its 28x28 images with a black margin of two pixels), a network for two CPU cores.

python main.py --config=configs/vp/mnist_adaptive.py
"""

from configs.ve.mnist_adaptive import get_config as ve_config
from configs.vp.digits_adaptive import as_vp


def get_config():
    return as_vp(ve_config(), checkpoint="assets/mnist_vp")
