"""The module owns every parameter from the start, and its gates do what is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dresnet_jax.connections import gates, module, topology
from dresnet_jax.connections.weighted_sum import BlockOutputs
from dresnet_jax.errors import UserError

CHANNELS = (4, 4, 4, 8, 8)


def outputs():
    """Block outputs y_0 to y_3 whose side halves at block 3."""
    random = np.random.RandomState(0)
    arrays = [
        jnp.asarray(random.standard_normal((2, side, side, channels)), jnp.float32)
        for side, channels in zip((8, 8, 8, 4), CHANNELS, strict=False)
    ]
    built = BlockOutputs(arrays[0])
    for array in arrays[1:]:
        built.append(array)
    return built


def initialised(**fields):
    spec = module.ConnectionSpec(topology.dense(4), **fields)
    connections = module.Connections(spec, CHANNELS)
    return spec, connections, connections.init(jax.random.key(0), 4, outputs())


def test_all_parameters_exist_before_any_block_has_run():
    spec = module.ConnectionSpec(topology.dense(4))
    connections = module.Connections(spec, CHANNELS)
    created = connections.init(jax.random.key(0), method=module.Connections.openings)
    _, _, after_a_pass = initialised()
    assert jax.tree.map(jnp.shape, created) == jax.tree.map(jnp.shape, after_a_pass)
    assert created["params"]["block_4"]["from_2"]["kernel"].shape == (4, 8)
    assert created["params"]["block_4"]["gate_weights"].shape == (2,)


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        ("global", {"gate_sharpness": ()}),
        ("per_block", {"block_3": (), "block_4": ()}),
        ("per_edge", {"block_3": (1,), "block_4": (2,)}),
    ],
)
def test_sharpness_is_shared_as_asked(granularity, expected):
    _, _, variables = initialised(
        gate="gauss", sharpness=2.0, sharpness_granularity=granularity
    )
    found = {
        name: (leaf if name == "gate_sharpness" else leaf.get("gate_sharpness"))
        for name, leaf in variables["params"].items()
    }
    shapes = {name: leaf.shape for name, leaf in found.items() if leaf is not None}
    assert shapes == expected
    for leaf in jax.tree.leaves(found):
        np.testing.assert_allclose(jax.nn.softplus(leaf), 2.0, rtol=1e-5)


@pytest.mark.parametrize("gate", gates.GATES)
def test_every_gate_starts_at_the_wanted_opening(gate):
    spec, _, variables = initialised(gate=gate, opening=0.2, sharpness=3.0)
    found = module.openings(spec, CHANNELS, variables["params"])
    assert found.keys() == {3, 4}
    assert found[4].keys() == {1, 2}
    for row in found.values():
        np.testing.assert_allclose(list(row.values()), 0.2, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_projections_have_a_bias_if_asked(bias):
    _, _, variables = initialised(projection_bias=bias)
    assert ("bias" in variables["params"]["block_3"]["from_1"]) == bias


@pytest.mark.parametrize("granularity", module.SHARPNESS_GRANULARITIES)
@pytest.mark.parametrize("form", ["reference", "folded"])
def test_every_parameter_of_a_reader_gets_a_gradient(form, granularity):
    _, connections, variables = initialised(
        form=form, gate="gauss", sharpness_granularity=granularity
    )

    def loss(variables):
        return (connections.apply(variables, 4, outputs()) ** 2).sum()

    grads = jax.grad(loss)(variables)["params"]
    for leaf in jax.tree.leaves((grads["block_4"], grads.get("gate_sharpness"))):
        assert np.abs(leaf).max() > 0


def test_without_edges_there_are_no_parameters_and_no_operations():
    spec = module.ConnectionSpec(topology.none(4), gate="gauss")
    connections = module.Connections(spec, CHANNELS)
    given = outputs()
    variables = connections.init(jax.random.key(0), 4, given)
    assert not jax.tree.leaves(variables)
    assert connections.apply(variables, 4, given) is given.last
    assert module.openings(spec, CHANNELS, {}) == {}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("gate", "sigmoit", "Did you mean 'sigmoid'"),
        ("form", "foldet", "Did you mean 'folded'"),
        ("sharpness_granularity", "per_blok", "Did you mean 'per_block'"),
        ("opening", 1.5, r"outside \(0, 1\)"),
        ("sharpness", 0.0, "above 0"),
    ],
)
def test_wrong_fields_are_refused(field, value, message):
    with pytest.raises(UserError, match=message):
        module.ConnectionSpec(topology.dense(4), **{field: value})
