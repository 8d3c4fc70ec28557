"""Where a compiled program's memory traffic goes, by part of the network."""

import collections
import re

from dresnet_jax.costs import hlo
from dresnet_jax.costs.hlo import size

# They move nothing, or what they move is counted where it starts.
_FREE = {
    *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all"),
    *("copy-done", "slice-done", "all-reduce-done"),
}
# What the compiler loads ahead into the chip's own memory.
_PREFETCH = {"copy-start", "slice-start"}


def by_part(program: str) -> dict[str, float]:
    """Sums the bytes that a program's instructions move, by part of the network.

    Sizes of results and operands of each instruction outside of fusions and loops,
    which differs a little from the compiler's own sum.

    Args:
      program: text of the compiled program.

    Returns:
      {part: bytes}, the largest first: "forward, connections: dot_general" and so on.
    """
    lines = program[program.index("ENTRY") :].splitlines()[1:]
    instructions = hlo.instructions(lines)
    parts: collections.Counter[str] = collections.Counter()
    for instruction in instructions.values():
        shape, operation, rest = instruction
        if operation in _FREE:
            continue
        operands = hlo.operand_bytes(instruction, instructions)
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
    found = re.search(r'op_name="([^"]*)"', rest)
    name = found[1] if found else ""
    direction = "backward" if "transpose(" in name else "forward"
    if connection := re.search(r"/connections/(?:\w+/)*(\w+)", name):
        return f"{direction}, connections: {connection[1]}"
    if part := re.search(r"/(block|stem|head)", name):
        return f"{direction}, {part[1]}"
    if re.search(r"select_and|reduce_window_max", name):
        return f"{direction}, stem"
    return "optimiser and all else"
