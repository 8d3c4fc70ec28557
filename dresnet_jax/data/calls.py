"""Steps by how many are dispatched together."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, overload


class Call(NamedTuple):
    """Steps that are dispatched together.

    Attributes:
      start: steps done before.
      steps: how many.
    """

    start: int
    steps: int


@dataclasses.dataclass(frozen=True)
class SingleSteps(Sequence[Call]):
    """Calls of one step each, however many: none is made before it is asked for.

    Attributes:
      start: steps done before.
      end: the last step.
    """

    start: int
    end: int

    def __len__(self) -> int:
        return max(0, self.end - self.start)

    @overload
    def __getitem__(self, index: int) -> Call: ...
    @overload
    def __getitem__(self, index: slice) -> list[Call]: ...
    def __getitem__(self, index: int | slice) -> Call | list[Call]:
        """One of them, or some."""
        steps = range(self.start, self.end)[index]
        if isinstance(steps, range):
            return [Call(step, 1) for step in steps]
        return Call(steps, 1)


def divided(
    start: int, end: int, steps_per_call: int, ends: Sequence[int]
) -> Sequence[Call]:
    """Divides steps into calls.

    Steps left over before an end are dispatched one by one.

    Args:
      start: steps done.
      end: the last step.
      steps_per_call: steps dispatched together.
      ends: no call goes past a multiple of any of these.
    """
    if steps_per_call == 1:
        return SingleSteps(start, end)
    calls = []
    while start < end:
        stop = min(end, *((start // every + 1) * every for every in ends))
        for steps in (steps_per_call, 1):
            while start + steps <= stop:
                calls.append(Call(start, steps))
                start += steps
    return calls
