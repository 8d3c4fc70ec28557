"""Architecture and network, learning in turn, find a planted operation: 20 seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dresnet_jax.models.layers import PENALTIES
from dresnet_jax.models.mixed import MixedBlock
from dresnet_jax.models.operations import OPERATIONS
from dresnet_jax.training import alternating, steps
from tests.acceptance.test_free_mixed import (
    SEEDS,
    STEPS,
    block,
    noise,
    of_seeds,
    recovered,
    teacher,
)

# Of each half; they come again and again.
BATCHES = 50
ALL = tuple(OPERATIONS)


def searched(student, seed, answers, order):
    """A student's gate weights after a search on two halves of a teacher's answers."""
    keys = jax.random.split(jax.random.key(seed + 1000), 4)
    own, other = (
        jax.vmap(noise)(jax.random.split(key, BATCHES)) for key in (keys[0], keys[1])
    )
    variables = student.init(keys[2], own[0], train=False)
    both = alternating.optimizers(optax.adam(0.02), 0.05, MixedBlock.architecture)
    rate = 0.02 if order == "second" else None

    def step(carry, i):
        params, batch_stats, (of_network, of_architecture) = carry
        rngs = {"dropout": jax.random.fold_in(keys[3], i)}

        def loss(params, x):
            y, result = student.apply(
                {"params": params, "batch_stats": batch_stats},
                x,
                train=True,
                mutable=["batch_stats", PENALTIES],
                rngs=rngs,
            )
            error = jnp.mean((y - answers(x)) ** 2)
            return error + steps.penalties(result), result["batch_stats"]

        first, second = own[i % BATCHES], other[i % BATCHES]
        gradient = alternating.gradient(
            lambda params: loss(params, first)[0],
            lambda params: loss(params, second)[0],
            params,
            both.is_architecture(params),
            rate,
        )
        updates, of_architecture = both.architecture.update(
            gradient, of_architecture, params
        )
        params = optax.apply_updates(params, updates)
        gradient, batch_stats = jax.grad(loss, has_aux=True)(params, first)
        updates, of_network = both.network.update(gradient, of_network, params)
        params = optax.apply_updates(params, updates)
        return (params, batch_stats, (of_network, of_architecture)), None

    params = variables["params"]
    carry = params, variables["batch_stats"], both.joined.init(params)
    (params, _, _), _ = jax.lax.scan(step, carry, jnp.arange(STEPS))
    return params["mixture"]["gate_weights"]


@pytest.mark.slow
@pytest.mark.parametrize("order", sorted(alternating.ORDERS))
def test_a_search_finds_the_planted_operation(order):
    """Seed n has operation n modulo 8; the price parts one from what contains it."""

    def result(seed):
        answers = teacher(ALL, seed, seed % len(ALL))
        student = block(
            ALL,
            weights="gumbel",
            temperature_end=0.3,
            temperature_steps=STEPS,
            price=0.1,
        )
        return searched(student, seed, answers, order).argmax()

    planted = np.arange(SEEDS) % len(ALL)
    what = f"{order} order: planted among {len(ALL)} operations"
    assert recovered(what, planted, of_seeds(result), ALL) >= 18
