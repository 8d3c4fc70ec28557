"""Tables for people, and the figures in them for programs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from clu import parameter_overview
from sklearn.metrics import confusion_matrix

from dresnet_jax.analysis import input_speed
from dresnet_jax.analysis.connection_costs import Row
from dresnet_jax.analysis.cost import Cost
from dresnet_jax.connections.module import Openings


def gate_table(openings: Openings) -> str:
    """F(w) of every edge: a row per reading block, a column per source."""
    sources = range(1, max(k for row in openings.values() for k in row) + 1)
    lines = ["F(w)     " + "".join(f"  from {k:2d}" for k in sources)]
    for block, row in sorted(openings.items()):
        cells = (f"{row[k]:9.3f}" if k in row else " " * 9 for k in sources)
        lines.append(f"block {block:2d} " + "".join(cells))
    return "\n".join(lines)


def parameter_table(params: Any) -> str:
    """Name, shape and size of every parameter, and their total."""
    return parameter_overview.get_parameter_overview(params, include_stats=False)


def cost_table(cost: Cost) -> str:
    """The compiler's counts of a training step, per device."""
    mib = 2**20
    return "\n".join(
        (
            f"FLOPs per step:      {cost.flops / 1e9:12.3f} G",
            f"bytes accessed:      {cost.bytes_accessed / mib:12.1f} MiB",
            f"temporary memory:    {cost.temp_bytes / mib:12.1f} MiB",
            f"arguments in memory: {cost.argument_bytes / mib:12.1f} MiB",
        )
    )


def connection_cost_table(rows: Sequence[Row]) -> str:
    """A row per form, as ratios to the plain network, which comes first."""
    names = ("FLOPs", "bytes", "temporary", "step", "(range)", "ms", "compile")
    lines = [f"{rows[0].model:24s}" + "".join(f"{name:>13s}" for name in names)]
    for row in rows:
        spread = "estimate"
        if row.step_ratio_range:
            spread = "{:.2f}..{:.2f}".format(*row.step_ratio_range)
        cells = (
            f"{row.flops_ratio:.3f}",
            f"{row.bytes_ratio:.3f}",
            "-" if row.temp_ratio is None else f"{row.temp_ratio:.3f}",
            f"{row.step_ratio:.3f}",
            spread,
            f"{row.step_seconds * 1e3:.1f}",
            f"{row.compile_ratio:.2f}",
        )
        lines.append(
            f"{'connections: ' + row.form:24s}" + "".join(f"{c:>13s}" for c in cells)
        )
    return "\n".join(lines)


def input_speed_table(rows: Sequence[input_speed.Row]) -> str:
    """Images per second: a row for each part of each road."""
    lines = [
        f"{'images per second':24s}{'median':>10s}{'(range)':>18s}{'waiting':>10s}"
    ]
    for row in rows:
        low, high = row.images_per_second_range
        lines.append(
            f"{row.road + ', ' + row.what:24s}{row.images_per_second:10,.0f}"
            f"{f'{low:,.0f}..{high:,.0f}':>18s}{row.data_wait:10.2%}"
        )
    return "\n".join(lines)


def per_class(
    labels: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """Accuracy per class and the confusion matrix.

    Args:
      labels: [examples], int.
      predictions: [examples], int.
      class_names: one per class.

    Returns:
      `class_accuracy` {name: accuracy, None where a class has no example} and
      `confusion`, a row per true class and a column per predicted one, counts.
    """
    confusion = confusion_matrix(
        labels, predictions, labels=np.arange(len(class_names))
    )
    totals = confusion.sum(axis=1)
    accuracy = {
        name: float(confusion[i, i] / totals[i]) if totals[i] else None
        for i, name in enumerate(class_names)
    }
    return {"class_accuracy": accuracy, "confusion": confusion.tolist()}


def evaluation_table(report: dict[str, Any]) -> str:
    """The text of what `evaluate` reports."""
    names = list(report["class_accuracy"])
    width = max(5, *(len(name) for name in names)) + 1
    lines = [
        f"step {report['step']}, {report['split']} split, "
        f"{report['examples']} examples",
        f"accuracy: {report['accuracy']:.4f}",
        f"loss: {report['loss']:.4f}",
        "",
        "rows: true class, columns: predicted class",
        " " * width + "".join(f"{name:>{width}}" for name in (*names, "right")),
    ]
    for name, row in zip(names, report["confusion"], strict=True):
        accuracy = report["class_accuracy"][name]
        right = "-" if accuracy is None else f"{accuracy:.3f}"
        counts = "".join(f"{value:>{width}}" for value in row)
        lines.append(f"{name:>{width}}{counts}{right:>{width}}")
    return "\n".join(lines)
