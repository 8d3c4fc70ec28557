"""What classifies images: a run, answering early or not, or an exported network."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from dresnet_jax.data.views import View
from dresnet_jax.errors import UserError
from dresnet_jax.inference import early_exit_report, exported
from dresnet_jax.inference.early_exit import EarlyExit, by_threshold
from dresnet_jax.training import evaluation

# Probabilities [classes], and {"depth": blocks passed} where exits may answer.
Prediction = tuple[np.ndarray, dict[str, int]]
# Images that an exported network is given at once.
_BATCH = 128


@dataclasses.dataclass(frozen=True)
class ImageClassifier:
    """What answers images.

    Attributes:
      answers: one for each of at most `batch_size` images' pixels.
      batch_size: how many it is best given.
      view: how images become pixels.
      class_names: by label.
      about: where it comes from, of JSON's types.
    """

    answers: Callable[[Sequence[np.ndarray]], Iterable[Prediction]]
    batch_size: int
    view: View
    class_names: Sequence[str]
    about: dict[str, Any]


def of_run(directory: epath.Path) -> ImageClassifier:
    """Returns the newest checkpoint of a run.

    Raises:
      UserError: there is none.
    """
    exp, restored = evaluation.open_run(directory)
    predict = evaluation.Predictor(exp)

    def answers(pixels: Sequence[np.ndarray]) -> Iterator[Prediction]:
        return ((row, {}) for row in predict(restored.state, pixels))

    view, class_names = exp.recipe.view, exp.dataset.class_names
    about = {"workdir": str(directory), "step": restored.step}
    return ImageClassifier(answers, predict.batch_size, view, class_names, about)


def with_exits(directory: epath.Path, within_ms: float | None) -> ImageClassifier:
    """Returns the newest checkpoint of a run, which answers at its early exits.

    Args:
      directory: of the run.
      within_ms: milliseconds in which one image is answered, by the deepest exit that
        is measured to be in time; None for the thresholds that `evaluate` fitted.

    Raises:
      UserError: there is no run with exits, no thresholds for its newest checkpoint, or
        no exit is in time.
    """
    exp, restored = evaluation.open_run(directory)
    about: dict[str, Any] = {"workdir": str(directory), "step": restored.step}
    if within_ms is None:
        policy = early_exit_report.read(directory)
        if policy["step"] != restored.step:
            raise UserError(
                f"The thresholds of {directory} are those of step {policy['step']}, "
                f"its newest checkpoint is that of {restored.step}: run evaluate again."
            )
        network = EarlyExit(exp, restored.state, policy["confidence"])
        rule, batch_size = by_threshold(policy["thresholds"]), network.batch_size
    else:
        network = EarlyExit(exp, restored.state)
        milliseconds = 1000 * network.latencies()
        in_time = np.flatnonzero(milliseconds <= within_ms)
        if not len(in_time):
            raise UserError(
                f"--within_ms={within_ms:g} is too short: the first exit answers after "
                f"{milliseconds[0]:.2f} ms on this machine."
            )
        last = in_time[-1]
        about["milliseconds"] = dict(
            zip(map(str, network.depths), milliseconds.tolist(), strict=True)
        )
        rule, batch_size = (lambda number, sure: np.full(len(sure), number == last)), 1

    def answers(pixels: Sequence[np.ndarray]) -> Iterator[Prediction]:
        result = network([np.stack(pixels)], rule)
        probabilities = np.asarray(jax.nn.softmax(result.logits))
        for row, exit_ in zip(probabilities, result.exits, strict=True):
            yield row, {"depth": network.depths[exit_]}

    return ImageClassifier(
        answers, batch_size, exp.recipe.view, exp.dataset.class_names, about
    )


def of_exported(directory: epath.Path) -> ImageClassifier:
    """Returns what `exported.write` wrote.

    Raises:
      UserError: the directory holds no such thing.
    """
    result = exported.read(directory)

    def answers(pixels: Sequence[np.ndarray]) -> Iterator[Prediction]:
        rows = np.asarray(jax.nn.softmax(result.call(np.stack(pixels))))
        return ((row, {}) for row in rows)

    about = {"exported": str(directory), "step": result.signature["step"]}
    return ImageClassifier(answers, _BATCH, result.view, result.class_names, about)
