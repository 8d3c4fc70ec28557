r"""Does growth pay? A network that grows, and others for as much training.

python -m dresnet_jax.compare --config=configs/compare/growth.py \
    --workdir=runs/growth
"""

import ml_collections

from configs.compare import common


def get_config() -> ml_collections.ConfigDict:
    """5 seeds of a small network that grows four times, on Fashion-MNIST."""
    config = ml_collections.ConfigDict()
    # What the report answers.
    config.question = "Does growth pay on Fashion-MNIST?"
    # Of the runs that grow. Each is compared with its last structure and its first
    # one, each from the start and for as many multiply-adds of training, and with a
    # run whose events are drawn at random.
    base = config.base = common.small_fashion_mnist()
    base.model.blocks_per_stage = (1, 1, 1, 1)
    with base.ignore_type():
        base.model.connections.topology = "none"
    base.train.num_epochs = 15
    base.growth.events = ("width", "connections", "depth", "connections")
    base.growth.every_epochs = 3
    base.growth.max_loss = 0.01
    base.growth.quantile = 0.5
    base.growth.trial_batches = 2
    base.growth.trial_steps = 8
    base.growth.warmup_steps = 20
    # Runs of each, of seeds first_seed, first_seed + 1, ...
    config.first_seed = 0
    config.seeds = 5
    return config.lock()
