"""More connections change nothing at their birth, and learn from then on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dresnet_jax.connections import module, topology
from dresnet_jax.connections.gates import GATES
from dresnet_jax.connections.spec import PROJECTIONS, WEIGHTS, ConnectionSpec
from dresnet_jax.connections.superset import superset
from dresnet_jax.errors import UserError
from tests.conftest import products
from tests.connections.test_subset import STAGES, channels, outputs

OLD, NEW = ((3, 1), (5, 3)), ((4, 1), (5, 1))


def connections(edges=OLD, base="fixed", **fields):
    """A spec, its channels, and parameters that are nowhere as they start."""
    spec = ConnectionSpec(topology.from_edges(STAGES, edges, base), **fields)
    of_blocks = channels(spec.projection)
    created = module.Connections(spec, of_blocks).init(
        jax.random.key(0), method=module.Connections.gate_values
    )
    parameters = jax.tree.map(
        lambda x: x + 0.1 * jnp.arange(x.size, dtype=x.dtype).reshape(x.shape),
        created.get("params", {}),
    )
    return spec, of_blocks, parameters


def grown(result, parameters):
    """Parameters for all edges."""
    fresh = result.initialised(jax.random.key(1))
    old = flat(parameters)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: result.converted(name(path), old.get(name(path)), leaf),
        fresh,
    )


def flat(tree):
    return {name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def name(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def inputs(spec, of_blocks, parameters):
    """x_i of every reader of all edges."""
    return _inputs(spec, of_blocks, parameters)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _inputs(spec, of_blocks, parameters):
    connected = module.Connections(spec, of_blocks)
    return {
        i: connected.apply({"params": parameters}, i, outputs(i, spec.projection))
        for i in (3, 4, 5)
    }


@pytest.mark.parametrize(
    ("gate", "weights", "projection"),
    products(sorted(GATES), WEIGHTS, PROJECTIONS),
)
def test_new_edges_change_nothing_and_learn_or_are_refused(gate, weights, projection):
    spec, of_blocks, parameters = connections(
        gate=gate, weights=weights, projection=projection
    )
    if refused(gate, projection):
        with pytest.raises(UserError, match="cannot start without an effect"):
            superset(spec, of_blocks, NEW)
        return
    result = superset(spec, of_blocks, NEW)
    assert result.new == NEW
    larger = grown(result, parameters)
    before = inputs(spec, of_blocks, parameters)
    after = inputs(result.after, of_blocks, larger)
    for i in before:
        # Equal except for rounding: what is multiplied by 0 changes the order of a sum.
        np.testing.assert_allclose(after[i], before[i], rtol=0, atol=1e-6)

    def total(parameters):
        return sum(
            jnp.sum(x**2) for x in inputs(result.after, of_blocks, parameters).values()
        )

    gradient = flat(jax.jit(jax.grad(total))(larger))

    def learns(edge):
        """Whether the input of its reader can change by what is its own."""
        reader, source = edge
        place = result.after.topology.sources(reader).index(source)
        own = [gradient.get(f"block_{reader}/from_{source}/kernel")]
        for name in result.after.shared_projections(reader, source)[-1:]:
            own.append(gradient[f"{name}/kernel"])
        if f"block_{reader}/gate_weights" in gradient:
            own.append(gradient[f"block_{reader}/gate_weights"][place])
        if "gate_weights" in gradient:
            own.append(gradient["gate_weights"])
        return any(x is not None and np.any(x) for x in own)

    assert all(learns(edge) for edge in NEW)


def refused(gate, projection):
    """Whether what these edges have for themselves cannot be 0, or is others' too."""
    if GATES[gate].compares_sources:
        return True
    if projection == "per_edge":
        return False
    # (4, 1) reads across no change of channels, and its distance is new.
    return GATES[gate].closed is None


def test_what_is_new_is_counted():
    spec, of_blocks, parameters = connections()
    larger = grown(superset(spec, of_blocks, NEW), parameters)
    fresh = module.Connections(superset(spec, of_blocks, NEW).after, of_blocks).init(
        jax.random.key(0), method=module.Connections.gate_values
    )
    assert jax.tree.map(jnp.shape, larger) == jax.tree.map(jnp.shape, fresh["params"])


def test_a_shared_weight_that_others_use_is_refused():
    spec, of_blocks, _ = connections(
        gate="tanh", weights="by_distance", projection="matching"
    )
    with pytest.raises(UserError, match="others of distance 2 share its weight"):
        superset(spec, of_blocks, [(4, 2)])


def test_the_first_edges_of_all():
    spec, of_blocks, parameters = connections(edges=())
    assert parameters == {}
    result = superset(spec, of_blocks, NEW)
    after = inputs(result.after, of_blocks, grown(result, parameters))
    for i, x in after.items():
        np.testing.assert_array_equal(x, outputs(i, "per_edge").last)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([(3, 1)], r"Connection \(3, 1\) \(reader, source\) is there already"),
        ([(1, 3)], "a block reads only earlier blocks"),
        ([(5, 1), (5, 1)], r"Topology edge \(5, 1\) stands twice"),
    ],
)
def test_edges_that_cannot_be_new_are_refused(edges, message):
    spec, of_blocks, _ = connections()
    with pytest.raises(UserError, match=message):
        superset(spec, of_blocks, edges)


def test_a_block_that_is_not_there_cannot_be_read():
    chain = [(1, 0), (3, 1), (4, 3), (5, 4), (6, 5)]
    spec, of_blocks, _ = connections(edges=chain, base="learned", projection="per_edge")
    with pytest.raises(UserError, match="Block 2 is not in the network"):
        superset(spec, of_blocks, [(2, 1), (3, 2)])
