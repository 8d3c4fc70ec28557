"""The Flax module that owns the connections' parameters and calls the functions."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dresnet_jax.connections import gates, weighted_sum
from dresnet_jax.connections.topology import Topology
from dresnet_jax.errors import pick

SHARPNESS_GRANULARITIES = ("global", "per_block", "per_edge")

# What has a weight of its own: each edge, each channel of an edge, or each distance
# i - k between reader and source, which all readers share.
WEIGHTS = ("per_edge", "per_channel", "by_distance")

# Starts that are no number: 1 / n^2 for n blocks, which keeps the growth of a stack of
# unnormalised blocks bounded; and that of the published code, weights w of 1 for a
# block's newest source and of 0 to 0.1, at random, for the others.
NAMED_OPENINGS = ("1/n^2", "published")

# Leaf names of what a gate is made of: these take no weight decay and may have a
# learning rate of their own.
GATE_PARAMETERS = ("gate_weights", "gate_sharpness")

# F(w) of each edge, the mean over its channels: {reader: {source: opening}}.
Openings = dict[int, dict[int, float]]


@dataclasses.dataclass(frozen=True)
class ConnectionSpec:
    """What the learned connections of a network are, apart from their parameters.

    Attributes:
      topology: which earlier blocks each block reads.
      gate: name of the gate function, a key of `gates.GATES`.
      opening: F(w) at the start, in (0, 1), or one of `NAMED_OPENINGS`. A gate that
        compares sources starts them equal, whatever is asked.
      weights: what has a weight of its own, one of `WEIGHTS`.
      normalise_sources: whether sources are divided by their root mean square.
      sharpness: the gauss gate's k at the start, above 0.
      sharpness_granularity: who shares one k: "global", "per_block" or "per_edge".
      form: name of the weighted sum's form, a key of `weighted_sum.FORMS`.
      projection_bias: whether projections have a bias.
    """

    topology: Topology
    gate: str = "sigmoid"
    opening: float | str = 0.5
    weights: str = "per_edge"
    normalise_sources: bool = False
    sharpness: float = 1.0
    sharpness_granularity: str = "global"
    form: str = "folded"
    projection_bias: bool = True

    def __post_init__(self) -> None:
        gate = pick("gate", self.gate, gates.GATES)
        pick("connection form", self.form, weighted_sum.FORMS)
        names = dict.fromkeys(SHARPNESS_GRANULARITIES)
        pick("sharpness granularity", self.sharpness_granularity, names)
        pick("connection weights", self.weights, dict.fromkeys(WEIGHTS))
        gates.positive_inverse(self.sharpness)
        if isinstance(self.opening, str):
            pick("gate opening", self.opening, dict.fromkeys(NAMED_OPENINGS))
        else:
            gates.starting_weight(gate, self.opening, self.sharpness)

    @property
    def starting_weight(self) -> float:
        """The weight of every edge at the start, where that is an opening."""
        opening = self.opening
        if isinstance(opening, str):
            opening = 1 / self.topology.num_blocks**2
        return gates.starting_weight(gates.GATES[self.gate], opening, self.sharpness)

    @property
    def distances(self) -> tuple[int, ...]:
        """The distances i - k that there are, in ascending order."""
        return tuple(sorted({i - k for i, k in self.topology.edges}))


class Connections(nn.Module):
    """The learned connections of a network.

    All parameters are created in `setup`, from the channels alone, so that an
    optimiser built from the initialised parameters trains every one of them.

    Attributes:
      spec: what the connections are.
      channels: of y_0 (the stem), y_1, ..., y_n.
    """

    spec: ConnectionSpec
    channels: tuple[int, ...]

    def setup(self) -> None:
        """Creates a `block_<i>` for each reader, and what all readers share."""
        self.blocks = {
            str(i): self.param(f"block_{i}", self._init_block, i)
            for i in self.spec.topology.readers
        }
        if self._has_sharpness("global"):
            start = gates.positive_inverse(self.spec.sharpness)
            self.sharpness = self.param(
                "gate_sharpness", nn.initializers.constant(start), ()
            )

        if self._shares_weights:
            # The nearest source first, where the published start has its 1.
            count = len(self.spec.distances)
            self.weights = self.param("gate_weights", self._init_weights, (count,))

    def __call__(self, block: int, outputs: weighted_sum.BlockOutputs) -> jax.Array:
        """The input x_i of block i, [batch, height, width, channels] as y_{i-1}.

        Args:
          block: i, from 1.
          outputs: y_0 to y_{i-1}.
        """
        sources = self.spec.topology.sources(block)
        base = outputs.last
        if not sources:
            return base
        size = (base.shape[1], base.shape[2])
        form = weighted_sum.FORMS[self.spec.form]
        edges = [self.blocks[str(block)][f"from_{k}"] for k in sources]
        return form.function(
            base,
            [
                outputs.pooled(k, size) if form.pools_first else outputs[k]
                for k in sources
            ],
            self._openings(block),
            [edge["kernel"] for edge in edges],
            [edge["bias"] for edge in edges] if self.spec.projection_bias else None,
        )

    def openings(self) -> dict[int, jax.Array]:
        """F(w) of every reader: {block: [sources] or [sources, channels]}, float32."""
        return {i: self._openings(i) for i in self.spec.topology.readers}

    def _openings(self, block: int) -> jax.Array:
        parameters = self.blocks[str(block)]
        sharpness = jnp.ones(())
        if gates.GATES[self.spec.gate].has_sharpness:
            shared = self._has_sharpness("global")
            raw = self.sharpness if shared else parameters["gate_sharpness"]
            sharpness = gates.positive(raw)
        if self._shares_weights:
            weights = jnp.stack(
                [
                    self.weights[self.spec.distances.index(block - k)]
                    for k in self.spec.topology.sources(block)
                ]
            )
        else:
            weights = parameters["gate_weights"]
        if weights.ndim > sharpness.ndim > 0:
            sharpness = sharpness[:, None]
        return gates.GATES[self.spec.gate].function(weights, sharpness)

    @property
    def _shares_weights(self) -> bool:
        spec = self.spec
        return bool(spec.topology.edges) and spec.weights == "by_distance"

    def _has_sharpness(self, *granularities: str) -> bool:
        """Whether there is a k, and it is shared in one of these ways."""
        spec = self.spec
        needed = spec.topology.edges and gates.GATES[spec.gate].has_sharpness
        return bool(needed) and spec.sharpness_granularity in granularities

    def _init_weights(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Starting weights, the nearest source first."""
        if self.spec.opening != "published":
            return jnp.full(shape, self.spec.starting_weight)
        return jax.random.uniform(key, shape, maxval=0.1).at[0].set(1.0)

    def _init_block(self, key: jax.Array, block: int) -> dict[str, Any]:
        """The weights and the k that it owns, and a projection per source."""
        spec, sources = self.spec, self.spec.topology.sources(block)
        out_channels = self.channels[block - 1]
        parameters: dict[str, Any] = {}
        if not self._shares_weights:
            per_channel = spec.weights == "per_channel"
            shape = (len(sources), out_channels) if per_channel else (len(sources),)
            # Reversed, since the newest source is the last of a block's.
            weights = self._init_weights(jax.random.fold_in(key, len(sources)), shape)
            parameters["gate_weights"] = weights[::-1]
        if self._has_sharpness("per_block", "per_edge"):
            per_edge = spec.sharpness_granularity == "per_edge"
            parameters["gate_sharpness"] = jnp.full(
                len(sources) if per_edge else (), gates.positive_inverse(spec.sharpness)
            )
        for k, edge_key in zip(
            sources, jax.random.split(key, len(sources)), strict=True
        ):
            shape = (self.channels[k], out_channels)
            edge = {"kernel": nn.initializers.lecun_normal()(edge_key, shape)}
            if spec.projection_bias:
                edge["bias"] = jnp.zeros(out_channels)
            parameters[f"from_{k}"] = edge
        return parameters


