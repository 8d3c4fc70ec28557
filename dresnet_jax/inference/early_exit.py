"""A network that answers at the first exit that is sure, and runs no further."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dresnet_jax.costs import cost
from dresnet_jax.data import pipeline
from dresnet_jax.data.sources import Examples
from dresnet_jax.data.streaming import EvalBatches
from dresnet_jax.errors import UserError, pick
from dresnet_jax.models import counting
from dresnet_jax.models.backbone import Part
from dresnet_jax.models.exits import CONFIDENCES
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.state import TrainState

# Which images leave: (number of the exit, confidences [images]) -> [images], bool.
Rule = Callable[[int, np.ndarray], np.ndarray]


def by_threshold(thresholds: Sequence[float]) -> Rule:
    """Leaves where the confidence is at least that exit's threshold."""
    return lambda number, confidences: confidences >= thresholds[number]


def by_share(shares: Sequence[float]) -> Rule:
    """Leaves, of the images of each batch, those most sure: that exit's share of them.

    What a batch costs is then known before it is seen.
    """

    def rule(number: int, confidences: np.ndarray) -> np.ndarray:
        leaving = math.ceil(shares[number] * len(confidences))
        order = np.argsort(-confidences, kind="stable")
        return np.isin(np.arange(len(confidences)), order[:leaving])

    return rule


@dataclasses.dataclass(frozen=True)
class Answers:
    """What was answered.

    Attributes:
      logits: [images, classes].
      exits: the number, from 0, of the exit that answered; [images], int.
      rows: on how many rows each part was run, those that fill a batch included;
        [parts], int.
    """

    logits: np.ndarray
    exits: np.ndarray
    rows: np.ndarray


# What goes into a part, and the images in its first rows; the others are empty.
_Batch = tuple[Any, np.ndarray]
# What a part hands on, the images that stay, and their rows in it.
_Stays = tuple[Any, np.ndarray, np.ndarray]


class EarlyExit:
    """Runs a network part by part, on one device.

    Images that stay wait until there is a full batch of them, so that each part is run
    on batches of few static sizes, and what is skipped is really not done.
    """

    def __init__(
        self, exp: Experiment, state: TrainState, confidence: str = "probability"
    ) -> None:
        """Compiles nothing yet.

        Args:
          exp: the experiment.
          state: of it; averaged weights are taken where there are.
          confidence: a key of `CONFIDENCES`.

        Raises:
          UserError: the network has no exits, or has not learned a confidence, or it
            is asked of one process of several.
        """
        spec = exp.model.spec
        pick("confidence", confidence, CONFIDENCES)
        if not spec.exits.after:
            raise UserError(
                f"{exp.config.model.name} has one exit, its last: train it with "
                "config.model.exits.after."
            )
        if confidence == "learned" and not spec.exits.learn_confidence:
            raise UserError(
                "confidence 'learned' needs a run with "
                "config.model.exits.learn_confidence."
            )
        if jax.process_count() > 1:
            raise UserError("Early exits run on one process.")
        self.depths = [blocks[-1] for blocks in spec.parts]
        self.batch_size = size = exp.recipe.batch_size
        self._sizes = sorted({1, math.ceil(size / 16), math.ceil(size / 4), size})
        self._parts, self._confidence = exp, confidence
        variables = {"params": state.eval_params, "batch_stats": state.batch_stats}
        self._variables = jax.device_put(variables, jax.local_devices()[0])
        # Each is compiled once for each size of its batches.
        self._programs = [jax.jit(self._part(n)) for n in range(len(self.depths))]
        # Of the whole network: (variables, pixels) -> logits.
        self.whole = jax.jit(self._logits)

    def __call__(self, pixels: Iterable[np.ndarray], rule: Rule) -> Answers:
        """Classifies images.

        Args:
          pixels: batches of images, each [at most batch_size, height, width, channels],
            uint8.
          rule: which images leave at an exit.
        """
        result: dict[int, tuple[np.ndarray, int]] = {}
        rows = np.zeros(len(self.depths), int)
        last = len(self.depths) - 1

        def after(number: int, batches: Iterable[_Batch]) -> Iterator[_Stays]:
            for before, ids in batches:
                handover, logits, sure = self.run(number, before)
                rows[number] += len(logits)
                leaves = np.ones(len(ids), bool)
                if number < last:
                    leaves = rule(number, sure[: len(ids)])
                for row in np.flatnonzero(leaves):
                    result[ids[row]] = logits[row], number
                if not leaves.all():
                    yield handover, ids[~leaves], np.flatnonzero(~leaves)

        stays = after(0, self._padded(pixels))
        for number in range(1, last + 1):
            stays = after(number, self._joined(stays))
        for _ in stays:  # Runs all parts; nothing stays after the last.
            pass
        logits, exits = zip(*(result[i] for i in range(len(result))), strict=True)
        return Answers(np.stack(logits), np.asarray(exits), rows)

    def _padded(self, pixels: Iterable[np.ndarray]) -> Iterator[_Batch]:
        """Fills batches of images up to a size that is compiled, and numbers images."""
        count = 0
        for batch in pixels:
            padded = np.zeros((self._size_for(len(batch)), *batch.shape[1:]), np.uint8)
            padded[: len(batch)] = batch
            yield padded, np.arange(count, count + len(batch))
            count += len(batch)

    def _joined(self, batches: Iterable[_Stays]) -> Iterator[_Batch]:
        """Joins the rows that stay to full batches, and a smaller one at the end."""
        size, waiting, ids = self.batch_size, None, np.zeros(0, int)
        for handover, new, rows in batches:
            old = handover if waiting is None else waiting
            start = len(jax.tree.leaves(old)[0])
            index = np.zeros(2 * size, np.int32)
            index[: len(ids) + len(new)] = [*range(len(ids)), *start + rows]
            waiting, rest = _merged(old, handover, index)
            ids = np.append(ids, new)
            if len(ids) >= size:
                yield waiting, ids[:size]
                waiting, ids = rest, ids[size:]
        if len(ids):
            size = self._size_for(len(ids))
            yield jax.tree.map(lambda x: x[:size], waiting), ids

    def run(self, number: int, before: Any) -> tuple[Any, np.ndarray, np.ndarray]:
        """Runs one part on a batch: what it hands on, logits, and confidences.

        Args:
          number: of the part, from 0.
          before: pixels for part 0, else what the part before hands on.
        """
        handover, logits, sure = self._programs[number](self._variables, before)
        return handover, np.asarray(logits), np.asarray(sure)

    def flops(self) -> np.ndarray:
        """Counts the FLOPs of each part, as shares of the whole network's; [parts]."""
        result, before = [], self._blank(self.batch_size)
        whole = counting.flops(self.whole, self._variables, before) / self.batch_size
        for program in self._programs:
            given = program, self._variables, before
            result.append(counting.flops(*given) / self.batch_size)
            before, _, _ = jax.eval_shape(*given)
        return np.asarray(result) / whole

    def _logits(self, variables: Any, pixels: jax.Array) -> Any:
        images = pipeline.normalise(self._parts.recipe, pixels)
        return self._parts.model.apply(variables, images, train=False)

    def seconds(
        self, batches: Sequence[np.ndarray], rule: Rule, runs: int
    ) -> dict[str, np.ndarray]:
        """Times "whole" and "early" on the same full batches: [runs] of each."""
        programs: dict[str, Callable[[], object]] = {
            "whole": lambda: [
                np.asarray(self.whole(self._variables, batch)) for batch in batches
            ],
            "early": lambda: self(batches, rule).logits,
        }
        return cost.interleaved_seconds(programs, runs)

    def latencies(self, runs: int = 20) -> np.ndarray:
        """Measures the median seconds until each exit answers one image; [exits]."""
        calls: dict[int, Callable[[], object]] = {}
        before: Any = self._blank(1)
        for number, program in enumerate(self._programs):
            calls[number] = functools.partial(program, self._variables, before)
            before, _, _ = program(self._variables, before)
        seconds = cost.interleaved_seconds(calls, runs)
        return np.cumsum([np.median(values) for values in seconds.values()])

    def _size_for(self, images: int) -> int:
        """The smallest size of a batch that holds this many, or the largest."""
        return next((s for s in self._sizes if s >= images), self._sizes[-1])

    def _blank(self, images: int) -> np.ndarray:
        view = self._parts.recipe.view
        return np.zeros((images, view.size, view.size, view.channels), np.uint8)

    def _part(self, number: int) -> Callable[[Any, Any], tuple[Any, Any, Any]]:
        """A part: (variables, what the part before hands on) -> as `run`."""
        model, recipe = self._parts.model, self._parts.recipe
        part = Part(model.spec, model.scheme, number=number)
        sure = CONFIDENCES[self._confidence]

        def run(variables: Any, before: Any) -> tuple[Any, Any, Any]:
            if number == 0:
                before = pipeline.normalise(recipe, before)
            result: Any = part.apply(variables, before)
            handover, logits, score = result
            return handover, logits, sure(logits, score)

        return run


