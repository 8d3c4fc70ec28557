"""What a network had of each kind of part while it grew, as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def growth(history: Sequence[Mapping[str, Any]], num_steps: int) -> Figure:
    """Draws cost and structure over the steps of a run, and its events.

    Args:
      history: as `workdir.read_history`.
      num_steps: of the run.
    """
    kept = [entry for entry in history if entry["result"] == "accepted"]
    figure, axes = plt.subplots(
        1, 2, figsize=(10, 4), sharex=True, layout="constrained"
    )
    for field, label in (
        ("params", "parameters"),
        ("multiply_adds", "multiply-adds of an image"),
    ):
        pairs = [(entry["step"], entry[field]) for entry in kept]
        _draw(axes[0], pairs, num_steps, label)
    for part in kept[0]["structure"][0] if kept else ():
        pairs = [
            (entry["step"], [found[part] for found in entry["structure"]])
            for entry in kept
        ]
        _draw(axes[1], pairs, num_steps, part, relative=False)
    axes[0].set_ylabel("times what it was at the start")
    axes[1].set_ylabel("number")
    axes[1].set_yscale("symlog", linthresh=1)
    for axis in axes:
        axis.set_xlabel("step")
        axis.set_xlim(0, num_steps)
        axis.grid(alpha=0.3)
        for entry in history:
            style = ":" if entry["result"] == "accepted" else "--"
            colour = "grey" if entry["result"] == "accepted" else "C3"
            axis.axvline(entry["step"], color=colour, linestyle=style, linewidth=1)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="small")
    counts = {
        result: sum(entry["result"] == result for entry in history)
        for result in ("accepted", "reverted", "rejected")
    }
    words = [f"{count} {result}" for result, count in counts.items() if count]
    figure.suptitle(f"events: {', '.join(words)} (red where nothing came of one)")
    return figure


def _draw(
    axis: Axes,
    pairs: Sequence[tuple[int, Sequence[int]]],
    num_steps: int,
    label: str,
    *,
    relative: bool = True,
) -> None:
    """A line of steps, from (step, (before, after)) of each event."""
    if not pairs:
        return
    start = pairs[0][1][0]
    unit = start if relative else 1
    steps = [0, *(step for step, _ in pairs), num_steps]
    values = [start, *(after for _, (_, after) in pairs)]
    axis.step(
        steps,
        [value / unit for value in (*values, values[-1])],
        where="post",
        label=label,
    )
