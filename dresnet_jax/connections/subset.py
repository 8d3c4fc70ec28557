"""Some of a network's connections: their spec and parameters without the others'."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from dresnet_jax.connections import graphs, topology
from dresnet_jax.connections.spec import SHARED, ConnectionSpec
from dresnet_jax.errors import UserError


def subset(
    spec: ConnectionSpec,
    parameters: Mapping[str, Any],
    edges: Iterable[tuple[int, int]],
) -> tuple[ConnectionSpec, dict[str, Any]]:
    """Keeps some edges of connections, which carry what they did before.

    With the gate `softmax` the edges of a reader that are left share its gate values
    again. With a learned base, what is no longer on a path from the stem to the
    classifier goes too.

    Args:
      spec: what the connections are.
      parameters: of `Connections`, for this spec.
      edges: the (reader, source) that are kept.

    Returns:
      The spec and the parameters of what is left.

    Raises:
      UserError: an edge is not one of the spec's, or no path is left.
    """
    before, edges = spec.topology, list(edges)
    strange = sorted(set(edges) - set(before.edges))
    if strange:
        raise UserError(f"Connection {strange[0]} (reader, source) does not exist.")
    if before.is_free:
        edges = graphs.on_paths(edges, before.num_blocks)
        if not edges:
            raise UserError(
                "No path from the stem to the classifier is left: keep more edges."
            )
    kept = topology.from_edges(before.stages, edges, before.base)
    left = dataclasses.replace(spec, topology=kept)
    result = {
        f"block_{i}": own
        for i in kept.readers
        if f"block_{i}" in parameters
        and (own := _block(parameters[f"block_{i}"], spec, left, i))
    }
    result |= {name: parameters[name] for name in left.projections & parameters.keys()}
    if kept.edges and "gate_sharpness" in parameters:
        result["gate_sharpness"] = parameters["gate_sharpness"]
    if kept.edges and "gate_weights" in parameters:
        result["gate_weights"] = parameters["gate_weights"][spec.places(left, SHARED)]
    return left, result


def _block(
    parameters: Mapping[str, Any],
    before: ConnectionSpec,
    left: ConnectionSpec,
    reader: int,
) -> dict[str, Any]:
    """What a reader owns, of the sources that it keeps."""
    places = before.places(left, f"block_{reader}")
    gone = {*before.topology.sources(reader)} - {*left.topology.sources(reader)}
    of_sources = {f"from_{k}" for k in gone}
    return {
        name: jax.tree.map(lambda x: x[places], value)
        if name.startswith("gate_") and np.ndim(value)
        else value
        for name, value in parameters.items()
        if name not in of_sources
    }
