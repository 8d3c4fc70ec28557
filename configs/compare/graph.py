r"""Free graphs compared with ResNet and DResNet, on Fashion-MNIST.

python -m dresnet_jax.compare --config=configs/compare/graph.py \
    --workdir=runs/graph
"""

from typing import Any

import ml_collections

from configs.compare import common


def get_config() -> ml_collections.ConfigDict:
    """5 seeds of the graph of all edges, and of a random one of each kind."""
    config = common.get_config(common.small_fashion_mnist())
    config.question = "Do free graphs of blocks pay on Fashion-MNIST?"
    config.seeds = 5
    config.variants = {
        "resnet": {"model": {"name": "resnet18"}},
        "dresnet": common.dresnet(),
        "triangular": _graph("triangular"),
        "watts strogatz": _graph("watts_strogatz:4:0.75:0"),
        "erdos renyi": _graph("erdos_renyi:0.4:0"),
        "barabasi albert": _graph("barabasi_albert:2:0"),
    }
    config.main = "triangular"
    config.budgets = ()
    config.target_accuracy = 0.85
    return config.lock()


def _graph(topology: str) -> dict[str, Any]:
    return common.dresnet(base="learned", topology=topology, projection="matching")
