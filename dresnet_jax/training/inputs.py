"""Input pipelines: examples lie in device memory (resident), or are streamed."""

import contextlib
import dataclasses
import itertools
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from dresnet_jax.data import catalog, pipeline, sources, streaming
from dresnet_jax.data.calls import Call
from dresnet_jax.errors import UserError, pick
from dresnet_jax.training import sharding

Splits = Mapping[str, sources.Examples]

# Of a device's memory, what a resident set may take. The rest is the model's; on a CPU
# the host's own copies, while it reads, are in it too.
_RESIDENT_SHARE = 0.25
_MIB = 2**20


class StepInputs(NamedTuple):
    """What one call of the compiled program reads besides the state; a pytree.

    Attributes:
      fixed: arrays that stay on the devices from call to call, the same for every seed.
      own: arrays of this call.
    """

    fixed: Any
    own: Any


class Data(NamedTuple):
    """The data of a run, ready for use.

    Attributes:
      splits: as the input pipeline reads them.
      fixed: what of the training split lies on the devices, as in `StepInputs`.
    """

    splits: Splits
    fixed: Any


# The inputs of each call of a run, and how many records it skips.
Fetched = Generator[tuple[StepInputs, int]]


class InputPipeline(Protocol):
    """How examples reach the devices."""

    @property
    def description(self) -> str:
        """One line on the pipeline and why it was chosen."""

    def abstract(self, steps: int) -> StepInputs:
        """Returns shapes, dtypes and shardings of the inputs of a call of n steps."""

    def batch(
        self, inputs: StepInputs, key: jax.Array, step: jax.Array, i: jax.Array
    ) -> pipeline.Batch:
        """Makes the batch of the i-th step of a call, inside the compiled program."""

    def open(self, splits: Splits) -> Splits:
        """Returns the splits as this pipeline reads them."""

    def place(self, splits: Splits) -> Data:
        """Puts the training split on the devices, if it stays there."""

    def data(self, data: Data, seed: int, calls: Sequence[Call]) -> Fetched:
        """Yields the inputs of each call of a run, and how many records it skips.

        Another record takes the place of each corrupt one that is skipped.
        """

    def read(self, batches: streaming.Batches) -> Iterable[streaming.HostBatch]:
        """Reads the batches of an evaluation."""


