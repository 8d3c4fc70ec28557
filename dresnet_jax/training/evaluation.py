"""Evaluation of a state on a whole split, every example exactly once."""

import dataclasses

import jax
import numpy as np

from dresnet_jax.data import pipeline
from dresnet_jax.data.sources import Examples
from dresnet_jax.data.streaming import EvalBatches
from dresnet_jax.training import sharding, steps
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.metrics import Metrics
from dresnet_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was found on a split.

    Attributes:
      loss: mean cross entropy, nats.
      accuracy: share of the examples whose class was predicted.
      skipped: corrupt records that were left out.
      labels: the class of each example that was read, [examples], int.
      predictions: the class that was predicted for it, [examples], int.
    """

    loss: float
    accuracy: float
    skipped: int
    labels: np.ndarray
    predictions: np.ndarray


class Evaluator:
    """Evaluates states of one experiment; compiles once."""

    def __init__(self, experiment: Experiment) -> None:
        """Only remembers the experiment."""
        recipe, mesh = experiment.recipe, experiment.mesh

        def eval_step(
            state: TrainState, pixels: jax.Array, labels: jax.Array, mask: jax.Array
        ) -> tuple[Metrics, tuple[jax.Array, ...]]:
            batch = pipeline.make_batch(recipe, pixels, labels, mask)
            metrics, logits = steps.eval_step(state, batch)
            return metrics, (labels, logits.argmax(axis=-1), mask)

        self._experiment = experiment
        self._rows = sharding.local_rows(mesh, recipe.batch_size)
        self._place = sharding.split_batch(mesh)
        self._eval_step = jax.jit(eval_step, out_shardings=sharding.replicated(mesh))

    def __call__(self, state: TrainState, examples: Examples) -> Evaluation:
        """Evaluates the state on every example of a split.

        Raises:
          CorruptRecordError: one cannot be read, and must not be left out.
        """
        batches = EvalBatches(examples, self._experiment.recipe, self._rows)
        total, found = Metrics.empty(), []
        for batch in self._experiment.road.read(batches):
            arrays = (
                sharding.put_rows(array, self._place, batch_axis=0)
                for array in (batch.images, batch.labels, batch.mask)
            )
            metrics, (labels, predictions, mask) = jax.device_get(
                self._eval_step(state, *arrays)
            )
            total = total.merge(metrics)
            found.append((labels[mask], predictions[mask]))
        values = total.compute()
        labels, predictions = map(np.concatenate, zip(*found, strict=True))
        return Evaluation(
            loss=float(values["loss"]),
            accuracy=float(values["accuracy"]),
            skipped=len(examples) - len(labels),
            labels=labels,
            predictions=predictions,
        )
