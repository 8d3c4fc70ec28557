"""The one backbone: CNN, ResNet and DResNet are this class with different specs."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn

from dresnet_jax.connections.module import Connections
from dresnet_jax.connections.outputs import BlockOutputs
from dresnet_jax.models import conditional
from dresnet_jax.models.backbone_spec import BackboneSpec
from dresnet_jax.models.blocks import BLOCKS
from dresnet_jax.models.exits import EXITS, Confidence, Fusion, with_scaled_gradient
from dresnet_jax.models.heads import Classifier
from dresnet_jax.models.mixed import MixedBlock
from dresnet_jax.models.stems import STEMS


class _Network(nn.Module):
    """What a network and a part of it are made of.

    Attributes:
      spec: what the network is.
      scheme: the module of the connections, with the interface of `Connections`.
    """

    spec: BackboneSpec
    scheme: Callable[..., nn.Module] = Connections

    def setup(self) -> None:
        """Creates the modules that all parts have in common."""
        spec = self.spec
        self.connections = self.scheme(spec.connections, spec.channels)
        self.fusion = Fusion(spec.exits)

    def _stem(self, images: jax.Array, *, train: bool) -> BlockOutputs:
        spec = self.spec
        x = STEMS[spec.stem].run(
            spec.layers,
            spec.channels[0],
            images.astype(spec.layers.dtype),
            train=train,
            bare=BLOCKS[spec.block].pre_activation,
            activate=spec.stem_activation,
        )
        return BlockOutputs(
            x,
            normalise=spec.connections.normalise_sources,
            has_base=not spec.connections.topology.is_free,
        )

    def _run(self, blocks: range, outputs: BlockOutputs, *, train: bool) -> None:
        """Appends the outputs of some blocks, which are whole groups of `alike`."""
        spec = self.spec
        stacked = spec.connections.form == "stacked" and not self.is_initializing()
        for group in spec.alike:
            if group.start not in blocks:
                continue
            if stacked and len(group) > 1:
                self._run_stacked(group, outputs, train=train)
                continue
            for i in group:
                if i not in spec.connections.topology.blocks:
                    outputs.append(self._output_shape(i, outputs.last))
                    continue
                x = self.connections(i, outputs)
                outputs.append(self._run_one(i, x, train=train))

    def _classify(self, block: int, x: jax.Array, *, train: bool) -> jax.Array:
        """The logits of the classifier after a block."""
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
        if train and not is_last:
            weight = spec.exits.loss_weights[spec.exits.after.index(block)]
            x = with_scaled_gradient(x, weight)
        return classify(x, train=train)

    def _score(self, block: int, answer: jax.Array, x: jax.Array) -> jax.Array:
        """How sure an answer is, as learned; 0 where nothing is, or nobody asks."""
        if not self.spec.exits.learn_confidence or block == len(self.spec.stages):
            return jnp.zeros(answer.shape[:1])
        return Confidence(name=f"confidence_{block}")(answer, x)

    def _block(self, i: int, **module: Any) -> nn.Module:
        spec = self.spec
        return BLOCKS[spec.block].make(spec.blocks[i - 1], spec.layers, **module)

    def _run_one(self, i: int, x: jax.Array, *, train: bool) -> jax.Array:
        """y_i of x_i, which is x_i itself for the examples that skip the block."""
        name, spec = f"block_{i}", self.spec.conditional
        if spec is None or i not in self.spec.gated:
            return self._block(i, name=name)(x, train=train)
        gates = conditional.Gate(spec, name=f"gate_{i}")(x, train=train)
        if train or not spec.compact or self.is_initializing():
            y = self._block(i, name=name)(x, train=train)
            return conditional.masked(x, y, gates)
        alone = self._block(i, parent=None)

        # In a branch of a program, where a module may not be called by its name.
        def run(some: jax.Array) -> jax.Array:
            result: Any = alone.apply(own, some, train=False)
            return result

        own = {kind: t[name] for kind, t in self.variables.items() if name in t}
        return conditional.compacted(run, x, gates)

    def _output_shape(
        self, i: int, x: jax.Array | jax.ShapeDtypeStruct
    ) -> jax.ShapeDtypeStruct:
        """What block i would make of an input of some shape."""
        block = self._block(i, parent=None)
        key = jax.random.key(0)
        shape, _ = jax.eval_shape(
            lambda x: block.init_with_output(key, x, train=False),
            jax.ShapeDtypeStruct(x.shape, x.dtype),
        )
        return shape

    def _run_stacked(
        self, blocks: range, outputs: BlockOutputs, *, train: bool
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
        updates = self.connections.run(blocks.start, run, stacked, outputs)
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
            depth are on; needs the "dropout" RNG where a rate is above 0 or blocks
            have gates.

        Returns:
          [batch, num_classes], float32.
        """
        spec = self.spec
        outputs = self._stem(images, train=train)
        logits: list[jax.Array] = []
        answers, scores = [], []
        # Where they only classify images, the last answer alone is computed.
        of_all = train or self.is_initializing() or spec.exits.fusion != "none"
        for blocks in spec.parts:
            self._run(blocks, outputs, train=train)
            if of_all or blocks == spec.parts[-1]:
                x = outputs.last
                if spec.connections.topology.is_free:
                    x = self.connections(spec.connections.topology.classifier, outputs)
                logits.append(self._classify(blocks[-1], x, train=train))
                answers.append(self.fusion(logits, x))
                scores.append(self._score(blocks[-1], answers[-1], x))
        if train and spec.exits.after:
            self.sow(EXITS, "answers", jnp.stack(answers[:-1]))
            self.sow(EXITS, "scores", jnp.stack(scores[:-1]))
        return answers[-1]


