"""The pictures of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import logging
from etils import epath

matplotlib.use("Agg")  # Before pyplot: pictures are only ever written to files.

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dresnet_jax.analysis import conditional_costs, growth_plot
from dresnet_jax.analysis.connection_costs import Row
from dresnet_jax.connections.gates import GATES
from dresnet_jax.training import metrics, workdir


def run_pictures(directory: epath.Path) -> list[epath.Path]:
    """Draws what a run's `metrics.jsonl` and `history.jsonl` hold.

    Returns:
      The paths of curves.png, of gates.png where there are gates, of
      gate_functions.png, and of growth.png where the network has grown; without those
      that could not be written, which are reported.
    """
    lines = metrics.read(directory)
    pictures = {"curves.png": curves(lines)}
    gates = [line["gates"] for line in lines if "gates" in line]
    if gates:
        pictures["gates.png"] = gate_maps(gates[0], gates[-1])
    pictures["gate_functions.png"] = gate_functions()
    if history := workdir.read_history(directory):
        pictures["growth.png"] = growth_plot.growth(history, lines[-1]["step"])
    paths = []
    for name, figure in pictures.items():
        path = directory / name
        try:
            save(figure, path)
        except OSError as error:
            path.unlink(missing_ok=True)
            logging.warning("%s cannot be written: %s.", path, error.strerror or error)
            continue
        paths.append(path)
    return paths


def save(figure: Figure, path: epath.Path) -> None:
    """Writes a figure to a file, and closes it."""
    with path.open("wb") as file:
        figure.savefig(file, dpi=150)
    plt.close(figure)


def before_and_after(before: np.ndarray, after: np.ndarray) -> Figure:
    """A row of images as they are stored, over what augmentation made of each.

    Args:
      before: [images, height, width, channels], values from 0 to 1.
      after: the same.
    """
    figure, axes = plt.subplots(
        2, len(before), figsize=(len(before), 2.2), squeeze=False, layout="constrained"
    )
    for row, images, name in zip(
        axes, (before, after), ("stored", "seen"), strict=True
    ):
        row[0].set_ylabel(name)
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
    return figure


def connection_costs(rows: Sequence[Row]) -> Figure:
    """What each form costs beside the plain network: a panel a figure, over depth."""
    panels = {
        "flops_ratio": "FLOPs",
        "bytes_ratio": "bytes accessed",
        "temp_ratio": "temporary memory",
        "saved_ratio": "saved for the backward pass",
        "compile_ratio": "compile time",
        "step_ratio": "step time",
    }
    figure, axes = plt.subplots(2, 3, figsize=(10, 6), layout="constrained")
    names = list(dict.fromkeys((row.model, row.form) for row in rows))
    depths = sorted({row.depth for row in rows})
    for axis, (field, title) in zip(axes.flat, panels.items(), strict=True):
        for n, (model, form) in enumerate(names):
            found = {
                row.depth: getattr(row, field)
                for row in rows
                if (row.model, row.form) == (model, form)
                and getattr(row, field) is not None
            }
            style = {"color": f"C{n}", "label": f"{model}: {form}"}
            if not found:
                continue
            if len(depths) > 1:
                axis.plot(list(found), list(found.values()), marker="o", **style)
            else:
                axis.bar([n] * len(found), list(found.values()), **style)
        axis.set_title(title)
        axis.set_ylim(bottom=0)
        if len(depths) > 1 and axis.has_data():
            axis.set_xscale("log", base=2)
            axis.set_xticks(depths, [str(depth) for depth in depths])
            axis.set_xlabel("blocks")
        else:
            axis.set_xticks([])
        axis.axhline(1, color="black", linewidth=0.5)
    figure.suptitle("beside the plain network, which is 1")
    handles, labels = axes.flat[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def conditional_costs_bars(rows: Sequence[conditional_costs.Row]) -> Figure:
    """What conditional paths save, by the rate of the gates: FLOPs beside time."""
    figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
    bars = {
        "FLOPs, of what the gates let through": [row.flops_saving for row in rows],
        "FLOPs, of the batches that are run": [row.batch_flops_saving for row in rows],
        "time": [row.time_saving for row in rows],
        "time, computed and masked": [row.masked_time_saving for row in rows],
    }
    width, places = 0.8 / len(bars), np.arange(len(rows))
    for n, (label, values) in enumerate(bars.items()):
        axis.bar(places + n * width, values, width, label=label)
    quartiles = [row.time_saving_quartiles for row in rows]
    middles = np.array(bars["time"])
    reach = np.abs(np.transpose(quartiles) - middles)
    axis.errorbar(
        places + 2 * width, middles, reach, fmt="none", color="black", capsize=3
    )
    names = ["the run" if row.rate is None else f"{row.rate:g}" for row in rows]
    axis.set_xticks(places + 1.5 * width, names)
    axis.set_xlabel("share of the examples that run each gated block")
    axis.set_ylabel("saved, as a part of the\nnetwork without gates")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.axhline(0, color="black", linewidth=0.5)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def gradient_flow(panels: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Norms of the gradient over the blocks: lines with the range of their states.

    Args:
      panels: {title: {line: [states, blocks]}}.
    """
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(1 + 4 * len(panels), 3.8),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, flows) in zip(axes[0], panels.items(), strict=True):
        for name, norms in flows.items():
            blocks = np.arange(1, norms.shape[1] + 1)
            axis.plot(blocks, np.median(norms, axis=0), marker=".", label=name)
            axis.fill_between(blocks, norms.min(axis=0), norms.max(axis=0), alpha=0.2)
        axis.set_title(title)
        axis.set_xlabel("block, the last is next to the loss")
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0, 0].set_ylabel("norm of the loss's gradient\nby the block's output")
    return figure


