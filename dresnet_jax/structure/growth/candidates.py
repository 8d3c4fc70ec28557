"""Connections that a network lacks, ranked by what they would be worth to it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dresnet_jax.connections.superset import Edge, Superset
from dresnet_jax.connections.topology import Topology, dense

# (parameters of `Connections`, a batch) -> a scalar.
Loss = Callable[[Any, Any], jax.Array]
# Lengths of a step in a trial that are tried at most, each half of the one before.
TRIES = 4


def possible(topology: Topology) -> list[Edge]:
    """Returns the (reader, source) that are not there, of blocks that are.

    Where the base is fixed, block i could read any up to i-2; where it is learned, any
    block, and the classifier, could read all that comes before it.
    """
    pairs: Sequence[Edge] = dense(topology.stages).edges
    if topology.is_free:
        nodes = (0, *topology.blocks, topology.classifier)
        pairs = [(i, k) for i in nodes for k in nodes if k < i]
    return [edge for edge in pairs if edge not in topology.edges]


def edge_marks(larger: Superset, silent: Any, edges: Sequence[Edge]) -> Any:
    """Marks what is each candidate's own among `silent`, the parameters of all.

    Returns:
      1 for it and 0 for the rest, each leaf [edges, ...].
    """
    result = [larger.own(silent, edge) for edge in edges]
    return jax.tree.map(lambda *of_edges: jnp.stack(of_edges), *result)


def by_gradient(loss: Loss, silent: Any, marks: Any, batches: Any) -> jax.Array:
    """Estimates how much each silent edge reduces the loss, along its gradient.

    As far as a parabola shows: g'g is the slope along the mean gradient g of some
    batches and g'Hg the curvature, so that the best step along it is worth
    (g'g)^2 / 2 |g'Hg|. The norm of g alone would be a measure of how much the source
    gives.

    Args:
      loss: of the network with all edges.
      silent: parameters of its connections, the candidates without an effect.
      marks: `edge_marks` of the candidates.
      batches: each leaf [batches, ...].

    Returns:
      [edges].
    """
    gradient = jax.grad(lambda parameters: _mean(loss, parameters, batches))
    whole = gradient(silent)

    def fall(mark: Any) -> jax.Array:
        own = optax.tree.mul(mark, whole)
        _, curved = jax.jvp(gradient, (silent,), (own,))
        slope, curvature = optax.tree.vdot(own, own), optax.tree.vdot(own, curved)
        tiny = jnp.finfo(slope.dtype).tiny
        return slope**2 / (2 * jnp.abs(curvature) + tiny)

    return jax.lax.map(fall, marks)


def by_trial(
    loss: Loss, silent: Any, marks: Any, batches: Any, steps: int
) -> jax.Array:
    """Measures how much fitting one edge, all else fixed, reduces the loss.

    All candidates at once, each in a network of its own. The fit is of few numbers, so
    that L-BFGS comes near its end in few steps, however flat the loss is; a fit that is
    not finished ranks edges by how fast they learn.

    Args:
      loss: of the network with all edges.
      silent: parameters of its connections, the candidates without an effect.
      marks: `edge_marks` of the candidates.
      batches: whose mean loss is fitted; of too few the noise is. Each leaf is
        [batches, ...].
      steps: of L-BFGS, each with at most `TRIES` tries of its length.

    Returns:
      [edges].
    """
    search = optax.scale_by_backtracking_linesearch(
        max_backtracking_steps=TRIES, decrease_factor=0.5
    )
    learner = optax.lbfgs(linesearch=search)

    def fall(mark: Any) -> jax.Array:
        def of_change(change: Any) -> jax.Array:
            own = optax.tree.mul(mark, change)
            return _mean(loss, optax.tree.add(silent, own), batches)

        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            change, memory = carry
            value, gradient = jax.value_and_grad(of_change)(change)
            updates, memory = learner.update(
                gradient, memory, change, value=value, grad=gradient, value_fn=of_change
            )
            return (optax.apply_updates(change, updates), memory), value

        nothing = optax.tree.zeros_like(silent)
        start = nothing, learner.init(nothing)
        (change, _), values = jax.lax.scan(step, start, length=steps)
        result = values[0] - of_change(change)
        # A step that is far too long may end at no number.
        return jnp.where(jnp.isfinite(result), result, -jnp.inf)

    return jax.vmap(fall)(marks)


def _mean(loss: Loss, parameters: Any, batches: Any) -> jax.Array:
    return jax.lax.map(lambda batch: loss(parameters, batch), batches).mean()
