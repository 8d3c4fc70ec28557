"""Graphs by name have the edges that they promise, and refuse wrong numbers."""

import networkx
import pytest

from dresnet_jax.connections import graphs, topology
from dresnet_jax.errors import UserError

RANDOM = {
    "watts_strogatz:4:0.75": lambda n, seed: networkx.watts_strogatz_graph(
        n, 4, 0.75, seed
    ),
    "erdos_renyi:0.3": lambda n, seed: networkx.erdos_renyi_graph(n, 0.3, seed),
    "barabasi_albert:2": lambda n, seed: networkx.barabasi_albert_graph(n, 2, seed),
}


@pytest.mark.parametrize("blocks", [1, 2, 8])
def test_the_triangular_graph_has_all_edges(blocks):
    result = topology.build("triangular", [0] * blocks, "learned")
    assert len(result.edges) == (blocks + 2) * (blocks + 1) // 2
    for i in range(1, blocks + 2):
        assert result.sources(i) == tuple(range(i))


@pytest.mark.parametrize("blocks", [6, 9, 32])
@pytest.mark.parametrize("pattern", RANDOM)
def test_a_random_graph_is_that_of_its_seed_from_the_stem_to_the_classifier(
    pattern, blocks
):
    result = {}
    for seed in range(20):
        edges = graphs.build(f"{pattern}:{seed}", blocks)
        assert edges == graphs.build(f"{pattern}:{seed}", blocks)
        assert all(0 <= k < i <= blocks + 1 for i, k in edges)
        assert graphs.on_paths(edges, blocks) == edges
        assert {node for edge in edges for node in edge} == {*range(blocks + 2)}
        between = {(i - 1, k - 1) for i, k in edges if k > 0 and i <= blocks}
        drawn = {(max(e), min(e)) for e in RANDOM[pattern](blocks, seed).edges}
        assert between == drawn
        result[seed] = tuple(edges)
    assert len(set(result.values())) > 10


def test_who_reads_nothing_reads_the_stem_and_the_classifier_reads_the_rest():
    # A ring: nodes 1 to 4, each with both neighbours.
    assert graphs.build("watts_strogatz:2:0:0", 4) == [
        *((1, 0), (2, 1), (3, 2), (4, 1), (4, 3)),
        (5, 4),
    ]
    # No edge at all.
    alone = graphs.build("erdos_renyi:0:0", 3)
    assert alone == [(1, 0), (2, 0), (3, 0), (4, 1), (4, 2), (4, 3)]


def test_over_a_fixed_base_the_triangular_graph_is_dense():
    stages = (0, 0, 1, 1, 2)
    assert topology.build("triangular", stages) == topology.dense(stages)
    random = topology.build("erdos_renyi:0.5:1", stages)
    whole = topology.build("erdos_renyi:0.5:1", stages, "learned")
    assert set(random.edges) == set(whole.edges) & set(topology.dense(stages).edges)


def test_over_a_learned_base_a_pattern_has_the_chain_too():
    stages = (0, 0, 1)
    assert topology.build("none", stages, "learned").edges == (
        *((1, 0), (2, 1), (3, 2), (4, 3)),
    )
    dense = topology.build("dense", stages, "learned")
    assert dense.edges == ((1, 0), (2, 1), (3, 1), (3, 2), (4, 3))
    assert dense.blocks == (1, 2, 3)


def test_a_block_without_edges_is_not_in_the_network():
    result = topology.build(((1, 0), (3, 1), (5, 3)), [0] * 4, "learned")
    assert result.blocks == (1, 3)
    assert topology.none([0] * 4).blocks == (1, 2, 3, 4)


def test_edges_on_no_path_are_distinguished():
    useful = [(1, 0), (4, 1), (5, 4)]
    dead_ends = [(3, 2), (4, 3), (2, 1)]
    assert graphs.on_paths([*useful, *dead_ends[:2]], 4) == sorted(useful)
    assert graphs.on_paths([*useful, dead_ends[2]], 4) == sorted(useful)
    assert graphs.on_paths(useful[1:], 4) == []


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([], "has no path from the stem, 0, to the classifier, 5"),
        ([(1, 0), (2, 1)], "has no path from the stem, 0, to the classifier, 5"),
        ([(1, 0), (5, 1), (3, 2), (5, 3)], "block 2 is on no path"),
        ([(1, 0), (5, 1), (4, 1)], "block 4 is on no path"),
        ([(1, 0), (5, 1), (1, 2)], r"\(reader 1, source 2\) is not possible"),
        ([(1, 0), (5, 1), (2, 2)], r"\(reader 2, source 2\) is not possible"),
        ([(1, 0), (6, 1)], "0 <= source < reader <= 5, of which 0 is the stem"),
    ],
)
def test_what_leads_nowhere_or_round_is_refused(edges, message):
    with pytest.raises(UserError, match=message):
        topology.build(edges, [0] * 4, "learned")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("erdos_renyi:1.5:0", "p = 1.5 must be a number from 0 to 1"),
        ("erdos_renyi:-0.1:0", "p = -0.1 must be a number from 0 to 1"),
        ("erdos_renyi:nan:0", "p = nan must be a number from 0 to 1"),
        ("erdos_renyi:half:0", "p = half must be a number from 0 to 1"),
        ("erdos_renyi:0.5:-1", "seed = -1 must be a whole number not below 0"),
        ("erdos_renyi:0.5:x", "seed = x must be a whole number not below 0"),
        ("erdos_renyi:0.5", "must be erdos_renyi:<p>:<seed>"),
        ("erdos_renyi", "must be erdos_renyi:<p>:<seed>"),
        ("watts_strogatz:8:0.5:0", "k = 8 must be an even number from 2 to 7"),
        ("watts_strogatz:3:0.5:0", "k = 3 must be an even number from 2 to 7"),
        ("watts_strogatz:0:0.5:0", "k = 0 must be an even number from 2 to 7"),
        ("barabasi_albert:8:0", "m = 8 must be a whole number from 1 to 7"),
        ("barabasi_albert:0:0", "m = 0 must be a whole number from 1 to 7"),
        ("barabasi_alberd:2:0", "Unknown topology 'barabasi_alberd:2:0'. Did you mean"),
        ("triangular:2", "Unknown topology 'triangular:2'"),
    ],
)
def test_wrong_graphs_are_refused(pattern, message):
    with pytest.raises(UserError, match=message):
        topology.build(pattern, [0] * 8, "learned")


def test_an_unknown_base_lists_the_known_ones():
    with pytest.raises(
        UserError, match=r"Unknown base 'learnt'\. Did you mean 'learned'"
    ):
        topology.build("dense", [0] * 8, "learnt")
