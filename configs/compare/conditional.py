r"""Conditional paths compared with ResNet and DResNet, on Fashion-MNIST.

python -m dresnet_jax.compare --config=configs/compare/conditional.py \
    --workdir=runs/conditional
"""

import ml_collections

from configs.compare import common


def get_config() -> ml_collections.ConfigDict:
    """5 seeds of ResNets and DResNets, plain and with gates of two rates."""
    config = common.get_config(common.small_fashion_mnist())
    config.question = "What do conditional paths cost in accuracy on Fashion-MNIST?"
    config.seeds = 5
    config.variants = {
        "resnet": {"model": {"name": "resnet18"}},
        "gated, 4 of 5": _gated(0.8),
        "gated, 1 of 2": _gated(0.5),
        "dresnet": common.dresnet(),
        "dresnet, gated, 4 of 5": _gated(0.8, name="dresnet18"),
        "dresnet, gated, 1 of 2": _gated(0.5, name="dresnet18"),
    }
    config.main = "gated, 4 of 5"
    config.budgets = ()
    config.target_accuracy = 0.85
    return config.lock()


def _gated(rate: float, name: str = "resnet18") -> dict[str, object]:
    return {"model": {"name": name, "conditional": {"target_rate": rate}}}
