r"""Networks with classifiers at several depths, on Fashion-MNIST.

python -m dresnet_jax.compare --config=configs/compare/exits.py --workdir=runs/exits
"""

import ml_collections

from configs.compare import common


def get_config() -> ml_collections.ConfigDict:
    """5 seeds of ResNets with one classifier and with four, and of a DResNet."""
    config = common.get_config(common.small_fashion_mnist())
    config.question = "What do classifiers at several depths do to the last one?"
    config.seeds = 5
    config.variants = {
        "resnet": {"model": {"name": "resnet18"}},
        "exits": _with_exits("none"),
        "mean of exits": _with_exits("mean"),
        "learned weights": _with_exits("learned"),
        "attention": _with_exits("attention"),
        "dresnet": common.dresnet(),
        "dresnet, exits": _with_exits("none", name="dresnet18"),
    }
    config.main = "exits"
    config.budgets = ()
    config.target_accuracy = 0.85
    return config.lock()


def _with_exits(fusion: str, name: str = "resnet18") -> dict[str, object]:
    exits = {"after": (2, 4, 6), "head": "conv", "fusion": fusion}
    return {"model": {"name": name, "exits": exits}}
