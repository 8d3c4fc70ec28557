"""Pictures of costs."""

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dresnet_jax.costs import conditional_costs
from dresnet_jax.costs.connection_costs import Row


def connection_costs(rows: Sequence[Row]) -> Figure:
    """Draws what each form costs, as ratios to the plain network, over the depth."""
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
            result = {
                row.depth: getattr(row, field)
                for row in rows
                if (row.model, row.form) == (model, form)
                and getattr(row, field) is not None
            }
            style = {"color": f"C{n}", "label": f"{model}: {form}"}
            if not result:
                continue
            if len(depths) > 1:
                axis.plot(list(result), list(result.values()), marker="o", **style)
            else:
                axis.bar([n] * len(result), list(result.values()), **style)
        axis.set_title(title)
        axis.set_ylim(bottom=0)
        if len(depths) > 1 and axis.has_data():
            axis.set_xscale("log", base=2)
            axis.set_xticks(depths, [str(depth) for depth in depths])
            axis.set_xlabel("blocks")
        else:
            axis.set_xticks([])
        axis.axhline(1, color="black", linewidth=0.5)
    figure.suptitle("compared with the plain network, which is 1")
    handles, labels = axes.flat[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def conditional_costs_bars(rows: Sequence[conditional_costs.Row]) -> Figure:
    """Draws what conditional paths save, by the rate of the gates: FLOPs and time."""
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
