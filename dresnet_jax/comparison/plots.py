"""The figures of a comparison."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from dresnet_jax.comparison.grid import Run
from dresnet_jax.figures import run


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A figure of the report.

    Attributes:
      name: of its file.
      title: above it.
      caption: what one sees there, which is also its alternative text.
      figure: itself.
    """

    name: str
    title: str
    caption: str
    figure: Figure


def figures(report: Mapping[str, Any], finished: Sequence[Run]) -> list[Captioned]:
    """Returns all figures, in the order of the report."""
    names = list(report["variants"])
    runs = {name: [run for run in finished if run.variant == name] for name in names}
    result = [
        Captioned(
            "accuracy",
            "Test accuracy",
            "Mean test accuracy of each variant, with its 95 % interval; dots are "
            "seeds.",
            accuracy(report["variants"]),
        ),
        Captioned(
            "curves",
            "Loss and accuracy while training",
            "Training loss and validation accuracy of all variants over the steps: "
            "means, with bands from the lowest to the highest seed.",
            _curves(runs),
        ),
        Captioned(
            "splits",
            "Train, validation and test of each",
            "For each variant the accuracy on the training and the validation split "
            "over the steps, and on the test split at the step chosen on validation.",
            _splits(runs, report["variants"]),
        ),
    ]
    gated = {name: runs[name] for name in names if "gates" in report["variants"][name]}
    if gated:
        result += [
            Captioned(
                "drift",
                "How far the gates moved",
                "Mean change of F(w) since the start of the run: flat at its end where "
                "gates stop changing.",
                _drift(gated),
            ),
            Captioned(
                "gate_functions",
                "The gate functions",
                "F(w) over the weight w of every gate function that has one weight.",
                run.gate_functions(),
            ),
        ]
    return result


def mean_gates(runs: Sequence[Run]) -> tuple[list[int], list[dict[str, Any]]]:
    """Returns the steps, and F(w) of every edge there, {reader: {source: F(w)}}."""
    lines = [[line for line in run.lines if "gates" in line] for run in runs]
    steps = [line["step"] for line in lines[0]]
    means = []
    for number in range(len(steps)):
        result = [of_run[number]["gates"] for of_run in lines]
        means.append(
            {
                i: {k: float(np.mean([one[i][k] for one in result])) for k in row}
                for i, row in result[0].items()
            }
        )
    return steps, means


def accuracy(variants: Mapping[str, Any]) -> Figure:
    """Returns mean test accuracy of each variant with its interval; dots are seeds."""
    names = list(variants)
    height = 1.2 + 0.4 * len(names)
    figure, axis = plt.subplots(figsize=(8, height), layout="constrained")
    for row, name in enumerate(names):
        result = variants[name]["test_accuracy"]
        if result["low"] is not None:
            axis.plot([result["low"], result["high"]], [row, row], color="C0", lw=2)
        axis.plot(result["mean"], row, "D", color="C0")
        axis.plot(result["values"], [row] * result["runs"], ".", color="C1", alpha=0.7)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel("test accuracy")
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.grid(axis="x", alpha=0.3)
    return figure


def _band(axis: Axes, runs: Sequence[Run], name: str, **style: Any) -> None:
    of_runs = [
        {line["step"]: line[name] for line in run.lines if name in line} for run in runs
    ]
    steps = list(of_runs[0])
    values = np.asarray([[of_run[step] for step in steps] for of_run in of_runs])
    (line,) = axis.plot(steps, values.mean(axis=0), linewidth=1.5, **style)
    low, high = values.min(axis=0), values.max(axis=0)
    axis.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def _bands(axis: Axes, runs: Mapping[str, Sequence[Run]], name: str) -> None:
    """Draws a variant each in ten colours, then in the same with other lines."""
    for number, (variant, of_variant) in enumerate(runs.items()):
        line = ("-", "--", ":", "-.")[number // 10 % 4]
        style = {"color": f"C{number % 10}", "linestyle": line}
        _band(axis, of_variant, name, label=variant, **style)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)


def _curves(runs: Mapping[str, Sequence[Run]]) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    _bands(axes[0], runs, "train_loss")
    _bands(axes[1], runs, "val_accuracy")
    axes[0].set_yscale("log")
    axes[0].set_ylabel("training loss (nats)")
    axes[1].set_ylabel("validation accuracy")
    axes[1].yaxis.set_major_formatter(PercentFormatter(1))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _splits(runs: Mapping[str, Sequence[Run]], variants: Mapping[str, Any]) -> Figure:
    columns = min(3, len(runs))
    rows = -(-len(runs) // columns)
    size = (3.4 * columns, 2.8 * rows)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (name, of_variant) in zip(axes.flat, runs.items(), strict=False):
        _band(axis, of_variant, "train_accuracy", label="train")
        _band(axis, of_variant, "val_accuracy", label="validation")
        test = variants[name]["test_accuracy"]["mean"]
        axis.axhline(test, color="black", linestyle="--", linewidth=1, label="test")
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(runs) :]:
        axis.set_axis_off()
    axes.flat[0].legend(loc="lower right", fontsize=8)
    figure.supxlabel("step")
    axes.flat[0].yaxis.set_major_formatter(PercentFormatter(1))
    figure.supylabel("accuracy")
    return figure


def _drift(runs: Mapping[str, Sequence[Run]]) -> Figure:
    figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
    _bands(axis, runs, "gate_drift")
    axis.set_ylabel("mean |F(w) - F(w) at the start|")
    axis.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure
