"""The text of a compiled program: its instructions, and the sizes of their arrays."""

import re
from collections.abc import Iterable
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
    total = 0
    for name, bits, dimensions in _SHAPE.findall(shape):
        elements = 1
        for dimension in filter(None, dimensions.split(",")):
            elements *= int(dimension)
        total += elements * (1 if name == "pred" else max(1, int(bits) // 8))
    return total
