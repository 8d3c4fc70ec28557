"""The picture of a graph shows each edge, as wide as it is open."""

import pytest
from matplotlib.patches import Circle, FancyArrowPatch

from dresnet_jax.connections import topology
from dresnet_jax.figures import graph, run


def drawn(figure, kind):
    return [patch for patch in figure.axes[0].patches if isinstance(patch, kind)]


def test_edges_are_arrows_and_absent_blocks_are_dotted():
    free = topology.build(((1, 0), (3, 1), (4, 0), (4, 3)), [0, 0, 1], "learned")
    gates = {1: {0: 0.5}, 3: {1: 1.0}, 4: {0: 0.0, 3: -0.25}}
    figure = graph.draw(free, gates)
    arrows = drawn(figure, FancyArrowPatch)
    widths = [arrow.get_linewidth() for arrow in arrows]
    assert [width / widths[1] for width in widths] == pytest.approx([0.5, 1, 0, 0.25])
    styles = [circle.get_linestyle() for circle in drawn(figure, Circle)]
    assert [style in ("-", "solid") for style in styles] == [
        *(True, True, False, True, True)
    ]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["stem", "1", "2", "3", "head"]


@pytest.mark.parametrize("pattern", ["none", "dense"])
def test_a_fixed_base_is_drawn_too(pattern):
    free = topology.build(pattern, [0] * 4)
    gates = {i: dict.fromkeys(free.sources(i), 0.5) for i in free.readers}
    arrows = drawn(graph.draw(free, gates), FancyArrowPatch)
    assert len(arrows) == 5 + len(free.edges)


def test_a_map_of_gates_begins_with_the_stem_where_it_is_read():
    for first, row in ((0, {"0": 0.25, "1": 0.5}), (1, {"1": 0.5})):
        figure = run.gate_maps({"2": row}, {"2": row})
        labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
        assert labels == [str(k) for k in range(first, 2)]
        shown = figure.axes[1].get_images()[0].get_array()
        assert shown[1].tolist() == list(row.values())