def early_exit(
    report: Mapping[str, Any], curve: Sequence[tuple[float, float]]
) -> Figure:
    """Accuracy against cost: of thresholds, of each exit alone, and what was chosen.

    Args:
      report: as `early_exit_report` makes it.
      curve: (cost, accuracy) of the thresholds that were fitted.
    """
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    split, measured = report["split_measured"], report["measured"]
    axis.plot(*zip(*curve, strict=True), color="C0", label="early exits, validation")
    for n, exit_ in enumerate(report["exits"]):
        place = exit_["cost"], exit_["accuracy_alone"]
        label = None if n else f"each exit alone, {split}"
        axis.plot(*place, "s", color="C1", label=label)
        axis.annotate(
            f" block {exit_['depth']}", place, va="top", color="C1", fontsize=8
        )
    axis.plot(
        *(report["validation"]["cost"], report["validation"]["accuracy"]),
        "o",
        color="C0",
        label="chosen, validation",
    )
    axis.plot(
        *(measured["cost"], measured["accuracy"]),
        "*",
        color="C3",
        markersize=12,
        label=f"chosen, {split}",
    )
    axis.set_xlabel("mean FLOPs of an image, those of the whole network being 1")
    axis.set_ylabel("accuracy")
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    return figure


def routes(
    weights: Mapping[int, np.ndarray],
    operations: Mapping[int, Sequence[str]],
    classes: Sequence[str],
) -> Figure:
    """Who uses what: a map of classes by operations for each mixed block.

    Args:
      weights: mean weights of each block, {block: [classes, operations]}.
      operations: their names, {block: names}.
      classes: their names.
    """
    columns = min(4, len(weights))
    rows = -(-len(weights) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(2 + 2.4 * columns, 0.8 + 2.8 * rows),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(weights) :]:
        axis.set_axis_off()
    for axis, (block, found) in zip(axes.flat, weights.items(), strict=False):
        image = axis.imshow(found, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axis.set_xticks(range(found.shape[1]), operations[block], rotation=90)
        if len(classes) <= 20:
            axis.set_yticks(range(len(classes)), classes)
        axis.set_title(f"block {block}")
    figure.colorbar(image, ax=axes, label="mean weight")
    return figure


def residuals(scales: Mapping[int, np.ndarray]) -> Figure:
    """The a of learned residuals by block: of each channel a point, and the mean |a|.

    Args:
      scales: {block: [channels]}, or [1] of a block with one number.
    """
    figure, axis = plt.subplots(
        figsize=(2 + 0.5 * len(scales), 4), layout="constrained"
    )
    blocks = list(scales)
    for i, found in scales.items():
        # In a row from low to high, so that all are seen.
        places = i + np.linspace(-0.3, 0.3, len(found)) if len(found) > 1 else [i]
        axis.plot(places, np.sort(found), ".", color="tab:blue", markersize=3)
    # F may have either sign, so that the mean of a says little.
    means = [abs(found).mean() for found in scales.values()]
    axis.plot(blocks, means, "D", color="tab:orange", label="mean of |a|")
    axis.axhline(0, color="grey", linestyle="--", label="an identity")
    axis.set_xticks(blocks)
    axis.set_xlabel("block")
    axis.set_ylabel("a of x + a F(x)")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def curves(lines: list[dict[str, Any]]) -> Figure:
    """Loss and accuracy over the steps, on the training and the validation split."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, quantity in zip(axes, ("loss", "accuracy"), strict=True):
        for split, label in (("train", "train"), ("val", "validation")):
            name = f"{split}_{quantity}"
            points = [(line["step"], line[name]) for line in lines if name in line]
            axis.plot(*np.transpose(points), label=label, linewidth=1.5)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("loss (cross entropy, nats)")
    axes[0].set_yscale("log")
    axes[1].set_ylabel("accuracy")
    axes[1].legend(loc="lower right")
    return figure


def gate_maps(start: Mapping[str, Any], end: Mapping[str, Any]) -> Figure:
    """F(w) of every edge, block by source, at the start and at the end of a run.

    Args:
      start: {reader: {source: F(w)}}, with numbers as text, as JSON holds them.
      end: the same edges, later.
    """
    blocks = max(map(int, end))
    # The stem is a source only where the base is learned.
    first = min(1, *(int(k) for row in end.values() for k in row))
    values = [_matrix(gates, blocks, first) for gates in (start, end)]
    known = np.concatenate([value[~np.isnan(value)] for value in values])
    # The identity gate is not bounded: the scale then grows with its values.
    low, high = min(0.0, known.min()), max(1.0, known.max())
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    for axis, value, title in zip(
        axes, values, ("at the start", "at the end"), strict=True
    ):
        image = axis.imshow(value, vmin=low, vmax=high, cmap="viridis")
        for (row, column), opening in np.ndenumerate(value):
            if blocks <= 12 and not np.isnan(opening):
                dark = opening < (low + high) / 2
                axis.text(
                    column,
                    row,
                    f"{opening:.2f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "black",
                )
        step = max(1, blocks // 10)
        axis.set_xticks(range(0, value.shape[1], step))
        axis.set_xticklabels(range(first, value.shape[1] + first, step))
        axis.set_yticks(range(0, value.shape[0], step))
        axis.set_yticklabels(range(1, value.shape[0] + 1, step))
        axis.set_xlabel("source block k")
        axis.set_title(title)
    axes[0].set_ylabel("reading block i")
    figure.colorbar(image, ax=axes, label="opening F(w)", shrink=0.85)
    return figure


def gate_functions() -> Figure:
    """The gate functions of one weight: gauss at several k."""
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    weights = jnp.linspace(-6, 6, 401)
    for name in ("sigmoid", "hard_sigmoid", "tanh"):
        axis.plot(
            weights,
            GATES[name].function(weights, jnp.ones(())),
            label=f"{name}: {GATES[name].formula}",
            linewidth=2,
        )
    for k in (0.1, 1.0, 10.0):
        axis.plot(
            weights,
            GATES["gauss"].function(weights, jnp.asarray(k)),
            label=f"gauss: {GATES['gauss'].formula}, k = {k:g}",
            linewidth=1.5,
            linestyle="--",
        )
    axis.set_xlabel("weight w")
    axis.set_ylabel("opening F(w)")
    axis.set_ylim(-1.08, 1.9)
    axis.grid(alpha=0.3)
    axis.legend(loc="upper center", ncols=2, fontsize=8)
    return figure


def _matrix(gates: Mapping[str, Any], blocks: int, first: int) -> np.ndarray:
    """[blocks, sources from the first] of F(w); no number where there is no edge."""
    sources = max(int(k) for row in gates.values() for k in row) - first + 1
    matrix = np.full((blocks, sources), np.nan)
    for block, row in gates.items():
        for source, opening in row.items():
            matrix[int(block) - 1, int(source) - first] = opening
    return matrix
