r"""The default connections compared with projections per edge, and with none.

python -m dresnet_jax.compare --config=configs/compare/projections.py \
    --workdir=runs/projections
"""

import ml_collections

from configs.compare import common


def get_config() -> ml_collections.ConfigDict:
    """5 seeds of the default, of the published form, and of the plain network."""
    config = common.get_config(common.small_fashion_mnist())
    base = config.base
    base.data.train_examples = 30_000
    base.data.validation_examples = 5_000
    base.model.width = 16
    config.question = "Do projections between stages learn as much as one per edge?"
    config.seeds = 5
    config.variants = {
        "resnet": {"model": {"name": "resnet18"}},
        "dresnet": {"model": {"name": "dresnet18"}},
        "dresnet, per edge": common.dresnet(),
    }
    config.budgets = ()
    config.target_accuracy = 0.9
    return config.lock()
