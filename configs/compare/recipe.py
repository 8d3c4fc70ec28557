r"""The DResNet that a search on other seeds found best, compared with ResNets.

python -m dresnet_jax.compare --config=configs/compare/recipe.py \
    --workdir=runs/recipe

The search: width 8, images of half the side, seeds 0 to 4, by validation accuracy. Here
are twice the width, whole images, ten seeds that it has not seen, and the test split.
"""

import ml_collections

from configs.compare import common


def get_config() -> ml_collections.ConfigDict:
    """10 seeds of the recipe, of ResNet, and of what the recipe was made from."""
    config = common.get_config(common.small_fashion_mnist())
    base = config.base
    base.data.train_examples = 30_000
    base.data.validation_examples = 5_000
    base.model.stem = "cifar"
    base.model.width = 16
    base.train.num_epochs = 2
    config.question = "Does the best DResNet found beat ResNet on Fashion-MNIST?"
    config.first_seed = 20
    config.seeds = 10
    config.variants = {
        "resnet": {"model": {"name": "resnet18"}},
        "dresnet": common.dresnet(topology="powers_of_two", initial_gate="published"),
        "dresnet, dense": common.dresnet(initial_gate="published"),
        "dresnet, dense, half open": common.dresnet(initial_gate=0.5),
    }
    config.main = "dresnet, dense"
    config.budgets = ("parameters", "time")
    config.target_accuracy = 0.85
    return config.lock()
