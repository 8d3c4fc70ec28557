"""Free graphs lose edges for good, and blocks with them."""

import jax
import numpy as np
import pytest

from configs import digits
from dresnet_jax.errors import UserError
from dresnet_jax.structure import pruning
from dresnet_jax.structure.pruning import Network
from dresnet_jax.training import evaluation, experiment
from tests.conftest import apply


@pytest.fixture(scope="module")
def network():
    """The triangular graph of three blocks in two stages, whose gates are numbers."""
    config = digits.get_config()
    config.model.width = 4
    config.model.blocks_per_stage = (2, 1)
    with config.model.connections.ignore_type():
        config.model.connections.update(
            base="learned", topology="triangular", projection="matching"
        )
        config.model.connections.gate = "identity"
    exp = experiment.build(config)
    return Network(exp, exp.create_state())


def closed(network, edges):
    """The network with the gates of some edges at 0."""
    topology = network.experiment.model.spec.connections.topology
    params = jax.tree.map(lambda x: x, network.state.params)
    for i, k in edges:
        own = params["connections"][f"block_{i}"]
        place = topology.sources(i).index(k)
        own["gate_weights"] = own["gate_weights"].at[place].set(0.0)
    return Network(network.experiment, network.state.replace(params=params))


def logits(network, batch_stats):
    images = evaluation.first_batch(network.experiment).images[:4]
    return apply(
        network.experiment.model,
        {"params": network.state.eval_params, "batch_stats": batch_stats},
        images,
        train=False,
    )


def test_every_edge_is_ranked(network):
    ranking = pruning.ranked(network)
    edges = network.experiment.model.spec.connections.topology.edges
    assert len(edges) == 10
    assert sorted(c.edge for c in ranking) == list(edges)
    assert all(c.strength > 0 for c in ranking)


def test_a_block_that_nobody_reads_goes_with_its_edges(network):
    dead = [(3, 2), (4, 2)]
    result = closed(network, dead)
    ranking = pruning.ranked(result)
    assert {c.edge for c in ranking[:2]} == set(dead)
    smaller = pruning.pruned(result, [c.edge for c in ranking[2:]])
    topology = smaller.experiment.model.spec.connections.topology
    assert topology.edges == ((1, 0), (3, 0), (3, 1), (4, 0), (4, 1), (4, 3))
    assert topology.blocks == (1, 3)
    assert "block_2" not in smaller.state.params
    assert "block_2" not in smaller.state.params["connections"]
    found_logits, expected = (
        logits(one, result.state.batch_stats) for one in (smaller, result)
    )
    np.testing.assert_allclose(found_logits, expected, rtol=1e-4, atol=1e-5)


def test_a_classifier_that_is_cut_off_is_refused_and_counts_as_wrong(network):
    edges = [(1, 0), (2, 1), (3, 2)]
    with pytest.raises(UserError, match="No path from the stem to the classifier is"):
        pruning.pruned(network, edges)
    assert pruning.accuracy_with(network, edges) == 0.0
