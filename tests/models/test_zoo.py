"""The named models have the published sizes and the promised relations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dresnet_jax import defaults
from dresnet_jax.errors import UserError
from dresnet_jax.models import zoo
from dresnet_jax.models.backbone import Backbone
from tests.conftest import apply, init, products

PUBLISHED = {
    "cnn18": 11_101_512,
    "resnet18_seed": 11_627_272,
    "dresnet18_seed": 12_407_517,
}


def config(**fields):
    """The model part of a config, with fields of the model and its connections."""
    model = defaults.get_config().model
    for name, value in fields.items():
        target = model.connections if name in model.connections else model
        target[name] = value
    return model


def shapes(model, image_size=32, channels=3):
    images = jnp.zeros((2, image_size, image_size, channels))
    return jax.eval_shape(
        lambda key: model.init(key, images, train=False), jax.random.key(0)
    )


def count(model, **size):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(model, **size)["params"]))


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("gate", ["identity", "sigmoid"])
def test_published_models_have_the_published_size(name, gate):
    model = zoo.build(config(name=name, gate=gate, stem="pooled"), 64, 200)
    assert count(model, image_size=64) == PUBLISHED[name]


def test_the_gauss_gate_adds_its_sharpness():
    fields = {"name": "dresnet18_seed", "gate": "gauss", "stem": "pooled"}
    assert count(zoo.build(config(**fields), 64, 200)) == 12_407_518
    per_edge = config(**fields, sharpness_granularity="per_edge")
    assert count(zoo.build(per_edge, 64, 200)) == 12_407_517 + 21


@pytest.mark.parametrize("name", ["resnet18", "dresnet18"])
def test_standard_models_have_no_conv_bias(name):
    params = shapes(zoo.build(config(name=name, width=8), 32, 10))["params"]
    biased = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key == "bias" and path[-2].key not in ("norm", "linear")
    ]
    assert biased == []


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)]
)
def test_plain_models_have_the_size_of_torchvisions(name, size):
    model = zoo.build(config(name=name, stem="imagenet"), 224, 1000)
    assert count(model, image_size=224) == size


def test_dresnet50_adds_what_its_connections_have():
    plain, few = (
        zoo.build(config(name=name, stem="imagenet"), 224, 1000)
        for name in ("resnet50", "dresnet50")
    )
    # All that a stage's blocks may read in it, of six each second, and the last blocks
    # of earlier stages.
    edges = [(3, 1), (4, 1), (4, 2)]
    edges += [(i, k) for i in range(6, 9) for k in range(4, i - 1)]
    edges += [(10, 8), (12, 8), (12, 10), (14, 8), (14, 10), (14, 12)]
    edges += [(16, 14)]
    edges += [(i, 3) for i in (5, 6, 7, 8, 10, 12, 14, 15, 16)]
    edges += [(i, 7) for i in (10, 12, 14, 15, 16)]
    edges += [(i, 13) for i in (15, 16)]
    assert few.spec.connections.topology.edges == tuple(sorted(edges))
    rank, ends = 8, (256, 512, 1024, 2048)
    narrow = rank * (sum(ends[:3]) + 1 * ends[1] + 2 * ends[2] + 3 * ends[3])
    added = count(few, image_size=224) - count(plain, image_size=224)
    assert added == narrow + len(edges)


def test_each_edge_of_its_own_adds_a_projection():
    plain, dense = (
        zoo.build(config(name=name, stem="imagenet", **fields), 224, 1000)
        for name, fields in (
            ("resnet50", {}),
            ("dresnet50", {"topology": "dense", "projection": "per_edge"}),
        )
    )
    channels = [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3
    # To the channels of the base, which is the output of the block before the reader.
    projections = sum(
        channels[k] * channels[i - 1] for i in range(2, 16) for k in range(i - 1)
    )
    weights = 15 * 14 // 2
    added = count(dense, image_size=224) - count(plain, image_size=224)
    assert added == projections + weights


@pytest.mark.parametrize("name", ["dresnet18", "dresnet50"])
def test_a_config_may_name_other_blocks_than_the_models_own(name):
    own = zoo.build(config(name=name), 32, 10).spec
    other = zoo.build(config(name=name, blocks_per_stage=(1, 2)), 32, 10).spec
    assert len(own.channels) - 1 == {"dresnet18": 8, "dresnet50": 16}[name]
    assert other.blocks_per_stage == (1, 2)


def test_blocks_are_alike_only_if_their_inputs_are():
    spec = zoo.build(config(name="dresnet50"), 32, 10).spec
    groups = [list(blocks) for blocks in spec.alike]
    assert groups[:4] == [[1], [2, 3], [4], [5, 6, 7]]
    plain = dataclasses.replace(spec, shortcut="none")
    assert [list(blocks) for blocks in plain.alike] == groups


@pytest.mark.parametrize("shortcut", ["none", "identity", "conv"])
def test_a_bottleneck_runs_with_every_shortcut(shortcut):
    fields = {"name": "dresnet50", "width": 4, "blocks_per_stage": (2, 2)}
    spec = zoo.build(config(**fields), 16, 3).spec
    model = Backbone(dataclasses.replace(spec, shortcut=shortcut))
    images = jnp.ones((2, 16, 16, 3))
    logits, variables = jax.eval_shape(
        lambda key: model.init_with_output(key, images, train=False), jax.random.key(0)
    )
    assert logits.shape == (2, 3)
    kernels = [k for k in variables["params"]["block_1"] if k.startswith("conv")]
    assert sorted(kernels) == ["conv1", "conv2", "conv3"]


@pytest.mark.parametrize("stem", ["cifar", "pooled", "imagenet"])
@pytest.mark.parametrize("blocks", [(1, 1), (2, 1, 3)])
@pytest.mark.parametrize(("image_size", "channels"), [(32, 1), (45, 3)])
def test_models_take_any_shape(stem, blocks, image_size, channels):
    fields = {"width": 4, "stem": stem, "blocks_per_stage": blocks}
    model = zoo.build(config(**fields), image_size, 7)
    images = jnp.ones((2, image_size, image_size, channels))
    # One is run, and the others are traced, whose shapes say as much.
    both = functools.partial(model.init_with_output, train=False)
    is_run = (stem, image_size, len(blocks)) == ("imagenet", 45, 2)
    run = jax.jit(both) if is_run else functools.partial(jax.eval_shape, both)
    logits, _ = run(jax.random.key(0), images)
    assert logits.shape == (2, 7)
    assert logits.dtype == jnp.float32


@functools.cache
def program(model, train):
    """The text of the compiled forward and backward pass."""
    variables = shapes(model)

    def loss(variables, images):
        logits, _ = model.apply(variables, images, train=train, mutable=["batch_stats"])
        return logits.sum()

    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    return jax.jit(jax.grad(loss)).lower(variables, images).as_text()


FIVE = {"width": 4, "blocks_per_stage": (2, 2, 1)}


@pytest.mark.parametrize("train", [True, False])
def test_without_edges_it_is_the_program_of_the_plain_network(train):
    plain = zoo.build(config(name="resnet18", **FIVE), 32, 10)
    empty = zoo.build(config(name="dresnet18", **FIVE, topology="none"), 32, 10)
    dense = zoo.build(config(name="dresnet18", **FIVE), 32, 10)
    assert program(empty, train) == program(plain, train)
    assert program(dense, train) != program(plain, train)


@pytest.mark.parametrize("form", ["reference", "folded"])
@pytest.mark.parametrize(
    ("projection", "number"), [("per_edge", 1), ("between_stages", 2)]
)
def test_an_absent_edge_is_absent_from_the_program(form, projection, number):
    fields = {"name": "dresnet18", "form": form, "projection": projection} | FIVE
    one = zoo.build(config(**fields, topology=((5, 2),)), 32, 10)
    plain = zoo.build(config(name="resnet18", **FIVE), 32, 10)

    def products(model):
        return program(model, train=False).count("dot_general")

    # The edge's products and the two gradients of each.
    assert products(one) - products(plain) == 3 * number


@pytest.mark.parametrize(
    ("form", "train", "gate"),
    [
        ("reference", True, "identity"),
        ("folded", False, "tanh"),
        ("folded", True, "hard_sigmoid"),
    ],
)
def test_closed_gates_give_the_plain_networks_numbers(form, train, gate):
    size = {"width": 4, "blocks_per_stage": (2, 2)}
    plain = zoo.build(config(name="resnet18", **size), 32, 10)
    fields = {"name": "dresnet18", "gate": gate, "initial_gate": "closed", "form": form}
    dense = zoo.build(config(**fields, **size), 32, 10)
    images = jnp.asarray(
        np.random.RandomState(0).standard_normal((4, 32, 32, 3)), jnp.float32
    )
    variables = created(plain, images)
    closed = created(dense, images)["params"]["connections"]
    widened = variables | {"params": variables["params"] | {"connections": closed}}
    (expected, stats), (result, found_stats) = (
        apply(model, given, images, train=train, mutable=["batch_stats"])
        for model, given in ((plain, variables), (dense, widened))
    )
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6),
        found_stats,
        stats,
    )


def created(model, images):
    return init(model, jax.random.key(0), images, train=False)


DEEP = {"width": 4, "blocks_per_stage": (4, 3)}


@pytest.mark.parametrize(
    ("train", "dtype", "name"),
    products([True, False], ["float32", "bfloat16"], ["dresnet18", "dresnet50"]),
)
def test_stacked_blocks_are_the_same_network(train, dtype, name):
    tolerance = {"float32": 1e-4, "bfloat16": 0.1}[dtype]
    fields = {"name": name, "projection": "per_stage", "dtype": dtype, **DEEP}
    folded, stacked = (
        zoo.build(config(**fields, form=form), 16, 3) for form in ("folded", "stacked")
    )
    images = jnp.asarray(
        np.random.RandomState(0).standard_normal((8, 16, 16, 3)), jnp.float32
    )
    variables = created(folded, images)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, shapes(stacked, 16)
    )
    expected, result = (
        apply(model, variables, images, train=train, mutable=["batch_stats"])
        for model in (folded, stacked)
    )
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("topology", ["dense", "none"])
def test_a_stacked_stages_program_does_not_grow_with_its_depth(topology):
    fields = {"name": "dresnet18", "width": 4, "projection": "none", "form": "stacked"}

    def convolutions(depth):
        model = config(**fields, topology=topology, blocks_per_stage=(depth,))
        return program(zoo.build(model, 32, 10), train=True).count("convolution(")

    assert convolutions(12) == convolutions(4)


@pytest.mark.parametrize(
    ("platform", "topology", "form"),
    [
        ("cpu", "dense", "folded"),
        ("tpu", "dense", "stacked"),
        ("tpu", "powers_of_two", "folded"),
    ],
)
def test_auto_is_resolved(platform, topology, form):
    fields = {"name": "dresnet18", "projection": "none", "blocks_per_stage": (16,)}
    asked = config(**fields, topology=topology, form="auto")
    chosen = zoo.build(asked, 32, 10, platform=platform)
    assert chosen.spec.connections.form == form


def test_projections_that_only_pool_need_the_channels():
    with pytest.raises(UserError, match="Projection 'none' cannot connect block 4"):
        zoo.build(config(name="dresnet18", projection="none"), 32, 10)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    fields = {"name": "dresnet18"} | FIVE
    low = zoo.build(config(**fields, dtype="bfloat16"), 32, 10)
    high = zoo.build(config(**fields), 32, 10)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(low))} == {
        jnp.dtype("float32")
    }
    assert "bf16" in program(low, train=True)
    assert "bf16" not in program(high, train=True)


def test_dropout_is_off_in_evaluation_and_on_in_training():
    fields = {"width": 4, "blocks_per_stage": (1, 1), "dropout": 0.5}
    model = zoo.build(config(**fields), 32, 10)
    images = jnp.ones((2, 32, 32, 3))
    variables = created(model, images)

    @functools.partial(jax.jit, static_argnums=0)
    def logits(train, seed):
        return model.apply(
            variables,
            images,
            train=train,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(seed)},
        )[0]

    np.testing.assert_array_equal(logits(False, 0), logits(False, 1))
    assert not np.array_equal(logits(True, 0), logits(True, 1))


def test_kernels_start_as_he_et_al_propose():
    fields = {"name": "resnet18", "width": 64, "blocks_per_stage": (1, 1, 1, 1)}
    model = zoo.build(config(**fields), 32, 10)
    images = jnp.zeros((2, 32, 32, 3))
    params = created(model, images)["params"]
    kernel = params["block_4"]["conv2"]["conv"]["kernel"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 512)), rtol=0.01)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "dresnet81"}, "Did you mean 'dresnet18'"),
        ({"stem": "cifer"}, "Did you mean 'cifar'"),
        ({"dtype": "float16"}, "bfloat16, float32"),
        ({"gate": "gaus"}, "Did you mean 'gauss'"),
        ({"topology": "dens"}, "Did you mean 'dense'"),
        ({"width": 0}, "model.width = 0 must be above 0"),
        ({"blocks_per_stage": (2, 0)}, "must be whole numbers above 0"),
        ({"stem": "imagenet"}, "16x16 are too small .* at least 32x32"),
    ],
)
def test_wrong_values_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        zoo.build(config(**fields), 16, 10)
