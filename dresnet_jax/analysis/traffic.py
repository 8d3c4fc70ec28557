"""Where a compiled program's memory traffic goes, by part of the network."""

import collections
import re

_SHAPE = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?(%?[\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
# They move nothing, or what they move is counted where it starts.
_FREE = {
    *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all"),
    *("copy-done", "slice-done", "all-reduce-done"),
}
# What the compiler loads ahead into the chip's own memory.
_PREFETCH = {"copy-start", "slice-start"}


def by_part(hlo: str) -> dict[str, float]:
    """Bytes read and written by a program's instructions, by part of the network.

    Sizes of results and operands of each instruction outside of fusions and loops,
    which differs a little from the compiler's own sum.

    Args:
      hlo: text of the compiled program.

    Returns:
      {part: bytes}, the largest first: "forward, connections: dot_general" and so on.
    """
    instructions = {}
    for line in hlo[hlo.index("ENTRY") :].splitlines()[1:]:
        if match := _INSTRUCTION.match(line):
            instructions[match[1]] = match[2], match[3], match[4]
    parts: collections.Counter[str] = collections.Counter()
    for shape, operation, rest in instructions.values():
        if operation in _FREE:
            continue
        names = re.findall(r"%[\w.\-]+", rest.split("), ")[0])
        operands = sum(_size(instructions[n][0]) for n in names if n in instructions)
        size = _size(shape)
        if operation == "copy-start":
            # Its result names both ends of the copy.
            moved = size
        elif operation == "slice-start":
            moved = 2 * (size - operands)
        else:
            moved = size + operands
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


def _size(shape: str) -> int:
    """Bytes of all arrays in the text of a shape."""
    total = 0
    for name, bits, dimensions in _SHAPE.findall(shape):
        elements = 1
        for dimension in filter(None, dimensions.split(",")):
            elements *= int(dimension)
        total += elements * (1 if name == "pred" else max(1, int(bits) // 8))
    return total
