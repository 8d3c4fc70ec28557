"""What a network is, apart from its parameters: a value that configs are made into."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Sequence

from dresnet_jax.connections.spec import ConnectionSpec
from dresnet_jax.models.blocks import BLOCKS
from dresnet_jax.models.conditional import ConditionalSpec
from dresnet_jax.models.exits import ExitSpec
from dresnet_jax.models.layers import Layers
from dresnet_jax.models.mixture import Mixture
from dresnet_jax.models.residual import SHORTCUT_RULES, BlockSpec, ResidualScale
from dresnet_jax.models.stems import STEMS


def stages(blocks_per_stage: Sequence[int]) -> tuple[int, ...]:
    """Returns the stage, from 0, of each block."""
    return tuple(
        stage for stage, blocks in enumerate(blocks_per_stage) for _ in range(blocks)
    )


def _split(blocks: int, ends: Iterable[int]) -> list[range]:
    """1 to the number of blocks, in ranges that end with some of them."""
    of_each = [0, *sorted(ends), blocks]
    return [range(start + 1, end + 1) for start, end in itertools.pairwise(of_each)]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The stem, the blocks and the head of a network, as a model's name fixes them.

    Attributes:
      blocks_per_stage: how many there are.
      block: a key of `blocks.BLOCKS`.
      shortcut: a key of `blocks.SHORTCUT_RULES`.
      width: channels of the stem.
      ratios: channels of each stage, before the block's expansion, divided by the
        width, () for 1, 2, 4 and so forth. A fraction is rounded after the product.
      strides: of the first block of each stage, () for 1 and then 2.
      stem: a key of `stems.STEMS`.
      stem_activation: whether an activation follows the stem's norm, if it has one.
      head: one of `heads.HEADS`; "" for the one that goes with the block.
      groups, group_width, attention: of each block, as those of `BlockSpec`.
      expand: hidden channels of an inverted residual divided by its input's, by stage.
    """

    blocks_per_stage: tuple[int, ...] = (2, 2, 2, 2)
    block: str = "basic"
    shortcut: str = "identity"
    width: float = 64
    ratios: tuple[float, ...] = ()
    strides: tuple[int, ...] = ()
    stem: str = "imagenet"
    stem_activation: bool = True
    head: str = ""
    groups: int = 1
    group_width: int = 64
    expand: tuple[float, ...] = ()
    attention: str = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneSpec(Architecture):
    """What a network is, apart from its parameters.

    Attributes:
      num_classes: of the classifier.
      connections: the learned connections.
      dilated_stages: numbers, from 1, of the stages that have a dilation, twice that of
        the stage before, instead of their stride.
      hidden: channels between the convolutions of each block, 0 for its own number; ()
        for that of all.
      residual, zero_last: of each block, as those of `BlockSpec`.
      mixtures: the operations of each mixed block; () for the default ones.
      conditional: of the gates by which examples skip blocks; None for no gates.
      drop_path: share of the examples for which the last block is left out in
        training; it grows evenly from the first block's, 0.
      dropout: rate before the classifier.
      exits: the classifiers besides the last one.
      layers: what all layers have in common.
    """

    num_classes: int
    connections: ConnectionSpec
    dilated_stages: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    residual: ResidualScale | None = None
    mixtures: tuple[Mixture, ...] = ()
    zero_last: bool = False
    conditional: ConditionalSpec | None = None
    drop_path: float = 0.0
    dropout: float = 0.0
    exits: ExitSpec = dataclasses.field(default_factory=ExitSpec)
    layers: Layers = dataclasses.field(default_factory=Layers)

    @property
    def stages(self) -> tuple[int, ...]:
        """The stage, from 0, of each block."""
        return stages(self.blocks_per_stage)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the stem's output y_0 and of each block's output y_i."""
        widths = [
            round(self.width * (self.ratios[stage] if self.ratios else 2**stage))
            for stage in self.stages
        ]
        expansion = BLOCKS[self.block].expansion
        return (round(self.width), *(expansion * width for width in widths))

    @functools.cached_property
    def blocks(self) -> tuple[BlockSpec, ...]:
        """What each block is asked for."""
        result: list[BlockSpec] = []
        dilation = 1
        channels, last = self.channels, max(1, len(self.stages) - 1)
        strides = self.strides or (1, *(2,) * len(self.blocks_per_stage))
        for i, stage in enumerate(self.stages, 1):
            is_first = i == 1 or stage != self.stages[i - 2]
            stride = strides[stage] if is_first else 1
            # As in torchvision, the first block of a dilated stage has the dilation of
            # the stage before.
            own = dilation
            if is_first and stage + 1 in self.dilated_stages:
                dilation, stride = dilation * stride, 1
            keeps_shape = stride == 1 and channels[i - 1] == channels[i]
            result.append(
                BlockSpec(
                    features=channels[i],
                    hidden=self.hidden[i - 1] if self.hidden else 0,
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
                    mixture=self.mixtures[i - 1] if self.mixtures else Mixture(),
                )
            )
        return tuple(result)

    @property
    def gated(self) -> tuple[int, ...]:
        """The blocks, from 1, that examples may skip: those that keep the shape."""
        if self.conditional is None:
            return ()
        channels = self.channels
        return tuple(
            i
            for i, block in enumerate(self.blocks, 1)
            if block.stride == 1 and channels[i - 1] == channels[i]
        )

    @property
    def mixed(self) -> dict[int, Mixture]:
        """Of the blocks, from 1, that have several operations."""
        blocks = enumerate(self.blocks if self.block == "mixed" else (), 1)
        return {i: block.mixture for i, block in blocks if block.mixture.is_mixed}

    def fixed_hidden(self, block: int) -> str:
        """Returns why a block's inner channels have no number of their own.

        Empty if they have.
        """
        if not BLOCKS[self.block].hidden.makes:
            return f"none between convolutions, since it is '{self.block}'"
        if BLOCKS[self.block].expansion > 1 and self.groups > 1:
            return f"{self.groups} groups of them, whose number is theirs"
        if self.block == "inverted" and self.blocks[block - 1].expand == 1:
            return "as many of them as its input has"
        return ""

    @property
    def unstackable(self) -> str:
        """What is here that no loop over blocks can express; empty if nothing.

        Such loops have no random numbers and no penalties, and each turn does the same.
        """
        if self.conditional is not None:
            return "conditional paths"
        if self.mixed:
            return "mixed blocks"
        if self.layers.frozen:
            return "frozen norms (optimizer.freeze_statistics)"
        return ""

    @property
    def alike(self) -> list[range]:
        """The blocks, from 1, in groups of consecutive ones that differ in nothing.

        No group continues after an exit.
        """
        kinds = list(zip(self.channels, self.blocks, strict=False))
        changes = {i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]}
        return _split(len(kinds), changes | {*self.exits.after})

    @property
    def parts(self) -> list[range]:
        """The blocks, from 1, before each classifier and after the one before it."""
        return _split(len(self.stages), {*self.exits.after})

    def read_after(self, block: int) -> list[int]:
        """Returns the outputs up to a block's that later ones read."""
        edges = self.connections.topology.edges
        return sorted({k for i, k in edges if k <= block < i})

    @property
    def total_stride(self) -> int:
        """Side of the image divided by the side of the last output."""
        strides = math.prod(block.stride for block in self.blocks)
        return STEMS[self.stem].total_stride * strides
