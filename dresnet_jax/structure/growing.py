"""Networks with more learned connections than they had, and the same answers."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dresnet_jax.connections.superset import Edge, superset
from dresnet_jax.data.pipeline import Batch, derive_key
from dresnet_jax.structure.pruning import Network
from dresnet_jax.training import evaluation, experiment, leaves, steps

# Of a connection's parameters among those of the network.
_CONNECTIONS = "connections/"
# The running mean of squared gradients, by which Adam divides.
_SQUARES = "nu"


@dataclasses.dataclass(frozen=True)
class Growth:
    """What a change did.

    Attributes:
      edges: the (reader, source) that are new.
      params_before: how many parameters there were.
      params_after: how many there are.
      error: the largest difference that it made to a logit of the first batch, as a
        share of the largest logit, as trained or as evaluated, whichever is more.
    """

    edges: tuple[Edge, ...]
    params_before: int
    params_after: int
    error: float


def grown(network: Network, edges: Sequence[Edge]) -> tuple[Network, Growth]:
    """The network with more connections, which answers as it did, and trains on.

    Weights, averages and the optimiser's memory stay as they are. The running mean of
    squared gradients of what is new starts as the mean of the connections' others of
    the same name, or of the whole network's: from 0, Adam's first steps would be far
    too long.

    Args:
      network: what grows; it stays as it is.
      edges: the (reader, source) that are added.

    Raises:
      UserError: an edge is there already, is not possible, or cannot start without an
        effect.
    """
    parts, state = network.parts, network.state
    spec = parts.model.spec
    larger = superset(spec.connections, spec.channels, edges)
    config = copy.deepcopy(parts.config).unlock()
    with config.ignore_type():
        config.model.connections.topology = larger.after.topology.edges
    other = experiment.build(config.lock())
    fresh = other.create_state()
    silent = larger.initialised(derive_key(state.key, "init"))
    params = {**fresh.params, "connections": silent}
    opt_state = _with_mean_squares(other.optimizer.init(params), state.opt_state)
    start = fresh.replace(
        params=params,
        opt_state=opt_state,
        ema_params=None if state.ema_params is None else params,
    )
    old = leaves.by_name(state)

    def carried(path: Any, leaf: jax.Array) -> jax.Array:
        name = leaves.name(path)
        of_connections = name.partition(_CONNECTIONS)[2]
        if of_connections:
            return larger.carried(of_connections, old.get(name), leaf)
        return old[name]

    filled = jax.tree_util.tree_map_with_path(carried, start)
    # Copies, since a step consumes each array of the state once.
    placed = jax.tree.map(
        lambda leaf, like: jax.device_put(leaf, like.sharding, may_alias=False),
        filled,
        fresh,
    )
    after = Network(other, placed)
    return after, Growth(
        edges=larger.new,
        params_before=optax.tree.size(state.params),
        params_after=optax.tree.size(placed.params),
        error=difference(network, after),
    )


def difference(one: Network, other: Network) -> float:
    """The largest of the logits' differences as a share of the largest logit.

    As trained and as evaluated, on the first batch of training, whichever is more.
    """
    batch = evaluation.first_batch(one.parts)
    pairs = zip(_logits(one, batch), _logits(other, batch), strict=True)
    return max(
        float(np.max(np.abs(a - b)) / max(np.max(np.abs(a)), 1e-30)) for a, b in pairs
    )


def _logits(network: Network, batch: Batch) -> list[np.ndarray]:
    """As trained and as evaluated, [2][batch, classes]."""
    model, state = network.parts.model, network.state

    def both(params: Any, batch_stats: Any) -> tuple[jax.Array, jax.Array]:
        trained, _ = steps.forward(model, params, batch_stats, batch.images, state.key)
        variables = {"params": params, "batch_stats": batch_stats}
        evaluated: Any = model.apply(variables, batch.images, train=False)
        return trained, evaluated

    return list(jax.device_get(jax.jit(both)(state.params, state.batch_stats)))


def _with_mean_squares(fresh: Any, old: Any) -> Any:
    """A fresh optimiser's memory whose squared gradients are the mean of the old ones.

    Args:
      fresh: of the larger network.
      old: of the smaller one.
    """
    means: dict[str, list[jax.Array]] = {}
    for name, leaf in leaves.by_name(old).items():
        if f"/{_SQUARES}/" in name:
            kind = name.rpartition("/")[2]
            for known in (
                kind,
                f"{_CONNECTIONS}{kind}" if _CONNECTIONS in name else "",
            ):
                means.setdefault(known, []).append(leaf.mean())

    def filled(path: Any, leaf: jax.Array) -> jax.Array:
        name = leaves.name(path)
        kind = name.rpartition("/")[2]
        found = means.get(f"{_CONNECTIONS}{kind}") or means.get(kind) or means.get("")
        if f"/{_SQUARES}/" not in name or not found:
            return leaf
        return jnp.full_like(leaf, jnp.stack(found).mean())

    return jax.tree_util.tree_map_with_path(filled, fresh)
