"""Two input pipelines, each of a part of the training split, for a search."""

import contextlib
import dataclasses
from collections.abc import Generator, Iterable, Sequence

import jax

from dresnet_jax.data import pipeline, sources, streaming
from dresnet_jax.data.calls import Call
from dresnet_jax.errors import UserError
from dresnet_jax.training.inputs import (
    InputPipeline,
    Resident,
    Splits,
    StepInputs,
    TrainSplit,
)


@dataclasses.dataclass(frozen=True)
class Divided:
    """Two pipelines side by side, each with a part of the training split of its own.

    `batch` is of the first part. Both parts of `StepInputs` are pairs, of the first and
    the second pipeline.

    Attributes:
      first: of the first examples.
      rest: of the others.
      count: of the first examples.
    """

    first: InputPipeline
    rest: InputPipeline
    count: int

    @property
    def description(self) -> str:
        return f"{self.first.description}; {self.count} examples for the network alone"

    def abstract(self, steps: int) -> StepInputs:
        return _joined(self.first.abstract(steps), self.rest.abstract(steps))

    def batch(
        self, inputs: StepInputs, key: jax.Array, step: jax.Array, i: jax.Array
    ) -> pipeline.Batch:
        """Makes the batch of the first part, of the i-th step of a call."""
        first = StepInputs(inputs.fixed[0], inputs.own[0])
        return self.first.batch(first, key, step, i)

    def other_batch(
        self, inputs: StepInputs, key: jax.Array, step: jax.Array, i: jax.Array
    ) -> pipeline.Batch:
        """Makes the batch of the rest, augmented by other random numbers."""
        key = pipeline.derive_key(key, "search")
        rest = StepInputs(inputs.fixed[1], inputs.own[1])
        return self.rest.batch(rest, key, step, i)

    def open(self, splits: Splits) -> Splits:
        """Returns the splits as the pipelines read them, still whole."""
        return self.first.open(splits)

    def place(self, examples: sources.Examples) -> TrainSplit:
        parts = sources.divided(examples, self.count)
        first, rest = self.first.place(parts[0]), self.rest.place(parts[1])
        return TrainSplit(examples, (first.fixed, rest.fixed))

    def data(
        self, split: TrainSplit, seed: int, calls: Sequence[Call]
    ) -> Generator[tuple[StepInputs, int]]:
        parts = sources.divided(split.examples, self.count)
        first, rest = map(TrainSplit, parts, split.fixed)
        with (
            contextlib.closing(self.first.data(first, seed, calls)) as of_first,
            contextlib.closing(self.rest.data(rest, seed, calls)) as of_rest,
        ):
            for (one, skipped), (other, more) in zip(of_first, of_rest, strict=True):
                yield _joined(one, other), skipped + more

    def read(self, batches: streaming.Batches) -> Iterable[streaming.HostBatch]:
        return self.first.read(batches)


def _joined(*parts: StepInputs) -> StepInputs:
    return StepInputs(*zip(*parts, strict=True))


def divide(
    whole: InputPipeline, share: float, num_examples: int, batch_size: int
) -> Divided:
    """Divides a pipeline, so that the last share of the split is a part of its own.

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
    if not isinstance(whole, Resident):
        return Divided(whole, whole, count)
    first, last = (dataclasses.replace(whole, num_examples=n) for n in (count, rest))
    return Divided(first, last, count)
