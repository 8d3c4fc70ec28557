"""The values F(w) of a network's gates: read, compared, and added to a loss."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dresnet_jax.connections import gates
from dresnet_jax.connections.module import Connections
from dresnet_jax.connections.spec import ConnectionSpec

# F(w) of a gate that is as good as closed.
DEAD = 1e-3

# F(w) of each edge, the mean over its channels: {reader: {source: F(w)}}.
GateValues = dict[int, dict[int, float]]


def of(
    spec: ConnectionSpec, channels: tuple[int, ...], parameters: Mapping[str, Any]
) -> GateValues:
    """Returns F(w) of every edge, on the host: {reader: {source: F(w)}}."""
    arrays = jax.device_get(_compiled(spec, channels, parameters))
    return {
        i: {
            k: float(values.mean())
            for k, values in zip(spec.topology.sources(i), rows, strict=True)
        }
        for i, rows in arrays.items()
    }


def sharpness(params: Any) -> float | None:
    """Returns the mean k of a network's gauss gates; None where it has no k."""
    result = [
        gates.positive(leaf).mean()
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if getattr(path[-1], "key", None) == "gate_sharpness"
    ]
    return float(np.mean(jax.device_get(result))) if result else None


def drift(start: GateValues, end: GateValues) -> float:
    """Averages |change of F(w)| over the edges that both have; 0 where none is."""
    changes = [
        abs(end[i][k] - start[i][k])
        for i in end.keys() & start.keys()
        for k in end[i].keys() & start[i].keys()
    ]
    return sum(changes) / max(1, len(changes))


def dead(spec: ConnectionSpec, values: GateValues) -> list[tuple[int, int]]:
    """Finds the edges whose gates have closed for good, as (reader, source).

    Those with F(w) below `DEAD`, where the gate is one whose gradient is then gone.
    """
    if not gates.GATES[spec.gate].dies:
        return []
    return [(i, k) for i, row in values.items() for k, x in row.items() if x < DEAD]


def total(
    spec: ConnectionSpec, channels: tuple[int, ...], parameters: Mapping[str, Any]
) -> jax.Array:
    """Sums |F(w)| over all edges, the mean over the channels of each: a scalar."""
    total = jnp.zeros(())
    for rows in _values(spec, channels, parameters).values():
        total += jnp.abs(rows).reshape(len(rows), -1).mean(axis=-1).sum()
    return total


def _values(
    spec: ConnectionSpec, channels: tuple[int, ...], parameters: Mapping[str, Any]
) -> dict[int, jax.Array]:
    if not spec.topology.edges:
        return {}
    module = Connections(spec, channels)
    arrays: Any = module.apply({"params": parameters}, method=Connections.gate_values)
    return arrays


# One program for all edges: one by one, there would be one for each shape.
_compiled = jax.jit(_values, static_argnums=(0, 1))
