"""VE on MNIST at 32x32 (its 28x28 images with a black margin of two pixels), a network for two CPU cores.

python main.py --config=configs/ve/mnist_adaptive.py
"""

from configs.ve.digits_adaptive import get_config as digits_config


def get_config():
    config = digits_config()
    # The largest distance between two training images in [0, 1] is 16.9 (Song & Ermon, arXiv 2006.09011,
    # technique 1).
    config.sde.sigma_max = 17.0

    # A million weights. Squares of 2x2 pixels enter as one, so that it computes at 16x16, 8x8 and 4x4.
    config.model.checkpoint = "assets/mnist_ve"
    config.model.patch_size = 2
    config.model.nf = 32
    config.model.ch_mult = (1, 2, 2)
    config.model.attn_resolutions = (8,)
    config.model.sigma_data = 0.3  # of the images in [0, 1] around 0; see models/build.py

    config.data.name = "mnist"
    config.data.image_size = 32
    config.data.resize = "pad"

    config.training.batch_size = 512
    config.training.num_steps = 4000
    config.training.checkpoint_every = 250
    config.training.snapshot_every = 2000
    config.training.learning_rate = 2e-3
    config.training.ema_rate = 0.9995
    config.training.ema_warmup = True

    config.eval.features = "mnist"
    config.eval.shard_size = 64  # half a minute's work
    return config
