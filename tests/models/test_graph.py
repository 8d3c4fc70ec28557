"""A network may be any graph of blocks; a chain with open edges is the backbone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.compare import graph as study
from dresnet_jax import defaults
from dresnet_jax.connections.outputs import average_pool
from dresnet_jax.errors import UserError
from dresnet_jax.figures import gradient_flow
from dresnet_jax.inference.folding import folded
from dresnet_jax.models import zoo
from dresnet_jax.models.backbone import with_form
from dresnet_jax.training import evaluation, experiment

IMAGES = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
BLOCKS = (2, 1, 2)


def build(name="dresnet18", blocks=BLOCKS, **connections):
    config = defaults.get_config().unlock().model
    config.update(name=name, width=4, blocks_per_stage=blocks)
    with config.connections.ignore_type():
        config.connections.update(connections)
    return zoo.build(config, 8, 5)


def learned(topology, **connections):
    fields = {"projection": "matching", "gate": "identity"} | connections
    return build(base="learned", topology=topology, **fields)


def created(model, seed=1):
    return jax.jit(lambda key: model.init(key, IMAGES, train=False))(
        jax.random.key(seed)
    )


def shapes(model):
    return jax.eval_shape(
        lambda key: model.init(key, IMAGES, train=False), jax.random.key(0)
    )


def applied(model, variables, **options):
    run = functools.partial(model.apply, **options)
    return jax.jit(run)(variables, IMAGES)


def opened(model, variables, chain):
    """The variables of a graph with the edges between neighbours at 1.

    Args:
      model: the graph.
      variables: of a network whose base is fixed, with the same other edges.
      chain: the blocks and the classifier.
    """
    ours: dict = {}
    theirs = variables["params"].get("connections", {})
    for i in chain:
        sources = model.spec.connections.topology.sources(i)
        others = list(theirs.get(f"block_{i}", {}).get("gate_weights", []))
        ours[f"block_{i}"] = {
            **theirs.get(f"block_{i}", {}),
            "gate_weights": jnp.stack(
                [jnp.ones(()) if k == i - 1 else others.pop(0) for k in sources]
            ),
        }
    params = {**variables["params"], "connections": ours}
    return {**variables, "params": params}


@pytest.mark.parametrize(
    ("name", "topology", "form"),
    [
        ("resnet18", "none", "reference"),
        pytest.param("resnet50", "dense", "reference", marks=pytest.mark.slow),
        ("resnetv2_18", "dense", "folded"),
    ],
)
def test_a_graph_written_as_a_chain_is_the_backbone(name, topology, form):
    fields = {"topology": topology, "projection": "matching", "gate": "identity"}
    chain = build(f"d{name}", **fields, form=form)
    graph = build(f"d{name}", **fields, form=form, base="learned")
    variables = created(chain)
    same = opened(graph, variables, range(1, sum(BLOCKS) + 2))
    assert jax.tree.structure(same) == jax.tree.structure(shapes(graph))
    result, expected = (
        applied(model, values, train=True, mutable=["batch_stats"])
        for model, values in ((graph, same), (chain, variables))
    )
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_over_a_fixed_base_the_triangular_graph_is_the_dresnet():
    assert build(topology="triangular") == build(topology="dense")
    assert build("resnet18", base="learned") == build("resnet18")


@pytest.mark.parametrize(
    ("topology", "projection"),
    [
        pytest.param("triangular", "matching", marks=pytest.mark.slow),
        ("erdos_renyi:0.3:3", "per_stage"),
    ],
)
def test_every_form_of_a_graph_agrees_and_trains_every_edge(topology, projection):
    model = learned(topology, projection=projection, normalise_sources=True)
    variables = created(model)
    rest = {"batch_stats": variables["batch_stats"]}

    def loss(params, form):
        logits, _ = with_form(model, form).apply(
            {"params": params, **rest}, IMAGES, train=True, mutable=["batch_stats"]
        )
        return (logits**2).mean()

    result, expected = (
        jax.jit(jax.grad(loss), static_argnums=1)(variables["params"], form)
        for form in ("folded", "reference")
    )
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        scale = max(float(np.abs(b).max()), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * scale)
    for own in result["connections"].values():
        for gradient in own.get("gate_weights", ()):
            assert gradient != 0


def test_the_classifier_reads_several_outputs():
    """By hand: their weighted sum in the shape of the last one."""
    model = learned(((1, 0), (2, 0), (5, 2), (6, 1), (6, 5)))
    variables = created(model)
    weights = jnp.asarray([0.3, 0.8])
    of_head = variables["params"]["connections"]["block_6"]
    of_head["gate_weights"] = weights
    assert set(of_head) == {"gate_weights", "from_1"}
    logits, made = applied(model, variables, train=False, capture_intermediates=True)
    made = made["intermediates"]
    y_1, y_5 = (made[f"block_{i}"]["__call__"][0] for i in (1, 5))
    last = y_5.shape
    pooled = average_pool(y_1, last[1:3]) @ of_head["from_1"]["kernel"]
    features = (weights[0] * pooled + weights[1] * y_5).mean(axis=(1, 2))
    linear = variables["params"]["head"]["linear"]
    expected = features @ linear["kernel"] + linear["bias"][None]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gone", range(1, 6))
def test_a_block_that_is_gone_leaves_the_shapes_of_the_others(gone):
    there = [i for i in range(7) if i != gone]
    edges = tuple(zip(there[1:], there, strict=False))
    whole, without = learned("none"), learned(edges)
    expected, result = shapes(whole)["params"], shapes(without)["params"]
    assert f"block_{gone}" not in result
    for i in there[1:-1]:
        assert result[f"block_{i}"] == expected[f"block_{i}"]
    run = functools.partial(without.apply, train=False, capture_intermediates=True)
    _, made = jax.eval_shape(run, shapes(without), IMAGES)
    last = made["intermediates"][f"block_{there[-2]}"]["__call__"][0]
    assert last.shape == (2, 2, 2, 16)


def test_a_folded_graph_is_the_same_function():
    model = learned("triangular", projection="per_stage", gate="sigmoid")
    variables = created(model)
    other, smaller = folded(model, variables["params"], variables["batch_stats"])
    np.testing.assert_allclose(
        applied(other, smaller, train=False),
        applied(model, variables, train=False),
        rtol=1e-4,
        atol=1e-4,
    )


def test_gradients_are_measured_where_there_are_blocks(small_config):
    with small_config.model.connections.ignore_type():
        small_config.model.connections.update(
            base="learned", topology=((1, 0), (4, 1), (5, 4)), projection="matching"
        )
    part = experiment.build(small_config)
    batch = evaluation.first_batch(part)
    norms = gradient_flow.norms(part, batch, [part.create_state()])
    assert norms.shape == (1, 2)
    assert (norms > 0).all()


@pytest.mark.parametrize("variant", study.get_config().variants)
def test_every_variant_of_the_study_has_a_training_step(variant):
    config = study.get_config().copy_and_resolve_references().unlock()
    config.base.model.update(config.variants[variant].model)
    # Abstract: the dataset is not read.
    exp = experiment.build(config.base)
    state = exp.create_state(abstract=True)
    topology = exp.model.spec.connections.topology
    assert topology.is_free == (variant not in ("resnet", "dresnet"))
    own = state.params.get("connections", {})
    assert {f"block_{i}" for i in topology.readers} == set(own)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["triangular", "erdos renyi"])
def test_graphs_of_the_study_learn(variant):
    config = study.get_config().copy_and_resolve_references().unlock()
    config.base.model.update(config.variants[variant].model)
    model = zoo.build(config.base.model, 28, 10)
    images = jax.random.normal(jax.random.key(2), (8, 28, 28, 1))
    init = jax.jit(lambda key: model.init(key, images, train=False))
    variables = init(jax.random.key(0))

    def loss(params):
        logits, _ = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return -jax.nn.log_softmax(logits)[:, 0].mean()

    step = jax.jit(jax.value_and_grad(loss))
    params, losses = variables["params"], []
    for _ in range(4):
        value, gradient = step(params)
        params = jax.tree.map(lambda p, g: p - 0.02 * g, params, gradient)
        losses.append(float(value))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"form": "stacked"}, "Form 'stacked' cannot express a learned base"),
        ({"base": "free"}, "Unknown base 'free'"),
        ({"topology": ((1, 0), (6, 2))}, "has no path from the stem"),
        ({"topology": "watts_strogatz:6:0.5:0"}, "k = 6 must be an even number"),
        ({"projection": "none"}, "Projection 'none' cannot connect block"),
    ],
)
def test_wrong_graphs_are_refused(fields, message):
    given = {"base": "learned", "topology": "triangular"} | fields
    with pytest.raises(UserError, match=message):
        build(**given)
