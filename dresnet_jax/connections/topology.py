"""Topology: which earlier blocks each block reads, as a frozen, hashable value."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from dresnet_jax.connections import graphs
from dresnet_jax.errors import UserError, pick, unknown

# The stage, from 0, of each block.
Stages = Sequence[int]

# About this many blocks of a stage read others by `stage_ends`, however deep it is.
READERS_PER_STAGE = 4

# What becomes of the edge from each block to the one before it: it is there with weight
# 1, or it is an edge like any other, which has a learned weight and may be absent.
BASES = ("fixed", "learned")


@dataclasses.dataclass(frozen=True)
class Topology:
    """The learned connections of a network of n blocks.

    Blocks are numbered from 1, as in the formula. With a fixed base, block i always
    receives y_{i-1}, and a topology says only what it reads besides. With a learned one
    the edges are all that there is, between the stem, 0, the blocks and the classifier,
    n + 1; a block without edges is not in the network.

    Attributes:
      stages: the stage, from 0, of each block: blocks of one stage give one shape.
      edges: sorted (reader, source) pairs, with 1 <= source < reader <= n, or with
        0 <= source < reader <= n + 1 where the base is learned; each of these lies on a
        path from the stem to the classifier.
      base: one of `BASES`.
    """

    stages: tuple[int, ...]
    edges: tuple[tuple[int, int], ...] = ()
    base: str = "fixed"

    def __post_init__(self) -> None:
        pick("base", self.base, dict.fromkeys(BASES))
        first, last = (0, self.classifier) if self.is_free else (1, self.num_blocks)
        ends = f", of which 0 is the stem and {last} the classifier"
        for reader, source in self.edges:
            if not first <= source < reader <= last:
                raise UserError(
                    f"Topology edge (reader {reader}, source {source}) is not "
                    f"possible: a block reads only earlier blocks, so it needs "
                    f"{first} <= source < reader <= {last}"
                    f"{ends if self.is_free else ''}."
                )
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError("Topology edges must be sorted and unique.")
        if self.is_free:
            self._check_paths()

    def _check_paths(self) -> None:
        """Checks that all that is there leads from the stem to the classifier."""
        useful = graphs.on_paths(self.edges, self.num_blocks)
        if not useful:
            raise UserError(
                f"Topology {self.edges} has no path from the stem, 0, to the "
                f"classifier, {self.classifier}, which a learned base needs."
            )
        for block in self.blocks:
            if not any(block in edge for edge in useful):
                raise UserError(
                    f"Topology: block {block} is on no path from the stem, 0, to the "
                    f"classifier, {self.classifier}: let it read and be read, or leave "
                    "out its edges."
                )

    @property
    def num_blocks(self) -> int:
        """The number of blocks, n."""
        return len(self.stages)

    @property
    def is_free(self) -> bool:
        """Whether the edges are all that there is."""
        return self.base == "learned"

    @property
    def classifier(self) -> int:
        """The number of the classifier as a reader, n + 1."""
        return self.num_blocks + 1

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks that are in the network, in ascending order."""
        there = {node for edge in self.edges for node in edge}
        numbers = range(1, self.classifier)
        return tuple(i for i in numbers if i in there or not self.is_free)

    def sources(self, reader: int) -> tuple[int, ...]:
        """Returns the blocks that `reader` reads, in ascending order."""
        return tuple(source for i, source in self.edges if i == reader)

    @property
    def readers(self) -> tuple[int, ...]:
        """The blocks that read at least one earlier block, in ascending order."""
        return tuple(sorted({reader for reader, _ in self.edges}))

    def source_stage(self, source: int) -> int:
        """Returns the stage that gives y_k its shape; the first one for the stem."""
        return self.stages[max(source, 1) - 1]

    def input_stage(self, reader: int) -> int:
        """Returns the stage that gives x_i its shape, which is that of y_{i-1}."""
        return self.source_stage(reader - 1)

    def stage_name(self, block: int) -> str:
        """Names what gives y_k its shape; the stem may have other channels."""
        return "stem" if block == 0 else f"stage_{self.source_stage(block)}"

    def crosses_stages(self, reader: int, source: int) -> bool:
        """Checks whether x_i and y_k are of different stages, and so shapes."""
        return self.stage_name(reader - 1) != self.stage_name(source)


def from_rule(stages: Stages, reads: Callable[[int, int], bool]) -> Topology:
    """Returns the edges of `dense` for which reads(reader, source) holds."""
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
    """Leaves out all learned connections: the plain network."""
    return Topology(tuple(stages))


def dense(stages: Stages) -> Topology:
    """Lets block i read every block up to i-2: (n-1)(n-2)/2 edges."""
    return from_rule(stages, lambda i, k: True)


