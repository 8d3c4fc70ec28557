"""CIFAR-10: 60,000 colour images of 32x32 pixels in 10 classes.

python -m dresnet_jax.prepare --dataset=cifar10
python -m dresnet_jax.train --config=configs/cifar10.py --workdir=runs/cifar10

Not trained by us yet: no time and no accuracy can be given here.
"""

import ml_collections

from dresnet_jax import defaults


def get_config() -> ml_collections.ConfigDict:
    """The recipe of Zagoruyko and Komodakis (2016), with a cosine instead of steps."""
    config = defaults.get_config()
    config.data.dataset = "cifar10"
    config.data.crop_padding = 4
    config.data.flip = True
    config.train.num_epochs = 200
    config.train.log_every_steps = 100
    config.train.checkpoint_every_steps = 1000
    return config
