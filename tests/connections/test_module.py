"""The module owns every parameter from the start, and its gates do what is said."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dresnet_jax.connections import gate_values, gates, module, topology, weighted_sum
from dresnet_jax.connections.outputs import BlockOutputs, average_pool
from dresnet_jax.connections.spec import (
    FORMS,
    INITIAL_GATES,
    PROJECTIONS,
    SHARPNESS_GRANULARITIES,
    WEIGHTS,
    ConnectionSpec,
)
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
    spec = ConnectionSpec(topology.dense(STAGES), **fields)
    connections = module.Connections(spec, CHANNELS)
    return spec, connections, connections.init(jax.random.key(0), 4, outputs())


def test_all_parameters_exist_before_any_block_has_run():
    spec = ConnectionSpec(topology.dense(STAGES))
    connections = module.Connections(spec, CHANNELS)
    created = connections.init(jax.random.key(0), method=module.Connections.gate_values)
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
    result = {
        name: (leaf if name == "gate_sharpness" else leaf.get("gate_sharpness"))
        for name, leaf in variables["params"].items()
    }
    shapes = {name: leaf.shape for name, leaf in result.items() if leaf is not None}
    assert shapes == expected
    for leaf in jax.tree.leaves(result):
        np.testing.assert_allclose(jax.nn.softplus(leaf), 2.0, rtol=1e-5)


FREE_GATES = [name for name, gate in gates.GATES.items() if not gate.compares_sources]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("gate", FREE_GATES)
def test_every_gate_starts_at_the_value_of_the_config(gate, weights):
    spec, _, variables = initialised(
        gate=gate, initial_gate=0.2, sharpness=3.0, weights=weights
    )
    result = gate_values.of(spec, CHANNELS, variables["params"])
    assert result.keys() == {3, 4}
    assert result[4].keys() == {1, 2}
    for row in result.values():
        np.testing.assert_allclose(list(row.values()), 0.2, rtol=1e-5)


@pytest.mark.parametrize(
    ("initial_gate", "first", "second"), [("bounded", 1 / 2, 1 / 3), (0.9, 1.0, 1 / 2)]
)
def test_softmax_starts_a_blocks_sources_equal(initial_gate, first, second):
    spec, _, variables = initialised(gate="softmax", initial_gate=initial_gate)
    result = gate_values.of(spec, CHANNELS, variables["params"])
    assert result[3] == pytest.approx({1: first})
    assert result[4] == pytest.approx({1: second, 2: second})


def test_a_start_of_1_over_n_squared():
    spec, _, variables = initialised(initial_gate="1/n^2")
    result = gate_values.of(spec, CHANNELS, variables["params"])
    assert result[4][1] == pytest.approx(1 / 16)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_published_start(weights):
    spec, _, variables = initialised(
        initial_gate="published", gate="identity", weights=weights
    )
    result = gate_values.of(spec, CHANNELS, variables["params"])
    assert result[3][1] == result[4][2] == 1.0
    assert 0 < result[4][1] < 0.1


def test_weights_by_distance_are_shared_by_all_readers():
    spec, _, variables = initialised(weights="by_distance")
    params = variables["params"]
    assert params["gate_weights"].shape == (2,)
    assert "gate_weights" not in params["block_4"]
    params = params | {"gate_weights": jnp.asarray([-1.0, 2.0])}
    result = gate_values.of(spec, CHANNELS, params)
    assert result[3][1] == result[4][2] == pytest.approx(1 / (1 + np.exp(1)))
    assert result[4][1] == pytest.approx(1 / (1 + np.exp(-2)))


def test_weights_per_channel_are_as_many_as_the_reader_has_channels():
    _, _, variables = initialised(weights="per_channel")
    assert variables["params"]["block_4"]["gate_weights"].shape == (2, 8)


def test_the_total_is_that_of_all_edges():
    spec, _, variables = initialised(initial_gate=0.2, gate="identity")
    weights = variables["params"]["block_4"]["gate_weights"]
    variables["params"]["block_4"]["gate_weights"] = -weights
    result = gate_values.total(spec, CHANNELS, variables["params"])
    assert float(result) == pytest.approx(0.6)
    assert (
        float(gate_values.total(ConnectionSpec(topology.none(STAGES)), CHANNELS, {}))
        == 0
    )


def test_drift_is_the_mean_change_of_an_edge():
    start = {3: {1: 0.5}, 4: {1: 0.5, 2: 0.5}}
    end = {3: {1: 0.2}, 4: {1: 0.5, 2: 0.8}}
    assert gate_values.drift(start, end) == pytest.approx(0.2)


@pytest.mark.parametrize("bias", [True, False])
def test_projections_have_a_bias_if_asked(bias):
    _, _, variables = initialised(projection_bias=bias)
    assert ("bias" in variables["params"]["block_3"]["from_1"]) == bias


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("granularity", SHARPNESS_GRANULARITIES)
@pytest.mark.parametrize("form", weighted_sum.FORMS)
def test_every_parameter_of_a_reader_gets_a_gradient(form, granularity, weights):
    _, connections, variables = initialised(
        form=form, gate="gauss", sharpness_granularity=granularity, weights=weights
    )

    def loss(variables):
        return (connections.apply(variables, 4, outputs()) ** 2).sum()

    grads = jax.jit(jax.grad(loss))(variables)["params"]
    shared = [grads[name] for name in grads if name.startswith("gate_")]
    for leaf in jax.tree.leaves((grads["block_4"], shared)):
        assert np.abs(leaf).max() > 0


def test_without_edges_there_are_no_parameters_and_no_operations():
    spec = ConnectionSpec(topology.none(STAGES), gate="gauss")
    connections = module.Connections(spec, CHANNELS)
    whole = outputs()
    variables = connections.init(jax.random.key(0), 4, whole)
    assert not jax.tree.leaves(variables)
    assert connections.apply(variables, 4, whole) is whole.last
    assert gate_values.of(spec, CHANNELS, {}) == {}


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"projection": "per_edge"}, {"block_3", "block_4"}),
        ({"projection": "per_stage"}, {"block_3", "block_4", "stage_0_to_0"}),
        ({"projection": "none", "topology": "within_stage"}, {"block_3"}),
        ({"projection": "none", "weights": "by_distance"}, {"gate_weights"}),
    ],
)
def test_projections_are_shared_as_asked(fields, names):
    pattern = fields.pop("topology", ((3, 1), (4, 2)))
    stages = (0, 0, 0, 0) if fields["projection"] != "none" else (0, 0, 1, 1)
    spec = ConnectionSpec(topology.build(pattern, stages), **fields)
    connections = module.Connections(spec, (4,) * 5)
    variables = connections.init(jax.random.key(0), method="gate_values")
    assert set(variables["params"]) == names


class Network:
    """Six small blocks in two stages, whose parameters a form may stack."""

    stages = (0, 0, 0, 1, 1, 1)
    channels = (3, 3, 3, 3, 5, 5, 5)
    # Block 4 changes the shape, so it stands alone.
    alike = (range(1, 4), range(4, 5), range(5, 7))

    def __init__(self):
        random = np.random.RandomState(0)

        def normal(*shape):
            return jnp.asarray(random.standard_normal(shape), jnp.float32)

        self.stem = normal(2, 4, 4, 3)
        # Neither large nor small, so that rounding does not grow from block to block.
        self.blocks = {i: 0.6 + 0.1 * normal(self.channels[i]) for i in range(1, 7)}
        self.widening = normal(3, 5)

    def last_output(self, connections, blocks, *, normalise):
        """The last output, by the form of the connections."""
        outputs = BlockOutputs(self.stem, normalise=normalise)

        def block(scale, x):
            return jnp.tanh(x * scale[None, None, None]), None

        for numbers in self.alike:
            if connections.spec.form == "stacked" and len(numbers) > 1:
                stacked = jnp.stack([blocks[i] for i in numbers])
                connections.run(numbers.start, block, stacked, outputs)
                continue
            for i in numbers:
                x = connections(i, outputs)
                if i == 4:
                    x = average_pool(x, (2, 2)) @ self.widening
                outputs.append(block(blocks[i], x)[0])
        return outputs.last

    def value_and_gradients(self, spec):
        """Of everything that is trained, from the same start for every form."""
        connections = module.Connections(spec, self.channels)
        variables = connections.init(jax.random.key(0), method="gate_values")
        variables = jax.tree.map(
            lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size).reshape(x.shape)), variables
        )

        def loss(variables, blocks):
            y = connections.apply(
                variables,
                blocks,
                method=functools.partial(
                    self.last_output, normalise=spec.normalise_sources
                ),
            )
            return jnp.sin(y).sum(), y

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        return gradient(variables, self.blocks)


NETWORK = Network()
CELLS = st.fixed_dictionaries(
    {
        "gate": st.sampled_from(sorted(gates.GATES)),
        "weights": st.sampled_from(WEIGHTS),
        "projection": st.sampled_from(PROJECTIONS),
        "initial_gate": st.sampled_from([0.5, *INITIAL_GATES]),
        "normalise_sources": st.booleans(),
        "projection_bias": st.booleans(),
        "unroll": st.integers(1, 3),
    }
)
PATTERNS = [
    *("dense", "within_stage", "powers_of_two", "dilated:2", "last:1"),
    ((3, 1), (3, 2), (5, 4), (6, 1)),
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("form", sorted(set(FORMS) - {"reference"}))
@settings(max_examples=2)
@given(cell=CELLS)
def test_every_cell_agrees_with_the_reference_or_is_refused(form, pattern, cell):
    edges = topology.build(pattern, NETWORK.stages)
    if cell["initial_gate"] == "closed" and gates.GATES[cell["gate"]].closed is None:
        with pytest.raises(UserError, match="Initial gate 'closed' needs a gate"):
            ConnectionSpec(edges, form="reference", **cell)
        return
    reference = ConnectionSpec(edges, form="reference", **cell)
    pools_alone = cell["projection"] == "none"
    if pools_alone and any(i > 4 and k < 4 for i, k in reference.topology.edges):
        with pytest.raises(UserError, match="Projection 'none' cannot connect block"):
            reference.check(NETWORK.channels)
        return
    if form == "stacked" and reference.not_stackable:
        with pytest.raises(UserError, match="Form 'stacked' cannot express"):
            dataclasses.replace(reference, form=form)
        return
    result = NETWORK.value_and_gradients(dataclasses.replace(reference, form=form))
    expected = NETWORK.value_and_gradients(reference)
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        scale = max(np.abs(b).max(), 1.0)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale)
