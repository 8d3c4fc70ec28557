"""Your own images: any directory of class/image files.

python -m dresnet_jax.prepare --dataset=folder --from_dir=flowers --data_dir=data
python -m dresnet_jax.train --config=configs/folder.py --workdir=runs/flowers \
    --config.data.data_dir=data

Time and accuracy depend on the images.
"""

import ml_collections

from dresnet_jax import defaults


def get_config() -> ml_collections.ConfigDict:
    """Crops, flips and learning rate for fewer images than ImageNet's."""
    config = defaults.get_config()
    config.data.dataset = "folder"
    config.data.image_size = 224
    config.data.batch_size = 32
    config.data.min_crop_area = 0.25
    config.data.flip = True
    config.model.stem = "own"
    config.optimizer.learning_rate = 0.025
    config.optimizer.weight_decay = 1e-4
    config.train.num_epochs = 90
    return config
