"""Thresholds of exits, fitted to each exit's answers on a validation split."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dresnet_jax.inference.early_exit import Split

# Confidences are from 0 to 1: no image leaves at an exit with this threshold.
NEVER = 2.0
# Standard errors up to the end of a one-sided interval of 95 %.
_ONE_SIDED = 1.645
# Of the whole network's cost, in answers.
_PRICES = np.geomspace(1e-3, 3, 150)
# At most so often all thresholds are set again.
_SWEEPS = 20


@dataclasses.dataclass(frozen=True)
class Point:
    """What some thresholds give.

    Attributes:
      thresholds: of every exit but the last.
      accuracy: share of the images whose class was answered.
      loss_bound: by how much the last exit's accuracy is higher at most, with 95 %
        confidence; 0 where no image leaves before.
      agreement: share of the images with the last exit's answer.
      cost: mean FLOPs of an image, divided by those of the whole network.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    loss_bound: float
    agreement: float
    cost: float


def exits_of(thresholds: Sequence[float], confidences: np.ndarray) -> np.ndarray:
    """Returns the number of the exit at which each image leaves, [images].

    Args:
      thresholds: of every exit but the last.
      confidences: [images, exits]; the last exit's are not read.
    """
    sure = confidences[:, :-1] >= np.asarray(thresholds)[None]
    return np.argmax(np.pad(sure, ((0, 0), (0, 1)), constant_values=True), axis=1)


def point(thresholds: Sequence[float], split: Split, costs: np.ndarray) -> Point:
    """Returns what some thresholds give on a split.

    Args:
      thresholds: of every exit but the last.
      split: what the exits say of its images.
      costs: FLOPs up to each exit, divided by those of the whole network; [exits].
    """
    exits = exits_of(thresholds, split.confidences)
    images = np.arange(len(exits))
    correct = split.correct[images, exits]
    # One image more that is lost: of few images, that none is lost says little.
    lost = np.append(split.correct[:, -1].astype(float) - correct, 1)
    bound = lost.mean() + _ONE_SIDED * lost.std() / len(lost) ** 0.5
    same = split.predictions[images, exits] == split.predictions[:, -1]
    return Point(
        thresholds=tuple(thresholds),
        accuracy=float(correct.mean()),
        loss_bound=float(bound) if np.any(exits < len(costs) - 1) else 0.0,
        agreement=float(same.mean()),
        cost=float(costs[exits].mean()),
    )


def curve(split: Split, costs: np.ndarray, first_exit: int = 0) -> list[Point]:
    """Lists thresholds that trade answers for cost, the whole network first.

    For each of some prices of cost, every threshold is set to the best there is, given
    the others, until none changes. What is paid are answers that differ from the last
    exit's: accuracy itself is a matter of few images, and thresholds that are fitted to
    them do not keep what they promise on others.

    Args:
      split: the validation split.
      costs: as `point` has them.
      first_exit: number of the first one at which an image may leave.
    """
    whole = point([NEVER] * (len(costs) - 1), split, costs)
    same = (split.predictions == split.predictions[:, -1:]).astype(float)
    result = {
        point(_best(same - price * costs[None], split, first_exit), split, costs)
        for price in _PRICES
    }
    cheaper = [p for p in result if p.cost < whole.cost]
    return [whole, *sorted(cheaper, key=lambda p: -p.cost)]


def _best(values: np.ndarray, split: Split, first_exit: int) -> list[float]:
    """Thresholds under which the value of leaving, [images, exits], is high."""
    sure, last = split.confidences, values.shape[1] - 1
    thresholds, images = [NEVER] * last, np.arange(len(values))
    for _ in range(_SWEEPS):
        before = list(thresholds)
        for n in reversed(range(first_exit, last)):
            later = [NEVER] * (n + 1) + thresholds[n + 1 :]
            gain = values[:, n] - values[images, exits_of(later, sure)]
            reach = exits_of([*thresholds[:n], *[NEVER] * (last - n)], sure) == last
            thresholds[n] = _threshold(sure[reach, n], gain[reach])
        if thresholds == before:
            break
    return thresholds


def _threshold(sure: np.ndarray, gain: np.ndarray) -> float:
    """The one above which the sum of what is gained is highest."""
    order = np.argsort(-sure, kind="stable")
    sure, total = sure[order], np.cumsum(gain[order])
    # Images that are equally sure leave together.
    ends = np.flatnonzero(np.append(sure[1:] < sure[:-1], True)[: len(sure)])
    if not len(ends) or total[ends].max() <= 0:
        return NEVER
    return float(sure[ends[np.argmax(total[ends])]])


def shares(thresholds: Sequence[float], split: Split) -> list[float]:
    """Returns the share of the images that reach each exit that leaves there."""
    exits = exits_of(thresholds, split.confidences)
    return [
        float(np.mean(exits[exits >= n] == n)) if np.any(exits >= n) else 1.0
        for n in range(len(thresholds))
    ]
