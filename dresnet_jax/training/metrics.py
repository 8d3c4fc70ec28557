"""Metrics by clu, and those that a run has written."""

import json
from typing import Any

import flax
from absl import logging
from clu import metrics
from etils import epath

LINES = "metrics.jsonl"


@flax.struct.dataclass
class Metrics(metrics.Collection):
    """Mean loss and accuracy over the examples that the mask lets through."""

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: metrics.Accuracy


def read(workdir: epath.Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's `metrics.jsonl`; none where there is no such file.

    A last line that was cut off when the run was killed is left out, and so are damaged
    ones, with a warning.
    """
    lines, damaged = read_all(workdir)
    for number, line in damaged.items():
        logging.warning(
            "%s, line %d, is damaged and left out: %.80r",
            *(workdir / LINES, number, line),
        )
    return lines


def read_all(workdir: epath.Path) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Reads as `read` does, and returns the damaged lines too, by number from 1."""
    path = workdir / LINES
    text = path.read_bytes().decode(errors="replace") if path.exists() else ""
    result, damaged = [], {}
    # Not `splitlines`, which knows other ends of lines too; the last one is cut off.
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            parsed = json.loads(line)
            parsed["step"] + 0
        except (ValueError, TypeError, KeyError):
            damaged[number] = line
        else:
            result.append(parsed)
    return result, damaged


def first_gates(workdir: epath.Path) -> dict[int, dict[int, float]]:
    """Returns F(w) of every edge at a run's start; nothing where it was not written."""
    for line in read(workdir):
        if "gates" in line:
            return {
                int(i): {int(k): value for k, value in row.items()}
                for i, row in line["gates"].items()
            }
    return {}
