"""The text of a compiled program: its instructions, and what memory they move."""

import collections
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_SHAPE = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?(%?[\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
# They move nothing, or what they move is counted where it starts.
_FREE = {
    *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all"),
    *("copy-done", "slice-done", "all-reduce-done"),
}
# What the compiler loads ahead into the chip's own memory.
_PREFETCH = {"copy-start", "slice-start"}


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


def traffic(program: str) -> dict[str, float]:
    """Sums the bytes that instructions move, by part of the network.

    Sizes of results and operands of each instruction outside of fusions and loops, in
    the text of a compiled program; a little different from the compiler's own sum.

    Returns:
      {part: bytes}, the largest first: "forward, connections: dot_general" and so on.
    """
    lines = program[program.index("ENTRY") :].splitlines()[1:]
    result = instructions(lines)
    parts: collections.Counter[str] = collections.Counter()
    for instruction in result.values():
        shape, operation, rest = instruction
        if operation in _FREE:
            continue
        operands = operand_bytes(instruction, result)
        if operation == "copy-start":
            # Its result names both ends of the copy.
            moved = size(shape)
        elif operation == "slice-start":
            moved = 2 * (size(shape) - operands)
        else:
            moved = size(shape) + operands
        parts[_part(operation, rest)] += moved
    return dict(parts.most_common())


def _part(operation: str, rest: str) -> str:
    if operation in _PREFETCH or "ConcatBitcast" in rest:
        return "loads ahead by the compiler"
    match = re.search(r'op_name="([^"]*)"', rest)
    name = match[1] if match else ""
    direction = "backward" if "transpose(" in name else "forward"
    if connection := re.search(r"/connections/(?:\w+/)*(\w+)", name):
        return f"{direction}, connections: {connection[1]}"
    if part := re.search(r"/(block|stem|head)", name):
        return f"{direction}, {part[1]}"
    if re.search(r"select_and|reduce_window_max", name):
        return f"{direction}, stem"
    return "optimiser and all else"
