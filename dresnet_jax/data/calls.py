"""Steps by how many are dispatched together."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple


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
      starts: of each, the steps done before.
    """

    starts: range

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Any) -> Any:
        result = self.starts[index]
        return SingleSteps(result) if isinstance(result, range) else Call(result, 1)


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
        return SingleSteps(range(start, end))
    calls = []
    while start < end:
        stop = min(end, *((start // every + 1) * every for every in ends))
        for steps in (steps_per_call, 1):
            while start + steps <= stop:
                calls.append(Call(start, steps))
                start += steps
    return calls
