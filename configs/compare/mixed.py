r"""Blocks that choose their operations compared with a ResNet's, on Fashion-MNIST.

python -m dresnet_jax.compare --config=configs/compare/mixed.py --workdir=runs/mixed

A mixed block computes all of its operations: a step takes several times as long.
"""

import ml_collections

from configs.compare import common

# Half of the 468 steps of a run: the second half trains what was chosen.
_STEPS = 234


def get_config() -> ml_collections.ConfigDict:
    """3 seeds of networks that mix, sample or route operations, and of a ResNet."""
    config = common.get_config(common.small_fashion_mnist())
    config.question = "Does it pay to learn the operations of blocks on Fashion-MNIST?"
    config.variants = {
        "resnet": {"model": {"name": "resnet18"}},
        "softmax": _mixed(),
        "softmax, no guard": _mixed(skip_drop=0.0),
        "softmax, priced": _mixed(price=0.01),
        "gumbel": _mixed(weights="gumbel"),
        "routed": _mixed(weights="routed", temperature_end=1.0),
    }
    config.main = "softmax"
    config.budgets = ("parameters",)
    config.target_accuracy = 0.85
    return config.lock()


def _mixed(**mixture: object) -> dict[str, object]:
    mixture = {"temperature_steps": _STEPS} | mixture
    return {"model": {"name": "mixed18", "mixture": mixture}}
