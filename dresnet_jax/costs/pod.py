"""Plans a training step for a pod without the hardware: memory, traffic and time."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, final

import jax
import ml_collections

from dresnet_jax import defaults
from dresnet_jax.costs import chips, collectives, cost, programs
from dresnet_jax.costs.chips import Target
from dresnet_jax.costs.collectives import Group
from dresnet_jax.errors import RunFailedError
from dresnet_jax.training import experiment, sharding


class DoesNotFitError(RunFailedError):
    """A step that needs more memory than a chip has."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a step needs of a chip's memory, bytes.

    Attributes:
      params: parameters, by their shapes and where they lie, without padding.
      optimizer: the optimiser's state, likewise.
      average: averaged parameters, likewise.
      data: the examples of a step or, of a resident set, all, likewise.
      temporary: activations and all else that a step makes and drops, as the compiler
        says.
      used: all in all, as the compiler says; batch statistics, padding and the program
        itself are in it too.
      total: what the compiler lets a program use.
    """

    params: int
    optimizer: int
    average: int
    data: int
    temporary: int
    used: int
    total: int

    @property
    def other(self) -> int:
        """Batch statistics, padding and the program itself."""
        named = self.params + self.optimizer + self.average + self.data
        return self.used - named - self.temporary


@final
@dataclasses.dataclass(frozen=True)
class Seconds:
    """An estimate of a step, by the published figures of a chip.

    A chip computes while it reads its memory, so the longer of the two counts. What is
    sent is added to it, assuming no overlap: the compiler may hide a part.

    Attributes:
      arithmetic: FLOPs / peak.
      memory: bytes read and written / bandwidth.
      interconnect: bytes sent within a slice / bandwidth of the links in use.
      network: bytes sent to other slices / bandwidth.
    """

    arithmetic: float
    memory: float
    interconnect: float
    network: float

    @property
    def alone(self) -> float:
        """Of the step without its collectives."""
        return max(self.arithmetic, self.memory)

    @property
    def step(self) -> float:
        """Of the step."""
        return self.alone + self.interconnect + self.network

    @property
    def bound(self) -> str:
        """The name of the longest part."""
        parts = dataclasses.asdict(self)
        return max(parts, key=lambda name: parts[name])

    @property
    def weak_scaling(self) -> float:
        """The step without its collectives / the step with them.

        So a part of what one chip does alone, with the same batch, that each chip of
        the target still does.
        """
        return self.alone / self.step


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on a target.

    Attributes:
      part: the run.
      target: its chips.
      memory: of a chip.
      cost: of a step, of a chip.
      collectives: of a step, by kind.
      seconds: of a step; None where the compiler counts a loop as one turn.
    """

    part: experiment.Experiment
    target: Target
    memory: Memory
    cost: cost.Cost
    collectives: Sequence[Group]
    seconds: Seconds | None

    @property
    def chips(self) -> int:
        """All chips of the target."""
        return self.part.mesh.size

    @property
    def batch_per_chip(self) -> int:
        """Images of a step on each chip."""
        return self.part.recipe.batch_size // self.chips

    @property
    def reduced_bytes(self) -> int:
        """What a chip adds up with the others of its slice: gradients and statistics.

        An all-reduce may be compiled as a reduce-scatter and an all-gather: it is in
        the first of the two.
        """
        kinds = ("all-reduce", "reduce-scatter")
        return sum(
            group.bytes
            for group in self.collectives
            if group.kind in kinds and not group.across_slices
        )

    @property
    def images_per_second(self) -> float | None:
        """Of all chips, estimated."""
        return self.seconds and self.part.recipe.batch_size / self.seconds.step

    @property
    def peak_share(self) -> float | None:
        """FLOPs of a step / what the chip could do in its time, estimated."""
        return self.seconds and self.seconds.arithmetic / self.seconds.step

    @property
    def run_hours(self) -> float | None:
        """Of all training steps, estimated; without input, evaluation, checkpoints."""
        return self.seconds and self.part.num_steps * self.seconds.step / 3600

    def report(self) -> dict[str, Any]:
        """Returns the figures, of JSON's types, of a step of one chip."""
        hours = self.run_hours
        return {
            "target": self.target.name,
            "chips": self.chips,
            "batch_per_chip": self.batch_per_chip,
            "hbm_used_bytes": self.memory.used,
            "hbm_total_bytes": self.memory.total,
            "hbm_bytes": dataclasses.asdict(self.memory),
            "flops_per_chip": self.cost.flops,
            "bytes_per_chip": self.cost.bytes_accessed,
            "collective_bytes_per_chip": sum(g.bytes for g in self.collectives),
            "reduced_bytes_per_chip": self.reduced_bytes,
            "collectives": [dataclasses.asdict(g) for g in self.collectives],
            "step_seconds_estimate": self.seconds and self.seconds.step,
            "seconds_estimate": self.seconds and dataclasses.asdict(self.seconds),
            "bound_estimate": self.seconds and self.seconds.bound,
            "weak_scaling_estimate": self.seconds and self.seconds.weak_scaling,
            "images_per_second_estimate": self.images_per_second,
            "peak_share_estimate": self.peak_share,
            "chip_hours_estimate": hours and hours * self.chips,
        }


