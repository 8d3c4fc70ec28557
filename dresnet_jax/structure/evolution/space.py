"""The structures that evolution chooses among: depths, widths, connections, blocks."""

import dataclasses
from collections.abc import Sequence

import ml_collections
import numpy as np

from dresnet_jax import defaults
from dresnet_jax.errors import UserError, pick
from dresnet_jax.models import zoo
from dresnet_jax.models.backbone_spec import BackboneSpec
from dresnet_jax.models.blocks import BLOCKS
from dresnet_jax.structure import widening
from dresnet_jax.structure.pruning import Network
from dresnet_jax.training import experiment

Edge = tuple[int, int]
# A place for a block: (stage, place in the stage), from 0.
Slot = tuple[int, int]
# Of training: its second half needs two changes of the loss.
_FEWEST_STEPS = 6


@dataclasses.dataclass(frozen=True)
class Structure:
    """What a network's structure is.

    Attributes:
      block: its kind.
      blocks_per_stage: how many there are.
      hidden: channels between the convolutions of each block; () where their number
        cannot be chosen.
      edges: the learned connections, (reader, source), blocks from 1, sorted.
    """

    block: str
    blocks_per_stage: tuple[int, ...]
    hidden: tuple[int, ...]
    edges: tuple[Edge, ...]

    @property
    def slots(self) -> list[Slot]:
        """The place of each block."""
        return _slots(self.blocks_per_stage)

    @property
    def pairs(self) -> set[tuple[Slot, Slot]]:
        """The places of both ends of each connection."""
        slots = self.slots
        return {(slots[i - 1], slots[k - 1]) for i, k in self.edges}

    @property
    def channels(self) -> dict[Slot, int]:
        """`hidden` by the place of the block."""
        return dict(zip(self.slots, self.hidden, strict=False))

    def is_within(self, other: "Structure") -> bool:
        """Checks whether another one has all that this has."""
        return (
            self.block == other.block
            and set(self.slots) <= set(other.slots)
            and all(n <= other.channels[slot] for slot, n in self.channels.items())
            and self.pairs <= other.pairs
        )

    def config(self, base: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """Returns the config of a network of this structure."""
        return defaults.replace(
            base,
            {
                "model.block": self.block,
                "model.blocks_per_stage": self.blocks_per_stage,
                "model.hidden": self.hidden or None,
                "model.connections.topology": self.edges or "none",
            },
        )


@dataclasses.dataclass(frozen=True)
class Space:
    """Structures as vectors of whole numbers, genes.

    In this order: the kind of block; of each stage the blocks beyond the fewest, and
    the place of its width; and whether each connection is there.

    Attributes:
      blocks: kinds of block.
      fewest: blocks of each stage.
      depths: most blocks of each stage.
      hidden: by kind, of each slot, the channels that its blocks may have, one for each
        width; () where their number cannot be chosen.
      widths: how many there are.
      pairs: connections that may be there, (reader, source).
    """

    blocks: tuple[str, ...]
    fewest: tuple[int, ...]
    depths: tuple[int, ...]
    hidden: dict[str, tuple[tuple[int, ...], ...]]
    widths: int
    pairs: tuple[tuple[Slot, Slot], ...]

    @property
    def limits(self) -> np.ndarray:
        """The largest value of each gene; the smallest is 0."""
        stages = len(self.depths)
        return np.asarray(
            [
                len(self.blocks) - 1,
                *np.subtract(self.depths, self.fewest),
                *((self.widths - 1,) * stages),
                *((1,) * len(self.pairs)),
            ]
        )

    @property
    def size(self) -> int:
        """How many vectors of genes there are; some are of the same structure."""
        return int(np.prod((self.limits + 1).astype(object)))

    def structure(self, genes: Sequence[int] | np.ndarray) -> Structure:
        """Returns the structure that genes are of."""
        kind, *rest = map(int, genes)
        stages, block = len(self.depths), self.blocks[kind]
        depths = tuple(int(n) for n in np.add(self.fewest, rest[:stages]))
        widths, there = rest[stages : 2 * stages], rest[2 * stages :]
        places = self._places(block)
        numbers = {slot: i for i, slot in enumerate(_slots(depths), 1)}
        edges = [
            (numbers[reader], numbers[source])
            for (reader, source), bit in zip(self.pairs, there, strict=True)
            if bit and reader in numbers and source in numbers
        ]
        return Structure(
            block=block,
            blocks_per_stage=depths,
            hidden=tuple(places[slot][widths[slot[0]]] for slot in numbers if places),
            # The block before is read at weight 1.
            edges=tuple(sorted((i, k) for i, k in edges if i - k > 1)),
        )

    def _places(self, block: str) -> dict[Slot, tuple[int, ...]]:
        """The channels that each slot may have."""
        return dict(zip(_slots(self.depths), self.hidden[block], strict=False))

    def genes(self, structure: Structure) -> np.ndarray:
        """Returns the genes of a structure of the space; 0 for what it does not use."""
        own, there = structure.channels, structure.pairs
        places = self._places(structure.block)

        def width(stage: int) -> int:
            """Returns the first that all blocks of a stage have; 0 where none is."""
            slots = [slot for slot in own if slot[0] == stage]
            return next(
                i
                for i in range(self.widths)
                if all(places[slot][i] == own[slot] for slot in slots)
            )

        return np.asarray(
            [
                self.blocks.index(structure.block),
                *np.subtract(structure.blocks_per_stage, self.fewest),
                *map(width, range(len(self.depths))),
                *(pair in there for pair in self.pairs),
            ],
            dtype=int,
        )


def of_config(config: ml_collections.ConfigDict) -> Space:
    """Returns the space that `config.evolution` asks for.

    Raises:
      UserError: a value is wrong, or the network cannot have what is asked for.
    """
    asked = config.evolution
    exp = experiment.build(config)
    spec = exp.model.spec
    if exp.num_steps < _FEWEST_STEPS:
        raise UserError(
            f"train.num_steps = {exp.num_steps} must be at least {_FEWEST_STEPS} for "
            "evolution, which measures how steady training is."
        )
    kinds = tuple(asked.blocks) or (spec.block,)
    for kind in kinds:
        pick("evolution.blocks", kind, BLOCKS)
    stages = len(spec.blocks_per_stage)
    depths = tuple(asked.max_blocks or spec.blocks_per_stage)
    fewest = tuple(asked.min_blocks or (1,) * stages)
    if not len(depths) == len(fewest) == stages or any(
        not 1 <= least <= most for least, most in zip(fewest, depths, strict=True)
    ):
        raise UserError(
            f"evolution.min_blocks = {fewest} and max_blocks = {depths} must be "
            f"{stages} numbers above 0 each, one for each stage, and the most not "
            "below the fewest."
        )
    widths = tuple(asked.widths)
    if not widths or not all(0 < width < np.inf for width in widths):
        raise UserError(f"evolution.widths = {widths} must be numbers above 0.")
    if config.model.hidden is not None:
        raise UserError("evolution chooses model.hidden: leave it None.")
    hidden = {kind: _hidden(config, kind, depths) for kind in kinds}
    if asked.edges:
        _check_maskable(config, spec)
    slots = _slots(depths) if asked.edges else []
    pairs = tuple((slots[i], slots[k]) for i in range(len(slots)) for k in range(i - 1))
    return Space(kinds, fewest, depths, hidden, len(widths), pairs)


def _hidden(
    config: ml_collections.ConfigDict, kind: str, depths: tuple[int, ...]
) -> tuple[tuple[int, ...], ...]:
    """Of each slot, its channels at each width: whole buckets, one at least."""
    exp = experiment.build(Structure(kind, depths, (), ()).config(config))
    spec = exp.model.spec
    if any(spec.fixed_hidden(i) for i in range(1, len(spec.stages) + 1)):
        return ()
    own = widening.hidden_channels(Network(exp, exp.create_state(abstract=True)))
    bucket, widths = config.growth.bucket, config.evolution.widths
    return tuple(
        tuple(max(1, round(width * n / bucket)) * bucket for width in widths)
        for n in own
    )


def _check_maskable(config: ml_collections.ConfigDict, spec: BackboneSpec) -> None:
    """Checks that connections which are left out are as if they were not there."""
    connections = config.model.connections
    if not zoo.MODELS[config.model.name].connected:
        raise UserError(
            f"evolution.edges: {config.model.name} has no learned connections; "
            f"d{config.model.name} has, or take --config.evolution.edges=False."
        )
    if spec.connections.topology.is_free:
        raise UserError("evolution.edges needs connections.base = fixed.")
    for field, needed in (("projection", "per_edge"), ("weights", "per_edge")):
        if connections[field] != needed:
            raise UserError(
                f"evolution.edges needs connections.{field} = {needed}, not "
                f"{connections[field]}."
            )
    if connections.gate == "softmax":
        raise UserError(
            "evolution.edges: gate 'softmax' shares 1 among all sources of a block, "
            "those too that are left out."
        )


def _slots(blocks_per_stage: Sequence[int]) -> list[Slot]:
    return [
        (stage, place)
        for stage, blocks in enumerate(blocks_per_stage)
        for place in range(blocks)
    ]
