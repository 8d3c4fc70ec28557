"""Tiny ImageNet: 110,000 colour images of 64x64 pixels in 200 classes.

python -m dresnet_jax.prepare --dataset=tiny_imagenet
python -m dresnet_jax.train --config=configs/tiny_imagenet.py --workdir=runs/tiny

Not trained by us yet: no time and no accuracy can be given here.
"""

import ml_collections

from dresnet_jax import defaults


def get_config() -> ml_collections.ConfigDict:
    """After He et al. (2015) on ImageNet, with the crops of small images.

    A cosine, label smoothing and clipping are added.
    """
    config = defaults.get_config()
    config.data.dataset = "tiny_imagenet"
    config.data.batch_size = 256
    config.data.crop_padding = 8
    config.data.flip = True
    config.optimizer.weight_decay = 1e-4
    config.train.num_epochs = 90
    config.train.label_smoothing = 0.1
    config.train.log_every_steps = 100
    config.train.checkpoint_every_steps = 1000
    return config
