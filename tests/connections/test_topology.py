"""Topologies hold the edges they promise, and refuse the impossible ones."""

import pytest

from dresnet_jax.connections import topology
from dresnet_jax.errors import UserError

# Of the blocks of an 18-layer network.
STAGES = (0, 0, 1, 1, 2, 2, 3, 3)


@pytest.mark.parametrize("blocks", [1, 2, 3, 8, 54])
def test_dense_has_every_edge_of_the_formula(blocks):
    dense = topology.dense([0] * blocks)
    assert len(dense.edges) == (blocks - 1) * (blocks - 2) // 2
    for i in range(1, blocks + 1):
        assert dense.sources(i) == tuple(range(1, i - 1))


def test_none_has_no_edge():
    assert topology.none([0] * 8).edges == ()
    assert topology.none([0] * 8).readers == ()


def test_a_list_of_edges_is_sorted_and_kept():
    built = topology.build([[8, 2], (3, 1), (8, 7)], STAGES)
    assert built.edges == ((3, 1), (8, 2), (8, 7))
    assert built.readers == (3, 8)
    assert built.sources(8) == (2, 7)


def test_topologies_of_the_same_edges_are_one_value():
    edges = topology.dense([0] * 5).edges
    assert topology.build(edges, [0] * 5) == topology.dense([0] * 5)
    assert hash(topology.build(edges, [0] * 5)) == hash(topology.dense([0] * 5))


@pytest.mark.parametrize("edge", [(2, 3), (3, 3), (3, 0), (9, 1), (3, -1)])
def test_an_edge_that_does_not_read_an_earlier_block_is_refused(edge):
    with pytest.raises(UserError, match="reads only earlier blocks"):
        topology.build([edge], STAGES)


@pytest.mark.parametrize("edge", [3, (3,), (3, 1, 2), (3.0, 1), "31"])
def test_an_edge_that_is_no_pair_of_whole_numbers_is_refused(edge):
    with pytest.raises(UserError, match="must be a pair"):
        topology.build([edge], STAGES)


def test_an_edge_that_stands_twice_is_refused():
    with pytest.raises(UserError, match="stands twice"):
        topology.build([(3, 1), (3, 1)], STAGES)


@pytest.mark.parametrize("pattern", [3, 3.5, None, True])
def test_a_pattern_that_is_neither_name_nor_list_is_refused(pattern):
    with pytest.raises(
        UserError, match=r"must be one of none, dense, .*last:<number>, triangular"
    ):
        topology.build(pattern, STAGES)


def test_an_unknown_pattern_lists_the_known_ones():
    with pytest.raises(UserError, match=r"'dence'. Did you mean 'dense'\? .*none"):
        topology.build("dence", STAGES)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("within_stage", {3: (1,), 5: (3,), 7: (5,)}),
        (
            "stage_ends",
            {
                **{3: (1,), 4: (2,), 5: (2, 3), 6: (2, 4)},
                **{7: (2, 4, 5), 8: (2, 4, 6)},
            },
        ),
        (
            "powers_of_two",
            {3: (1,), 4: (2,), 5: (1, 3), 6: (2, 4), 7: (3, 5), 8: (4, 6)},
        ),
        ("dilated:2", {4: (1,), 5: (2,), 6: (1, 3), 7: (2, 4), 8: (1, 3, 5)}),
        ("last:1", {3: (1,), 4: (2,), 5: (3,), 6: (4,), 7: (5,), 8: (6,)}),
        (
            "last:2",
            {3: (1,), 4: (1, 2), 5: (2, 3), 6: (3, 4), 7: (4, 5), 8: (5, 6)},
        ),
    ],
)
def test_a_pattern_reads_whom_it_says(pattern, expected):
    built = topology.build(pattern, STAGES)
    assert {i: built.sources(i) for i in built.readers} == expected


def test_patterns_that_are_dense_at_their_ends():
    dense = topology.dense(STAGES)
    assert topology.build("dilated:1", STAGES) == dense
    assert topology.build("last:6", STAGES) == dense
    assert topology.within_stage([0] * 8) == topology.dense([0] * 8)


def test_a_deep_stage_has_no_more_edges_for_its_depth():
    assert topology.stage_ends([0] * 4) == topology.dense([0] * 4)
    assert topology.stage_ends([0] * 8).edges == (
        *((3, 1), (5, 1), (5, 3)),
        *((7, 1), (7, 3), (7, 5)),
    )
    # The last block of the deep stage, 38, is read after it; within it each ninth.
    deep = topology.stage_ends([0] * 2 + [1] * 36 + [2] * 2)
    assert {i: deep.sources(i) for i in deep.readers} == {
        3: (1,),
        **{12: (2, 3), 21: (2, 3, 12), 30: (2, 3, 12, 21), 39: (2, 3, 12, 21, 30)},
        40: (2, 38),
    }


@pytest.mark.parametrize("pattern", ["last", "last:", "last:0", "dilated:-1", "last:x"])
def test_a_number_that_is_missing_or_wrong_is_refused(pattern):
    with pytest.raises(UserError, match="needs a whole number above 0, as in"):
        topology.build(pattern, STAGES)


def test_a_number_that_is_not_asked_for_is_refused():
    with pytest.raises(UserError, match=r"Unknown topology 'dense:2'"):
        topology.build("dense:2", STAGES)
