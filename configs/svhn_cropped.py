"""SVHN: 99,289 colour images of house numbers, 32x32 pixels.

python -m dresnet_jax.prepare --dataset=svhn_cropped
python -m dresnet_jax.train --config=configs/svhn_cropped.py --workdir=runs/svhn_cropped

Not trained by us yet: no time and no accuracy can be given here.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The recipe of `cifar10` without flips, which would change digits, and shorter."""
    config = common.get_config()
    config.data.dataset = "svhn_cropped"
    config.data.batch_size = 128
    config.data.crop_padding = 4
    config.train.num_epochs = 60
    config.train.log_every_steps = 100
    config.train.checkpoint_every_steps = 1000
    return config
