"""Collective operations of a compiled program: the bytes sent between chips."""

import dataclasses
import math
import re
from collections.abc import Sequence

from dresnet_jax.costs import hlo
from dresnet_jax.costs.hlo import Instruction

# Bytes that a chip sends, as a multiple of (k - 1) / k of the array, of k chips in a
# ring: Patarasuk and Yuan (2009).
_RING = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "all-to-all": 1}
_ONE_TO_ONE = "collective-permute"
KINDS = (*_RING, _ONE_TO_ONE)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program.

    Attributes:
      kind: one of `KINDS`.
      bytes: of the array that is reduced, gathered or exchanged, as one chip holds it
        whole.
      chips: that take part; of slices, how many slices.
      across_slices: whether it leaves the slice, through the hosts' network.
    """

    kind: str
    bytes: int
    chips: int
    across_slices: bool = False

    @property
    def sent_bytes(self) -> float:
        """Bytes that a chip sends, if the chips are a ring."""
        if self.kind == _ONE_TO_ONE:
            return self.bytes
        return _RING[self.kind] * self.bytes * (self.chips - 1) / self.chips


def of(program: str, chips: int, slices: int = 1) -> list[Collective]:
    """Returns the collectives of a program, each once, in the order of its text.

    In a loop one is counted once too, however often the loop turns.

    Args:
      program: text of the compiled program.
      chips: that it runs on, in all.
      slices: of which they are made up.
    """
    instructions = hlo.instructions(program.splitlines())
    result = []
    for instruction in instructions.values():
        operands = hlo.operand_bytes(instruction, instructions)
        across = _across_slices(instruction)
        kind = across or instruction.operation.removesuffix("-start")
        if kind in KINDS:
            k = slices if across else _chips(instruction) or chips // slices
            whole = operands * k if kind == "all-gather" else operands
            result.append(Collective(kind, whole, k, across_slices=bool(across)))
    return result


@dataclasses.dataclass(frozen=True)
class Group:
    """The collectives of one kind that go the same way.

    Attributes:
      kind: one of `KINDS`.
      across_slices: whether they leave the slice.
      count: how many.
      bytes: of their arrays, together.
      largest_bytes: of the largest one's array.
      sent_bytes: that a chip sends for them, in rings.
    """

    kind: str
    across_slices: bool
    count: int
    bytes: int
    largest_bytes: int
    sent_bytes: float


def grouped(result: Sequence[Collective]) -> list[Group]:
    """Groups collectives by kind, those within a slice first."""
    groups: dict[tuple[bool, str], list[Collective]] = {}
    for collective in result:
        key = collective.across_slices, collective.kind
        groups.setdefault(key, []).append(collective)
    return [
        Group(
            kind=kind,
            across_slices=across,
            count=len(group),
            bytes=sum(one.bytes for one in group),
            largest_bytes=max(one.bytes for one in group),
            sent_bytes=sum(one.sent_bytes for one in group),
        )
        for (across, kind), group in sorted(groups.items())
    ]


def _chips(instruction: Instruction) -> int | None:
    """How many chips take part in one; None for all of a slice.

    Groups are listed, {{0,1},{2,3}}, or counted, [groups,chips]<=[...], or some axes of
    a mesh, mesh['a'=2,'b'=4] {'b'}.
    """
    rest = instruction.rest
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"('\w+')=(\d+)", match[1]))
        # A part of an axis is 'a':(before)size.
        axes = re.findall(r"('\w+')(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return None


def _across_slices(instruction: Instruction) -> str | None:
    """The kind of collective that hosts do for chips of several slices, if it is one.

    To the chip it is data sent to its host, and received from it.
    """
    if instruction.operation != "send":
        return None
    match = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
    if not match:
        return None
    kind = match[1].lower().replace("_", "-")
    return kind if kind in KINDS else _ONE_TO_ONE
