"""Topologies hold the edges they promise, and refuse the impossible ones."""

import pytest

from dresnet_jax.connections import topology
from dresnet_jax.errors import UserError


@pytest.mark.parametrize("blocks", [1, 2, 3, 8, 54])
def test_dense_has_every_edge_of_the_formula(blocks):
    dense = topology.dense(blocks)
    assert len(dense.edges) == (blocks - 1) * (blocks - 2) // 2
    for i in range(1, blocks + 1):
        assert dense.sources(i) == tuple(range(1, i - 1))


def test_none_has_no_edge():
    assert topology.none(8).edges == ()
    assert topology.none(8).readers == ()


def test_a_list_of_edges_is_sorted_and_kept():
    built = topology.build([[8, 2], (3, 1), (8, 7)], 8)
    assert built.edges == ((3, 1), (8, 2), (8, 7))
    assert built.readers == (3, 8)
    assert built.sources(8) == (2, 7)


def test_topologies_of_the_same_edges_are_one_value():
    edges = topology.dense(5).edges
    assert topology.build(edges, 5) == topology.dense(5)
    assert hash(topology.build(edges, 5)) == hash(topology.dense(5))


@pytest.mark.parametrize("edge", [(2, 3), (3, 3), (3, 0), (9, 1), (3, -1)])
def test_an_edge_that_does_not_read_an_earlier_block_is_refused(edge):
    with pytest.raises(UserError, match="reads only earlier blocks"):
        topology.build([edge], 8)


@pytest.mark.parametrize("edge", [3, (3,), (3, 1, 2), (3.0, 1), "31"])
def test_an_edge_that_is_no_pair_of_whole_numbers_is_refused(edge):
    with pytest.raises(UserError, match="must be a pair"):
        topology.build([edge], 8)


def test_an_edge_that_stands_twice_is_refused():
    with pytest.raises(UserError, match="stands twice"):
        topology.build([(3, 1), (3, 1)], 8)


@pytest.mark.parametrize("pattern", [3, 3.5, None, True])
def test_a_pattern_that_is_neither_name_nor_list_is_refused(pattern):
    with pytest.raises(UserError, match="must be one of none, dense, or a list"):
        topology.build(pattern, 8)


def test_an_unknown_pattern_lists_the_known_ones():
    with pytest.raises(UserError, match=r"'dence'. Did you mean 'dense'\? .*none"):
        topology.build("dence", 8)
