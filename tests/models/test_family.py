"""The family has the published sizes, and connections continue all of it."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dresnet_jax import defaults
from dresnet_jax.connections import topology
from dresnet_jax.errors import UserError
from dresnet_jax.models import counting, zoo
from dresnet_jax.models.attention import ATTENTIONS
from dresnet_jax.models.blocks import BLOCKS
from dresnet_jax.models.layers import ACTIVATIONS, NORMS, Layers
from dresnet_jax.models.residual import SHORTCUT_RULES, BlockSpec
from tests.conftest import init, products

# At 1,000 classes: parameters, and multiply-adds of an image of 224x224 in billions.
# torchvision's table of weights, https://docs.pytorch.org/vision/stable/models.html:
TORCHVISION = {
    "resnet18": (11_689_512, 1.814),
    "resnet34": (21_797_672, 3.664),
    "resnet50": (25_557_032, 4.089),
    "resnet101": (44_549_160, 7.801),
    "resnet152": (60_192_808, 11.514),
    "resnext50_32x4d": (25_028_904, 4.230),
    "resnext101_32x8d": (88_791_336, 16.414),
    "wide_resnet50_2": (68_883_240, 11.398),
    "wide_resnet101_2": (126_886_696, 22.753),
    "mobilenetv2_100": (3_504_872, 0.301),
    "convnext_tiny": (28_589_128, 4.456),
}
# In millions, as far as they are published. timm's results/results-imagenet.csv:
# seresnet50, resnet50d, resnetv2_50, ecaresnet50d (25.58, whose stem and shortcuts are
# those of resnet50d); Woo et al. (2018), table 4: cbam_resnet50.
MILLIONS = {
    "resnetv2_50": 25.55,
    "resnetv2_101": 44.54,
    "seresnet50": 28.09,
    "ecaresnet50": 25.56,
    "cbam_resnet50": 28.09,
    "resnet50d": 25.58,
}
# At 10 classes and 32x32, in millions: He et al. (2015), table 6; Zagoruyko and
# Komodakis (2016), table 5.
CIFAR_MILLIONS = {
    "resnet20": 0.27,
    "resnet56": 0.85,
    "resnet110": 1.7,
    "wrn28_10": 36.5,
}


def config(name, **fields):
    result = defaults.get_config().unlock().model
    result.update(name=name, stem="own", **fields)
    return result


def shapes(model, side):
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    keys = jax.eval_shape(jax.random.key, 0)
    return jax.eval_shape(
        lambda key, x: model.init(key, x, train=False), keys, images
    ), images


def params(name, side=224, classes=1000, **fields):
    result, _ = shapes(zoo.build(config(name, **fields), side, classes), side)
    return size(result["params"])


def size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def deep_are_slow(names):
    """For `parametrize`: to trace a hundred layers takes seconds."""
    return [
        pytest.param(name, marks=pytest.mark.slow)
        if re.search(r"101|152|110", name)
        else name
        for name in names
    ]


@pytest.mark.parametrize("name", deep_are_slow(TORCHVISION))
def test_torchvisions_networks_have_its_parameters_and_multiply_adds(name):
    published, billions = TORCHVISION[name]
    model = zoo.build(config(name), 224, 1000)
    variables, images = shapes(model, 224)
    result = counting.multiply_adds(
        lambda variables, x: model.apply(variables, x, train=False), variables, images
    )
    assert size(variables["params"]) == published
    assert result / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize("name", MILLIONS)
def test_other_networks_have_the_published_millions(name):
    assert params(name) / 1e6 == pytest.approx(MILLIONS[name], abs=0.006)


@pytest.mark.parametrize("name", CIFAR_MILLIONS)
def test_cifars_networks_have_the_published_millions(name):
    result = params(name, side=32, classes=10) / 1e6
    assert result == pytest.approx(CIFAR_MILLIONS[name], rel=0.02)


PLAIN = [name for name in zoo.MODELS if f"d{name}" in zoo.MODELS]


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    "is_whole", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_every_network_takes_connections(name, is_whole):
    connected = zoo.build(config(f"d{name}"), 64, 10)
    edges = connected.spec.connections.topology.edges
    published = name in ("cnn18", "resnet18_seed")
    pattern = "dense" if published else "stage_ends"
    assert edges == topology.build(pattern, connected.spec.stages).edges

    if not is_whole:
        stages = len(connected.spec.blocks_per_stage)
        fields = {"blocks_per_stage": (1, 2) + (1,) * (stages - 2)}
        connected = zoo.build(config(f"d{name}", **fields), 64, 10)
        edges = connected.spec.connections.topology.edges
        assert edges
    fields = {"blocks_per_stage": connected.spec.blocks_per_stage}
    plain = zoo.build(config(name, **fields), 64, 10)
    without, result = (shapes(model, 64)[0] for model in (plain, connected))
    added = result["params"].pop("connections")
    assert jax.tree.structure(result) == jax.tree.structure(without)
    weights = [
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(added)
        if path[-1].key == "gate_weights"
    ]
    assert sum(weights) == len(edges)


SMALL = {"width": 8, "blocks_per_stage": (2, 1)}
# A model of every kind of block, narrow and shallow.
OF_KIND = {
    "basic": "resnet18",
    "bottleneck": "resnet50",
    "preact_basic": "resnetv2_18",
    "preact_bottleneck": "resnetv2_50",
    "separable": "dssresnet18",
    "inverted": "mobilenetv2_100",
    "convnext": "convnext_tiny",
    "mixed": "mixed18",
}


def small(kind, **fields):
    return zoo.build(config(OF_KIND[kind], **SMALL | fields), 32, 5)


def created(model):
    """The variables of a network, with weights of some seed."""
    return init(model, jax.random.key(0), images(), train=False)


def images(side=32):
    result = np.random.RandomState(0).standard_normal((2, side, side, 3))
    return jnp.asarray(result, jnp.float32)


def logits_of(model, variables, *, train=False):
    """Logits of a network, without running averages."""
    logits, _ = model.apply(
        variables,
        images(),
        train=train,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(1)},
    )
    return logits


def run(model, variables=None, *, train=False):
    """Logits and variables."""
    variables = created(model) if variables is None else variables
    logits = jax.jit(lambda variables: logits_of(model, variables, train=train))
    return logits(variables), variables


def test_every_kind_of_block_is_tried_here():
    assert OF_KIND.keys() | {"bottleneck_v1"} == BLOCKS.keys()
    assert {zoo.MODELS[name].block for name in OF_KIND.values()} == OF_KIND.keys()


@pytest.mark.parametrize(
    ("kind", "attention"), products(OF_KIND, ATTENTIONS, strength=1)
)
def test_attention_goes_into_every_block(kind, attention):
    model = small(kind, attention=attention, blocks_per_stage=(1, 1))
    variables = created(model)

    def loss(params):
        logits = logits_of(model, variables | {"params": params}, train=True)
        return (logits**2).sum(), logits

    @jax.jit
    def logits_and_norm(params):
        gradient, logits = jax.grad(loss, has_aux=True)(params)
        return logits, optax.tree.norm(gradient)

    logits, norm = logits_and_norm(variables["params"])
    assert logits.shape == (2, 5)
    assert np.isfinite(norm)
    assert norm > 0
    assert ("attention" in variables["params"]["block_1"]) == (attention != "none")


@pytest.mark.parametrize(
    ("kind", "norm"),
    products(["basic", "preact_bottleneck", "convnext"], NORMS, strength=1),
)
def test_every_norm_goes_into_every_network(kind, norm):
    logits, variables = run(small(kind, norm=norm), train=True)
    assert np.isfinite(logits).all()
    assert ("batch_stats" in variables) == (norm == "batch")


@functools.cache
def run_basic():
    return run(small("basic"))[0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_the_networks(activation):
    result = run(small("basic", activation=activation))[0]
    of_relu = run_basic()
    assert np.isfinite(result).all()
    assert np.array_equal(result, of_relu) == (activation == "relu")


# `always` is for blocks that change the shape by themselves.
@pytest.mark.parametrize(
    ("kind", "shortcut"),
    products(
        ["basic", "preact_bottleneck"],
        sorted(SHORTCUT_RULES.keys() - {"always"}),
        strength=1,
    ),
)
def test_every_shortcut_that_fits_a_block_runs(kind, shortcut):
    logits, variables = run(small(kind, shortcut=shortcut))
    assert logits.shape == (2, 5)
    has_conv = "shortcut" in variables["params"]["block_3"]
    assert has_conv == (shortcut in ("identity", "conv", "pool", "bare"))


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind, marks=() if kind in ("basic", "convnext") else pytest.mark.slow
        )
        for kind in OF_KIND
    ],
)
def test_a_last_norm_of_0_makes_a_block_add_nothing(kind):
    model = small(kind, zero_last=True, blocks_per_stage=(3, 1))
    logits, variables = run(model)
    # Blocks 2 and 3 keep the shape: without them, the network is the same.
    shorter = small(kind, zero_last=True, blocks_per_stage=(1, 1))
    kept = {
        group: {"block_2" if name == "block_4" else name: tree[name] for name in tree}
        for group, tree in variables.items()
    }
    for tree, of_long in zip(kept.values(), variables.values(), strict=True):
        del tree["block_3"]
        if "block_4" in of_long:
            tree["block_2"] = of_long["block_4"]
    result, _ = run(shorter, kept)
    np.testing.assert_allclose(result, logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "kind",
    [
        "basic",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("bottleneck", "preact_basic", "convnext")
        ),
    ],
)
def test_a_dilated_stage_keeps_its_side(kind):
    fields = {"blocks_per_stage": (1, 2, 2)}
    plain, dilated = (
        small(kind, **fields, dilated_stages=stages) for stages in ((), (2, 3))
    )
    assert dilated.spec.total_stride * 4 == plain.spec.total_stride
    # As torchvision's: a stage's first block has the dilation of the stage before.
    assert [block.dilation for block in dilated.spec.blocks] == [1, 1, 2, 2, 4]
    logits, variables = run(dilated)
    assert np.isfinite(logits).all()
    assert jax.tree.structure(variables) == jax.tree.structure(shapes(plain, 32)[0])


@pytest.mark.parametrize(
    "kind",
    [
        "basic",
        *(
            pytest.param(x, marks=pytest.mark.slow)
            for x in ("preact_basic", "convnext")
        ),
    ],
)
def test_stochastic_depth_is_on_in_training_alone(kind):
    plain, dropped = (small(kind, drop_path=rate) for rate in (0.0, 0.9))
    assert [b.drop_path for b in dropped.spec.blocks] == pytest.approx([0, 0.45, 0.9])
    logits, variables = run(plain)
    np.testing.assert_array_equal(run(dropped, variables)[0], logits)
    trained = [run(model, variables, train=True)[0] for model in (plain, dropped)]
    assert not np.array_equal(*trained)


def test_a_bottlenecks_stride_can_be_the_first_convolutions():
    spec = BlockSpec(features=8, stride=2)
    result = {}
    for kind in ("bottleneck_v1", "bottleneck"):
        block = BLOCKS[kind].make(spec, Layers())
        convolutions = block.convolutions(spec, 8)
        result[kind] = [one.get("stride", 1) for one in convolutions.values()]
    assert result == {"bottleneck_v1": [2, 1, 1], "bottleneck": [1, 2, 1]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block": "basik"}, "Unknown model.block 'basik'. Did you mean 'basic'"),
        ({"norm": "bach"}, "Unknown model.norm 'bach'. Did you mean 'batch'"),
        ({"activation": "rel"}, "Unknown model.activation 'rel'. Did you mean 'relu"),
        ({"attention": "see"}, "Unknown model.attention 'see'. Did you mean 'se'"),
        ({"shortcut": "identty"}, "Unknown model.shortcut 'identty'. Did you mean"),
        ({"dilated_stages": (5,)}, r"dilated_stages = \(5,\) must be numbers of stag"),
    ],
)
def test_wrong_values_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        zoo.build(config("resnet18", **fields), 32, 5)


def test_a_network_has_no_more_stages_than_its_table():
    with pytest.raises(UserError, match="mobilenetv2_100 has at most 7 stages"):
        zoo.build(config("mobilenetv2_100", blocks_per_stage=(1,) * 8), 512, 5)
