r"""CNN, ResNet and DResNets on a part of Fashion-MNIST: the study of docs/results.

python -m dresnet_jax.compare --config=configs/compare/fashion_mnist.py \
    --workdir=runs/study
"""

import ml_collections

from configs.compare import common


def get_config() -> ml_collections.ConfigDict:
    """10 seeds of what is compared, 3 of each other gate, start and learning rate."""
    config = common.get_config(common.small_fashion_mnist())
    config.question = "Do learned connections pay on Fashion-MNIST?"
    config.seeds = 10
    config.other_seeds = 3
    config.variants = {
        "cnn": {"model": {"name": "cnn18"}},
        "resnet": {"model": {"name": "resnet18"}},
        "dresnet": common.dresnet(),
        "dresnet, gates fixed": _multiplied(0.0),
        "dresnet, gates x1": _multiplied(1.0),
        "dresnet, gates x100": _multiplied(100.0),
        "dresnet, initial gate 1/n^2": common.dresnet(initial_gate="1/n^2"),
        "dresnet, initial gate published": common.dresnet(initial_gate="published"),
        "dresnet, gauss": common.dresnet("gauss"),
        "dresnet, identity": common.dresnet("identity"),
        "dresnet, normalised sources": common.dresnet(normalise_sources=True),
        "dresnet, within stages": common.dresnet(
            topology="within_stage", projection="none"
        ),
    }
    config.target_accuracy = 0.85
    return config.lock()


def _multiplied(rate: float) -> dict[str, object]:
    """A DResNet whose gates learn at a multiple of the base learning rate."""
    return common.dresnet() | {"optimizer": {"gate_multiplier": rate}}
