"""Tables and pictures of a training run."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dresnet_jax.connections.gate_values import GateValues
from dresnet_jax.connections.gates import GATES
from dresnet_jax.figures import pictures
from dresnet_jax.training import metrics, workdir


def gate_table(gates: GateValues) -> str:
    """Returns F(w) of every edge: a row per reader, a column per source.

    A free graph alone has the stem, 0, as a source; its last reader is the classifier.
    """
    result = {k for row in gates.values() for k in row}
    is_free, last = 0 in result, max(gates)
    sources = range(min(1, *result), max(result) + 1)
    names = ("     stem" if k == 0 else f"  from {k:2d}" for k in sources)
    lines = ["F(w)     " + "".join(names)]
    for reader, row in sorted(gates.items()):
        name = "head     " if is_free and reader == last else f"block {reader:2d} "
        cells = (f"{row[k]:9.3f}" if k in row else " " * 9 for k in sources)
        lines.append(name + "".join(cells))
    return "\n".join(lines)


def run_pictures(directory: epath.Path) -> list[epath.Path]:
    """Draws what a run's `metrics.jsonl` and `history.jsonl` hold.

    Returns:
      The paths of curves.png, of gates.png where there are gates, of
      gate_functions.png, and of growth.png where the network has grown; without those
      that could not be written, which are reported.
    """
    lines = metrics.read(directory)
    drawn = {"curves.png": curves(lines)}
    if gates := [line["gates"] for line in lines if "gates" in line]:
        drawn["gates.png"] = gate_maps(gates[0], gates[-1])
    drawn["gate_functions.png"] = gate_functions()
    if history := workdir.read_history(directory):
        drawn["growth.png"] = growth(history, lines[-1]["step"])
    paths = []
    for name, figure in drawn.items():
        path = directory / name
        try:
            pictures.save(figure, path)
            paths.append(path)
        except OSError as error:
            path.unlink(missing_ok=True)
            logging.warning("%s cannot be written: %s.", path, error.strerror or error)
    return paths


def curves(lines: list[dict[str, Any]]) -> Figure:
    """Draws loss and accuracy over the steps, on training and validation."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, quantity in zip(axes, ("loss", "accuracy"), strict=True):
        for split, label in (("train", "train"), ("val", "validation")):
            name = f"{split}_{quantity}"
            points = [(line["step"], line[name]) for line in lines if name in line]
            axis.plot(*np.transpose(points), label=label, linewidth=1.5)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="loss (cross entropy, nats)", yscale="log")
    axes[1].set_ylabel("accuracy")
    axes[1].legend(loc="lower right")
    return figure


def gate_maps(start: Mapping[str, Any], end: Mapping[str, Any]) -> Figure:
    """Draws F(w) of every edge, block by source, at the start and end of a run.

    Args:
      start: {reader: {source: F(w)}}, with numbers as text, as JSON holds them.
      end: the same edges, later.
    """
    blocks = max(map(int, end))
    # The stem is a source only where the base is learned.
    first = min(1, *(int(k) for row in end.values() for k in row))
    values = [_matrix(gates, blocks, first) for gates in (start, end)]
    # The identity gate is not bounded: the scale then grows with its values.
    low, high = min(0.0, *map(np.nanmin, values)), max(1.0, *map(np.nanmax, values))
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    for axis, value, title in zip(
        axes, values, ("at the start", "at the end"), strict=True
    ):
        image = axis.imshow(value, vmin=low, vmax=high, cmap="viridis")
        for (y, x), gate in np.ndenumerate(value):
            if blocks <= 12 and not np.isnan(gate):
                text = f"{gate:.2f}"
                colour = "white" if gate < (low + high) / 2 else "black"
                axis.text(x, y, text, ha="center", va="center", size=8, color=colour)
        step, (rows, columns) = max(1, blocks // 10), value.shape
        axis.set_xticks(range(0, columns, step), range(first, columns + first, step))
        axis.set_yticks(range(0, rows, step), range(1, rows + 1, step))
        axis.set(xlabel="source block k", title=title)
    axes[0].set_ylabel("reading block i")
    figure.colorbar(image, ax=axes, label="gate value F(w)", shrink=0.85)
    return figure


def gate_functions() -> Figure:
    """Returns the gate functions of one weight: gauss at several k."""
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    weights = jnp.linspace(-6, 6, 401)

    def draw(name: str, k: float, note: str = "", **style: Any) -> None:
        values = GATES[name].function(weights, jnp.asarray(k))
        label = f"{name}: {GATES[name].formula}{note}"
        axis.plot(weights, values, label=label, **style)

    for name in ("sigmoid", "hard_sigmoid", "tanh"):
        draw(name, 1.0, linewidth=2)
    for k in (0.1, 1.0, 10.0):
        draw("gauss", k, f", k = {k:g}", linewidth=1.5, linestyle="--")
    axis.set(xlabel="weight w", ylabel="gate value F(w)", ylim=(-1.08, 1.9))
    axis.grid(alpha=0.3)
    axis.legend(loc="upper center", ncols=2, fontsize=8)
    return figure


def growth(history: Sequence[Mapping[str, Any]], num_steps: int) -> Figure:
    """Draws cost and structure over the steps of a run, and its events.

    `history` is what `workdir.read_history` returns.
    """
    kept = [entry for entry in history if entry["result"] == "accepted"]
    steps = [0, *(entry["step"] for entry in kept), num_steps]
    figure, axes = plt.subplots(
        1, 2, figsize=(10, 4), sharex=True, layout="constrained"
    )

    def draw(axis: Axes, label: str, pairs: Sequence[Sequence[int]]) -> None:
        start, end = pairs[0][0], pairs[-1][1]
        values = np.array([start, *(after for _, after in pairs), end])
        unit = start if axis is axes[0] else 1
        axis.step(steps, values / unit, where="post", label=label)

    if kept:
        costs = {"params": "parameters", "multiply_adds": "multiply-adds of an image"}
        for field, label in costs.items():
            draw(axes[0], label, [entry[field] for entry in kept])
        for part in kept[0]["structure"][0]:
            pairs = [[own[part] for own in entry["structure"]] for entry in kept]
            draw(axes[1], part, pairs)
    axes[0].set_ylabel("times what it was at the start")
    axes[1].set_ylabel("number")
    axes[1].set_yscale("symlog", linthresh=1)
    for axis in axes:
        axis.set(xlabel="step", xlim=(0, num_steps))
        axis.grid(alpha=0.3)
        for entry in history:
            style = ":" if entry["result"] == "accepted" else "--"
            colour = "grey" if entry["result"] == "accepted" else "C3"
            axis.axvline(entry["step"], color=colour, linestyle=style, linewidth=1)
        if kept:
            axis.legend(fontsize="small")
    counts = collections.Counter(entry["result"] for entry in history)
    results = [r for r in ("accepted", "reverted", "rejected") if counts[r]]
    words = ", ".join(f"{counts[result]} {result}" for result in results)
    figure.suptitle(f"events: {words} (red where nothing came of one)")
    return figure


def _matrix(gates: Mapping[str, Any], blocks: int, first: int) -> np.ndarray:
    """[blocks, sources from the first] of F(w); no number where there is no edge."""
    sources = max(int(k) for row in gates.values() for k in row) - first + 1
    matrix = np.full((blocks, sources), np.nan)
    for block, row in gates.items():
        for source, gate in row.items():
            matrix[int(block) - 1, int(source) - first] = gate
    return matrix
