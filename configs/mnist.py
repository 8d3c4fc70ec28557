"""MNIST: 70,000 handwritten digits, 28x28 pixels, grey.

python -m dresnet_jax.prepare --dataset=mnist
python -m dresnet_jax.train --config=configs/mnist.py --workdir=runs/mnist

Not trained by us yet: no time and no accuracy can be given here.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The recipe of `fashion_mnist` without flips, which would change digits."""
    config = common.get_config()
    config.data.dataset = "mnist"
    config.data.batch_size = 128
    config.data.crop_padding = 2
    config.model.width = 16
    config.train.num_epochs = 15
    config.train.log_every_steps = 100
    config.train.checkpoint_every_steps = 1000
    return config
