"""MNIST: 70,000 handwritten digits, 28x28 pixels, grey.

python -m dresnet_jax.prepare --dataset=mnist
python -m dresnet_jax.train --config=configs/mnist.py --workdir=runs/mnist

Not trained by us yet: no time and no accuracy can be given here.
"""

import ml_collections

from configs import fashion_mnist


def get_config() -> ml_collections.ConfigDict:
    """The recipe of Fashion-MNIST without flips, which would change digits."""
    config = fashion_mnist.get_config()
    config.data.dataset = "mnist"
    config.data.flip = False
    return config
