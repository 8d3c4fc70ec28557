"""Topology: which earlier blocks each block reads, as a frozen, hashable value."""

import dataclasses
from collections.abc import Iterable

from dresnet_jax.errors import UserError, pick


@dataclasses.dataclass(frozen=True)
class Topology:
    """The learned connections of a network of n blocks.

    Blocks are numbered from 1, as in the formula. Block i always receives
    y_{i-1}; a topology says only what it reads besides.

    Attributes:
      num_blocks: n.
      edges: sorted (reader, source) pairs, with 1 <= source < reader <= n.
    """

    num_blocks: int
    edges: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for reader, source in self.edges:
            if not 1 <= source < reader <= self.num_blocks:
                raise UserError(
                    f"Topology edge (reader {reader}, source {source}) is not "
                    f"possible: a block reads only earlier blocks, so it needs "
                    f"1 <= source < reader <= {self.num_blocks}."
                )
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError("Topology edges must be sorted and unique.")

    def sources(self, reader: int) -> tuple[int, ...]:
        """The blocks that `reader` reads, in ascending order."""
        return tuple(source for i, source in self.edges if i == reader)

    @property
    def readers(self) -> tuple[int, ...]:
        """The blocks that read at least one earlier block, in ascending order."""
        return tuple(sorted({reader for reader, _ in self.edges}))


def none(num_blocks: int) -> Topology:
    """No learned connections: the plain network."""
    return Topology(num_blocks)


def dense(num_blocks: int) -> Topology:
    """Block i reads every block up to i-2: (n-1)(n-2)/2 edges."""
    readers = range(3, num_blocks + 1)
    return Topology(num_blocks, tuple((i, k) for i in readers for k in range(1, i - 1)))


PATTERNS = {"none": none, "dense": dense}


def from_edges(num_blocks: int, edges: Iterable[tuple[int, int]]) -> Topology:
    """A topology from any list of (reader, source) pairs.

    Raises:
      UserError: an entry is no pair of whole numbers, stands twice, or reads
        forward, from itself or from a block that does not exist.
    """
    pairs = []
    for edge in edges:
        if not (
            isinstance(edge, list | tuple)
            and len(edge) == 2
            and all(type(block) is int for block in edge)
        ):
            raise UserError(
                f"Topology edge {edge!r} must be a pair (reader, source) of whole "
                "numbers."
            )
        pairs.append((edge[0], edge[1]))
    twice = sorted({pair for pair in pairs if pairs.count(pair) > 1})
    if twice:
        raise UserError(f"Topology edge {twice[0]} stands twice.")
    return Topology(num_blocks, tuple(sorted(pairs)))


def build(pattern: str | Iterable[tuple[int, int]], num_blocks: int) -> Topology:
    """A topology from a pattern's name or a list of (reader, source) pairs.

    Raises:
      UserError: the pattern has no such name, or an edge is not possible.
    """
    if isinstance(pattern, str):
        return pick("topology", pattern, PATTERNS)(num_blocks)
    if not isinstance(pattern, list | tuple):
        raise UserError(
            f"Topology {pattern!r} must be one of {', '.join(PATTERNS)}, or a list of "
            "(reader, source) pairs."
        )
    return from_edges(num_blocks, pattern)
