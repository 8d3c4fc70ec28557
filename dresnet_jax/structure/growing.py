"""Networks with more learned connections than they had, or fewer."""

from collections.abc import Sequence
from typing import Any

import jax

from dresnet_jax.connections.subset import subset
from dresnet_jax.connections.superset import Edge, superset
from dresnet_jax.errors import UserError
from dresnet_jax.structure import changes
from dresnet_jax.structure.pruning import Network


def grown(network: Network, edges: Sequence[Edge]) -> Network:
    """Adds connections to a network, which answers as it did.

    Weights, averages and the optimiser's memory stay as they are.

    Args:
      network: what grows; it stays as it is.
      edges: the (reader, source) that are added.

    Raises:
      UserError: there are none, or one is there already, is not possible, or cannot
        start without an effect.
    """
    if not edges:
        raise UserError("No connection is named that could be added.")
    spec = network.experiment.model.spec
    larger = superset(spec.connections, spec.channels, edges)

    def converted(name: str, old: Any, fresh: jax.Array) -> jax.Array:
        of_connections = name.partition(changes.CONNECTIONS)[2]
        if of_connections:
            return larger.converted(of_connections, old.get(name), fresh)
        return old[name]

    return changes.made(
        network,
        {"model.connections.topology": larger.after.topology.edges},
        converted,
        lambda params, key: {**params, "connections": larger.initialised(key)},
    )


def shrunk(network: Network, edges: Sequence[Edge]) -> Network:
    """Removes connections from a network, whose answers change.

    As `pruning.pruned`, but everything else stays as it is, the optimiser's memory too.

    Args:
      network: what shrinks; it stays as it is.
      edges: the (reader, source) that go.

    Raises:
      UserError: there are none, one does not exist, or the classifier would be cut off.
    """
    spec = network.experiment.model.spec.connections
    gone = set(edges)
    if strange := sorted(gone - set(spec.topology.edges)):
        raise UserError(f"Connection {strange[0]} (reader, source) does not exist.")
    if not gone:
        raise UserError("No connection is named that could be removed.")
    kept = [edge for edge in spec.topology.edges if edge not in gone]
    smaller, _ = subset(spec, network.state.params["connections"], kept)

    def converted(name: str, old: Any, fresh: jax.Array) -> jax.Array:
        result = old[name]
        if result.shape == fresh.shape:
            return result
        # Only connections have become smaller.
        owner = name.partition(changes.CONNECTIONS)[2].partition("/")[0]
        return result[spec.places(smaller, owner)]

    return changes.made(
        network,
        {"model.connections.topology": smaller.topology.edges or "none"},
        converted,
    )
