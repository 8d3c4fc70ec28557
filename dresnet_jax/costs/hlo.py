"""The text of a compiled program: its instructions, and the sizes of their arrays."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_SHAPE = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?(%?[\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
      shape: text of the result's.
      operation: such as "all-reduce".
      rest: the operands, a closing bracket, and what else is said of it.
    """

    shape: str
    operation: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Their names."""
        return re.findall(r"%[\w.\-]+", self.rest.split("), ")[0])


def instructions(lines: Iterable[str]) -> dict[str, Instruction]:
    """Returns the instructions among the lines of a program, by name."""
    matches = filter(None, map(_INSTRUCTION.match, lines))
    return {match[1]: Instruction(match[2], match[3], match[4]) for match in matches}


def size(shape: str) -> int:
    """Returns bytes of all arrays in the text of a shape."""
    return sum(
        math.prod(map(int, filter(None, dimensions.split(","))))
        * (1 if name == "pred" else max(1, int(bits) // 8))
        for name, bits, dimensions in _SHAPE.findall(shape)
    )


def operand_bytes(
    instruction: Instruction, instructions: Mapping[str, Instruction]
) -> int:
    """Returns bytes of the operands that are results of other instructions."""
    names = filter(instructions.__contains__, instruction.operands)
    return sum(size(instructions[name].shape) for name in names)
