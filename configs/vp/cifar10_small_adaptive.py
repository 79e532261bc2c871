"""VP on CIFAR-10 with its ten classes, a network for two CPU cores.

python main.py --config=configs/vp/cifar10_small_adaptive.py

The shipped network has seen 2.8 million images, 56 epochs of a lossy copy of CIFAR-10. The classifier finds
the class of half of its samples; docs/results.md has its tables.
"""

from configs.vp.digits_classes import get_config as digits_config


def get_config():
    config = digits_config()
    # 3.9 million weights. Squares of 2x2 pixels enter as one, so that it computes at 16x16, 8x8 and 4x4: at
    # 32x32 most of its time would go into few channels.
    config.model.checkpoint = "assets/cifar10_small"
    config.model.patch_size = 2
    config.model.nf = 64
    config.model.ch_mult = (1, 2, 2)
    config.model.attn_resolutions = (8,)
    config.model.sigma_data = 0.5

    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.num_channels = 3
    config.data.random_flip = True

    config.training.batch_size = 512
    config.training.num_steps = 5500
    config.training.checkpoint_every = 250
    config.training.snapshot_every = 5000
    # Twice the rate of the digits learns twice as fast at first; the average over the steps is longer for it.
    config.training.learning_rate = 2e-3
    config.training.ema_rate = 0.9995
    config.training.ema_warmup = True

    config.eval.features = "cifar10"
    config.eval.shard_size = 64
    return config
