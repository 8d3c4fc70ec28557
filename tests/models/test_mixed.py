"""A mixed block is its operations, weighted; one alone is an ordinary block."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dresnet_jax import defaults
from dresnet_jax.errors import UserError
from dresnet_jax.models import backbone, zoo
from dresnet_jax.models.blocks import BLOCKS
from dresnet_jax.models.layers import PENALTIES, Layers
from dresnet_jax.models.mixed import MixedBlock
from dresnet_jax.models.mixture import Mixture, imbalance, straight_through
from dresnet_jax.models.operations import OPERATIONS
from dresnet_jax.models.residual import BlockSpec
from dresnet_jax.training import leaves, optimizer
from tests.conftest import init

CHANNELS = 4
ALL = tuple(OPERATIONS)


def block(*operations, features=CHANNELS, stride=1, **mixture):
    shortcut = "identity" if (features, stride) == (CHANNELS, 1) else "conv"
    mixture = Mixture(operations or ALL, **mixture)
    spec = BlockSpec(features, stride, shortcut=shortcut, mixture=mixture)
    return MixedBlock(spec, Layers())


def images(seed=0, batch=6, side=7):
    return jax.random.normal(jax.random.key(seed), (batch, side, side, CHANNELS))


def started(module):
    return init(module, jax.random.key(1), images(), train=False)


@functools.partial(jax.jit, static_argnames=("module", "train"))
def run(module, variables, *, train=False, seed=2, x=None):
    """The output, and all collections that a step changes or reads."""
    return module.apply(
        variables,
        images() if x is None else x,
        train=train,
        mutable=["batch_stats", "intermediates", PENALTIES],
        rngs={"dropout": jax.random.key(seed)},
    )


def with_weights(variables, weights):
    """The block's variables with other gate weights."""
    mixture = variables["params"]["mixture"] | {"gate_weights": jnp.asarray(weights)}
    return variables | {"params": variables["params"] | {"mixture": mixture}}


def weights_of(result):
    return result["intermediates"]["mixture"]["weights"][0]


def only(variables, *operations):
    """What a block of some operations has of the variables of one of all."""
    kept = (*operations, "shortcut")
    result = {
        group: {name: tree[name] for name in kept if name in tree}
        for group, tree in variables.items()
    }
    return {group: tree for group, tree in result.items() if tree}


@pytest.mark.parametrize(
    ("size", "train"), [({}, False), ({"features": 6, "stride": 2}, True)]
)
def test_a_one_hot_mixture_is_that_operation(size, train):
    mixed = block(**size)
    variables = started(mixed)
    of_mixed = jax.jit(lambda given: run(mixed, given, train=train)[0])
    for operation in ALL:
        chosen = np.where(np.array(ALL) == operation, 0.0, -1e4).astype(np.float32)
        result = of_mixed(with_weights(variables, chosen))
        alone, own = block(operation, **size), only(variables, operation)
        expected = jax.jit(lambda given, m=alone: run(m, given, train=train)[0])(own)
        assert jax.tree.structure(jax.eval_shape(lambda m=alone: started(m))) == (
            jax.tree.structure(own)
        )
        assert result.shape == (6, *([4, 4, 6] if size else [7, 7, 4]))
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


def test_deep_alone_is_a_basic_block():
    alone = block("deep")
    variables = started(alone)
    of_basic = {group: tree["deep"] for group, tree in variables.items()}
    basic = BLOCKS["basic"].make(BlockSpec(CHANNELS), Layers())
    expected = basic.apply(of_basic, images(), train=False)
    np.testing.assert_array_equal(
        alone.apply(variables, images(), train=False), expected
    )


def test_pooling_is_the_average_of_what_is_there():
    pool = block("pool")
    x = jnp.ones((1, 5, 5, CHANNELS))
    variables = pool.init(jax.random.key(0), x, train=False)
    # 1 + 1, except for the epsilon of the norm: an edge of zeros would be seen.
    np.testing.assert_allclose(pool.apply(variables, x, train=False), 2.0, rtol=1e-5)


