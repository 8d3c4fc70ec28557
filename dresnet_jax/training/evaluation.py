"""What a state makes of a whole split, every example exactly once, and of images."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from dresnet_jax import defaults
from dresnet_jax.data import pipeline
from dresnet_jax.data.sources import Examples
from dresnet_jax.data.streaming import EvalBatches
from dresnet_jax.errors import UserError
from dresnet_jax.training import (
    checkpointing,
    compilation,
    experiment,
    run_config,
    sharding,
    steps,
    workdir,
)
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


def open_run(
    directory: epath.Path, data_dir: str | None = None
) -> tuple[Experiment, checkpointing.Restored[TrainState]]:
    """Returns the experiment of a run, and its newest checkpoint.

    `data_dir` is where its data are now; None for where they were.

    Raises:
      UserError: there is no run, it holds no whole checkpoint, or its config is that of
        another version.
    """
    config = run_config.read_config(directory)
    try:
        if data_dir is not None:
            config.data.data_dir = data_dir
        if config.growth.events and (newest := checkpointing.newest(directory)):
            config = config_of(config, newest[1])
        exp = experiment.build(config, dataset=workdir.read_dataset(directory))
    except (KeyError, AttributeError) as error:
        field = str(error).splitlines()[0].strip("\"'")
        raise UserError(
            f"{directory} is a run of another version: its config lacks {field}."
        ) from error
    restored = checkpointing.restore(directory, exp.create_state(abstract=True))
    if restored is None:
        raise UserError(f"{directory} holds no checkpoint: train it first.")
    about = checkpointing.about(directory, restored.step)
    run_config.require_own(directory, exp.config, about)
    return exp, restored


def config_of(
    config: ml_collections.ConfigDict, about: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """Returns the config of a run with a checkpoint's structure, if it has grown."""
    if not about.get("history"):
        return config
    there = run_config.completed(about["config"])
    # The groups of fields that a growing network changes.
    grown = {name: ml_collections.ConfigDict(there[name]) for name in ("model", "init")}
    return defaults.replace(config, grown)


def first_batch(experiment: Experiment) -> pipeline.Batch:
    """Returns the first examples of the training split, not augmented.

    Raises:
      UserError: the dataset is not prepared, or is damaged.
    """
    rows = np.arange(experiment.recipe.batch_size)
    read = EvalBatches(experiment.open_splits()["train"], experiment.recipe, rows)[0]
    return pipeline.make_batch(experiment.recipe, *map(jnp.asarray, read))


def evaluate(
    experiment: Experiment, state: TrainState, examples: Examples
) -> Evaluation:
    """Evaluates a state on every example of a split; compiles once for all seeds.

    Raises:
      CorruptRecordError: one cannot be read, and must not be left out.
    """
    recipe, mesh = experiment.recipe, experiment.mesh

    def eval_step(
        state: TrainState, pixels: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> tuple[Metrics, tuple[jax.Array, ...]]:
        batch = pipeline.make_batch(recipe, pixels, labels, mask)
        metrics, logits = steps.eval_step(state, batch)
        return metrics, (labels, logits.argmax(axis=-1), mask)

    if experiment.programs.evaluate is None:
        program = jax.jit(eval_step, out_shardings=sharding.replicated(mesh))
        experiment.programs.evaluate = compilation.announce("the evaluation", program)
    rows = sharding.local_rows(mesh, recipe.batch_size)
    place = sharding.split_batch(mesh)
    total, result = Metrics.empty(), []
    for batch in experiment.inputs.read(EvalBatches(examples, recipe, rows)):
        arrays = jax.make_array_from_process_local_data(place, batch)
        metrics, (labels, predictions, mask) = jax.device_get(
            experiment.programs.evaluate(state, *arrays)
        )
        total = total.merge(metrics)
        result.append((labels[mask], predictions[mask]))
    values = total.compute()
    labels, predictions = map(np.concatenate, zip(*result, strict=True))
    return Evaluation(
        loss=float(values["loss"]),
        accuracy=float(values["accuracy"]),
        skipped=len(examples) - len(labels),
        labels=labels,
        predictions=predictions,
    )


class Predictor:
    """Classifies images by states of one experiment; compiles once."""

    def __init__(self, experiment: Experiment) -> None:
        recipe, mesh = experiment.recipe, experiment.mesh

        def probabilities(state: TrainState, pixels: jax.Array) -> jax.Array:
            labels = jnp.zeros(len(pixels), jnp.int32)
            batch = pipeline.make_batch(recipe, pixels, labels)
            return jax.nn.softmax(steps.eval_step(state, batch)[1])

        self.batch_size = recipe.batch_size
        self._place = sharding.split_batch(mesh)
        self._probabilities = compilation.announce(
            "the classifier",
            jax.jit(probabilities, out_shardings=sharding.replicated(mesh)),
        )

    def __call__(self, state: TrainState, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """The probability of each class, [images, classes], float32.

        Images are at most `batch_size`, each [height, width, channels], uint8.
        """
        batch = np.zeros((self.batch_size, *pixels[0].shape), np.uint8)
        batch[: len(pixels)] = pixels
        result = self._probabilities(state, sharding.put(batch, self._place))
        return np.asarray(result)[: len(pixels)]