_WHAT_HELPS = (
    "and what needs less is a smaller batch, parts of it one after the other "
    "(train.accumulate_steps) or a state that is split over chips (sharding.fsdp)"
)


def make(
    config: ml_collections.ConfigDict, target: Target, batch_per_chip: int | None = None
) -> Plan:
    """Compiles the training step of a run for a target, and counts what it takes.

    `batch_per_chip` takes the place of the config's batch, where it is given.

    Raises:
      UserError: a value is wrong, or the compiler of the target is missing.
      DoesNotFitError: the step needs more memory than a chip has.
    """
    devices = chips.devices(target)
    if batch_per_chip is not None:
        batch_size = batch_per_chip * len(devices)
        config = defaults.replace(config, {"data.batch_size": batch_size})
    part = experiment.build(config, devices, target.chip.hbm_bytes)
    try:
        compiled = part.compile_train_step()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        why = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
        batch = part.recipe.batch_size // len(devices)
        raise DoesNotFitError(
            f"A batch of {batch} per chip does not fit {target.name}, {_WHAT_HELPS}. "
            f"The compiler says: {why}"
        ) from error
    return of(part, target, compiled)


def sweep(
    config: ml_collections.ConfigDict, target: Target, batches: Sequence[int]
) -> dict[int, Plan | None]:
    """Makes plans as `make` does, for several batches per chip.

    Returns:
      {images per chip: plan}, None where it does not fit.

    Raises:
      UserError: a value is wrong, or the compiler of the target is missing.
      DoesNotFitError: no batch fits.
    """
    plans: dict[int, Plan | None] = {}
    for batch in batches:
        try:
            plans[batch] = make(config, target, batch)
        except DoesNotFitError:
            plans[batch] = None
    if not any(plans.values()):
        raise DoesNotFitError(f"No batch fits, {_WHAT_HELPS}.")
    return plans


def sweep_report(plans: Mapping[int, Plan | None]) -> dict[str, Any]:
    """Returns the figures, of JSON's types, of what `sweep` returns."""
    return {
        "largest_batch_per_chip": max(batch for batch, plan in plans.items() if plan),
        "sweep": [
            {"batch_per_chip": batch, "fits": plan is not None}
            | (plan.report() if plan else {})
            for batch, plan in plans.items()
        ],
    }


def of(
    part: experiment.Experiment, target: Target, compiled: jax.stages.Compiled
) -> Plan:
    """Returns what a compiled training step takes of each chip of a target."""
    counts = cost.of(compiled, part.step_flops)
    result = collectives.grouped(
        collectives.of(compiled.as_text() or "", part.mesh.size, target.slices)
    )
    has_loops = part.config.train.accumulate_steps > 1 or programs.loops(part)
    return Plan(
        part=part,
        target=target,
        memory=_memory(part, target, compiled),
        cost=counts,
        collectives=result,
        seconds=None if has_loops else estimate(target, counts, result),
    )


def estimate(target: Target, counts: cost.Cost, result: Sequence[Group]) -> Seconds:
    """Returns the time of a step, from the compiler's counts and its collectives."""
    within = sum(group.sent_bytes for group in result if not group.across_slices)
    across = sum(group.sent_bytes for group in result if group.across_slices)
    chip = target.chip
    return Seconds(
        arithmetic=counts.flops / chip.flops_per_second,
        memory=counts.bytes_accessed / chip.bytes_per_second,
        # A single chip has no links.
        interconnect=within and within / target.links_bytes_per_second,
        network=across / chip.network_bytes_per_second,
    )


def _memory(
    part: experiment.Experiment, target: Target, compiled: jax.stages.Compiled
) -> Memory:
    state = part.create_state(abstract=True)
    result = compiled.memory_analysis()
    if result is None:
        raise RuntimeError("The compiler of this platform reports no memory.")
    return Memory(
        params=sharding.local_bytes(state.params),
        optimizer=sharding.local_bytes(state.opt_state),
        average=sharding.local_bytes(state.ema_params),
        data=sharding.local_bytes(part.inputs.abstract(1)),
        temporary=result.temp_size_in_bytes,
        # The state's new values take the place of the old.
        used=result.argument_size_in_bytes
        + result.output_size_in_bytes
        - result.alias_size_in_bytes
        + result.temp_size_in_bytes
        + result.generated_code_size_in_bytes,
        total=target.chip.hbm_bytes,
    )
