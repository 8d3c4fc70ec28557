"""The picture of a network's graph: who reads whom, and how much."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch

from dresnet_jax.connections.gate_values import GateValues
from dresnet_jax.connections.topology import Topology

_RADIUS = 0.24
_WIDEST = 3.5
# Height of an arc, divided by its length.
_BEND = 0.32


def draw(topology: Topology, openings: GateValues) -> Figure:
    """Draws the stem, the blocks in their order and the classifier.

    Connections of an even length run above the blocks, those of an odd one below, and
    each is as wide as it is open. Black ones are fixed at 1.

    Args:
      topology: who reads whom.
      openings: F(w) of every edge.
    """
    heights = [-_bend(i, k) * (i - k) / 2 for i, k in topology.edges]
    above, below = max([0, *heights]), -min([0, *heights])
    figure, axis = plt.subplots(
        figsize=(1.5 + 0.95 * topology.classifier, 1.4 + 0.95 * (above + below)),
        layout="constrained",
    )
    values = [opening for row in openings.values() for opening in row.values()]
    # The identity gate is not bounded: the scale then grows with its values.
    scale = matplotlib.colors.Normalize(min(0.0, *values, 0), max(1.0, *values, 1))
    colours = ScalarMappable(scale, "viridis_r")
    widest = max(map(abs, values), default=1.0) or 1.0
    if not topology.is_free:
        for reader in range(1, topology.classifier + 1):
            _arrow(axis, reader, reader - 1, color="black", linewidth=1)
    for reader, row in openings.items():
        for source, opening in row.items():
            width = _WIDEST * abs(opening) / max(1.0, widest)
            colour = colours.to_rgba(np.asarray(opening))
            _arrow(axis, reader, source, color=colour, linewidth=width)
    _nodes(axis, topology)
    axis.set_ylim(-below - 0.6, above + 0.6)
    axis.set_xlim(-0.6, topology.classifier + 0.6)
    axis.set_aspect("equal")
    axis.axis("off")
    if values:
        figure.colorbar(colours, ax=axis, label="opening F(w)", shrink=0.9)
    return figure


def _bend(reader: int, source: int) -> float:
    """How far an arc runs below the blocks, relative to its length; negative above."""
    length = reader - source
    if length == 1:
        return 0.0
    return _BEND if length % 2 else -_BEND


def _arrow(axis: Axes, reader: int, source: int, **style: Any) -> None:
    # In points, to the rim of a node.
    rim = 72 * _RADIUS * 0.75
    axis.add_patch(
        FancyArrowPatch(
            (source, 0),
            (reader, 0),
            connectionstyle=f"arc3,rad={_bend(reader, source)}",
            arrowstyle="-|>",
            mutation_scale=9,
            shrinkA=rim,
            shrinkB=rim,
            **style,
        )
    )


def _nodes(axis: Axes, topology: Topology) -> None:
    """A circle for each, in the colour of its stage; empty for a block that is gone."""
    ends = {0: "stem", topology.classifier: "head"}
    there = {*topology.blocks, *ends}
    for node in range(topology.classifier + 1):
        stage = None if node in ends else topology.stages[node - 1]
        colour = "white" if stage is None or node not in there else f"C{stage % 10}"
        style = "-" if node in there else ":"
        axis.add_patch(
            Circle(
                (node, 0),
                _RADIUS,
                facecolor=colour,
                edgecolor="black" if node in there else "gray",
                linestyle=style,
                zorder=3,
            )
        )
        text = ends.get(node, str(node))
        axis.text(node, 0, text, ha="center", va="center", fontsize=8, zorder=4)
