"""Evaluation of a state on a whole split, every example exactly once."""

import dataclasses

import jax
import numpy as np

from dresnet_jax.data import pipeline
from dresnet_jax.data.sources import Split
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
      predictions: the predicted class of each example, [examples], int.
    """

    loss: float
    accuracy: float
    predictions: np.ndarray


class Evaluator:
    """Evaluates states of one experiment; compiles once."""

    def __init__(self, experiment: Experiment) -> None:
        """Only remembers the experiment."""
        recipe = experiment.recipe
        place = sharding.split_batch(experiment.mesh)

        def eval_step(
            state: TrainState, pixels: jax.Array, labels: jax.Array, mask: jax.Array
        ) -> tuple[Metrics, jax.Array]:
            batch = pipeline.make_batch(recipe, pixels, labels, mask)
            return steps.eval_step(state, batch)

        self._recipe = recipe
        self._place = place
        self._eval_step = jax.jit(
            eval_step, out_shardings=sharding.replicated(experiment.mesh)
        )

    def __call__(self, state: TrainState, split: Split) -> Evaluation:
        """Evaluates the state on every example of the split."""
        total, predictions = Metrics.empty(), []
        for arrays in pipeline.eval_batches(self._recipe, split):
            metrics, logits = self._eval_step(
                state, *jax.device_put(arrays, self._place)
            )
            total = total.merge(jax.device_get(metrics))
            predictions.append(np.asarray(logits).argmax(axis=-1)[arrays[2]])
        values = total.compute()
        return Evaluation(
            loss=float(values["loss"]),
            accuracy=float(values["accuracy"]),
            predictions=np.concatenate(predictions),
        )
