"""Fashion-MNIST: 70,000 real images of clothes, 28x28 pixels, grey.

python -m dresnet_jax.prepare --dataset=fashion_mnist
python -m dresnet_jax.train --config=configs/fashion_mnist.py --workdir=runs/fashion

50 minutes on 2 CPU cores, shared with other work; test accuracy 0.938 (one run at
commit d480bf2, with gate_multiplier = 30).
"""

import ml_collections

from dresnet_jax import defaults


def get_config() -> ml_collections.ConfigDict:
    """The CIFAR recipe of He et al. (2015): crop after padding, flip, SGD, in brief."""
    config = defaults.get_config()
    config.data.dataset = "fashion_mnist"
    config.data.crop_padding = 2
    config.data.background = 0  # The clothes are light on dark.
    config.data.flip = True
    config.model.width = 16
    config.train.num_epochs = 12
    config.train.log_every_steps = 100
    config.train.checkpoint_every_steps = 400
    return config
