"""Connections without some of their edges carry what they did before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dresnet_jax.connections import gate_values, module, topology, weighted_sum
from dresnet_jax.connections.gates import GATES
from dresnet_jax.connections.outputs import BlockOutputs
from dresnet_jax.connections.spec import (
    PROJECTIONS,
    SHARPNESS_GRANULARITIES,
    WEIGHTS,
    ConnectionSpec,
)
from dresnet_jax.connections.subset import subset
from dresnet_jax.errors import UserError
from tests.conftest import products

STAGES = (0, 0, 0, 1, 1)
KEPT = ((3, 1), (5, 1), (5, 3))


def channels(projection):
    return (4,) * 6 if projection == "none" else (4, 4, 4, 4, 8, 8)


def outputs(blocks, projection):
    random = np.random.RandomState(0)
    result = None
    for k in range(blocks):
        side = 8 if k < 4 else 4
        shape = (2, side, side, channels(projection)[k])
        array = jnp.asarray(random.standard_normal(shape), jnp.float32)
        if result is None:
            result = BlockOutputs(array)
        else:
            result.append(array)
    return result


def initialised(**fields):
    spec = ConnectionSpec(topology.dense(STAGES), initial_gate="published", **fields)
    connections = module.Connections(spec, channels(spec.projection))
    created = connections.init(jax.random.key(0), method=module.Connections.gate_values)
    return spec, connections, created.get("params", {})


@pytest.mark.parametrize(
    ("gate", "weights", "projection"),
    products(sorted(GATES.keys() - {"softmax"}), WEIGHTS, PROJECTIONS),
)
def test_what_is_left_is_the_sum_without_what_is_gone(gate, weights, projection):
    fields = {"gate": gate, "weights": weights, "projection": projection}
    for granularity in SHARPNESS_GRANULARITIES if gate == "gauss" else ("global",):
        spec, connections, parameters = initialised(
            **fields, sharpness_granularity=granularity
        )
        left, smaller = subset(spec, parameters, KEPT)
        assert left.topology.edges == KEPT
        pruned = module.Connections(left, channels(projection))
        fresh = pruned.init(jax.random.key(0), method=module.Connections.gate_values)
        shapes = jax.tree.map(jnp.shape, fresh["params"])
        assert shapes == jax.tree.map(jnp.shape, smaller)
        for i in (3, 4, 5):
            result = pruned.apply({"params": smaller}, i, outputs(i, projection))
            expected = connections.apply(
                {"params": parameters},
                i,
                outputs(i, projection),
                [k for k in spec.topology.sources(i) if (i, k) in KEPT],
                method=_sum_of,
            )
            np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def _sum_of(connections, block, given, sources):
    """x_i of a module's own parameters, of some of its sources."""
    all_sources = connections.spec.topology.sources(block)
    places = np.asarray([all_sources.index(k) for k in sources], int)
    if not sources:
        return given.last
    return weighted_sum.folded(
        given,
        sources,
        connections._gate_values(block)[places],
        [connections._projection(block, k) for k in sources],
    )


def test_nothing_is_left_of_what_is_gone():
    spec, _, parameters = initialised(projection="per_stage", weights="by_distance")
    _, smaller = subset(spec, parameters, [(5, 3)])
    assert sorted(smaller) == ["gate_weights", "stage_0_to_1"]
    assert smaller["gate_weights"].shape == (1,)
    none, nothing = subset(spec, parameters, ())
    assert (none.topology.edges, nothing) == ((), {})


def test_softmax_shares_its_values_again():
    spec, _, parameters = initialised(gate="softmax")
    left, smaller = subset(spec, parameters, [(5, 1), (5, 3)])
    (row,) = gate_values.of(left, channels("per_edge"), smaller).values()
    assert sum(row.values()) == pytest.approx(1)


def test_an_edge_that_does_not_exist_is_refused():
    spec, _, parameters = initialised()
    left, smaller = subset(spec, parameters, KEPT)
    with pytest.raises(UserError, match=r"Connection \(4, 1\) \(reader, source\)"):
        subset(left, smaller, [(4, 1)])
