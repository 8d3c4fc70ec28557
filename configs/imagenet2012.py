"""ImageNet: 1.3 million photographs in 1,000 classes, at 224x224 pixels.

python -m dresnet_jax.prepare --dataset=imagenet2012 --from_dir=<the two archives>
python -m dresnet_jax.train --config=configs/imagenet2012.py --workdir=runs/imagenet

Not trained by us yet: no time and no accuracy can be given here.
"""

import ml_collections

from dresnet_jax import defaults


def get_config() -> ml_collections.ConfigDict:
    """After Goyal et al. (2017): 0.1 per 256 images, random-resized-crops.

    A cosine, label smoothing and clipping are added.
    """
    config = defaults.get_config()
    config.data.dataset = "imagenet2012"
    config.data.batch_size = 1024
    # Each thread holds a batch of 150 MB: 16 in all.
    config.data.num_threads = 2
    config.data.num_workers = 8
    config.data.min_crop_area = 0.08
    config.data.flip = True
    config.model.stem = "own"
    config.model.dtype = "bfloat16"
    config.optimizer.learning_rate = 0.4
    config.optimizer.weight_decay = 1e-4
    config.train.num_epochs = 90
    config.train.label_smoothing = 0.1
    config.train.log_every_steps = 100
    config.train.checkpoint_every_steps = 1000
    return config
