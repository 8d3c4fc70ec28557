r"""Deep, thin networks: 54 blocks, the fewest of them 4 channels wide.

python -m dresnet_jax.compare --config=configs/compare/deep.py --workdir=runs/deep

--config.base.model.blocks_per_stage="(9,9,9)" has half as many, "(3,3,3)" a sixth.
"""

import ml_collections

from configs.compare import common


def get_config() -> ml_collections.ConfigDict:
    """5 seeds of what is compared, 3 of the plain network and other initial gates."""
    config = common.get_config(common.small_fashion_mnist())
    config.question = "Do learned connections pay in deep, thin networks?"
    config.base.model.width = 4
    config.base.model.blocks_per_stage = (18, 18, 18)
    config.base.train.num_epochs = 4
    config.seeds = 5
    config.other_seeds = 3
    config.variants = {
        "plain": {"model": {"name": "resnet110", "shortcut": "none"}},
        "resnet": {"model": {"name": "resnet110"}},
        "dresnet": _dresnet("published"),
        "dresnet, half open": _dresnet(0.5),
        "dresnet, initial gate 1/n^2": _dresnet("1/n^2"),
    }
    config.budgets = ("parameters",)
    config.target_accuracy = 0.8
    return config.lock()


def _dresnet(initial_gate: float | str) -> dict[str, dict[str, object]]:
    """Each block reads those 2, 4, 8, ... before it."""
    fields = common.dresnet(topology="powers_of_two", initial_gate=initial_gate)
    fields["model"]["name"] = "dresnet110"
    return fields
