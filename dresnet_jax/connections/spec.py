"""What the learned connections of a network are, apart from their parameters."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from dresnet_jax.connections import gates, weighted_sum
from dresnet_jax.connections.topology import Topology
from dresnet_jax.errors import UserError, pick

SHARPNESS_GRANULARITIES = ("global", "per_block", "per_edge")

# What has a weight of its own: each edge, each channel of an edge, or each distance
# i - k between reader and source, which all readers share.
WEIGHTS = ("per_edge", "per_channel", "by_distance")

# What has a projection of its own: each edge; each pair of a source's and a reader's
# stage; each pair of different stages, through few channels, and nothing inside one;
# each edge between different numbers of channels; or nothing: sources are then only
# pooled.
PROJECTIONS = ("per_edge", "per_stage", "between_stages", "matching", "none")

# `stacked` is no function of one block's sum: it runs the blocks of a stage together.
FORMS = (*weighted_sum.FORMS, "stacked")

# From this many blocks in a stage on, `automatic_form` takes `stacked`.
STACKED_FROM = 16

# Starts that are no number: 1/2, or, for edges without a projection, as much less as
# keeps the growth through each stage below `MAX_GROWTH`; 1 / n^2 for n blocks; 0, by
# gates that learn from there; and that of the published code, weights w of 1 for a
# block's newest source and of 0 to 0.1, at random, for the others.
INITIAL_GATES = ("bounded", "1/n^2", "closed", "published")

# Owner of weights that all edges of one distance share; else a reader, "block_5", owns
# those of its edges.
SHARED = "gate_weights"

# By how much unprojected sources may let images grow in one stage, at the start, were
# they all alike.
MAX_GROWTH = 4.0


@dataclasses.dataclass(frozen=True)
class ConnectionSpec:
    """What the learned connections of a network are, apart from their parameters.

    Attributes:
      topology: which earlier blocks each block reads.
      gate: name of the gate function, a key of `gates.GATES`.
      initial_gate: F(w) at the start, in (0, 1), or one of `INITIAL_GATES`. A gate that
        compares sources starts them equal, whatever is asked, but if "bounded": then it
        may choose no source at all, where there is a base.
      weights: what has a weight of its own, one of `WEIGHTS`.
      projection: what has a projection of its own, one of `PROJECTIONS`.
      projection_rank: channels in the middle of a projection "between_stages", which
        has no more than its sources.
      normalise_sources: whether sources are divided by their root mean square.
      sharpness: the gauss gate's k at the start, above 0.
      sharpness_granularity: who shares one k: "global", "per_block" or "per_edge".
      form: how the sum is computed, one of `FORMS`.
      unroll: of the form `stacked`, blocks in one turn of its loop.
      projection_bias: whether projections have a bias.
    """

    topology: Topology
    gate: str = "sigmoid"
    initial_gate: float | str = "bounded"
    weights: str = "per_edge"
    projection: str = "per_edge"
    projection_rank: int = 8
    normalise_sources: bool = False
    sharpness: float = 1.0
    sharpness_granularity: str = "global"
    form: str = "folded"
    unroll: int = 1
    projection_bias: bool = True

    def __post_init__(self) -> None:
        gate = pick("gate", self.gate, gates.GATES)
        pick("connection form", self.form, dict.fromkeys(FORMS))
        names = dict.fromkeys(SHARPNESS_GRANULARITIES)
        pick("sharpness granularity", self.sharpness_granularity, names)
        pick("connection weights", self.weights, dict.fromkeys(WEIGHTS))
        pick("projection", self.projection, dict.fromkeys(PROJECTIONS))
        gates.positive_inverse(self.sharpness)
        if isinstance(self.initial_gate, str):
            pick("initial gate", self.initial_gate, dict.fromkeys(INITIAL_GATES))
            if self.initial_gate == "closed" and gate.closed is None:
                able = [
                    name for name, one in gates.GATES.items() if one.closed is not None
                ]
                raise UserError(
                    f"Initial gate 'closed' needs a gate that can be 0, not "
                    f"'{self.gate}': use one of {', '.join(able)}."
                )
        else:
            gates.starting_weight(gate, self.initial_gate, self.sharpness)
        for field in ("projection_rank", "unroll"):
            value = getattr(self, field)
            if type(value) is not int or value < 1:
                raise UserError(f"{field} = {value} must be a whole number above 0.")
        if self.form == "stacked" and self.not_stackable:
            raise UserError(
                f"Form 'stacked' cannot express {self.not_stackable}: use 'folded', "
                "'reference' or 'auto', or change that."
            )

    @property
    def not_stackable(self) -> str:
        """Why the form `stacked` cannot express these connections; empty if it can."""
        if not self.topology.edges:
            return ""
        if self.topology.is_free:
            return "a learned base"
        if self.projection in ("per_edge", "matching"):
            return f"projection '{self.projection}', where no two readers read the same"
        if self.normalise_sources:
            return "normalised sources, which the buffer of outputs does not hold"
        if self.weights == "per_channel" and self.projection == "per_stage":
            return (
                "weights 'per_channel' with projection 'per_stage', where the gates "
                "act after a projection of the sum"
            )
        return ""

    def shared_projections(self, reader: int, source: int) -> tuple[str, ...]:
        """Names the projections that an edge shares with others, in their order."""
        start, end = map(self.topology.stage_name, (source, reader - 1))
        name = f"{start}_to_{end.removeprefix('stage_')}"
        if self.projection == "per_stage":
            return (name,)
        if self.projection == "between_stages" and start != end:
            return f"{start}_narrowed", name
        return ()

    @property
    def projections(self) -> set[str]:
        """The names of all projections that edges share."""
        edges = self.topology.edges
        return {name for edge in edges for name in self.shared_projections(*edge)}

    @property
    def gate_function(self) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """(weights, sharpness) -> F(w) of one block's sources, as a `Gate`'s."""
        gate = gates.GATES[self.gate]
        return gate.or_none if gate.or_none and self._may_choose_none else gate.function

    @property
    def _may_choose_none(self) -> bool:
        """Whether a gate that compares sources may choose none of them."""
        return self.initial_gate == "bounded" and not self.topology.is_free

    @property
    def has_biases(self) -> bool:
        """Whether projections have a bias."""
        return self.projection != "none" and self.projection_bias

    def check(self, channels: Sequence[int]) -> None:
        """Checks that sources without a projection have the channels of their readers.

        Args:
          channels: of y_0 to y_n.

        Raises:
          UserError: one has not.
        """
        for i, k in self.topology.edges:
            if self.projection == "none" and channels[k] != channels[i - 1]:
                raise UserError(
                    f"Projection 'none' cannot connect block {i}, whose input has "
                    f"{channels[i - 1]} channels, to block {k}, which gives "
                    f"{channels[k]}: use projection 'matching', 'per_stage' or "
                    "'per_edge', or topology 'within_stage'."
                )

    def starting_weight(self, reader: int, source: int) -> float:
        """Returns the weight of an edge at the start, where that is given by F(w)."""
        value, gate = self.initial_gate, gates.GATES[self.gate]
        if value == "published":
            return 0.0  # Until it is drawn.
        if value == "closed":
            assert gate.closed is not None
            return gate.closed
        if gate.compares_sources and not self._may_choose_none:
            value = 0.5
        if value == "1/n^2":
            value = 1 / self.topology.num_blocks**2
        if value == "bounded":
            shared = self.weights == "by_distance"
            bare = shared or not self._is_projected(reader, source)
            value = self._bounded_gate if bare else 0.5
        assert not isinstance(value, str), "each name stands for a number"
        return gates.starting_weight(gate, value, self.sharpness)

    def _is_projected(self, reader: int, source: int) -> bool:
        """Whether an edge passes a kernel, whose start is not too large."""
        if self.projection in ("matching", "between_stages"):
            return self.topology.crosses_stages(reader, source)
        return self.projection != "none"

    @functools.cached_property
    def _bounded_gate(self) -> float:
        """The largest F, up to 1/2, that bounds the growth through every stage.

        A block whose n unprojected sources are all as large as its base, and like it,
        has an input 1 + n F times as large.
        """
        low, high = 0.0, 0.5
        if self._growth(high) <= MAX_GROWTH:
            return high
        for _ in range(30):
            middle = (low + high) / 2
            fits = self._growth(middle) <= MAX_GROWTH
            low, high = (middle, high) if fits else (low, middle)
        return low

    @property
    def start_growth(self) -> float:
        """By how much unprojected sources may let images grow in a stage, at the start.

        1 where that is not known, by the published start.
        """
        value = self.initial_gate
        if isinstance(value, str):
            n = self.topology.num_blocks
            named = {"bounded": self._bounded_gate, "1/n^2": 1 / n**2}
            value = named.get(value, 0.0)
        return self._growth(value)

    def _growth(self, value: float) -> float:
        """The same for one gate value of all."""
        bare = collections.Counter(
            i for i, k in self.topology.edges if not self._is_projected(i, k)
        )
        stages: dict[int, float] = collections.defaultdict(lambda: 1.0)
        for i, count in bare.items():
            stages[self.topology.input_stage(i)] *= 1 + self._sum(count, value)
        return max(stages.values(), default=1.0)

    def _sum(self, count: int, value: float) -> float:
        """What the gate values of this many sources of a block add up to."""
        if not gates.GATES[self.gate].compares_sources:
            return count * value
        if not self._may_choose_none:
            return 1.0
        odds = count * value / (1 - value)
        return odds / (1 + odds)

    @property
    def distances(self) -> tuple[int, ...]:
        """The distances i - k that there are, in ascending order."""
        return tuple(sorted({i - k for i, k in self.topology.edges}))

    def rows(self, owner: str) -> tuple[int, ...]:
        """Returns what each row of an owner's gates belongs to.

        These are distances for `SHARED`, and sources for a reader such as "block_5".
        """
        if owner == SHARED:
            return self.distances
        return self.topology.sources(int(owner.removeprefix("block_")))

    def place(self, owner: str, edge: tuple[int, int]) -> int:
        """Finds the row of an edge (reader, source) in an owner's gates."""
        reader, source = edge
        return self.rows(owner).index(reader - source if owner == SHARED else source)

    def places(self, few: "ConnectionSpec", owner: str) -> np.ndarray:
        """Finds the rows of an owner's gates in `few`, of fewer edges, among these."""
        rows = self.rows(owner)
        return np.asarray([rows.index(row) for row in few.rows(owner)], np.int32)


def automatic_form(spec: ConnectionSpec, platform: str) -> tuple[str, str]:
    """Returns the form that was measured to be best, and why.

    The rules, and their figures are in docs/connections.md.

    Args:
      spec: of the connections; its form is not read.
      platform: "cpu", "gpu" or "tpu".
    """
    ((stage, deepest),) = collections.Counter(spec.topology.stages).most_common(1)
    inside = [
        (i, k)
        for i, k in spec.topology.edges
        if spec.topology.input_stage(i) == spec.topology.source_stage(k) == stage
    ]
    if spec.not_stackable:
        return "folded", f"'stacked' cannot express {spec.not_stackable}"
    if platform == "cpu":
        return "folded", "a CPU's convolutions are slow in loops"
    if deepest < STACKED_FROM:
        return "folded", f"no stage has {STACKED_FROM} blocks or more"
    if 4 * len(inside) < deepest * (deepest - 1):
        return "folded", "'stacked' costs as much where most edges are absent"
    return "stacked", f"a stage has {deepest} blocks: memory and compile time count"