def openings(
    spec: ConnectionSpec, channels: tuple[int, ...], parameters: Mapping[str, Any]
) -> Openings:
    """F(w) of every edge, on the host: {reader: {source: opening}}."""
    arrays = jax.device_get(_openings(spec, channels, parameters))
    return {
        i: {
            k: float(values.mean())
            for k, values in zip(spec.topology.sources(i), rows, strict=True)
        }
        for i, rows in arrays.items()
    }


def drift(start: Openings, end: Openings) -> float:
    """The mean over all edges of |change of F(w)|; 0 where there is no edge."""
    changes = [abs(end[i][k] - start[i][k]) for i in end for k in end[i]]
    return sum(changes) / max(1, len(changes))


def total_opening(
    spec: ConnectionSpec, channels: tuple[int, ...], parameters: Mapping[str, Any]
) -> jax.Array:
    """Sum of |F(w)| over all edges, the mean over the channels of each: a scalar."""
    total = jnp.zeros(())
    for rows in _openings(spec, channels, parameters).values():
        total += jnp.abs(rows).reshape(len(rows), -1).mean(axis=-1).sum()
    return total


def _openings(
    spec: ConnectionSpec, channels: tuple[int, ...], parameters: Mapping[str, Any]
) -> dict[int, jax.Array]:
    if not spec.topology.edges:
        return {}
    module = Connections(spec, channels)
    arrays: Any = module.apply({"params": parameters}, method=Connections.openings)
    return arrays
