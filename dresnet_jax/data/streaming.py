"""Batches that Grain reads from files while the devices compute.

Order and augmentation are pure functions of (seed, step), the same as of the resident
pipeline; each process reads only its own rows of a batch.
"""

import dataclasses
import functools
import math
import signal
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from dresnet_jax.data import sources
from dresnet_jax.data.calls import Call
from dresnet_jax.data.pipeline import Recipe, epoch_order

# Calls whose data wait on the devices.
_ON_DEVICES = 2


class HostBatch(NamedTuple):
    """The rows of a batch that one process reads.

    Attributes:
      images: [..., rows, height, width, channels], uint8.
      labels: [..., rows], int32.
      mask: [..., rows], bool; False where the example itself is not there: another
        stands in for it (training), or it is left out or past the end (evaluation).
    """

    images: np.ndarray
    labels: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """The batches of a run: one item a call, of [steps, rows, ...].

    Attributes:
      examples: the training split.
      recipe: how batches are made.
      seed: of the run.
      rows: the rows of the global batch that this process reads, [rows].
      calls: what the run dispatches.
    """

    examples: sources.Examples
    recipe: Recipe
    seed: int
    rows: np.ndarray
    calls: Sequence[Call]

    def __len__(self) -> int:
        return len(self.calls)

    def __getitem__(self, index: int) -> HostBatch:
        """Reads the batches of one call."""
        start, steps = self.calls[index]
        batches = [self._step(step) for step in range(start, start + steps)]
        return HostBatch(*(np.stack(parts) for parts in zip(*batches, strict=True)))

    def _step(self, step: int) -> HostBatch:
        recipe, examples = self.recipe, self.examples
        epoch, place = divmod(step, recipe.steps_per_epoch(len(examples)))
        order = epoch_order(self.seed, epoch, len(examples))
        indices = order[place * recipe.batch_size + self.rows].tolist()
        rows = []
        result = examples.read(indices)
        for row, index, example in zip(self.rows, indices, result, strict=True):
            seed = (self.seed, step, int(row))
            view = functools.partial(recipe.view.train, seed=seed)
            rows.append(self._readable(index, example, view))
        images, labels, mask = zip(*rows, strict=True)
        labels = np.asarray(labels, np.int32)
        return HostBatch(np.stack(images), labels, np.asarray(mask))

    def _readable(
        self, index: int, example: sources.Example, view: sources.HostImage
    ) -> tuple[np.ndarray, int, bool]:
        """An example's image and label, and whether they are its own.

        Where the config allows it, the next that can be read stands in for a corrupt
        one.
        """
        examples, skip_corrupt = self.examples, self.recipe.skip_corrupt
        for passed in range(len(examples)):
            pixels = sources.pixels(examples, index, example, view, skip_corrupt)
            if pixels is not None:
                return pixels, example.label, not passed
            index = (index + 1) % len(examples)
            (example,) = examples.read([index])
        raise sources.CorruptRecordError("No example can be read.")


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """The batches of an evaluation: every example exactly once, in order.

    Attributes:
      examples: the split.
      recipe: how batches are made.
      rows: the rows of the global batch that this process reads, [rows].
    """

    examples: sources.Examples
    recipe: Recipe
    rows: np.ndarray

    def __len__(self) -> int:
        return math.ceil(len(self.examples) / self.recipe.batch_size)

    def __getitem__(self, index: int) -> HostBatch:
        """Reads one batch; the rows after the last example are masked."""
        view, recipe = self.recipe.view, self.recipe
        indices = index * recipe.batch_size + self.rows
        real = [int(i) for i in indices if i < len(self.examples)]
        images = np.zeros((len(indices), view.size, view.size, view.channels), np.uint8)
        labels = np.zeros(len(indices), np.int32)
        mask = np.zeros(len(indices), bool)
        result = zip(real, self.examples.read(real), strict=True)
        for row, (place, example) in enumerate(result):
            pixels = sources.pixels(
                self.examples, place, example, view.evaluate, recipe.skip_corrupt
            )
            if pixels is not None:
                images[row], labels[row], mask[row] = pixels, example.label, True
        return HostBatch(images, labels, mask)


# Random access to the batches of a split.
Batches = TrainBatches | EvalBatches


def _leave_ctrl_c(*_: int) -> None:
    """Ctrl-C, which a terminal sends to all, is for the process that trains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def read_ahead(
    batches: Batches,
    threads: int,
    workers: int,
    to_devices: Callable[[HostBatch], Any] | None = None,
) -> Any:
    """Reads batches in order, ahead of their use.

    Args:
      batches: what is read.
      threads: that read, each a batch, in every process that reads.
      workers: processes that read; 0 for this one alone.
      to_devices: what is done with each batch ahead of its use, in a thread.

    Returns:
      Grain's iterator, which can be closed.
    """
    # Imported here, since it takes half a second and only this pipeline needs it.
    import grain

    data = grain.MapDataset.source(batches).to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    )
    if workers:
        if not flags.FLAGS.is_parsed():
            # Grain's processes read its flags, also where no command line is parsed.
            flags.FLAGS.mark_as_parsed()
        data = data.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers), _leave_ctrl_c
        )
    if to_devices:
        data = grain.experimental.ThreadPrefetchIterDataset(
            data.map(to_devices), prefetch_buffer_size=_ON_DEVICES
        )
    return iter(data)
