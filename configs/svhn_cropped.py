"""SVHN: 99,289 colour images of house numbers, 32x32 pixels.

python -m dresnet_jax.prepare --dataset=svhn_cropped
python -m dresnet_jax.train --config=configs/svhn_cropped.py --workdir=runs/svhn_cropped

Not trained by us yet: no time and no accuracy can be given here.
"""

import ml_collections

from configs import cifar10


def get_config() -> ml_collections.ConfigDict:
    """The recipe of CIFAR-10 without flips, which would change digits, and shorter."""
    config = cifar10.get_config()
    config.data.dataset = "svhn_cropped"
    config.data.flip = False
    config.train.num_epochs = 60
    return config
