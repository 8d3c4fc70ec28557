"""Graphs of blocks by name: who reads whom, from the stem to the classifier.

Of n blocks, the stem is number 0 and the classifier number n + 1. Every edge is a pair
(reader, source), and reads an earlier number: no graph has a cycle.
"""

from collections.abc import Callable, Collection, Iterable

import networkx

from dresnet_jax.errors import UserError, unknown

Edge = tuple[int, int]

# A kind of random graph: of this many nodes, undirected, by its numbers and a seed.
RandomGraph = Callable[..., networkx.Graph]

RANDOM_GRAPHS: dict[str, tuple[RandomGraph, tuple[str, ...]]] = {
    # A ring of nodes that each know their k nearest, an edge of which leads elsewhere
    # with probability p (Watts and Strogatz 1998).
    "watts_strogatz": (networkx.watts_strogatz_graph, ("k", "p", "seed")),
    # Each pair with probability p (Erdos and Renyi 1959).
    "erdos_renyi": (networkx.erdos_renyi_graph, ("p", "seed")),
    # Nodes come one after the other, and each knows m earlier ones, those with many
    # edges more often (Barabasi and Albert 1999).
    "barabasi_albert": (networkx.barabasi_albert_graph, ("m", "seed")),
}
TRIANGULAR = "triangular"


def build(pattern: str, blocks: int) -> list[Edge]:
    """Returns the edges of a graph between the stem, some blocks and the classifier.

    Args:
      pattern: one of `written`, with its numbers.
      blocks: how many there are, n.

    Returns:
      (reader, source), sorted.

    Raises:
      UserError: the pattern has no such name, or a number is missing or wrong.
    """
    name, *numbers = pattern.split(":")
    if pattern == TRIANGULAR:
        return [(i, k) for i in range(1, blocks + 2) for k in range(i)]
    if name not in RANDOM_GRAPHS:
        raise unknown("graph", pattern, written())
    make, names = RANDOM_GRAPHS[name]
    if len(numbers) != len(names):
        raise UserError(f"Topology '{pattern}' must be {_form(name)}.")
    result = {
        number: _parsed(pattern, number, text, blocks)
        for number, text in zip(names, numbers, strict=True)
    }
    return _directed(make(blocks, **result).edges, blocks)


def written() -> list[str]:
    """Returns the graphs as a person writes them."""
    return [TRIANGULAR, *map(_form, RANDOM_GRAPHS)]


def on_paths(edges: Collection[Edge], blocks: int) -> list[Edge]:
    """Returns the edges that lie on a path from the stem to the classifier, sorted."""
    reached, reaching = {0}, {blocks + 1}
    for reader, source in sorted(edges):
        if source in reached:
            reached.add(reader)
    for reader, source in sorted(edges, reverse=True):
        if reader in reaching:
            reaching.add(source)
    return [(i, k) for i, k in sorted(edges) if k in reached and i in reaching]


def _form(name: str) -> str:
    return ":".join([name, *(f"<{number}>" for number in RANDOM_GRAPHS[name][1])])


def _parsed(pattern: str, name: str, text: str, blocks: int) -> float:
    """A number of a random graph, if it is in its range."""
    most = f"{blocks - 1}, one less than the blocks"
    what, kind, is_right = {
        "k": (
            f"an even number from 2 to {most}",
            int,
            range(2, blocks, 2).__contains__,
        ),
        "m": (f"a whole number from 1 to {most}", int, range(1, blocks).__contains__),
        "p": ("a number from 0 to 1", float, lambda p: 0 <= p <= 1),
        "seed": ("a whole number not below 0", int, lambda seed: seed >= 0),
    }[name]
    try:
        value = kind(text)
        if is_right(value):
            return value
    except ValueError:
        pass
    raise UserError(f"Topology '{pattern}': {name} = {text} must be {what}.")


def _directed(pairs: Iterable[Edge], blocks: int) -> list[Edge]:
    """Nodes from 0 as blocks from 1, of which the higher of a pair reads the lower.

    As in Xie et al. (2019), "Exploring Randomly Wired Neural Networks": a block that
    reads no other reads the stem, and the classifier reads the blocks that no other
    reads.
    """
    edges = {(max(pair) + 1, min(pair) + 1) for pair in pairs}
    numbers = set(range(1, blocks + 1))
    edges |= {(i, 0) for i in numbers - {reader for reader, _ in edges}}
    sources = {source for _, source in edges}
    return sorted(edges | {(blocks + 1, k) for k in numbers - sources})
