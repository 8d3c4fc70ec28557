"""Images made on the spot, of any shape, with a pattern per class to learn.

python -m dresnet_jax.plan --config=configs/synthetic.py --config.data.image_size=64
"""

import ml_collections

from dresnet_jax import defaults


def get_config() -> ml_collections.ConfigDict:
    """The full-width network on colour images."""
    config = defaults.get_config()
    config.data.dataset = "synthetic"
    config.data.batch_size = 32
    config.data.image_size = 32
    config.data.channels = 3
    config.data.num_classes = 10
    config.data.num_examples = 1024
    config.model.stem = "pooled"
    config.train.num_epochs = 10
    return config
