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

from dresnet_jax.connections.module import Connections
from dresnet_jax.connections.spec import ConnectionSpec
from dresnet_jax.connections.weighted_sum import BlockOutputs
from dresnet_jax.models import stems
from dresnet_jax.models.blocks import BLOCKS
from dresnet_jax.models.heads import Classifier
from dresnet_jax.models.layers import Layers
from dresnet_jax.models.residual import SHORTCUT_RULES, BlockSpec, ResidualScale
from dresnet_jax.models.stems import STEMS


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
      connections: the learned connections.
      width: channels of the stem.
      blocks_per_stage: how many there are.
      ratios: channels of each stage, before the block's expansion, divided by the
        width. A fraction is rounded behind the product.
      strides_of_stages: of the first block of each.
      dilated_stages: numbers, from 1, of the stages that have a dilation, twice that of
        the stage before, instead of their stride.
      stem: a key of `stems.STEMS`.
      stem_activation: whether an activation follows the stem's norm, if it has one.
      head: one of `heads.HEADS`; "" for the one that goes with the block.
      block: a key of `blocks.BLOCKS`.
      shortcut: a key of `blocks.SHORTCUT_RULES`.
      groups: of a bottleneck's 3x3 convolution.
      group_width: channels of each group, for 64 channels of the stage.
      expand: hidden channels of an inverted residual divided by its input's, by stage.
      attention: inside of each block, a key of `attention.ATTENTIONS`.
      residual: what each block's result is multiplied by; None for the block's own.
      zero_last: whether the last norm of each block starts at 0.
      drop_path: share of the examples for which the last block is left out in
        training; it grows evenly from the first block's, 0.
      dropout: rate before the classifier.
      layers: what all layers have in common.
    """

    num_classes: int
    connections: ConnectionSpec
    width: float
    blocks_per_stage: tuple[int, ...]
    ratios: tuple[float, ...]
    strides_of_stages: tuple[int, ...]
    dilated_stages: tuple[int, ...] = ()
    stem: str = "imagenet"
    stem_activation: bool = True
    head: str = ""
    block: str = "basic"
    shortcut: str = "identity"
    groups: int = 1
    group_width: int = 64
    expand: tuple[float, ...] = ()
    attention: str = "none"
    residual: ResidualScale | None = None
    zero_last: bool = False
    drop_path: float = 0.0
    dropout: float = 0.0
    layers: Layers = dataclasses.field(default_factory=Layers)

    @property
    def stages(self) -> tuple[int, ...]:
        """The stage, from 0, of each block."""
        return stages(self.blocks_per_stage)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the stem's output y_0 and of each block's output y_i."""
        widths = [round(self.width * self.ratios[stage]) for stage in self.stages]
        expansion = BLOCKS[self.block].expansion
        return (round(self.width), *(expansion * width for width in widths))

    @functools.cached_property
    def blocks(self) -> tuple[BlockSpec, ...]:
        """What each block is asked for."""
        found: list[BlockSpec] = []
        dilation = 1
        channels, last = self.channels, max(1, len(self.stages) - 1)
        for i, stage in enumerate(self.stages, 1):
            is_first = i == 1 or stage != self.stages[i - 2]
            stride = self.strides_of_stages[stage] if is_first else 1
            # As in torchvision, the first block of a dilated stage has the dilation of
            # the stage before.
            own = dilation
            if is_first and stage + 1 in self.dilated_stages:
                dilation, stride = dilation * stride, 1
            keeps_shape = stride == 1 and channels[i - 1] == channels[i]
            found.append(
                BlockSpec(
                    features=channels[i],
                    stride=stride,
                    shortcut=SHORTCUT_RULES[self.shortcut](i, keeps_shape),
                    dilation=own,
                    groups=self.groups,
                    group_width=self.group_width,
                    expand=self.expand[stage] if self.expand else 6.0,
                    attention=self.attention,
                    residual=self.residual,
                    zero_last=self.zero_last,
                    drop_path=self.drop_path * (i - 1) / last,
                )
            )
        return tuple(found)

    @property
    def alike(self) -> list[range]:
        """The blocks, from 1, in groups of consecutive ones that differ in nothing."""
        kinds = list(zip(self.channels, self.blocks, strict=False))
        ends = [i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]]
        starts = [0, *ends]
        return [
            range(start + 1, end + 1)
            for start, end in zip(starts, [*ends, len(kinds)], strict=True)
        ]

    @property
    def total_stride(self) -> int:
        """Side of the image divided by the side of the last output."""
        strides = math.prod(block.stride for block in self.blocks)
        return STEMS[self.stem].total_stride * strides


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
          train: whether norms use the batch's statistics, and dropout and stochastic
            depth are on; needs the "dropout" RNG where a rate is above 0.

        Returns:
          [batch, num_classes], float32.
        """
        spec = self.spec
        kind = BLOCKS[spec.block]
        x = stems.run(
            STEMS[spec.stem],
            spec.layers,
            spec.channels[0],
            images.astype(spec.layers.dtype),
            train=train,
            bare=kind.pre_activation,
            activate=spec.stem_activation,
        )
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
        head = spec.head or ("norm_act" if kind.pre_activation else "linear")
        classify = Classifier(
            spec.num_classes, spec.dropout, spec.layers, head, name="head"
        )
        return classify(outputs.last, train=train)

    def _block(self, i: int, **module: Any) -> nn.Module:
        kind = BLOCKS[self.spec.block]
        block = self.spec.blocks[i - 1]
        return kind.make(block, self.spec.layers, **kind.settings, **module)

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
            return y, updates.get("batch_stats", {})

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *variables)
        updates = connections.run(blocks.start, run, stacked, outputs)
        if self.is_mutable_collection("batch_stats"):
            for n, i in enumerate(blocks):
                one = jax.tree.map(operator.itemgetter(n), updates)
                self.put_variable("batch_stats", f"block_{i}", one)


def with_form(model: Backbone, form: str) -> Backbone:
    """The same network, with its sums computed in another form."""
    connections = dataclasses.replace(model.spec.connections, form=form)
    spec = dataclasses.replace(model.spec, connections=connections)
    return model.clone(spec=spec)
