"""The one backbone: CNN, ResNet and DResNet are this class with different specs."""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dresnet_jax.connections.module import Connections, ConnectionSpec
from dresnet_jax.connections.weighted_sum import BlockOutputs
from dresnet_jax.models.blocks import BLOCKS, SHORTCUTS, STEMS, ConvNormFactory
from dresnet_jax.models.heads import Classifier
from dresnet_jax.models.layers import ConvNorm


def stages(blocks_per_stage: Sequence[int]) -> tuple[int, ...]:
    """The stage, from 0, of each block."""
    return tuple(
        stage for stage, blocks in enumerate(blocks_per_stage) for _ in range(blocks)
    )


@dataclasses.dataclass(frozen=True)
class BackboneSpec:
    """What a network is, apart from its parameters.

    Attributes:
      num_classes: of the classifier.
      stem: a key of `blocks.STEMS`.
      stem_activation: whether a ReLU follows the stem's norm.
      block: a key of `blocks.BLOCKS`.
      shortcut: a key of `blocks.SHORTCUTS`.
      width: channels of the stem and the first stage; each later stage doubles them.
      blocks_per_stage: the first block of each later stage has a stride of 2.
      conv_bias: whether convolutions that a norm follows have a bias.
      dropout: rate before the classifier.
      dtype: of the computation, "float32" or "bfloat16".
      connections: the learned connections.
    """

    num_classes: int
    stem: str
    stem_activation: bool
    block: str
    shortcut: str
    width: int
    blocks_per_stage: tuple[int, ...]
    conv_bias: bool
    dropout: float
    dtype: str
    connections: ConnectionSpec

    @property
    def stages(self) -> tuple[int, ...]:
        """The stage, from 0, of each block."""
        return stages(self.blocks_per_stage)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the stem's output y_0 and of each block's output y_i."""
        return (self.width, *(self.width * 2**stage for stage in self.stages))

    @property
    def strides(self) -> tuple[int, ...]:
        """The stride of each block."""
        earlier = (0, *self.stages)
        return tuple(
            2 if stage != before else 1
            for stage, before in zip(self.stages, earlier, strict=False)
        )

    @property
    def shortcuts(self) -> tuple[str, ...]:
        """The kind of shortcut of each block."""
        return tuple(
            SHORTCUTS[self.shortcut](i, stride == 1 and before == after)
            for i, (stride, before, after) in enumerate(
                zip(self.strides, self.channels, self.channels[1:], strict=False), 1
            )
        )

    @property
    def alike(self) -> list[range]:
        """The blocks, from 1, in groups of consecutive ones that differ in no shape."""
        kinds = list(zip(self.channels[1:], self.strides, self.shortcuts, strict=True))
        ends = [i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]]
        starts = [0, *ends]
        return [
            range(start + 1, end + 1)
            for start, end in zip(starts, [*ends, len(kinds)], strict=True)
        ]

    @property
    def total_stride(self) -> int:
        """Side of the image divided by the side of the last output."""
        return STEMS[self.stem].total_stride * math.prod(self.strides)


class Backbone(nn.Module):
    """Stem, residual blocks with learned connections, classifier.

    Attributes:
      spec: what the network is.
      scheme: the module of the connections, with the interface of `Connections`.
    """

    spec: BackboneSpec
    scheme: Callable[..., nn.Module] = Connections

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits of normalised images.

        Args:
          images: [batch, height, width, channels], float32.
          train: whether norms use the batch's statistics and dropout is on; needs
            the "dropout" RNG where the rate is above 0.

        Returns:
          [batch, num_classes], float32.
        """
        spec = self.spec
        stem = STEMS[spec.stem]
        x = self._conv_norm(
            spec.width,
            kernel=stem.kernel,
            stride=stem.stride,
            activation=nn.relu if spec.stem_activation else None,
            name="stem",
        )(images.astype(spec.dtype), train=train)
        if stem.pool:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

        connections = self.scheme(spec.connections, spec.channels, name="connections")
        outputs = BlockOutputs(x, normalise=spec.connections.normalise_sources)
        stacked = spec.connections.form == "stacked" and not self.is_initializing()
        for blocks in spec.alike:
            if stacked and len(blocks) > 1:
                self._run_stacked(blocks, connections, outputs, train=train)
                continue
            for i in blocks:
                block = self._block(i, name=f"block_{i}")
                outputs.append(block(connections(i, outputs), train=train))
        head = Classifier(spec.num_classes, spec.dropout, name="head")
        return head(outputs.last, train=train)

    @property
    def _conv_norm(self) -> ConvNormFactory:
        spec = self.spec
        return functools.partial(ConvNorm, use_bias=spec.conv_bias, dtype=spec.dtype)

    def _block(self, i: int, **module: Any) -> nn.Module:
        spec = self.spec
        return BLOCKS[spec.block](
            spec.channels[i],
            spec.strides[i - 1],
            spec.shortcuts[i - 1],
            self._conv_norm,
            **module,
        )

    def _run_stacked(
        self,
        blocks: range,
        connections: nn.Module,
        outputs: BlockOutputs,
        *,
        train: bool,
    ) -> None:
        """Runs blocks that are alike under one scan over their stacked parameters."""
        block = self._block(blocks.start, parent=None)
        variables = [
            {kind: tree[f"block_{i}"] for kind, tree in self.variables.items()}
            for i in blocks
        ]

        def run(one: Any, x: jax.Array) -> tuple[jax.Array, Any]:
            y, updates = block.apply(one, x, train=train, mutable=["batch_stats"])
            return y, updates["batch_stats"]

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *variables)
        updates = connections.run(blocks.start, run, stacked, outputs)
        if self.is_mutable_collection("batch_stats"):
            for n, i in enumerate(blocks):
                one = jax.tree.map(operator.itemgetter(n), updates)
                self.put_variable("batch_stats", f"block_{i}", one)
