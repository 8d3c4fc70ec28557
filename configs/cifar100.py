"""CIFAR-100: 60,000 colour images of 32x32 pixels in 100 classes.

python -m dresnet_jax.prepare --dataset=cifar100
python -m dresnet_jax.train --config=configs/cifar100.py --workdir=runs/cifar100

Not trained by us yet: no time and no accuracy can be given here.
"""

import ml_collections

from configs import cifar10


def get_config() -> ml_collections.ConfigDict:
    """The recipe of CIFAR-10."""
    config = cifar10.get_config()
    config.data.dataset = "cifar100"
    return config