@flax.struct.dataclass
class Handover:
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
        self, before: jax.Array | Handover
    ) -> tuple[Handover, jax.Array, jax.Array]:
        """Runs the part as evaluated, not as trained.

        Args:
          before: normalised images for part 0, else what the part before hands on.

        Returns:
          What is handed on; the answer, [batch, classes]; and how sure it is, as
          learned, [batch], 0 where that is not.
        """
        spec = self.spec
        if isinstance(before, Handover):
            logits = list(before.logits)
            outputs = BlockOutputs.resumed(
                before.outputs, normalise=spec.connections.normalise_sources
            )
        else:
            logits, outputs = [], self._stem(before, train=False)
        blocks = spec.parts[self.number]
        self._run(blocks, outputs, train=False)
        logits.append(self._classify(blocks[-1], outputs.last, train=False))
        answer = self.fusion(logits, outputs.last)
        handover = Handover(
            outputs=outputs.kept(spec.read_after(blocks[-1])),
            logits=() if spec.exits.fusion == "none" else tuple(logits),
        )
        return handover, answer, self._score(blocks[-1], answer, outputs.last)


def architecture(spec: BackboneSpec, params: Any) -> Any:
    """Marks the parameters that say what a network is: its gates and its mixtures.

    These take no weight decay and have a learning rate of their own, or are searched.
    For the parameters of a `Backbone`, or anything of the same structure, it returns
    that structure with booleans for leaves.
    """
    marks = jax.tree.map(lambda _: False, params)
    if "connections" in params:
        marks["connections"] = Connections.architecture(params["connections"])
    for i in spec.mixed:
        if (block := f"block_{i}") in params:
            marks[block] = MixedBlock.architecture(params[block])
    return marks


def with_form(model: Backbone, form: str) -> Backbone:
    """Returns the same network, with its sums computed in another form."""
    connections = dataclasses.replace(model.spec.connections, form=form)
    spec = dataclasses.replace(model.spec, connections=connections)
    return model.clone(spec=spec)


def uncompacted(model: Backbone) -> Backbone:
    """Returns the same network, with what examples skip computed and masked."""
    if model.spec.conditional is None:
        return model
    gating = dataclasses.replace(model.spec.conditional, compact=False)
    return model.clone(spec=dataclasses.replace(model.spec, conditional=gating))
