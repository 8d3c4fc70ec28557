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


class Projection(nn.Module):
    """The parameters of one 1x1 projection."""

    in_channels: int
    out_channels: int
    use_bias: bool

    def setup(self) -> None:
        """Creates kernel [in_channels, out_channels] and bias [out_channels]."""
        shape = (self.in_channels, self.out_channels)
        self.kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        if self.use_bias:
            self.bias = self.param("bias", nn.initializers.zeros, (self.out_channels,))


class Reader(nn.Module):
    """The gate and the projections of one block that reads earlier ones.

    Attributes:
      spec: the network's connections.
      channels: of y_0, y_1, ..., y_n.
      block: the number i of the reading block.
    """

    spec: ConnectionSpec
    channels: tuple[int, ...]
    block: int

    def setup(self) -> None:
        """Creates gate_weights [sources], the projections, and k if it is owned."""
        spec, sources = self.spec, self.spec.topology.sources(self.block)
        gate = gates.GATES[spec.gate]
        start = gates.starting_weight(gate, spec.opening, spec.sharpness)
        self.gate_weights = self.param(
            "gate_weights", nn.initializers.constant(start), (len(sources),)
        )
        self.projections = [
            Projection(
                self.channels[k],
                self.channels[self.block - 1],
                spec.projection_bias,
                name=f"from_{k}",
            )
            for k in sources
        ]
        self.sharpness = None
        if gate.has_sharpness and spec.sharpness_granularity != "global":
            per_edge = spec.sharpness_granularity == "per_edge"
            self.sharpness = _sharpness(self, (len(sources),) if per_edge else ())

    def _biases(self) -> list[jax.Array] | None:
        if not self.spec.projection_bias:
            return None
        return [projection.bias for projection in self.projections]

    def openings(self, shared_sharpness: jax.Array | None) -> jax.Array:
        """F(w_ik) of this block's sources: [sources], float32."""
        raw = self.sharpness if shared_sharpness is None else shared_sharpness
        sharpness = jnp.ones(()) if raw is None else gates.positive(raw)
        return gates.GATES[self.spec.gate].function(self.gate_weights, sharpness)

    def __call__(
        self,
        outputs: weighted_sum.BlockOutputs,
        shared_sharpness: jax.Array | None,
    ) -> jax.Array:
        """The block's input x_i, with the shape of the newest output."""
        base = outputs.last
        size = (base.shape[1], base.shape[2])
        form = weighted_sum.FORMS[self.spec.form]
        return form.function(
            base,
            [
                outputs.pooled(k, size) if form.pools_first else outputs[k]
                for k in self.spec.topology.sources(self.block)
            ],
            self.openings(shared_sharpness),
            [projection.kernel for projection in self.projections],
            self._biases(),
        )


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
        spec = self.spec
        self.readers = {
            str(i): Reader(spec, self.channels, i, name=f"block_{i}")
            for i in spec.topology.readers
        }
        self.sharpness = None
        shares_sharpness = spec.sharpness_granularity == "global"
        if self.readers and gates.GATES[spec.gate].has_sharpness and shares_sharpness:
            self.sharpness = _sharpness(self, ())

    def __call__(self, block: int, outputs: weighted_sum.BlockOutputs) -> jax.Array:
        """The input x_i of block i, [batch, height, width, channels] as y_{i-1}.

        Args:
          block: i, from 1.
          outputs: y_0 to y_{i-1}.
        """
        reader = self.readers.get(str(block))
        return outputs.last if reader is None else reader(outputs, self.sharpness)

    def openings(self) -> dict[int, jax.Array]:
        """F(w) of every reader: {block: [sources]}, float32."""
        return {
            int(i): reader.openings(self.sharpness)
            for i, reader in self.readers.items()
        }


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


def _sharpness(module: nn.Module, shape: tuple[int, ...]) -> jax.Array:
    start = gates.positive_inverse(module.spec.sharpness)
    return module.param("gate_sharpness", nn.initializers.constant(start), shape)
