"""Topology: which earlier blocks each block reads, as a frozen, hashable value."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from dresnet_jax.errors import UserError, unknown

# The stage, from 0, of each block.
Stages = Sequence[int]


@dataclasses.dataclass(frozen=True)
class Topology:
    """The learned connections of a network of n blocks.

    Blocks are numbered from 1, as in the formula. Block i always receives
    y_{i-1}; a topology says only what it reads besides.

    Attributes:
      stages: the stage, from 0, of each block: blocks of one stage give one shape.
      edges: sorted (reader, source) pairs, with 1 <= source < reader <= n.
    """

    stages: tuple[int, ...]
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

    @property
    def num_blocks(self) -> int:
        """The number of blocks, n."""
        return len(self.stages)

    def sources(self, reader: int) -> tuple[int, ...]:
        """The blocks that `reader` reads, in ascending order."""
        return tuple(source for i, source in self.edges if i == reader)

    @property
    def readers(self) -> tuple[int, ...]:
        """The blocks that read at least one earlier block, in ascending order."""
        return tuple(sorted({reader for reader, _ in self.edges}))

    def source_stage(self, source: int) -> int:
        """The stage that gives y_k its shape; the stem's output is of the first."""
        return self.stages[max(source, 1) - 1]

    def input_stage(self, reader: int) -> int:
        """The stage that gives x_i its shape, which is that of y_{i-1}."""
        return self.source_stage(reader - 1)

    def stage_projection(self, reader: int, source: int) -> str:
        """The name of the projection that connections of two stages may share."""
        return f"stage_{self.source_stage(source)}_to_{self.input_stage(reader)}"


def from_rule(stages: Stages, reads: Callable[[int, int], bool]) -> Topology:
    """The edges of `dense` for which reads(reader, source) holds."""
    return Topology(
        tuple(stages),
        tuple(
            (i, k)
            for i in range(3, len(stages) + 1)
            for k in range(1, i - 1)
            if reads(i, k)
        ),
    )


def none(stages: Stages) -> Topology:
    """No learned connections: the plain network."""
    return Topology(tuple(stages))


def dense(stages: Stages) -> Topology:
    """Block i reads every block up to i-2: (n-1)(n-2)/2 edges."""
    return from_rule(stages, lambda i, k: True)


def within_stage(stages: Stages) -> Topology:
    """The edges of `dense` whose source has the shape of x_i, so needs no pooling.

    That is the shape of y_{i-1}: the first block of a stage still reads the stage
    before it.
    """
    return from_rule(stages, lambda i, k: stages[k - 1] == stages[i - 2])


def powers_of_two(stages: Stages) -> Topology:
    """Block i reads i-2, i-4, i-8, ... (Hu et al. 2017, Log-DenseNet)."""
    return from_rule(stages, lambda i, k: (i - k).bit_count() == 1)


def dilated(stages: Stages, d: int) -> Topology:
    """Block i reads every d-th block before i-1 (DenseFormer, Pagliardini 2024)."""
    return from_rule(stages, lambda i, k: (i - 1 - k) % d == 0)


def last(stages: Stages, m: int) -> Topology:
    """Block i reads the m blocks before i-1."""
    return from_rule(stages, lambda i, k: i - 1 - k <= m)


PATTERNS = {
    "none": none,
    "dense": dense,
    "within_stage": within_stage,
    "powers_of_two": powers_of_two,
}
# These take a whole number above 0, written behind a colon: "last:3".
COUNTED_PATTERNS = {"dilated": dilated, "last": last}


def from_edges(stages: Stages, edges: Iterable[tuple[int, int]]) -> Topology:
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
    return Topology(tuple(stages), tuple(sorted(pairs)))


def build(pattern: str | Iterable[tuple[int, int]], stages: Stages) -> Topology:
    """A topology from a pattern's name or a list of (reader, source) pairs.

    Args:
      pattern: a key of `PATTERNS`, one of `COUNTED_PATTERNS` with its number, such as
        "last:3", or the edges.
      stages: the stage of each block.

    Raises:
      UserError: the pattern has no such name, its number is missing or wrong, or an
        edge is not possible.
    """
    if isinstance(pattern, str):
        return _named(pattern, stages)
    if not isinstance(pattern, list | tuple):
        raise UserError(
            f"Topology {pattern!r} must be one of {', '.join(_written())}, or a list "
            "of (reader, source) pairs."
        )
    return from_edges(stages, pattern)


def _named(pattern: str, stages: Stages) -> Topology:
    if pattern in PATTERNS:
        return PATTERNS[pattern](stages)
    name, _, count = pattern.partition(":")
    if name not in COUNTED_PATTERNS:
        raise unknown("topology", pattern, _written())
    if not count.isdecimal() or int(count) < 1:
        raise UserError(
            f"Topology '{pattern}' needs a whole number above 0, as in '{name}:2'."
        )
    return COUNTED_PATTERNS[name](stages, int(count))


def _written() -> list[str]:
    """The patterns as a person writes them."""
    return [*PATTERNS, *(f"{name}:<number>" for name in COUNTED_PATTERNS)]
