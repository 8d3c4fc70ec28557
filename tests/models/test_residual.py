"""A learned residual x + a F(x) is an identity at 0, and learns its a."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dresnet_jax import defaults
from dresnet_jax.errors import UserError
from dresnet_jax.models import zoo
from dresnet_jax.models.blocks import BLOCKS
from dresnet_jax.models.layers import Layers
from dresnet_jax.models.residual import BlockSpec, ResidualScale
from dresnet_jax.training import optimizer
from tests.conftest import apply, init, products

CHANNELS = 8


def block(kind, each, start):
    kind = BLOCKS[kind]
    spec = BlockSpec(CHANNELS, residual=ResidualScale(each, start))
    return kind.make(spec, Layers())


def images(seed, batch=4):
    # Not below 0, as what a block whose activation comes last is given.
    return jax.random.uniform(jax.random.key(seed), (batch, 6, 6, CHANNELS))


@pytest.mark.parametrize(
    ("kind", "each", "train"),
    products(BLOCKS, ["scalar", "channel"], [False, True], strength=1),
)
def test_a_scale_of_0_is_an_identity_to_the_bit(kind, each, train):
    x, module = images(0), block(kind, each, 0.0)
    variables = init(module, jax.random.key(1), x, train=False)
    y, _ = apply(module, variables, x, train=train, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, x)
    size = 1 if each == "scalar" else CHANNELS
    np.testing.assert_array_equal(variables["params"]["scale"], np.zeros(size))


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_at_0_learns(kind):
    x, module = images(0), block(kind, "scalar", 0.0)
    variables = init(module, jax.random.key(1), x, train=False)

    @jax.jit
    @jax.grad
    def gradient(params):
        result = module.apply({**variables, "params": params}, x, train=False)
        return (result.mean(axis=(0, 1, 2)) @ jnp.arange(8.0)).sum()

    assert gradient(variables["params"])["scale"][0] != 0


def test_a_scale_multiplies_the_residual():
    x, variables = images(0), None
    result = []
    for start in (0.0, 0.5, 1.0):
        module = block("preact_basic", "scalar", start)
        variables = variables or init(module, jax.random.key(1), x, train=False)
        variables["params"]["scale"] = jnp.full((1,), start)
        result.append(apply(module, variables, x, train=False))
    np.testing.assert_allclose(result[1], (result[0] + result[2]) / 2, rtol=1e-5)


def test_a_planted_scale_is_found():
    """20 seeds: noisy answers of a block with some a; SGD finds it within 2 %."""
    module = block("preact_basic", "scalar", 0.0)

    def error(seed):
        keys = jax.random.split(jax.random.key(seed), 4)
        planted = jax.random.uniform(keys[0], minval=0.2, maxval=2.0)
        x = jax.random.normal(keys[1], (64, 6, 6, CHANNELS))
        params = module.init(keys[2], x, train=False)

        def answers(a):
            values = params["params"] | {"scale": a[None]}
            return module.apply({**params, "params": values}, x, train=False)

        targets = answers(planted) + 0.1 * jax.random.normal(keys[3], x.shape)
        learner = optax.adam(optax.cosine_decay_schedule(0.1, 150))

        def learn(carry, _):
            a, memory = carry
            gradient = jax.grad(lambda a: jnp.mean((answers(a) - targets) ** 2))(a)
            updates, memory = learner.update(gradient, memory)
            return (optax.apply_updates(a, updates), memory), None

        start = jnp.zeros(())
        (a, _), _ = jax.lax.scan(learn, (start, learner.init(start)), length=150)
        return jnp.abs(a / planted - 1)

    errors = jax.jit(lambda seeds: jax.lax.map(error, seeds))(jnp.arange(20))
    print(f"\nlargest error of 20 planted scales: {errors.max():.2%}")
    assert (errors < 0.02).all()


def test_the_config_names_the_scale():
    config = defaults.get_config().unlock().model
    config.update(residual_scale="channel", residual_start=1e-4, width=4)
    model = zoo.build(config, 32, 5)
    params = init(model, jax.random.key(0), jnp.ones((1, 32, 32, 3)), train=False)
    scale = params["params"]["block_8"]["scale"]
    np.testing.assert_array_equal(scale, np.full(32, np.float32(1e-4)))
    assert not optimizer.is_kernel(params["params"])["block_8"]["scale"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"residual_scale": "scaler"}, "Unknown residual_scale 'scaler'. Did you mean"),
        (
            {"residual_scale": "scalar", "residual_start": float("nan")},
            "residual_start = nan must be finite",
        ),
    ],
)
def test_wrong_scales_are_refused(fields, message):
    config = defaults.get_config().unlock().model
    config.update(**fields)
    with pytest.raises(UserError, match=message):
        zoo.build(config, 32, 5)