def test_the_temperature_falls_over_the_batches_of_training_alone():
    module = block("conv3", "none", temperature_end=0.01, temperature_steps=4)
    variables = with_weights(started(module), [0.1, 0.0])
    for step in range(6):
        weights = weights_of(run(module, variables)[1])
        temperature = 10 ** (-2 * min(step / 4, 1))
        odds = np.log(weights[0] / weights[1])
        assert odds == pytest.approx(0.1 / temperature, rel=1e-3)
        stats = run(module, variables)[1]["batch_stats"]
        assert stats["mixture"]["steps"] == step
        stats = run(module, variables, train=True)[1]["batch_stats"]
        assert stats["mixture"]["steps"] == step + 1
        variables = variables | {"batch_stats": stats}


def test_gumbel_takes_one_operation_for_each_image_as_often_as_it_is_likely():
    module = block("conv3", "identity", "none", weights="gumbel")
    logits = jnp.log(jnp.array([0.6, 0.3, 0.1]))
    variables, x = with_weights(started(module), logits), images(batch=4000, side=1)
    weights = weights_of(run(module, variables, train=True, x=x)[1])
    assert sorted(np.unique(weights)) == [0, 1]
    np.testing.assert_array_equal(weights.sum(axis=-1), 1)
    np.testing.assert_allclose(weights.mean(axis=0), [0.6, 0.3, 0.1], atol=0.03)
    # In evaluation it is the likeliest, without noise.
    np.testing.assert_array_equal(weights_of(run(module, variables)[1]), [1, 0, 0])

    def loss(weights):
        return (run(module, with_weights(variables, weights), train=True)[0] ** 2).sum()

    assert (jax.jit(jax.grad(loss))(logits) != 0).all()


def test_straight_through_has_the_gradient_of_what_is_soft():
    soft, towards = jnp.array([0.2, 0.5, 0.3]), jnp.array([1.0, 2.0, 4.0])
    np.testing.assert_array_equal(straight_through(soft), [0, 1, 0])
    result = jax.grad(lambda p: straight_through(p) @ towards)(soft)
    np.testing.assert_array_equal(result, towards)


def test_routed_weights_start_equal_and_are_of_the_image():
    module = block("conv3", "none", "pool", weights="routed", balance=0.5)
    variables = started(module)
    result = weights_of(run(module, variables)[1])
    np.testing.assert_allclose(result, np.full((6, 3), 1 / 3), rtol=1e-6)
    keys = jax.random.normal(jax.random.key(3), (3, 16))
    _, after = run(module, with_weights(variables, keys), train=True)
    weights = weights_of(after)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    assert np.ptp(weights, axis=0).min() > 0
    (penalty,) = after[PENALTIES]["mixture"]["imbalance"]
    assert penalty == pytest.approx(0.5 * float(imbalance(weights)), rel=1e-5)
    assert PENALTIES not in run(module, variables)[1]


def test_imbalance_is_the_squared_coefficient_of_variation():
    even = jnp.eye(4)
    assert imbalance(even) == pytest.approx(0)
    assert imbalance(even[:1]) == pytest.approx(3)
    weights = jax.nn.softmax(jax.random.normal(jax.random.key(0), (9, 4)))
    used = np.asarray(weights).mean(axis=0)
    assert imbalance(weights) == pytest.approx(
        (used.std() / used.mean()) ** 2, rel=1e-4
    )


