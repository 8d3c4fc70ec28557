"""Mixed blocks find planted operations, and routers planted mixtures: 20 seeds each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dresnet_jax.models.layers import PENALTIES, Layers
from dresnet_jax.models.mixed import MixedBlock
from dresnet_jax.models.mixture import Mixture
from dresnet_jax.models.operations import OPERATIONS
from dresnet_jax.models.residual import BlockSpec
from dresnet_jax.training import steps

SEEDS, STEPS, BATCH, SIDE, CHANNELS = 20, 300, 16, 8, 4
ROUTER_STEPS = 500


def block(operations, activation="relu", **mixture):
    spec = BlockSpec(CHANNELS, mixture=Mixture(operations, **mixture))
    return MixedBlock(spec, Layers(activation=activation))


def with_weights(params, weights):
    return params | {"mixture": params["mixture"] | {"gate_weights": weights}}


def noise(key):
    return jax.random.normal(key, (BATCH, SIDE, SIDE, CHANNELS))


def of_seeds(one):
    """What a function of a seed gives for each."""
    return jax.device_get(jax.jit(lambda s: jax.lax.map(one, s))(jnp.arange(SEEDS)))


def learned(student, seed, answers, rates):
    """A student's gate weights after least squares on a teacher's answers to noise.

    Args:
      student: a mixed block.
      seed: of its start and of the noise.
      answers: the teacher.
      rates: Adam's learning rate of the gate weights, and of all else.
    """
    start, stream = jax.random.split(jax.random.key(seed + 1000))
    variables = student.init(start, noise(start), train=False)
    gates, rest = (optax.adam(rate) for rate in rates)
    learner = optax.multi_transform({True: gates, False: rest}, MixedBlock.architecture)

    def step(carry, i):
        params, batch_stats, memory = carry
        of_images, of_weights = jax.random.split(jax.random.fold_in(stream, i))
        x = noise(of_images)

        def loss(params):
            y, result = student.apply(
                {"params": params, "batch_stats": batch_stats},
                x,
                train=True,
                mutable=["batch_stats", PENALTIES],
                rngs={"dropout": of_weights},
            )
            error = jnp.mean((y - answers(x)) ** 2)
            return error + steps.penalties(result), result["batch_stats"]

        gradient, batch_stats = jax.grad(loss, has_aux=True)(params)
        updates, memory = learner.update(gradient, memory)
        return (optax.apply_updates(params, updates), batch_stats, memory), None

    params = variables["params"]
    carry = params, variables["batch_stats"], learner.init(params)
    (params, _, _), _ = jax.lax.scan(step, carry, jnp.arange(STEPS))
    return params["mixture"]["gate_weights"]


def teacher(operations, seed, planted, change=lambda params: params):
    """The answers of a block of one operation, whose weights are of a seed."""
    module = block(operations)
    key = jax.random.key(seed)
    variables = module.init(key, noise(key), train=False)
    chosen = jnp.where(jnp.arange(len(operations)) == planted, 0.0, -1e4)
    params = with_weights(change(variables["params"]), chosen)

    def answers(x):
        result, _ = module.apply(
            variables | {"params": params}, x, train=True, mutable=["batch_stats"]
        )
        return result

    return answers


def recovered(what, planted, result, operations):
    wrong = [
        f"{operations[p]} as {operations[f]}"
        for p, f in zip(planted, result, strict=True)
        if p != f
    ]
    right = SEEDS - len(wrong)
    print(
        f"\n{what}: {right} of {SEEDS} seeds{': ' if wrong else ''}{', '.join(wrong)}"
    )
    return right


@pytest.mark.slow
def test_a_mixed_block_finds_the_planted_operation():
    """Seed n has operation n modulo 8; the price parts one from what contains it."""
    operations = tuple(OPERATIONS)
    planted = np.arange(SEEDS) % len(operations)
    right = {}
    for price in (0.0, 0.05, 0.1):

        def result(seed, price=price):
            answers = teacher(operations, seed, seed % len(operations))
            student = block(
                operations,
                weights="gumbel",
                temperature_end=0.3,
                temperature_steps=STEPS,
                price=price,
            )
            return learned(student, seed, answers, (0.05, 0.02)).argmax()

        right[price] = recovered(
            f"price {price}: planted among {len(operations)} operations",
            planted,
            of_seeds(result),
            operations,
        )
    assert right[0.1] >= 18


def _near_identity(params):
    """A 3x3 convolution whose answers are much like what it reads."""
    conv = params["conv3"]["conv1"]["conv"]
    kernel = conv["kernel"]
    lengths = jnp.sqrt((kernel**2).sum(axis=(0, 1, 2), keepdims=True))
    kernel = jnp.sqrt(1 - 0.75**2) * kernel / lengths
    kernel = kernel.at[1, 1].add(0.75 * jnp.eye(CHANNELS))
    conv1 = params["conv3"]["conv1"] | {"conv": {"kernel": kernel}}
    return params | {"conv3": {"conv1": conv1}}


@pytest.mark.slow
def test_skips_win_without_the_guard_and_not_with_it():
    """The truth is a convolution; an identity is a part of it before it is trained."""
    operations = ("none", "identity", "pool", "conv3")
    planted = np.full(SEEDS, operations.index("conv3"))
    right = {}
    for drop in (0.0, 0.5):

        def result(seed, drop=drop):
            answers = teacher(operations, seed, planted[0], _near_identity)
            student = block(operations, skip_drop=drop, temperature_steps=STEPS)
            return learned(student, seed, answers, (0.1, 0.005)).argmax()

        right[drop] = recovered(
            f"skip_drop {drop}: conv3 near the identity",
            planted,
            of_seeds(result),
            operations,
        )
    assert right[0.0] <= 10
    assert right[0.5] >= 18


def test_a_router_reaches_the_planted_mixtures():
    """Images of each class have a mean of their own; the branches are frozen."""
    operations, classes = ("identity", "depthwise", "conv3", "deep"), 3
    # A ReLU would hide what images of a negative mean use.
    plain = block(operations, "gelu")
    routed = block(operations, "gelu", weights="routed")

    def error(seed):
        keys = jax.random.split(jax.random.key(seed), 5)
        mixtures = jax.random.dirichlet(keys[0], jnp.ones(len(operations)), (classes,))
        means = 2 * jax.random.normal(keys[1], (classes, 1, 1, 1, CHANNELS))
        params = plain.init(keys[2], noise(keys[2]), train=False)
        own = routed.init(keys[3], noise(keys[3]), train=False)
        own["params"] = params["params"] | {"mixture": own["params"]["mixture"]}

        def images(key):
            shape = (classes, 8, SIDE, SIDE, CHANNELS)
            return means + jax.random.normal(key, shape)

        def answers(mixture, x):
            given = with_weights(params["params"], jnp.log(mixture))
            return plain.apply(params | {"params": given}, x, train=False)

        def made(mixture_params, x):
            given = own["params"] | {"mixture": mixture_params}
            return routed.apply(
                own | {"params": given},
                x.reshape(-1, *x.shape[2:]),
                train=False,
                mutable=["intermediates"],
            )

        learner = optax.adam(optax.cosine_decay_schedule(0.1, ROUTER_STEPS))

        def step(carry, i):
            router, memory = carry
            x = images(jax.random.fold_in(keys[4], i))
            expected = jax.vmap(answers)(mixtures, x)

            def loss(router):
                y, _ = made(router, x)
                return jnp.mean((y - expected.reshape(y.shape)) ** 2)

            updates, memory = learner.update(jax.grad(loss)(router), memory)
            return (optax.apply_updates(router, updates), memory), None

        start = own["params"]["mixture"]
        carry = start, learner.init(start)
        (router, _), _ = jax.lax.scan(step, carry, jnp.arange(ROUTER_STEPS))
        _, result = made(router, images(jax.random.fold_in(keys[4], ROUTER_STEPS)))
        (weights,) = result["intermediates"]["mixture"]["weights"]
        off = weights.reshape(classes, -1, len(operations)).mean(axis=1) - mixtures
        return jnp.abs(off).max()

    errors = of_seeds(error)
    print(
        f"\nlargest distance of a router's mean weight from the planted: "
        f"{errors.max():.4f} of {SEEDS} seeds, median {np.median(errors):.4f}"
    )
    assert (errors < 0.05).all()
