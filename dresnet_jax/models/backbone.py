"""The one backbone: CNN, ResNet and DResNet are this class with different specs."""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn

from dresnet_jax.connections.module import Connections
from dresnet_jax.connections.spec import ConnectionSpec
from dresnet_jax.connections.weighted_sum import BlockOutputs
from dresnet_jax.models import stems
from dresnet_jax.models.blocks import BLOCKS
from dresnet_jax.models.exits import EXITS, Confidence, ExitSpec, Fusion
from dresnet_jax.models.heads import Classifier
from dresnet_jax.models.layers import Layers
from dresnet_jax.models.residual import SHORTCUT_RULES, BlockSpec, ResidualScale
from dresnet_jax.models.stems import STEMS


def stages(blocks_per_stage: Sequence[int]) -> tuple[int, ...]:
    """The stage, from 0, of each block."""
    return tuple(
        stage for stage, blocks in enumerate(blocks_per_stage) for _ in range(blocks)
    )


def _split(blocks: int, ends: Iterable[int]) -> list[range]:
    """1 to the number of blocks, in ranges that end with some of them."""
    of_each = [0, *sorted(ends), blocks]
    return [range(start + 1, end + 1) for start, end in itertools.pairwise(of_each)]


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
      exits: the classifiers beside the last one.
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
    exits: ExitSpec = dataclasses.field(default_factory=ExitSpec)
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
        """The blocks, from 1, in groups of consecutive ones that differ in nothing.

        No group goes on behind an exit.
        """
        kinds = list(zip(self.channels, self.blocks, strict=False))
        changes = {i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]}
        return _split(len(kinds), changes | {*self.exits.after})

    @property
    def parts(self) -> list[range]:
        """The blocks, from 1, before each classifier and behind the one before it."""
        return _split(len(self.stages), {*self.exits.after})

    def read_after(self, block: int) -> list[int]:
        """The outputs up to that of a block that later ones have connections to."""
        edges = self.connections.topology.edges
        return sorted({k for i, k in edges if k <= block < i})

    @property
    def total_stride(self) -> int:
        """Side of the image divided by the side of the last output."""
        strides = math.prod(block.stride for block in self.blocks)
        return STEMS[self.stem].total_stride * strides


class _Network(nn.Module):
    """What a network and a part of it are made of.

    Attributes:
      spec: what the network is.
      scheme: the module of the connections, with the interface of `Connections`.
    """

    spec: BackboneSpec
    scheme: Callable[..., nn.Module] = Connections

    def _stem(self, images: jax.Array, *, train: bool) -> BlockOutputs:
        spec = self.spec
        x = stems.run(
            STEMS[spec.stem],
            spec.layers,
            spec.channels[0],
            images.astype(spec.layers.dtype),
            train=train,
            bare=BLOCKS[spec.block].pre_activation,
            activate=spec.stem_activation,
        )
        return BlockOutputs(x, normalise=spec.connections.normalise_sources)

    def _shared(self) -> tuple[nn.Module, Fusion]:
        """The modules that all parts have in common."""
        spec = self.spec
        connections = self.scheme(spec.connections, spec.channels, name="connections")
        return connections, Fusion(spec.exits, name="fusion")

    def _run(
        self,
        blocks: range,
        connections: nn.Module,
        outputs: BlockOutputs,
        *,
        train: bool,
    ) -> None:
        """Appends the outputs of some blocks, which are whole groups of `alike`."""
        spec = self.spec
        stacked = spec.connections.form == "stacked" and not self.is_initializing()
        for group in spec.alike:
            if group.start not in blocks:
                continue
            if stacked and len(group) > 1:
                self._run_stacked(group, connections, outputs, train=train)
                continue
            for i in group:
                block = self._block(i, name=f"block_{i}")
                outputs.append(block(connections(i, outputs), train=train))

    def _classify(self, block: int, x: jax.Array, *, train: bool) -> jax.Array:
        """The logits of the classifier behind a block."""
        spec = self.spec
        own = "norm_act" if BLOCKS[spec.block].pre_activation else "linear"
        head, is_last = spec.head or own, block == len(spec.stages)
        classify = Classifier(
            spec.num_classes,
            spec.dropout,
            spec.layers,
            head if is_last else spec.exits.head or head,
            name="head" if is_last else f"exit_{block}",
        )
        return classify(x, train=train)

    def _score(self, block: int, answer: jax.Array, x: jax.Array) -> jax.Array:
        """How sure an answer is, as learned; 0 where nothing is, or nobody asks."""
        if not self.spec.exits.learn_confidence or block == len(self.spec.stages):
            return jnp.zeros(answer.shape[:1])
        return Confidence(name=f"confidence_{block}")(answer, x)

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


class Backbone(_Network):
    """Stem, residual blocks with learned connections, classifier."""

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
        outputs = self._stem(images, train=train)
        connections, fusion = self._shared()
        logits: list[jax.Array] = []
        answers, scores = [], []
        # Where they only classify images, the last answer alone may be wanted.
        of_all = train or self.is_initializing() or spec.exits.fusion != "none"
        for blocks in spec.parts:
            self._run(blocks, connections, outputs, train=train)
            if of_all or blocks == spec.parts[-1]:
                logits.append(self._classify(blocks[-1], outputs.last, train=train))
                answers.append(fusion(logits, outputs.last))
                scores.append(self._score(blocks[-1], answers[-1], outputs.last))
        if train and spec.exits.after:
            self.sow(EXITS, "answers", jnp.stack(answers[:-1]))
            self.sow(EXITS, "scores", jnp.stack(scores[:-1]))
        return answers[-1]


@flax.struct.dataclass
class Carried:
    """What a part of a network hands on to the next.

    Attributes:
      outputs: those y_k that are still read, by k; the newest is among them.
      logits: where answers are fused, of each classifier so far, [batch, classes].
    """

    outputs: dict[int, jax.Array]
    logits: tuple[jax.Array, ...]


class Part(_Network):
    """The blocks between two classifiers of a network, run alone, with its variables.

    Attributes:
      number: of the part, from 0.
    """

    number: int = 0

    @nn.compact
    def __call__(
        self, before: jax.Array | Carried
    ) -> tuple[Carried, jax.Array, jax.Array]:
        """Runs the part as evaluated, not as trained.

        Args:
          before: normalised images for part 0, else what the part before hands on.

        Returns:
          What is handed on; the answer, [batch, classes]; and how sure it is, as
          learned, [batch], 0 where that is not.
        """
        spec = self.spec
        if isinstance(before, Carried):
            logits = list(before.logits)
            outputs = BlockOutputs.resumed(
                before.outputs, normalise=spec.connections.normalise_sources
            )
        else:
            logits, outputs = [], self._stem(before, train=False)
        connections, fusion = self._shared()
        blocks = spec.parts[self.number]
        self._run(blocks, connections, outputs, train=False)
        logits.append(self._classify(blocks[-1], outputs.last, train=False))
        answer = fusion(logits, outputs.last)
        carried = Carried(
            outputs=outputs.kept(spec.read_after(blocks[-1])),
            logits=() if spec.exits.fusion == "none" else tuple(logits),
        )
        return carried, answer, self._score(blocks[-1], answer, outputs.last)


def with_form(model: Backbone, form: str) -> Backbone:
    """The same network, with its sums computed in another form."""
    connections = dataclasses.replace(model.spec.connections, form=form)
    spec = dataclasses.replace(model.spec, connections=connections)
    return model.clone(spec=spec)
