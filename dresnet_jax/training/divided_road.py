"""A road of two side by side, for a search with examples of its own."""

import contextlib
import dataclasses
from collections.abc import Generator, Iterable, Sequence
from typing import TypeVar

import jax

from dresnet_jax.data import pipeline, sources, streaming
from dresnet_jax.data.streaming import Call
from dresnet_jax.errors import UserError
from dresnet_jax.training import roads

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Divided:
    """Two roads side by side, each with a part of the training split of its own.

    `batch` is of the first part; the arrays of both are the data of a call.

    Attributes:
      first: of the first examples.
      rest: of the others.
      count: of the first examples.
    """

    first: roads.Road
    rest: roads.Road
    count: int

    @property
    def description(self) -> str:
        """One line on the road and why it was taken."""
        return f"{self.first.description}; {self.count} examples for the network alone"

    @property
    def num_placed(self) -> int:
        """How many arrays of a call's data are those of `place`: the first."""
        return self.first.num_placed + self.rest.num_placed

    def abstract(self, steps: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes, dtypes and shardings of the data of both."""
        return self._joined(self.first.abstract(steps), self.rest.abstract(steps))

    def batch(
        self, data: tuple[jax.Array, ...], key: jax.Array, step: jax.Array, i: jax.Array
    ) -> pipeline.Batch:
        """The batch of the first part, of the i-th step of a call."""
        return self.first.batch(self._parted(data)[0], key, step, i)

    def other_batch(
        self, data: tuple[jax.Array, ...], key: jax.Array, step: jax.Array, i: jax.Array
    ) -> pipeline.Batch:
        """The batch of the rest, augmented by other random numbers."""
        key = pipeline.derive_key(key, "search")
        return self.rest.batch(self._parted(data)[1], key, step, i)

    def open(self, splits: roads.Splits) -> roads.Splits:
        """The splits as the roads read them, still whole."""
        return self.first.open(splits)

    def place(self, examples: sources.Examples) -> roads.Placed:
        """Puts both parts of a training split where they stay."""
        parts = sources.divided(examples, self.count)
        first, rest = self.first.place(parts[0]), self.rest.place(parts[1])
        return roads.Placed(examples, (*first.arrays, *rest.arrays))

    def data(
        self, placed: roads.Placed, seed: int, calls: Sequence[Call]
    ) -> Generator[roads.CallData]:
        """The data of both parts."""
        parts, n = sources.divided(placed.examples, self.count), self.first.num_placed
        first = roads.Placed(parts[0], placed.arrays[:n])
        rest = roads.Placed(parts[1], placed.arrays[n:])
        with (
            contextlib.closing(self.first.data(first, seed, calls)) as of_first,
            contextlib.closing(self.rest.data(rest, seed, calls)) as of_rest,
        ):
            for one, other in zip(of_first, of_rest, strict=True):
                arrays = self._joined(one.arrays, other.arrays)
                yield roads.CallData(arrays, one.skipped + other.skipped)

    def read(self, batches: streaming.Batches) -> Iterable[streaming.HostBatch]:
        """The batches of an evaluation."""
        return self.first.read(batches)

    def _joined(self, first: tuple[T, ...], rest: tuple[T, ...]) -> tuple[T, ...]:
        """What is placed of both, then what is not."""
        n, m = self.first.num_placed, self.rest.num_placed
        return (*first[:n], *rest[:m], *first[n:], *rest[m:])

    def _parted(self, data: tuple[T, ...]) -> tuple[tuple[T, ...], tuple[T, ...]]:
        """The data of each; undoes `_joined`."""
        n, m = self.first.num_placed, self.rest.num_placed
        own = len(self.first.abstract(1)) - n
        placed, moved = data[: n + m], data[n + m :]
        return (*placed[:n], *moved[:own]), (*placed[n:], *moved[own:])


def divide(
    road: roads.Road, share: float, num_examples: int, batch_size: int
) -> Divided:
    """A road whose last share of the training split is a part of its own.

    Raises:
      UserError: the share leaves either part without a batch.
    """
    rest = round(share * num_examples)
    count = num_examples - rest
    if min(rest, count) < batch_size:
        raise UserError(
            f"search.share = {share} of {num_examples} training examples leaves parts "
            f"of {count} and {rest}: each must have a batch of {batch_size}."
        )
    if not isinstance(road, roads.Resident):
        return Divided(road, road, count)
    return Divided(
        dataclasses.replace(road, num_examples=count),
        dataclasses.replace(road, num_examples=rest),
        count,
    )
