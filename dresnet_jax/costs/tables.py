"""Tables of costs for people, and the figures in them for programs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from dresnet_jax.costs import conditional_costs, input_speed, pod
from dresnet_jax.costs.collectives import Group
from dresnet_jax.costs.connection_costs import Row
from dresnet_jax.costs.cost import Cost
from dresnet_jax.data import lookup
from dresnet_jax.models import zoo


def cost_table(cost: Cost) -> str:
    """Returns what a training step costs each device."""
    mib = 2**20
    return "\n".join(
        (
            f"FLOPs per step:      {cost.flops / 1e9:12.3f} G",
            f"bytes accessed:      {cost.bytes_accessed / mib:12.1f} MiB",
            f"temporary memory:    {cost.temp_bytes / mib:12.1f} MiB",
            f"arguments in memory: {cost.argument_bytes / mib:12.1f} MiB",
        )
    )


def counts(cost: Cost) -> dict[str, Any]:
    """Returns what a training step costs each device, for a program."""
    return {
        "flops_per_step": cost.flops,
        "bytes_per_step": cost.bytes_accessed,
        "temp_bytes": cost.temp_bytes,
        "argument_bytes": cost.argument_bytes,
    }


def pod_table(plan: pod.Plan) -> str:
    """Returns what a step takes of each chip of a target, and of the whole run."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.part.mesh.shape.items())
    lines = [
        f"{plan.target.name}: {plan.chips} chips, {mesh}; {plan.batch_per_chip} images "
        f"a chip, {plan.part.recipe.batch_size:,} in all",
        f"data: {plan.part.inputs.description}",
        "",
        "memory of a chip, counted by the compiler (* by shapes, without padding)",
        *_memory_lines(plan.memory),
        "",
        "a step of a chip, counted by the compiler except FLOPs",
        f"  {'FLOPs':34s}{plan.cost.flops / 1e9:12,.1f} G",
        f"  {'bytes read and written':34s}{_mib(plan.cost.bytes_accessed)}",
        *_collective_lines(plan.collectives),
        "",
    ]
    if plan.seconds is None:
        why = "a loop was counted as one turn, in each figure of a step"
        return "\n".join([*lines, f"no estimates: {why}"])
    return "\n".join([*lines, *_estimate_lines(plan, plan.seconds)])


def _mib(number: float) -> str:
    return f"{number / 2**20:12,.1f} MiB"


def _memory_lines(memory: pod.Memory) -> list[str]:
    rows = {
        "parameters *": memory.params,
        "optimiser *": memory.optimizer,
        "averaged parameters *": memory.average,
        "data of a step *": memory.data,
        "activations and the like": memory.temporary,
        "statistics, padding, program": memory.other,
        "used": memory.used,
        "there is": memory.total,
        "margin": memory.total - memory.used,
    }
    return [f"  {name:34s}{_mib(size)}" for name, size in rows.items()]


def _collective_lines(groups: Sequence[Group]) -> list[str]:
    lines = []
    for group in groups:
        where = "across slices" if group.across_slices else "within a slice"
        lines.append(
            f"  {f'{group.kind}, {where}':34s}{_mib(group.bytes)} in {group.count}, "
            f"the largest {group.largest_bytes / 2**20:,.1f} MiB"
        )
    return lines or ["  no collectives"]


def _estimate_lines(plan: pod.Plan, seconds: pod.Seconds) -> list[str]:
    hours = plan.run_hours or 0
    rows = {
        "arithmetic": seconds.arithmetic,
        "memory": seconds.memory,
        "interconnect of a slice": seconds.interconnect,
        "network between slices": seconds.network,
        "step": seconds.step,
    }
    return [
        "estimates, by published figures of the chip: the longer of arithmetic and",
        "memory, and all that is sent; latency is not in it",
        *(f"  {name:34s}{value * 1e3:12.2f} ms" for name, value in rows.items()),
        f"  {'bound by':34s}{seconds.bound:>12s}",
        f"  {'FLOPs, of the peak':34s}{plan.peak_share:12.1%}",
        f"  {'weak scaling':34s}{seconds.weak_scaling:12.3f}",
        f"  {'images per second, all chips':34s}{plan.images_per_second:12,.0f}",
        f"  {f'{plan.part.num_steps:,} steps':34s}{hours:12.2f} hours, "
        f"{hours * plan.chips:,.1f} chip-hours",
    ]


def sweep_table(sweep: Mapping[int, pod.Plan | None]) -> str:
    """Returns a row per batch."""
    lines = [
        f"{'images a chip':>14s}{'memory used':>16s}{'step':>12s}{'images/s':>12s}"
    ]
    for batch, plan in sweep.items():
        if plan is None:
            lines.append(f"{batch:14d}{'does not fit':>16s}")
            continue
        seconds = plan.seconds.step * 1e3 if plan.seconds else None
        lines.append(
            f"{batch:14d}{_mib(plan.memory.used)}{_ratio(seconds, '9.2f'):>9s} ms"
            f"{_ratio(plan.images_per_second, ',.0f'):>12s}"
        )
    return "\n".join(lines)


def sizes(config: ml_collections.ConfigDict) -> str:
    """Describes in one line what a config's network is given, and its width."""
    side, model = lookup.from_config(config.data).image_size, config.model
    return (
        f"batch {config.data.batch_size}, {side}x{side}, {model.dtype}, stem "
        f"{model.stem}, width {zoo.width(model):g}"
    )


