"""Connections that a network lacks, ranked by what they would be worth to it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dresnet_jax.connections.superset import Edge, Superset
from dresnet_jax.connections.topology import Topology

# (parameters of `Connections`, a batch) -> a scalar.
Loss = Callable[[Any, Any], jax.Array]


def possible(topology: Topology) -> list[Edge]:
    """The (reader, source) that are not there, of blocks that are.

    Where the base is fixed, block i could read any up to i-2; where it is learned, any
    block, and the classifier, could read all that comes before it.
    """
    if topology.is_free:
        nodes = (0, *topology.blocks, topology.classifier)
        pairs = [(i, k) for i in nodes for k in nodes if k < i]
    else:
        last = topology.num_blocks
        pairs = [(i, k) for i in range(3, last + 1) for k in range(1, i - 1)]
    return [edge for edge in pairs if edge not in topology.edges]


def by_gradient(
    loss: Loss, larger: Superset, silent: Any, batches: Any, edges: Sequence[Edge]
) -> jax.Array:
    """How surely the loss falls with each silent edge, from one pass over batches.

    The squared norm of its mean gradient as a share of its gradients' mean squared
    norm, from 0 to 1: the norm alone would be a measure of how much the source gives.

    Args:
      loss: of the network with all edges.
      larger: the network's connections with the candidates.
      silent: their parameters, the candidates without an effect.
      batches: each leaf [batches, ...].
      edges: the candidates.

    Returns:
      [edges].
    """
    gradients = jax.lax.map(lambda batch: jax.grad(loss)(silent, batch), batches)

    def share(mark: Any) -> jax.Array:
        own = jax.tree.map(lambda x, of_batches: x * of_batches, mark, gradients)
        squares = jax.vmap(lambda x: optax.tree.norm(x, squared=True))(own)
        mean = jax.tree.map(lambda x: x.mean(axis=0), own)
        return optax.tree.norm(mean, squared=True) / squares.mean()

    return jax.lax.map(share, _marks(larger, silent, edges))


def by_trial(
    loss: Loss,
    larger: Superset,
    silent: Any,
    batches: Any,
    edges: Sequence[Edge],
    learning_rate: float = 0.01,
) -> jax.Array:
    """By how much the loss falls where one edge learns for some steps, all else fixed.

    All candidates at once, each in a network of its own, which runs once for each.

    Args:
      loss: of the network with all edges.
      larger: the network's connections with the candidates.
      silent: their parameters, the candidates without an effect.
      batches: one for each step of Adam; the fall is that of their mean loss. Each leaf
        is [steps, ...].
      edges: the candidates.
      learning_rate: of Adam.

    Returns:
      [edges].
    """
    steps = len(jax.tree.leaves(batches)[0])
    learner = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def fall(mark: Any) -> jax.Array:
        def step(carry: Any, batch: Any) -> tuple[Any, None]:
            found, memory = carry
            gradient = optax.tree.mul(mark, jax.grad(loss)(found, batch))
            updates, memory = learner.update(gradient, memory)
            return (optax.apply_updates(found, updates), memory), None

        carry, _ = jax.lax.scan(step, (silent, learner.init(silent)), batches)
        return _mean(loss, silent, batches) - _mean(loss, carry[0], batches)

    return jax.vmap(fall)(_marks(larger, silent, edges))


def _marks(larger: Superset, silent: Any, edges: Sequence[Edge]) -> Any:
    """What is each candidate's own, each leaf [edges, ...]."""
    marks = [larger.own(silent, edge) for edge in edges]
    return jax.tree.map(lambda *of_edges: jnp.stack(of_edges), *marks)


def _mean(loss: Loss, parameters: Any, batches: Any) -> jax.Array:
    return jax.lax.map(lambda batch: loss(parameters, batch), batches).mean()
