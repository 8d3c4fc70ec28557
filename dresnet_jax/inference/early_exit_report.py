"""Fits early exits on the validation split, and measures what they save and cost."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dresnet_jax.errors import UserError
from dresnet_jax.figures import pictures
from dresnet_jax.inference import early_exit, thresholds
from dresnet_jax.inference.early_exit import EarlyExit, Rule, Split
from dresnet_jax.inference.thresholds import Point
from dresnet_jax.training import json_files
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.state import TrainState

_FILE, _PICTURE = "early_exit.json", "early_exit.png"
# Interleaved runs over the split, of which times are medians.
_RUNS = 5
# Images named of those that need every block.
_NAMED = 20


@dataclasses.dataclass(frozen=True)
class Goal:
    """What early exits must keep to.

    Attributes:
      confidence: a key of `exits.CONFIDENCES`.
      max_loss: by how much accuracy may fall at most, with 95 % confidence; None is 0.
      budget: mean FLOPs of an image, as a share of the whole network's, which counts in
        place of max_loss, or None.
      per_batch: whether each batch keeps the budget.
      min_depth: blocks that every image passes.

    Raises:
      UserError: max_loss or budget is out of range.
    """

    confidence: str
    max_loss: float | None = None
    budget: float | None = None
    per_batch: bool = False
    min_depth: int = 0

    def __post_init__(self) -> None:
        if self.max_loss is not None and not 0 <= self.max_loss < 1:
            raise UserError(f"--max_loss={self.max_loss} must be in [0, 1).")
        if self.budget is not None and not 0 < self.budget < np.inf:
            raise UserError(f"--budget={self.budget} must be a number above 0.")

    def choose(self, points: list[Point]) -> Point:
        """Returns the point of a curve that keeps to it.

        With a budget, the first that costs no more; else the last before the first
        that may lose more accuracy. Testing in a fixed order, from the safe end, as
        Angelopoulos et al. (2021, "Learn then Test") do, the bound of each is not
        weakened by how many are tried.

        Raises:
          UserError: there is none.
        """
        if self.budget is None:
            max_loss = self.max_loss or 0.0
            safe = itertools.takewhile(lambda p: p.loss_bound <= max_loss, points)
            return list(safe)[-1]
        for point in points:
            if point.cost <= self.budget:
                return point
        raise UserError(
            f"--budget={self.budget} is below {points[-1].cost:.3f}, what leaving at "
            "the first exit costs: give more."
        )


def measure(
    exp: Experiment, state: TrainState, goal: Goal, split: str
) -> tuple[dict[str, Any], list[Point]]:
    """Fits thresholds on the validation split, and measures them on another.

    Returns:
      The report, of JSON's types, and the curve on the validation split.

    Raises:
      UserError: the network has no exits, a value is out of range, or the dataset is
        not prepared.
    """
    network = EarlyExit(exp, state, goal.confidence)
    first_exit = _first_exit(network, goal.min_depth)
    splits = exp.open_splits()
    flops = network.flops()
    costs = np.cumsum(flops)

    validation = early_exit.at_all_exits(
        network, *early_exit.read(exp, splits["validation"])
    )
    curve = thresholds.curve(validation, costs, first_exit)
    chosen = goal.choose(curve)
    shares = thresholds.shares(chosen.thresholds, validation)
    rule: Rule = early_exit.by_threshold(chosen.thresholds)
    if goal.per_batch:
        rule = early_exit.by_share(shares)

    pixels, labels = early_exit.read(exp, splits[split])
    answers = network(pixels, rule)
    at_all = early_exit.at_all_exits(network, pixels, labels)
    full = [images for images in pixels if len(images) == network.batch_size]
    if not full:
        raise UserError(
            f"The {split} split has {len(labels)} images, fewer than a batch of "
            f"{network.batch_size}: there is nothing to time."
        )
    seconds = network.seconds(full, rule, _RUNS)
    ratios = seconds["early"] / seconds["whole"]
    right = answers.logits.argmax(axis=-1) == labels
    alone = at_all.correct.mean(axis=0)
    passed = np.asarray(network.depths)[answers.exits]
    # Images whose answer is right at the last exit, and wrong at the one before.
    needing = np.flatnonzero(at_all.correct[:, -1] & ~at_all.correct[:, -2])
    report = {
        "confidence": goal.confidence,
        "thresholds": list(chosen.thresholds),
        "shares": shares if goal.per_batch else None,
        "split_measured": split,
        "validation": {
            "accuracy": chosen.accuracy,
            "whole_accuracy": curve[0].accuracy,
            "loss_bound": chosen.loss_bound,
            "cost": chosen.cost,
        },
        "measured": {
            "accuracy": float(right.mean()),
            "whole_accuracy": float(alone[-1]),
            "cost": float(costs[answers.exits].mean()),
            "cost_as_run": float(answers.rows @ flops / len(labels)),
            "time_ratio": float(np.median(ratios)),
            "time_ratio_quartiles": np.quantile(ratios, (0.25, 0.75)).tolist(),
            "whole_seconds": float(np.median(seconds["whole"])),
        },
        "exits": _exits(network.depths, chosen.thresholds, answers.exits, alone, costs),
        "classes": _classes(exp.dataset.class_names, passed, right, at_all),
        "need_all_blocks": {"images": len(needing), "first": needing[:_NAMED].tolist()},
    }
    return report, curve


def text(report: Mapping[str, Any]) -> str:
    """Returns the report for a person."""
    result, split = report["measured"], report["split_measured"]
    fitted = report["validation"]
    lines = [" after block  threshold  answers there  right alone  FLOPs so far"]
    for exit_ in report["exits"]:
        threshold = exit_["threshold"]
        shown = "-" if threshold is None else f"{threshold:.4f}"
        lines.append(
            f"{exit_['depth']:>12}  {shown:>9}  {exit_['share']:>13.3f}"
            f"  {exit_['accuracy_alone']:>11.4f}  {exit_['cost']:>12.3f}"
        )
    lines += ["", f"{'class':>16}  right  blocks passed  answered wrongly at first"]
    for name, of_class in report["classes"].items():
        lines.append(
            f"{name:>16}  {of_class['accuracy']:.3f}  "
            f"{of_class['mean_depth']:>13.2f}  {of_class['needs_depth']:>25.3f}"
        )
    quartiles = "{:.3f} to {:.3f}".format(*result["time_ratio_quartiles"])
    lines += [
        "",
        f"accuracy on {split}: {result['accuracy']:.4f}, of the whole network "
        f"{result['whole_accuracy']:.4f}; on validation "
        f"{fitted['accuracy']:.4f} and {fitted['whole_accuracy']:.4f}: with 95 "
        f"% confidence at most {fitted['loss_bound']:.4f} lower",
        f"FLOPs of an image: {result['cost']:.3f} of the whole network's, "
        f"{result['cost_as_run']:.3f} with what fills batches",
        f"time: {result['time_ratio']:.3f} of the whole network's "
        f"(quartiles of {_RUNS} interleaved runs {quartiles})",
    ]
    return "\n".join(lines)


def write(
    directory: epath.Path, report: Mapping[str, Any], curve: Sequence[Point]
) -> None:
    """Writes early_exit.json and early_exit.png to a run's directory."""
    pictures.save(draw(report, curve), directory / _PICTURE)
    json_files.write_json(directory / _FILE, report)


