"""Tables of an evaluation."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def per_class(
    labels: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """Returns accuracy per class and the confusion matrix.

    Args:
      labels: [examples], int.
      predictions: [examples], int.
      class_names: one per class.

    Returns:
      `class_accuracy` {name: accuracy, None where a class has no example} and
      `confusion`, a row per true class and a column per predicted one, counts.
    """
    classes = len(class_names)
    pairs = np.bincount(labels * classes + predictions, minlength=classes**2)
    confusion = pairs.reshape(classes, classes)
    totals = confusion.sum(axis=1)
    accuracy = {
        name: float(confusion[i, i] / totals[i]) if totals[i] else None
        for i, name in enumerate(class_names)
    }
    return {"class_accuracy": accuracy, "confusion": confusion.tolist()}


def table(report: dict[str, Any]) -> str:
    """Returns the text of what `evaluate` reports."""
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