@jax.jit
def _merged(waiting: Any, new: Any, index: jax.Array) -> tuple[Any, Any]:
    """Some rows of what waits, followed by what is new, as two full batches."""
    size = len(index) // 2
    rows = jax.tree.map(lambda *x: jnp.concatenate(x)[index], waiting, new)
    first = jax.tree.map(lambda x: x[:size], rows)
    return first, jax.tree.map(lambda x: x[size:], rows)


@dataclasses.dataclass(frozen=True)
class Split:
    """The answer of every exit to every image of a split.

    Attributes:
      labels: [images], int.
      confidences: [images, exits].
      predictions: [images, exits], int.
    """

    labels: np.ndarray
    confidences: np.ndarray
    predictions: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """[images, exits], bool."""
        return self.predictions == self.labels[:, None]


def read(exp: Experiment, examples: Examples) -> tuple[list[np.ndarray], np.ndarray]:
    """Reads a split's pixels, in batches of at most the run's size, and labels."""
    rows = np.arange(exp.recipe.batch_size)
    batches = list(exp.inputs.read(EvalBatches(examples, exp.recipe, rows)))
    pixels = [np.asarray(batch.images)[batch.mask] for batch in batches]
    return pixels, np.concatenate([batch.labels[batch.mask] for batch in batches])


def at_all_exits(
    network: EarlyExit, batches: Sequence[np.ndarray], labels: np.ndarray
) -> Split:
    """Runs every image through all parts, and keeps what each exit says."""
    confidences, predictions = [], []
    for pixels in batches:
        before: Any = np.zeros((network.batch_size, *pixels.shape[1:]), np.uint8)
        before[: len(pixels)] = pixels
        sure_of, said = [], []
        for number in range(len(network.depths)):
            before, logits, sure = network.run(number, before)
            sure_of.append(sure[: len(pixels)])
            said.append(logits[: len(pixels)].argmax(axis=-1))
        confidences.append(np.stack(sure_of, axis=1))
        predictions.append(np.stack(said, axis=1))
    return Split(labels, np.concatenate(confidences), np.concatenate(predictions))