def within_stage(stages: Stages) -> Topology:
    """Keeps those edges of `dense` whose source has the shape of x_i.

    That is the shape of y_{i-1}: the first block of a stage still reads the stage
    before it.
    """
    return from_rule(stages, lambda i, k: stages[k - 1] == stages[i - 2])


def stage_ends(stages: Stages) -> Topology:
    """Reads the last block of each earlier stage, and `within_stage`.

    In a stage of more than `READERS_PER_STAGE` blocks only each s-th block reads, and
    of that stage only each s-th is read: DenseFormer's period and dilation (Pagliardini
    et al. 2024). So a stage has no more edges for being deep.
    """
    ends = {k for k in range(1, len(stages)) if stages[k] != stages[k - 1]}

    def reads(i: int, k: int) -> bool:
        own = stages[i - 2]
        first = stages.index(own) + 1
        step = -(-stages.count(own) // READERS_PER_STAGE)
        if (i - first) % step:
            return False
        return (k - first) % step == 0 if stages[k - 1] == own else k in ends

    return from_rule(stages, reads)


PATTERNS = {
    "none": none,
    "dense": dense,
    "within_stage": within_stage,
    "stage_ends": stage_ends,
    # Block i reads i-2, i-4, i-8, ... (Hu et al. 2017, Log-DenseNet).
    "powers_of_two": lambda stages: from_rule(
        stages, lambda i, k: (i - k).bit_count() == 1
    ),
}
# These take a whole number above 0, written after a colon: "last:3".
COUNTED_PATTERNS = {
    # Block i reads each d-th block before i-1 (DenseFormer, Pagliardini 2024).
    "dilated": lambda stages, d: from_rule(stages, lambda i, k: (i - 1 - k) % d == 0),
    # Block i reads the m blocks before i-1.
    "last": lambda stages, m: from_rule(stages, lambda i, k: i - 1 - k <= m),
}


def from_edges(
    stages: Stages, edges: Iterable[tuple[int, int]], base: str = "fixed"
) -> Topology:
    """Returns a topology from any list of (reader, source) pairs.

    Raises:
      UserError: an entry is no pair of whole numbers, stands twice, or reads
        forward, from itself or from a block that does not exist; or the base is
        learned, and an edge is on no path from the stem to the classifier.
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
    return Topology(tuple(stages), tuple(sorted(pairs)), base)


def build(
    pattern: str | Iterable[tuple[int, int]], stages: Stages, base: str = "fixed"
) -> Topology:
    """Returns a topology from a pattern's name or a list of (reader, source) pairs.

    Where the base is learned, `PATTERNS` and `COUNTED_PATTERNS` have the edges from
    each block to the one before it, too; where it is fixed, graphs are without
    these and without those of the stem and the classifier.

    Args:
      pattern: a key of `PATTERNS`, one of `COUNTED_PATTERNS` with its number, such as
        "last:3", one of `graphs.written`, or the edges.
      stages: the stage of each block.
      base: one of `BASES`.

    Raises:
      UserError: the pattern or the base has no such name, its number is missing or
        wrong, or an edge is not possible.
    """
    if isinstance(pattern, str):
        edges = sorted(_edges(pattern, stages, base))
        return Topology(tuple(stages), tuple(edges), base)
    if not isinstance(pattern, list | tuple):
        raise UserError(
            f"Topology {pattern!r} must be one of {', '.join(_written())}, or a list "
            "of (reader, source) pairs."
        )
    return from_edges(stages, pattern, base)


def _edges(pattern: str, stages: Stages, base: str) -> list[tuple[int, int]]:
    blocks, (name, _, count) = len(stages), pattern.partition(":")
    if pattern == graphs.TRIANGULAR or name in graphs.RANDOM_GRAPHS:
        edges = graphs.build(pattern, blocks)
        if base == "learned":
            return edges
        return [(i, k) for i, k in edges if 1 <= k < i - 1 and i <= blocks]
    if pattern in PATTERNS:
        result = PATTERNS[pattern](stages)
    elif name not in COUNTED_PATTERNS:
        raise unknown("topology", pattern, _written())
    elif count.isdecimal() and int(count) > 0:
        result = COUNTED_PATTERNS[name](stages, int(count))
    else:
        raise UserError(
            f"Topology '{pattern}' needs a whole number above 0, as in '{name}:2'."
        )
    chain = [(i, i - 1) for i in range(1, blocks + 2)] if base == "learned" else []
    return [*chain, *result.edges]


def _written() -> list[str]:
    counted = [f"{name}:<number>" for name in COUNTED_PATTERNS]
    return [*PATTERNS, *counted, *graphs.written()]
