r"""Learned residuals x + a F(x) compared with ResNet and DResNet, on Fashion-MNIST.

python -m dresnet_jax.compare --config=configs/compare/residual.py \
    --workdir=runs/residual
"""

import ml_collections

from configs.compare import common


def get_config() -> ml_collections.ConfigDict:
    """5 seeds of ResNets whose residuals are scaled, and of a DResNet."""
    config = common.get_config(common.small_fashion_mnist())
    config.question = "Does it pay to learn the scale of residuals on Fashion-MNIST?"
    config.seeds = 5
    config.variants = {
        "resnet": {"model": {"name": "resnet18"}},
        "rezero": _scaled("scalar", 0.0),
        "layer scale": _scaled("channel", 1e-4),
        "scaled from 1": _scaled("channel", 1.0),
        "dresnet": common.dresnet(),
        "dresnet, rezero": _scaled("scalar", 0.0, name="dresnet18"),
    }
    config.main = "rezero"
    config.budgets = ()
    config.target_accuracy = 0.85
    return config.lock()


def _scaled(each: str, start: float, name: str = "resnet18") -> dict[str, object]:
    scale = {"residual_scale": each, "residual_start": start}
    return {"model": {"name": name} | scale}
