"""The module owns every parameter from the start, and its gates do what is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dresnet_jax.connections import gates, module, topology, weighted_sum
from dresnet_jax.connections.weighted_sum import BlockOutputs
from dresnet_jax.errors import UserError

CHANNELS = (4, 4, 4, 8, 8)
STAGES = (0, 0, 1, 1)


def outputs(**options):
    """Block outputs y_0 to y_3 whose side halves at block 3."""
    random = np.random.RandomState(0)
    arrays = [
        jnp.asarray(random.standard_normal((2, side, side, channels)), jnp.float32)
        for side, channels in zip((8, 8, 8, 4), CHANNELS, strict=False)
    ]
    built = BlockOutputs(arrays[0], **options)
    for array in arrays[1:]:
        built.append(array)
    return built


def initialised(**fields):
    spec = module.ConnectionSpec(topology.dense(STAGES), **fields)
    connections = module.Connections(spec, CHANNELS)
    return spec, connections, connections.init(jax.random.key(0), 4, outputs())


def test_all_parameters_exist_before_any_block_has_run():
    spec = module.ConnectionSpec(topology.dense(STAGES))
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


FREE_GATES = [name for name, gate in gates.GATES.items() if not gate.compares_sources]


@pytest.mark.parametrize("weights", module.WEIGHTS)
@pytest.mark.parametrize("gate", FREE_GATES)
def test_every_gate_starts_at_the_wanted_opening(gate, weights):
    spec, _, variables = initialised(
        gate=gate, opening=0.2, sharpness=3.0, weights=weights
    )
    found = module.openings(spec, CHANNELS, variables["params"])
    assert found.keys() == {3, 4}
    assert found[4].keys() == {1, 2}
    for row in found.values():
        np.testing.assert_allclose(list(row.values()), 0.2, rtol=1e-5)


def test_softmax_starts_a_blocks_sources_equal():
    spec, _, variables = initialised(gate="softmax")
    found = module.openings(spec, CHANNELS, variables["params"])
    assert found == {3: {1: 1.0}, 4: {1: 0.5, 2: 0.5}}


def test_a_start_of_1_over_n_squared():
    spec, _, variables = initialised(opening="1/n^2")
    found = module.openings(spec, CHANNELS, variables["params"])
    assert found[4][1] == pytest.approx(1 / 16)


@pytest.mark.parametrize("weights", module.WEIGHTS)
def test_the_published_start(weights):
    spec, _, variables = initialised(
        opening="published", gate="identity", weights=weights
    )
    found = module.openings(spec, CHANNELS, variables["params"])
    assert found[3][1] == found[4][2] == 1.0
    assert 0 < found[4][1] < 0.1


def test_weights_by_distance_are_shared_by_all_readers():
    spec, _, variables = initialised(weights="by_distance")
    params = variables["params"]
    assert params["gate_weights"].shape == (2,)
    assert "gate_weights" not in params["block_4"]
    params = params | {"gate_weights": jnp.asarray([-1.0, 2.0])}
    found = module.openings(spec, CHANNELS, params)
    assert found[3][1] == found[4][2] == pytest.approx(1 / (1 + np.exp(1)))
    assert found[4][1] == pytest.approx(1 / (1 + np.exp(-2)))


def test_weights_per_channel_are_as_many_as_the_reader_has_channels():
    _, _, variables = initialised(weights="per_channel")
    assert variables["params"]["block_4"]["gate_weights"].shape == (2, 8)


def test_the_total_opening_is_that_of_all_edges():
    spec, _, variables = initialised(opening=0.2, gate="identity")
    weights = variables["params"]["block_4"]["gate_weights"]
    variables["params"]["block_4"]["gate_weights"] = -weights
    found = module.total_opening(spec, CHANNELS, variables["params"])
    assert float(found) == pytest.approx(0.6)
    assert (
        float(
            module.total_opening(
                module.ConnectionSpec(topology.none(STAGES)), CHANNELS, {}
            )
        )
        == 0
    )


def test_drift_is_the_mean_change_of_an_edge():
    start = {3: {1: 0.5}, 4: {1: 0.5, 2: 0.5}}
    end = {3: {1: 0.2}, 4: {1: 0.5, 2: 0.8}}
    assert module.drift(start, end) == pytest.approx(0.2)


@pytest.mark.parametrize("bias", [True, False])
def test_projections_have_a_bias_if_asked(bias):
    _, _, variables = initialised(projection_bias=bias)
    assert ("bias" in variables["params"]["block_3"]["from_1"]) == bias


@pytest.mark.parametrize("weights", module.WEIGHTS)
@pytest.mark.parametrize("granularity", module.SHARPNESS_GRANULARITIES)
@pytest.mark.parametrize("form", weighted_sum.FORMS)
def test_every_parameter_of_a_reader_gets_a_gradient(form, granularity, weights):
    _, connections, variables = initialised(
        form=form, gate="gauss", sharpness_granularity=granularity, weights=weights
    )

    def loss(variables):
        return (connections.apply(variables, 4, outputs()) ** 2).sum()

    grads = jax.grad(loss)(variables)["params"]
    shared = [grads[name] for name in module.GATE_PARAMETERS if name in grads]
    for leaf in jax.tree.leaves((grads["block_4"], shared)):
        assert np.abs(leaf).max() > 0


def test_without_edges_there_are_no_parameters_and_no_operations():
    spec = module.ConnectionSpec(topology.none(STAGES), gate="gauss")
    connections = module.Connections(spec, CHANNELS)
    whole = outputs()
    variables = connections.init(jax.random.key(0), 4, whole)
    assert not jax.tree.leaves(variables)
    assert connections.apply(variables, 4, whole) is whole.last
    assert module.openings(spec, CHANNELS, {}) == {}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("gate", "sigmoit", "Did you mean 'sigmoid'"),
        ("form", "foldet", "Did you mean 'folded'"),
        ("sharpness_granularity", "per_blok", "Did you mean 'per_block'"),
        ("weights", "per_edgy", "Did you mean 'per_edge'"),
        ("opening", 1.5, r"outside \(0, 1\)"),
        ("opening", "publisht", "Did you mean 'published'"),
        ("sharpness", 0.0, "above 0"),
    ],
)
def test_wrong_fields_are_refused(field, value, message):
    with pytest.raises(UserError, match=message):
        module.ConnectionSpec(topology.dense(STAGES), **{field: value})


CELLS = st.fixed_dictionaries(
    {
        "gate": st.sampled_from(sorted(gates.GATES)),
        "weights": st.sampled_from(module.WEIGHTS),
        "opening": st.sampled_from([0.5, *module.NAMED_OPENINGS]),
        "normalise_sources": st.booleans(),
        "projection_bias": st.booleans(),
    }
)
PATTERNS = ["dense", "within_stage", "powers_of_two", "dilated:2", "last:1", ((4, 3),)]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("form", sorted(set(weighted_sum.FORMS) - {"reference"}))
@settings(max_examples=8, deadline=None)
@given(cell=CELLS)
def test_every_cell_agrees_with_the_reference(form, pattern, cell):
    chosen = topology.build(pattern, STAGES)
    given_outputs = outputs(normalise=cell["normalise_sources"])

    def value_and_gradients(form):
        spec = module.ConnectionSpec(chosen, form=form, **cell)
        connections = module.Connections(spec, CHANNELS)
        variables = connections.init(jax.random.key(0), 4, given_outputs)

        def loss(variables):
            x = connections.apply(variables, 4, given_outputs)
            return jnp.sin(x).sum(), x

        return jax.grad(loss, has_aux=True)(variables)

    found, expected = value_and_gradients(form), value_and_gradients("reference")
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = max(np.abs(b).max(), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale)
