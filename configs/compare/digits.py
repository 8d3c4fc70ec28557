"""ResNet and DResNet on scikit-learn's digits: the study in small.

python -m dresnet_jax.compare --config=configs/compare/digits.py --workdir=runs/pay
"""

import ml_collections

from configs import digits
from configs.compare import common


def get_config() -> ml_collections.ConfigDict:
    """2 models, 3 seeds, and the ResNets of equal parameters, FLOPs and time."""
    config = common.get_config(digits.get_config())
    config.question = "Do learned connections pay on digits?"
    config.base.train.log_every_steps = 19
    config.variants = {
        "resnet": {"model": {"name": "resnet18"}},
        "dresnet": common.dresnet(),
    }
    config.target_accuracy = 0.95
    return config.lock()