@pytest.mark.parametrize("weights", ["softmax", "routed"])
def test_skips_are_left_out_less_and_less(weights):
    operations = ("identity", "pool", "conv3")
    module = block(*operations, weights=weights, skip_drop=0.5, temperature_steps=4)
    x = images(batch=2000, side=1)
    shares = []
    for steps in (0, 2, 4):
        given = {"mixture": {"steps": jnp.asarray(steps)}}
        variables = started(module)
        variables = variables | {"batch_stats": variables["batch_stats"] | given}
        _, result = module.apply(
            variables,
            x,
            train=True,
            mutable=True,
            rngs={"dropout": jax.random.key(0)},
            capture_intermediates=lambda module, _: module.name == "mixture",
        )
        of_images = result["intermediates"]["mixture"]["__call__"][0]
        np.testing.assert_allclose(of_images[:, 2], 1 / 3, rtol=1e-6)
        np.testing.assert_allclose(of_images.mean(axis=0), 1 / 3, atol=0.03)
        shares.append((of_images[:, :2] == 0).mean(axis=0))
    np.testing.assert_allclose(shares, [[0.5] * 2, [0.25] * 2, [0] * 2], atol=0.04)


def test_the_price_is_that_of_the_parameters_in_use():
    module = block("none", "conv3", "conv5", price=0.2)
    variables = with_weights(started(module), jnp.log(jnp.array([0.2, 0.5, 0.3])))
    _, result = run(module, variables, train=True)
    sizes = [9 * CHANNELS**2 + 2 * CHANNELS, 25 * CHANNELS**2 + 2 * CHANNELS]
    (price,) = result[PENALTIES]["price"]
    assert price == pytest.approx(0.2 * (0.5 * sizes[0] / sizes[1] + 0.3), rel=1e-5)


def small(**fields):
    config = defaults.get_config().unlock().model
    config.update(name="mixed18", width=4, blocks_per_stage=(2, 1))
    mixture = {n: fields.pop(n) for n in list(fields) if n in config.mixture}
    with config.ignore_type():
        config.mixture.update(mixture)
    config.update(fields)
    return config


def test_each_block_has_the_operations_that_the_config_names():
    of_blocks = (("conv3",), ("pool", "deep"), ("identity",))
    # As a run's config.json has it.
    model = zoo.build(small(operations=[list(names) for names in of_blocks]), 8, 5)
    assert tuple(b.mixture.operations for b in model.spec.blocks) == of_blocks
    x = jnp.ones((1, 8, 8, 1))
    params = init(model, jax.random.key(0), x, train=False)["params"]
    assert set(params["block_2"]) == {"pool", "deep", "mixture"}
    assert set(params["block_3"]) == {"identity", "shortcut"}
    marks = leaves.by_name(backbone.architecture(model.spec, params))
    marked = {name for name, mark in marks.items() if mark}
    assert marked == {"block_2/mixture/gate_weights"}
    assert not optimizer.is_kernel(params)["block_2"]["mixture"]["gate_weights"]
    # The name of a leaf alone marks nothing.
    params["head"]["gate_weights"] = jnp.ones(())
    assert not backbone.architecture(model.spec, params)["head"]["gate_weights"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"operations": ("conv4",)}, "Unknown operation 'conv4'. Did you mean 'conv"),
        ({"operations": ("pool", "pool")}, "must be one operation or several, each on"),
        ({"operations": ()}, "must be one operation or several"),
        ({"operations": (("pool",),) * 2}, "or 3 lists of names, one for each block"),
        ({"operations": ("pool", ("deep",), "none")}, "or 3 lists of names"),
        ({"weights": "gumble"}, "Unknown mixture.weights 'gumble'. Did you mean 'gum"),
        ({"temperature_start": 0.0}, "temperature_start = 0.0 must be a number above"),
        ({"temperature_end": float("inf")}, "temperature_end = inf must be a number"),
        ({"temperature_steps": 0}, "temperature_steps = 0 must be above 0"),
        ({"skip_drop": 1.0}, r"skip_drop = 1.0 must be in \[0, 1\)"),
        ({"price": -1.0}, "price = -1.0 must be a number, not below 0"),
        ({"balance": float("nan")}, "balance = nan must be a number, not below 0"),
        ({"connections": {"form": "stacked"}}, "'stacked' cannot express mixed"),
    ],
)
def test_wrong_values_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        zoo.build(small(**fields), 8, 5)
