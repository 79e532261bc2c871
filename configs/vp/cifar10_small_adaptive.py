"""VP on CIFAR-10 with its ten classes, a network for two CPU cores.

python main.py --mode=train --config=configs/vp/cifar10_small_adaptive.py

No trained network of it is shipped. Two cores train on some 100 images a second. After 130,000 images, less
than three epochs, its samples are still noisy; how long it takes to good ones is not known yet.
"""

from configs.vp.digits_classes import get_config as digits_config


def get_config():
    config = digits_config()
    # Of its 2.3 million weights, most work at 8x8 and at 16x16; at 32x32 sixteen channels draw the edges.
    config.model.checkpoint = None
    config.model.ch_mult = (1, 4, 8)
    config.model.attn_resolutions = (8,)
    config.model.sigma_data = 0.5

    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.num_channels = 3
    config.data.random_flip = True

    config.training.num_steps = 40_000
    config.training.checkpoint_every = 250
    config.training.snapshot_every = 2000

    config.eval.features = "cifar10"
    config.eval.shard_size = 64
    return config
