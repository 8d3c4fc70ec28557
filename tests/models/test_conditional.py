"""Examples skip blocks by gates that are learned, and what is skipped is not done."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dresnet_jax import defaults
from dresnet_jax.errors import UserError
from dresnet_jax.models import conditional, zoo
from dresnet_jax.models.backbone import uncompacted
from dresnet_jax.models.blocks import BLOCKS
from dresnet_jax.models.conditional import ConditionalSpec, Gate
from dresnet_jax.models.counting import multiply_adds
from dresnet_jax.models.layers import PENALTIES, Layers
from dresnet_jax.models.residual import BlockSpec
from dresnet_jax.training import steps

CHANNELS = 8


def network(num_devices=1, **fields):
    config = defaults.get_config().unlock().model
    config.update(name="dresnet18", width=4, blocks_per_stage=(2, 1))
    config.conditional.target_rate = 0.5
    config.update(**fields)
    return zoo.build(config, 16, 5, num_devices=num_devices)


@pytest.fixture(scope="module")
def started():
    """A network, images of several colours, and variables; the first gate is mixed."""
    model = network()
    colours = jax.random.normal(jax.random.key(0), (7, 1, 1, 3))
    images = colours + jax.random.normal(jax.random.key(1), (7, 16, 16, 3))
    variables = jax.jit(lambda: model.init(jax.random.key(1), images, train=False))()
    forward = jax.jit(
        lambda v: uncompacted(model).apply(
            v, images, train=False, mutable=["intermediates"]
        )
    )
    logits = forward(variables)[1]["intermediates"]["gate_1"]["logits"][0]
    variables["params"]["gate_1"]["logit"]["bias"] -= jnp.median(logits)
    return model, images, variables


def block(kind):
    kind = BLOCKS[kind]
    return kind.make(BlockSpec(CHANNELS), Layers())


@pytest.mark.parametrize("kind", BLOCKS)
def test_compacted_is_masked(kind):
    x = jax.random.normal(jax.random.key(0), (7, 4, 4, CHANNELS))
    module = block(kind)
    variables = jax.jit(lambda: module.init(jax.random.key(1), x, train=False))()

    def run(x):
        return module.apply(variables, x, train=False)

    compacted = jax.jit(lambda gates: conditional.compacted(run, x, gates))
    y = jax.jit(run)(x)
    for count in (0, 1, 4, 6, 7):
        gates = jax.random.permutation(jax.random.key(count), jnp.arange(7) < count)
        gates = gates.astype(jnp.float32)
        expected = conditional.masked(x, y, gates)
        np.testing.assert_array_equal(expected[gates == 0], x[gates == 0])
        np.testing.assert_allclose(compacted(gates), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 19, 256])
def test_few_more_examples_are_run_than_need_it(batch):
    there = np.asarray(conditional.sizes(batch))
    assert there[0] == 0
    assert there[-1] == batch
    needed = np.arange(batch + 1)
    run = there[np.searchsorted(there, needed)]
    assert (run - needed >= 0).all()
    assert (run - needed < max(1, batch / 16)).all()


def test_what_all_skip_is_not_done():
    """The compiler cannot know, so that time shows it: no block is run for nobody."""
    calls = []

    def run(x):
        jax.debug.callback(lambda: calls.append(len(x)))
        return x + 1

    x = jnp.zeros((32, 1, 1, 1))
    for count, expected in ((0, []), (1, [2]), (9, [10]), (32, [32])):
        gates = (jnp.arange(32) < count).astype(jnp.float32)
        calls.clear()
        jax.jit(conditional.compacted, static_argnums=0)(run, x, gates)
        jax.effects_barrier()
        assert calls == expected


def test_evaluation_is_deterministic_and_either_way_the_same(started):
    model, images, variables = started
    compact, dense = (
        jax.jit(
            lambda seed, one=one: one.apply(
                variables,
                images,
                train=False,
                rngs={"dropout": jax.random.key(seed)},
                mutable=["intermediates"],
            )
        )
        for one in (model, uncompacted(model))
    )
    (result, inside), (again, _), (expected, _) = compact(0), compact(1), dense(0)
    np.testing.assert_array_equal(result, again)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)
    logits = inside["intermediates"]["gate_1"]["logits"][0]
    assert (logits > 0).sum() == 3


def test_training_is_random_and_straight_through(started):
    model, images, variables = started

    @jax.jit
    def gradient(key):
        def loss(params):
            stats = variables["batch_stats"]
            logits, _ = steps.forward(model, params, stats, images, key)
            return (logits**2).mean(), logits

        return jax.grad(loss, has_aux=True)(variables["params"])

    (grads, logits), (_, others) = (gradient(jax.random.key(n)) for n in (0, 1))
    assert not np.allclose(logits, others)
    for i in model.spec.gated:
        for leaf in jax.tree.leaves(grads[f"gate_{i}"]):
            assert np.abs(leaf).max() > 0


def test_a_gate_is_0_or_1_with_the_gradient_of_a_sigmoid():
    logits = jnp.linspace(-8.0, 8.0, 1001)
    result = conditional.opened(logits)
    np.testing.assert_array_equal(result, logits > 0)
    slopes = jax.vmap(jax.grad(conditional.opened))(logits)
    soft = jax.nn.sigmoid(logits)
    np.testing.assert_allclose(slopes, soft * (1 - soft), atol=1e-6)


def learned(spec, x, loss, seed, count=300):
    """A gate that minimises a loss of (key, gates in training) and its penalty."""
    gate = Gate(spec)
    params = gate.init(jax.random.key(seed), x, train=False)["params"]
    learner = optax.adam(0.03)

    def learn(carry, key):
        params, memory = carry

        def total(params):
            gates, updates = gate.apply(
                {"params": params},
                x,
                train=True,
                rngs={"dropout": key},
                mutable=[PENALTIES],
            )
            return loss(gates) + steps.penalties(updates)

        updates, memory = learner.update(jax.grad(total)(params), memory)
        return (optax.apply_updates(params, updates), memory), None

    keys = jax.random.split(jax.random.key(1000 + seed), count)
    (params, _), _ = jax.lax.scan(learn, (params, learner.init(params)), keys)
    return gate.apply({"params": params}, x, train=False)


@pytest.mark.parametrize("target", [0.25, 0.75])
def test_the_penalty_brings_the_rate_to_the_target(target):
    def rate(seed):
        x = jax.random.normal(jax.random.key(seed), (128, 1, 1, CHANNELS))
        spec = ConditionalSpec(target)
        return learned(spec, x, lambda gates: 0.0 * gates.sum(), seed).mean()

    rates = jax.jit(jax.vmap(rate))(jnp.arange(5))
    print(f"\ntarget {target}: rates {rates.min():.3f} to {rates.max():.3f}")
    assert (jnp.abs(rates - target) < 0.05).all()


def test_a_gate_opens_for_those_examples_alone_that_need_the_block():
    """20 seeds: a random half of the examples, marked by their input, need it."""

    def right(seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        need = jax.random.bernoulli(keys[0], 0.5, (128,))
        kinds = jax.random.normal(keys[1], (2, CHANNELS))
        x = kinds[need.astype(int)] + 0.3 * jax.random.normal(keys[2], (128, CHANNELS))

        def loss(gates):
            # Whoever skips in need is wrong, and so is who runs without.
            return jnp.mean((gates - need) ** 2)

        gates = learned(ConditionalSpec(0.5, 0.1), x[:, None, None], loss, seed)
        return ((gates > 0) == need).mean()

    result = jax.jit(jax.vmap(right))(jnp.arange(20))
    print(
        f"\nleast share of 128 examples that are right, of 20 seeds: {result.min():.3f}"
    )
    assert (result >= 0.95).all()


def test_only_blocks_that_keep_the_shape_have_a_gate(started):
    model = network(blocks_per_stage=(2, 3))
    assert model.spec.gated == (1, 2, 4, 5)
    _, _, variables = started
    gates = [name for name in variables["params"] if name.startswith("gate_")]
    assert gates == ["gate_1", "gate_2"]


def test_several_devices_mask():
    assert network().spec.conditional.compact
    assert not network(num_devices=2).spec.conditional.compact


def test_the_costliest_branch_is_counted(started):
    model, images, variables = started
    result, expected = (
        multiply_adds(lambda one=one: one.apply(variables, images, train=False))
        for one in (model, uncompacted(model))
    )
    assert result == expected


@pytest.mark.parametrize(
    ("gates", "fields", "message"),
    [
        ({"target_rate": 0.0}, {}, r"target_rate = 0.0 must be in \(0, 1\)"),
        ({"target_rate": 1.0}, {}, r"target_rate = 1.0 must be in \(0, 1\), or None"),
        ({"target_rate": 0.5, "penalty": -1.0}, {}, "penalty = -1.0 must be a number"),
        (
            {"target_rate": 0.5, "penalty": float("nan")},
            {},
            "penalty = nan must be a number",
        ),
        (
            {"target_rate": 0.5},
            {"block": "bottleneck", "blocks_per_stage": (1, 1)},
            "has none that keeps the shape",
        ),
    ],
)
def test_wrong_gates_are_refused(gates, fields, message):
    config = defaults.get_config().unlock().model
    config.update(**fields)
    config.conditional.update(gates)
    with pytest.raises(UserError, match=message):
        zoo.build(config, 32, 5)


def test_loops_over_blocks_are_refused():
    config = defaults.get_config().unlock().model
    config.conditional.target_rate = 0.5
    config.connections.update(projection="per_stage", form="stacked")
    with pytest.raises(UserError, match="'stacked' cannot express conditional paths"):
        zoo.build(config, 32, 5)
    config.connections.form = "auto"
    config.blocks_per_stage = (16,)
    model = zoo.build(config, 32, 5, platform="tpu")
    assert model.spec.connections.form == "folded"
