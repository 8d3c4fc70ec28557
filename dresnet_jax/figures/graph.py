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


def draw(topology: Topology, gates: GateValues) -> Figure:
    """Draws the stem, the blocks in their order and the classifier.

    Connections of an even length run above the blocks, those of an odd one below, and
    each is as wide as it is open. Black ones are fixed at 1.
    """
    heights = [-_bend(i, k) * (i - k) / 2 for i, k in topology.edges]
    above, below = max([0, *heights]), -min([0, *heights])
    size = 1.5 + 0.95 * topology.classifier, 1.4 + 0.95 * (above + below)
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    values = [gate for row in gates.values() for gate in row.values()]
    # The identity gate is not bounded: the scale then grows with its values.
    scale = matplotlib.colors.Normalize(min([0.0, *values]), max([1.0, *values]))
    colours = ScalarMappable(scale, "viridis_r")
    widest = max([1.0, *map(abs, values)])
    if not topology.is_free:
        for reader in range(1, topology.classifier + 1):
            _arrow(axis, reader, reader - 1, color="black", linewidth=1)
    for reader, row in gates.items():
        for source, gate in row.items():
            width = _WIDEST * abs(gate) / widest
            colour = colours.to_rgba(np.asarray(gate))
            _arrow(axis, reader, source, color=colour, linewidth=width)
    _nodes(axis, topology)
    axis.set(ylim=(-below - 0.6, above + 0.6), xlim=(-0.6, topology.classifier + 0.6))
    axis.set_aspect("equal")
    axis.axis("off")
    if values:
        figure.colorbar(colours, ax=axis, label="gate value F(w)", shrink=0.9)
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
    for node in range(topology.classifier + 1):
        style = {"facecolor": "white", "edgecolor": "black", "linestyle": "-"}
        if node in topology.blocks:
            style["facecolor"] = f"C{topology.stages[node - 1] % 10}"
        elif node not in ends:
            style |= {"edgecolor": "gray", "linestyle": ":"}
        axis.add_patch(Circle((node, 0), _RADIUS, zorder=3, **style))
        text = ends.get(node, str(node))
        axis.text(node, 0, text, ha="center", va="center", fontsize=8, zorder=4)
