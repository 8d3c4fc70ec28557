"""Where the numbers of each edge lie among the parameters of connections."""

import numpy as np

from dresnet_jax.connections.spec import ConnectionSpec

# Owner of weights that all edges of one distance share; else a reader, "block_5", owns
# those of its edges.
SHARED = "gate_weights"


def rows(spec: ConnectionSpec, owner: str) -> tuple[int, ...]:
    """Returns what each row of an owner's gates belongs to.

    Args:
      spec: what the connections are.
      owner: `SHARED`, whose rows belong to distances, or a reader such as "block_5",
        whose rows belong to its sources.
    """
    if owner == SHARED:
        return spec.distances
    return spec.topology.sources(int(owner.removeprefix("block_")))


def places(few: ConnectionSpec, many: ConnectionSpec, owner: str) -> np.ndarray:
    """Finds the row in `many` of each row of an owner's gates in `few`, its subset."""
    there = rows(many, owner)
    return np.asarray([there.index(row) for row in rows(few, owner)], np.int32)


def place(spec: ConnectionSpec, owner: str, edge: tuple[int, int]) -> int:
    """Finds the row of an edge (reader, source) in an owner's gates."""
    reader, source = edge
    return rows(spec, owner).index(reader - source if owner == SHARED else source)
