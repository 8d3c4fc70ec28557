"""More connections for a network, which change nothing at their birth."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dresnet_jax.connections import gates, topology
from dresnet_jax.connections.module import Connections
from dresnet_jax.connections.spec import SHARED, ConnectionSpec
from dresnet_jax.errors import UserError

Edge = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Superset:
    """Connections with some more edges, and how parameters get from few to many.

    A new edge is silent at first by one of its factors, and learns by the other: its
    projection is 0, or, where it has none of its own, its gate is closed.

    Attributes:
      before: what the connections were.
      after: what they are with the new edges.
      channels: of y_0 to y_n.
    """

    before: ConnectionSpec
    after: ConnectionSpec
    channels: tuple[int, ...]

    @property
    def new(self) -> tuple[Edge, ...]:
        """The (reader, source) that are new, sorted."""
        there = set(self.before.topology.edges)
        return tuple(e for e in self.after.topology.edges if e not in there)

    def initialised(self, key: jax.Array) -> dict[str, Any]:
        """Makes fresh parameters for all edges, of which the new ones are silent."""
        module = Connections(self.after, self.channels)
        fresh = module.init(key, method=Connections.gate_values).get("params", {})
        for edge in self.new:
            self._silence(fresh, edge)
        return fresh

    def converted(
        self, name: str, old: jax.Array | None, fresh: jax.Array
    ) -> jax.Array:
        """Returns an array for all edges, which keeps what it held for the old ones.

        Works for parameters and for whatever has their shapes, such as an optimiser's
        averages of them.

        Args:
          name: of the array among the parameters of `Connections`, such as
            "block_5/gate_weights".
          old: what it was; None where there was none.
          fresh: what it shall be for new edges.
        """
        if old is None or jnp.shape(old) == jnp.shape(fresh):
            return fresh if old is None else old
        owner, _, _ = name.partition("/")
        places = self.after.places(self.before, owner)
        return jnp.asarray(fresh).at[places].set(old)

    def own(self, parameters: Mapping[str, Any], edge: Edge) -> dict[str, Any]:
        """Marks what a new edge need not share by 1, all else by 0."""
        reader, source = edge

        def mark(path: Any, leaf: jax.Array) -> jax.Array:
            owner, *inner = (entry.key for entry in path)
            nothing = jnp.zeros_like(leaf)
            if owner not in (SHARED, f"block_{reader}"):
                return nothing
            if "gate_weights" in (owner, *inner):
                return nothing.at[self.after.place(owner, edge)].set(1)
            return jnp.ones_like(leaf) if inner[0] == f"from_{source}" else nothing

        result: dict[str, Any] = jax.tree_util.tree_map_with_path(mark, parameters)
        return result

    def _silence(self, parameters: dict[str, Any], edge: Edge) -> None:
        """Sets the factor of a new edge to 0 by which it is silent, if it has one."""
        reader, source = edge
        block = f"block_{reader}"
        own = parameters.get(block, {})
        if f"from_{source}" in own:
            own[f"from_{source}"] = jax.tree.map(jnp.zeros_like, own[f"from_{source}"])
            return
        for name in self.after.shared_projections(reader, source)[-1:]:
            if name not in self.before.projections:
                parameters[name] = jax.tree.map(jnp.zeros_like, parameters[name])
                return
        closed = gates.GATES[self.after.gate].closed
        if closed is None:
            raise _no_silence(
                edge,
                f"gate '{self.after.gate}' is nowhere 0, and it has no projection of "
                "its own, as 'per_edge' gives to each",
            )
        distance, is_shared = reader - source, self.after.weights == "by_distance"
        if is_shared and distance in self.before.distances:
            raise _no_silence(edge, f"others of distance {distance} share its weight")
        tree, owner = (parameters, SHARED) if is_shared else (own, block)
        place = self.after.place(owner, edge)
        tree["gate_weights"] = tree["gate_weights"].at[place].set(closed)


def superset(
    spec: ConnectionSpec, channels: Sequence[int], edges: Iterable[Edge]
) -> Superset:
    """Adds edges to connections.

    Args:
      spec: what the connections are.
      channels: of y_0 to y_n.
      edges: the (reader, source) that are added.

    Raises:
      UserError: an edge is there already, is not possible, or cannot be silent at
        first.
    """
    before, edges = spec.topology, list(edges)
    if twice := sorted(set(edges) & set(before.edges)):
        raise UserError(f"Connection {twice[0]} (reader, source) is there already.")
    after = topology.from_edges(before.stages, [*before.edges, *edges], before.base)
    if strange := sorted(set(after.blocks) - set(before.blocks)):
        raise UserError(f"Block {strange[0]} is not in the network: none can read it.")
    larger = dataclasses.replace(spec, topology=after)
    larger.check(channels)
    if gates.GATES[spec.gate].compares_sources:
        for edge in edges:
            if before.sources(edge[0]):
                why = f"gate '{spec.gate}' shares 1 among all sources of a block"
                raise _no_silence(edge, why)
    result = Superset(spec, larger, tuple(channels))
    # Whether each can be silent does not hang on values.
    jax.eval_shape(result.initialised, jax.random.key(0))
    return result


def _no_silence(edge: Edge, why: str) -> UserError:
    return UserError(
        f"Connection {edge} (reader, source) cannot start without an effect: {why}."
    )