@dataclasses.dataclass(frozen=True)
class Resident:
    """The whole training split lies in device memory, as uint8.

    Attributes:
      recipe: how batches are made.
      mesh: the devices.
      num_examples: of the training split.
      sharded: whether each device holds a part; else each holds the whole.
      reason: why this pipeline was chosen.
    """

    recipe: pipeline.Recipe
    mesh: Mesh
    num_examples: int
    sharded: bool
    reason: str

    @property
    def description(self) -> str:
        parts = f"in {self.mesh.size} parts" if self.sharded else "whole on each device"
        return f"resident, {parts}: {self.reason}"

    def abstract(self, steps: int) -> StepInputs:
        """Returns images and labels, fixed, and the epoch's order."""
        del steps
        everywhere = sharding.replicated(self.mesh)
        order = jax.ShapeDtypeStruct(
            (self.num_examples,), jnp.int32, sharding=everywhere
        )
        rows = (self._filled_up,)
        return StepInputs(_abstract_examples(self.recipe, rows, self._place), order)

    def batch(
        self, inputs: StepInputs, key: jax.Array, step: jax.Array, i: jax.Array
    ) -> pipeline.Batch:
        del i
        images, labels = inputs.fixed
        pixels, labels = pipeline.take(self.recipe, images, labels, inputs.own, step)
        return pipeline.train_batch(self.recipe, pixels, labels, key, step)

    def open(self, splits: Splits) -> Splits:
        """Loads the splits into the host's memory."""
        view, skip_corrupt = self.recipe.view, self.recipe.skip_corrupt
        return {
            name: sources.load(examples, view.evaluate, skip_corrupt=skip_corrupt)
            for name, examples in splits.items()
        }

    def place(self, splits: Splits) -> Data:
        examples = splits["train"]
        assert isinstance(examples, sources.Arrays), "of another pipeline's `open`"
        more = self._filled_up - len(examples)

        def placed(array: np.ndarray) -> jax.Array:
            if more:
                array = np.pad(array, ((0, more), *((0, 0),) * (array.ndim - 1)))
            return sharding.put(array, self._place)

        return Data(splits, (placed(examples.images), placed(examples.labels)))

    def data(self, data: Data, seed: int, calls: Sequence[Call]) -> Fetched:
        """Yields the same images and labels for each call, and its epoch's order."""
        examples = data.splits["train"]
        assert isinstance(examples, sources.Arrays), "of another pipeline's `place`"
        skipped, everywhere = len(examples.corrupt), sharding.replicated(self.mesh)
        steps_per_epoch = self.recipe.steps_per_epoch(len(examples))
        by_epoch = itertools.groupby(calls, lambda call: call.start // steps_per_epoch)
        for epoch, group in by_epoch:
            order = pipeline.epoch_order(seed, epoch, len(examples))
            inputs = StepInputs(data.fixed, sharding.put(order, everywhere))
            for _ in group:
                yield inputs, skipped
                skipped = 0

    def read(self, batches: streaming.Batches) -> Iterable[streaming.HostBatch]:
        return (batches[i] for i in range(len(batches)))

    @property
    def _filled_up(self) -> int:
        parts = self.mesh.size if self.sharded else 1
        return -(-self.num_examples // parts) * parts

    @property
    def _place(self) -> jax.sharding.NamedSharding:
        if self.sharded:
            return sharding.split_batch(self.mesh)
        return sharding.replicated(self.mesh)


@dataclasses.dataclass(frozen=True)
class Streaming:
    """Batches are read from files, decoded on the host and sent ahead of their use.

    Attributes:
      recipe: how batches are made.
      mesh: the devices.
      threads: that read, in every process that reads.
      workers: processes that read, next to each that trains; 0 for none.
      reason: why this pipeline was chosen.
    """

    recipe: pipeline.Recipe
    mesh: Mesh
    threads: int
    workers: int
    reason: str

    @property
    def description(self) -> str:
        readers = f"{self.workers} processes of " if self.workers else ""
        return f"streaming, {readers}{self.threads} threads: {self.reason}"

    def abstract(self, steps: int) -> StepInputs:
        """Returns images and labels, [steps, batch, ...]."""
        rows = (steps, self.recipe.batch_size)
        place = sharding.split_batch(self.mesh, axis=1)
        return StepInputs((), _abstract_examples(self.recipe, rows, place))

    def batch(
        self, inputs: StepInputs, key: jax.Array, step: jax.Array, i: jax.Array
    ) -> pipeline.Batch:
        pixels, labels = (array[i] for array in inputs.own)
        return pipeline.train_batch(self.recipe, pixels, labels, key, step)

    def open(self, splits: Splits) -> Splits:
        return splits

    def place(self, splits: Splits) -> Data:
        return Data(splits, ())

    def data(self, data: Data, seed: int, calls: Sequence[Call]) -> Fetched:
        """Yields the images and labels of each call's steps."""
        rows = sharding.local_rows(self.mesh, self.recipe.batch_size)
        place = sharding.split_batch(self.mesh, axis=1)

        def to_devices(batch: streaming.HostBatch) -> tuple[StepInputs, int]:
            arrays = batch.images, batch.labels
            own = jax.make_array_from_process_local_data(place, arrays)
            return StepInputs((), own), int((~batch.mask).sum())

        examples = data.splits["train"]
        batches = streaming.TrainBatches(examples, self.recipe, seed, rows, calls)
        ahead = streaming.read_ahead(batches, self.threads, self.workers, to_devices)
        # Ends the readers where the run ends early.
        with contextlib.closing(ahead):
            yield from ahead

    def read(self, batches: streaming.Batches) -> Iterable[streaming.HostBatch]:
        return streaming.read_ahead(batches, self.threads, self.workers)


def _abstract_examples(
    recipe: pipeline.Recipe, rows: tuple[int, ...], place: jax.sharding.NamedSharding
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Images, [*rows, height, width, channels], and labels, [*rows]."""
    view = recipe.view
    images = (*rows, view.size, view.size, view.channels)
    return (
        jax.ShapeDtypeStruct(images, jnp.uint8, sharding=place),
        jax.ShapeDtypeStruct(rows, jnp.int32, sharding=place),
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

    def place(self, splits: Splits) -> Data:
        first, rest = self._parts(splits["train"])
        fixed = self.first.place(first).fixed, self.rest.place(rest).fixed
        return Data(splits, fixed)

    def data(self, data: Data, seed: int, calls: Sequence[Call]) -> Fetched:
        first, rest = map(Data, self._parts(data.splits["train"]), data.fixed)
        with (
            contextlib.closing(self.first.data(first, seed, calls)) as of_first,
            contextlib.closing(self.rest.data(rest, seed, calls)) as of_rest,
        ):
            for (one, skipped), (other, more) in zip(of_first, of_rest, strict=True):
                yield _joined(one, other), skipped + more

    def _parts(self, train: sources.Examples) -> tuple[Splits, Splits]:
        first, rest = train.part(0, self.count), train.part(self.count, len(train))
        return {"train": first}, {"train": rest}

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


def choose(
    config: ml_collections.ConfigDict,
    dataset: catalog.Dataset,
    recipe: pipeline.Recipe,
    mesh: Mesh,
    device_bytes: int,
) -> InputPipeline:
    """Chooses the pipeline that `config.data.mode` names; `auto`: by size and memory.

    Raises:
      UserError: the mode is unknown, or resident is asked for and not possible.
    """
    pick("data.mode", config.mode, dict.fromkeys(("auto", "resident", "streaming")))
    needed = dataset.splits["train"] * recipe.view.size**2 * recipe.view.channels
    room = int(_RESIDENT_SHARE * device_bytes)
    size = f"{needed / _MIB:,.1f} MiB of images"
    obstacle = None
    if not dataset.fixed_size:
        obstacle = f"the images of {dataset.name} differ in size"
    elif recipe.view.augments:
        obstacle = "min_crop_area and rand_augment_layers work on the host"
    elif needed > room * mesh.size:
        obstacle = (
            f"{size} are more than a quarter of the memory of {mesh.size} devices, "
            f"{room * mesh.size / _MIB:,.0f} MiB"
        )
    if config.mode == "resident" and obstacle:
        raise UserError(f"data.mode = resident is not possible: {obstacle}.")
    if config.mode == "streaming" or obstacle:
        reason = obstacle or "as the config says"
        return Streaming(recipe, mesh, config.num_threads, config.num_workers, reason)
    reason = f"{size}, of at most {room / _MIB:,.0f} MiB a device"
    return Resident(recipe, mesh, dataset.splits["train"], needed > room, reason)
