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

# Leaf names of what a gate is made of: these take no weight decay and may have a
# learning rate of their own.
GATE_PARAMETERS = ("gate_weights", "gate_sharpness")

# F(w) of each edge: {reader: {source: opening}}.
Openings = dict[int, dict[int, float]]


@dataclasses.dataclass(frozen=True)
class ConnectionSpec:
    """What the learned connections of a network are, apart from their parameters.

    Attributes:
      topology: which earlier blocks each block reads.
      gate: name of the gate function, a key of `gates.GATES`.
      opening: F(w) at the start, in (0, 1).
      sharpness: the gauss gate's k at the start, above 0.
      sharpness_granularity: who shares one k: "global", "per_block" or "per_edge".
      form: name of the weighted sum's form, a key of `weighted_sum.FORMS`.
      projection_bias: whether projections have a bias.
    """

    topology: Topology
    gate: str = "sigmoid"
    opening: float = 0.5
    sharpness: float = 1.0
    sharpness_granularity: str = "global"
    form: str = "folded"
    projection_bias: bool = True

    def __post_init__(self) -> None:
        gate = pick("gate", self.gate, gates.GATES)
        pick("connection form", self.form, weighted_sum.FORMS)
        names = dict.fromkeys(SHARPNESS_GRANULARITIES)
        pick("sharpness granularity", self.sharpness_granularity, names)
        gates.positive_inverse(self.sharpness)
        gates.starting_weight(gate, self.opening, self.sharpness)


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
        """Creates a `block_<i>` for each reader, and k if all share it."""
        self.blocks = {
            str(i): self.param(f"block_{i}", self._init_block, i)
            for i in self.spec.topology.readers
        }
        if self._has_sharpness("global"):
            start = gates.positive_inverse(self.spec.sharpness)
            self.sharpness = self.param(
                "gate_sharpness", nn.initializers.constant(start), ()
            )

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
        """F(w) of every reader: {block: [sources]}, float32."""
        return {i: self._openings(i) for i in self.spec.topology.readers}

    def _openings(self, block: int) -> jax.Array:
        parameters = self.blocks[str(block)]
        sharpness = jnp.ones(())
        if gates.GATES[self.spec.gate].has_sharpness:
            shared = self._has_sharpness("global")
            raw = self.sharpness if shared else parameters["gate_sharpness"]
            sharpness = gates.positive(raw)
        return gates.GATES[self.spec.gate].function(
            parameters["gate_weights"], sharpness
        )

    def _has_sharpness(self, *granularities: str) -> bool:
        """Whether there is a k, and it is shared in one of these ways."""
        spec = self.spec
        needed = spec.topology.edges and gates.GATES[spec.gate].has_sharpness
        return bool(needed) and spec.sharpness_granularity in granularities

    def _init_block(self, key: jax.Array, block: int) -> dict[str, Any]:
        """gate_weights [sources], its k if it owns one, and a projection per source."""
        spec, sources = self.spec, self.spec.topology.sources(block)
        gate = gates.GATES[spec.gate]
        start = gates.starting_weight(gate, spec.opening, spec.sharpness)
        parameters: dict[str, Any] = {"gate_weights": jnp.full(len(sources), start)}
        if self._has_sharpness("per_block", "per_edge"):
            per_edge = spec.sharpness_granularity == "per_edge"
            parameters["gate_sharpness"] = jnp.full(
                len(sources) if per_edge else (), gates.positive_inverse(spec.sharpness)
            )
        out_channels = self.channels[block - 1]
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
    if not spec.topology.edges:
        return {}
    module = Connections(spec, channels)
    arrays = jax.device_get(
        module.apply({"params": parameters}, method=Connections.openings)
    )
    return {
        i: dict(zip(spec.topology.sources(i), map(float, values), strict=True))
        for i, values in arrays.items()
    }
