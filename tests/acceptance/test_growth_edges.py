"""A connection that a student lacks is found among 15, in 24 seeds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import digits
from dresnet_jax.connections.superset import superset
from dresnet_jax.models import zoo
from dresnet_jax.structure.growth import candidates
from dresnet_jax.training import steps

SEEDS, BATCH, SIDE = 24, 32, 8
# Of training, of a trial, and the steps of training from the teacher's weights.
BATCHES, TRIAL_BATCHES, PLATEAU_STEPS = 64, 8, 300


def built(topology):
    """Seven blocks; between the convolutions of each are too few channels to replace
    an edge with."""
    model = digits.get_config().model
    model.width, model.blocks_per_stage, model.hidden = 8, (7,), (2,) * 7
    with model.ignore_type():
        model.connections.topology = topology
    model.connections.gate, model.connections.form = "identity", "folded"
    model.connections.initial_gate = 0.999
    return zoo.build(model, SIDE, 10, 1, "cpu", 1)


MODEL = built("dense")
EDGES = MODEL.spec.connections.topology.edges
LARGER = superset(built("none").spec.connections, MODEL.spec.channels, EDGES)


@jax.jit
def planted(seed):
    """A student with a loss, `(connections, batch)`'s arguments, at both regimes."""
    keys = jax.random.split(jax.random.key(seed), 3)
    images = jax.random.normal(keys[0], (BATCHES, BATCH, SIDE, SIDE, 1))
    variables = MODEL.init({"params": keys[1]}, images[0], train=False)
    params, silent = variables["params"], LARGER.initialised(keys[2])
    edge = jax.tree.map(
        lambda mark: mark[seed % len(EDGES)],
        candidates.edge_marks(LARGER, silent, EDGES),
    )
    own = optax.tree.mul(edge, params["connections"])
    teacher = {**params, "connections": optax.tree.add(silent, own)}
    stats = variables["batch_stats"]

    def answers(params, x):
        return steps.forward(MODEL, params, stats, x, jax.random.key(0))[0]

    expected = jax.lax.map(functools.partial(answers, teacher), images)
    batches = images, expected / expected.std()

    def loss(params, batch):
        x, y = batch
        return jnp.mean((answers(params, x) / expected.std() - y) ** 2)

    blocks = {name: leaf for name, leaf in params.items() if name != "connections"}
    learner = optax.adam(optax.cosine_decay_schedule(3e-3, PLATEAU_STEPS))

    def step(carry, i):
        blocks, memory = carry
        batch = jax.tree.map(lambda x: x[i % BATCHES], batches)
        value, gradient = jax.value_and_grad(
            lambda given: loss({**given, "connections": silent}, batch)
        )(blocks)
        updates, memory = learner.update(gradient, memory)
        return (optax.apply_updates(blocks, updates), memory), value

    carry = blocks, learner.init(blocks)
    (trained, _), losses = jax.lax.scan(step, carry, jnp.arange(PLATEAU_STEPS))
    last = losses.reshape(-1, 50).mean(axis=1)[-2:]
    few = jax.tree.map(lambda x: x[:TRIAL_BATCHES], batches)
    scores = {
        name: ranked(loss, {**own, "connections": silent}, few)
        for name, own in (("teacher-like", blocks), ("plateau", trained))
    }
    return scores, last


def ranked(loss, params, batches):
    """The score of each edge by each rule: {rule: [edges]}."""
    silent = params["connections"]

    def of_connections(connections, batch):
        return loss({**params, "connections": connections}, batch)

    marks = candidates.edge_marks(LARGER, silent, EDGES)
    given = of_connections, silent, marks, batches
    gradients = jax.tree.map(
        lambda x: x.mean(axis=0),
        jax.lax.map(lambda batch: jax.grad(loss)(params, batch), batches),
    )
    of_blocks = jnp.stack(
        [
            jnp.concatenate([x.ravel() for x in jax.tree.leaves(gradients[name])])
            for name in (f"block_{i}" for i in range(1, 8))
        ]
    )
    correlations = jnp.abs(jnp.corrcoef(of_blocks))
    return {
        "trial": candidates.by_trial(*given, steps=15),
        "gradient": candidates.by_gradient(*given),
        # The original's: of the gradients for the weights of both ends.
        "correlation": jnp.stack([correlations[i - 1, k - 1] for i, k in EDGES]),
    }


@pytest.mark.slow
def test_a_trial_finds_the_planted_connection():
    result = [jax.device_get(planted(seed)) for seed in range(SEEDS)]
    first = {}
    for regime in ("teacher-like", "plateau"):
        for rule in ("trial", "gradient", "correlation"):
            ranks = []
            for seed, (scores, _) in enumerate(result):
                of_edges = scores[regime][rule]
                ranks.append(int((of_edges > of_edges[seed % len(EDGES)]).sum()))
            first[regime, rule] = np.mean(np.equal(ranks, 0))
            print(f"\n{regime}, {rule}: first in {first[regime, rule]:.2f}, {ranks}")
    flat = [1 - last[1] / last[0] for _, last in result]
    print(f"\nthe last 50 steps let the loss fall by a part of {np.median(flat):.3f}")
    assert len(EDGES) == 15
    assert first["teacher-like", "trial"] >= 0.80
    assert first["plateau", "trial"] >= 0.45