def read(directory: epath.Path) -> dict[str, Any]:
    """Returns what `write` wrote last.

    Raises:
      UserError: nothing was written, or it is damaged.
    """
    path = directory / _FILE
    try:
        result = json.loads(path.read_text())
        return {name: result[name] for name in ("step", "confidence", "thresholds")}
    except FileNotFoundError as error:
        raise UserError(
            f"{directory} has no thresholds yet: run evaluate with --max_loss or "
            "--budget."
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: run evaluate again.") from error


def _first_exit(network: EarlyExit, min_depth: int) -> int:
    """The number of the first exit that is deep enough."""
    early = network.depths[:-1]
    deep = [n for n, depth in enumerate(early) if depth >= min_depth]
    if not deep:
        raise UserError(
            f"--min_depth={min_depth} is after every exit before the last: they stand "
            f"after blocks {', '.join(map(str, early))}."
        )
    return deep[0]


def _exits(
    depths: Sequence[int],
    chosen: Sequence[float],
    exits: np.ndarray,
    alone: np.ndarray,
    costs: np.ndarray,
) -> list[dict[str, Any]]:
    """Lists what each exit does: how many images leave there, and how well."""
    return [
        {
            "depth": depth,
            "threshold": threshold,
            "share": float(np.mean(exits == n)),
            "accuracy_alone": float(alone[n]),
            "cost": float(costs[n]),
        }
        for n, (depth, threshold) in enumerate(
            zip(depths, (*chosen, None), strict=True)
        )
    ]


def _classes(
    names: tuple[str, ...], passed: np.ndarray, right: np.ndarray, split: Split
) -> dict[str, Any]:
    """By class: accuracy, depth, and how many are right only after the first exit."""
    needs = split.correct[:, -1] & ~split.correct[:, 0]
    return {
        name: {
            "accuracy": float(right[rows].mean()),
            "mean_depth": float(passed[rows].mean()),
            "needs_depth": float(needs[rows].mean()),
        }
        for label, name in enumerate(names)
        if (rows := split.labels == label).any()
    }


def draw(report: Mapping[str, Any], curve: Sequence[Point]) -> Figure:
    """Draws accuracy against cost: of thresholds, each exit alone, and the choice."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    split = report["split_measured"]
    costs, accuracies = [x.cost for x in curve], [x.accuracy for x in curve]
    axis.plot(costs, accuracies, color="C0", label="early exits, validation")
    for n, exit_ in enumerate(report["exits"]):
        place = exit_["cost"], exit_["accuracy_alone"]
        label = None if n else f"each exit alone, {split}"
        axis.plot(*place, "s", color="C1", label=label)
        axis.annotate(
            f" block {exit_['depth']}", place, va="top", color="C1", fontsize=8
        )
    for key, name, marker, color, size in (
        ("validation", "validation", "o", "C0", None),
        ("measured", split, "*", "C3", 12),
    ):
        place, label = (report[key]["cost"], report[key]["accuracy"]), f"chosen, {name}"
        axis.plot(*place, marker, color=color, markersize=size, label=label)
    axis.set_xlabel("mean FLOPs of an image, those of the whole network being 1")
    axis.set_ylabel("accuracy")
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    return figure