def connection_cost_table(rows: Sequence[Row], *, with_traffic: bool = False) -> str:
    """Returns a row per form, as ratios to the plain network of its model and depth.

    Where a form was measured at several depths, a line per form says how what is saved
    for the backward pass grows. A second table, `with_traffic`, says where a model's
    bytes go.
    """
    names = ("FLOPs", "bytes", "FLOP/byte", "temporary", "saved", "trace", "compile")
    heading = "".join(f"{name:>10s}" for name in (*names, "step"))
    lines = [f"{'':34s}{heading}{'(range)':>14s}{'ms':>10s}"]
    for row in rows:
        spread = "estimate"
        if row.step_ratio_range:
            spread = "{:.2f}..{:.2f}".format(*row.step_ratio_range)
        elif row.step_ratio is None:
            spread = "-"
        cells = (
            _ratio(row.flops_ratio),
            _ratio(row.bytes_ratio),
            _ratio(row.intensity, ".1f"),
            _ratio(row.temp_ratio),
            _ratio(row.saved_ratio),
            _ratio(row.trace_ratio, ".2f"),
            _ratio(row.compile_ratio, ".2f"),
            _ratio(row.step_ratio),
        )
        milliseconds = None if row.step_seconds is None else row.step_seconds * 1e3
        lines.append(
            f"{f'{row.model}, {row.depth} blocks: {row.form}':34s}"
            + "".join(f"{cell:>10s}" for cell in cells)
            + f"{spread:>14s}{_ratio(milliseconds, '.1f'):>10s}"
        )
    for form in dict.fromkeys(row.form for row in rows):
        line = saved_memory_line([row for row in rows if row.form == form])
        lines.extend([line.text] if line else [])
    if with_traffic:
        lines.append(_traffic_table(rows))
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Line:
    """A straight line through what a form saves for the backward pass, over its depth.

    Attributes:
      form: of the weighted sum.
      start: bytes at depth 0.
      slope: bytes a block.
      residual: the largest distance of a figure from the line, as a part of the figure.
    """

    form: str
    start: float
    slope: float
    residual: float

    @property
    def text(self) -> str:
        """The line as people read it."""
        mib = 2**20
        return (
            f"saved for the backward pass, {self.form}: {self.start / mib:.3f} + "
            f"{self.slope / mib:.3f} x blocks MiB, to within {self.residual:.2%}"
        )


def saved_memory_line(rows: Sequence[Row]) -> Line | None:
    """Returns the line through the rows of one form; None for fewer than 3 depths."""
    known = {row.depth: row.saved_bytes for row in rows if row.saved_bytes is not None}
    if len(known) < 3:
        return None
    depths, saved = np.asarray(list(known)), np.asarray(list(known.values()))
    slope, start = np.polyfit(depths, saved, 1)
    residual = np.abs((start + slope * depths) / saved - 1).max()
    return Line(rows[0].form, float(start), float(slope), float(residual))


def _traffic_table(rows: Sequence[Row]) -> str:
    """Bytes of each part of a model's step, in MB, a column per form."""
    known = {row.form: row.traffic for row in rows if row.traffic is not None}
    lines = [f"{'MB read and written by':42s}" + "".join(f"{f:>16s}" for f in known)]
    for part in sorted(set().union(*known.values())):
        sizes = [traffic.get(part, 0) for traffic in known.values()]
        if max(sizes) > 1e6:
            cells = "".join(f"{size / 1e6:16.1f}" for size in sizes)
            lines.append(f"{part:42s}{cells}")
    return "\n".join(lines)


def _ratio(value: float | None, digits: str = ".3f") -> str:
    return "-" if value is None else format(value, digits)


def conditional_cost_table(rows: Sequence[conditional_costs.Row]) -> str:
    """Lists what gates save compared with no gates, by their rate, and the time."""
    lines = [
        f"{'saved':12s}{'open':>11s}{'FLOPs':>11s}{'of batches':>11s}{'time':>11s}"
        f"{'(quartiles)':>16s}{'masked':>11s}{'realised':>11s}{'ms':>10s}"
        f"{'plain ms':>10s}"
    ]
    for row in rows:
        low, high = row.time_saving_quartiles
        lines.append(
            f"{'the run' if row.rate is None else f'rate {row.rate:g}':12s}"
            f"{row.open_share:11.1%}{row.flops_saving:11.1%}"
            f"{row.batch_flops_saving:11.1%}{row.time_saving:11.1%}"
            f"{f'{low:.1%}..{high:.1%}':>16s}{row.masked_time_saving:11.1%}"
            f"{_ratio(row.realised, '.2f'):>11s}"
            f"{row.seconds * 1e3:10.1f}{row.plain_seconds * 1e3:10.1f}"
        )
    return "\n".join(lines)


def input_speed_table(rows: Sequence[input_speed.Row]) -> str:
    """Returns images per second: a row for each part of each input pipeline."""
    lines = [
        f"{'images per second':24s}{'median':>10s}{'(range)':>18s}{'waiting':>10s}"
    ]
    for row in rows:
        low, high = row.images_per_second_range
        lines.append(
            f"{row.mode + ', ' + row.what:24s}{row.images_per_second:10,.0f}"
            f"{f'{low:,.0f}..{high:,.0f}':>18s}{row.data_wait:10.2%}"
        )
    return "\n".join(lines)
