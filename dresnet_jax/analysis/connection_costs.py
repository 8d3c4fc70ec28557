"""What learned connections cost a training step, beside the same network without."""

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dresnet_jax.analysis import chips, cost
from dresnet_jax.connections.weighted_sum import FORMS
from dresnet_jax.data import pipeline
from dresnet_jax.errors import UserError
from dresnet_jax.training import experiment, sharding
from dresnet_jax.training.state import TrainState

PLAIN = "none"


@dataclasses.dataclass(frozen=True)
class Row:
    """One form of a model, as ratios to the plain network of the same run.

    Attributes:
      model: name in the zoo.
      form: of the weighted sum; `PLAIN` for the network without connections.
      depth: residual blocks.
      flops_ratio: floating-point operations, as the compiler counts.
      bytes_ratio: bytes accessed, as the compiler counts.
      temp_ratio: temporary memory, as the compiler counts; None where the plain network
        needs none.
      step_ratio: median over the rounds of (step time / plain's in that round); for
        another target the ratio of the estimates.
      step_ratio_range: the least and the largest of these; None for an estimate.
      step_seconds: median step time, or the estimate.
      compile_ratio: compile time.
    """

    model: str
    form: str
    depth: int
    flops_ratio: float
    bytes_ratio: float
    temp_ratio: float | None
    step_ratio: float
    step_ratio_range: tuple[float, float] | None
    step_seconds: float
    compile_ratio: float


def measure(
    config: ml_collections.ConfigDict, forms: Sequence[str], runs: int
) -> list[Row]:
    """Compiles and times the training step of each form, and of the plain network.

    Args:
      config: of a run; its model has connections.
      forms: names in `weighted_sum.FORMS`.
      runs: timed rounds, each of one step of every program in turn.

    Returns:
      A row per program, the plain network first.

    Raises:
      UserError: a value of the config is wrong, or there is nothing to measure.
    """
    parts = _experiments(config, forms)
    given = {form: (part.create_state(), _batch(part)) for form, part in parts.items()}
    programs = {form: _compile(part, *given[form]) for form, part in parts.items()}
    runners = {
        form: _runner(program.compiled, *given.pop(form))
        for form, program in programs.items()
    }
    seconds = cost.interleaved_seconds(runners, runs)
    rows = []
    for form, row in _rows(config, programs).items():
        ratios = seconds[form] / seconds[PLAIN]
        rows.append(
            Row(
                **row,
                step_ratio=float(np.median(ratios)),
                step_ratio_range=(float(ratios.min()), float(ratios.max())),
                step_seconds=float(np.median(seconds[form])),
            )
        )
    return rows


def estimate(
    config: ml_collections.ConfigDict, forms: Sequence[str], target: str
) -> list[Row]:
    """As `measure`, for chips that are not here: compiled, but not run.

    Args:
      config: of a run; its model has connections. Its batch is that of one chip.
      forms: names in `weighted_sum.FORMS`.
      target: such as "v5e:2x2".

    Raises:
      UserError: a value of the config or the target is wrong, or the compiler of the
        target is missing.
    """
    chip, devices = chips.chip(target), chips.devices(target)
    programs = {}
    for form, local in _experiments(config, forms).items():
        batch_size = local.recipe.batch_size * len(devices)
        mesh = sharding.make_mesh(batch_size, devices)
        part = dataclasses.replace(local, mesh=mesh)
        batch = jax.tree.map(
            lambda x, n=batch_size: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype),
            jax.eval_shape(lambda part=part: _batch(part)),
        )
        programs[form] = _compile(
            part,
            part.create_state(abstract=True),
            sharding.abstract(batch, sharding.split_batch(mesh)),
        )
    plain = chip.roofline_seconds(programs[PLAIN].cost)
    rows = []
    for form, row in _rows(config, programs).items():
        seconds = chip.roofline_seconds(programs[form].cost)
        rows.append(
            Row(
                **row,
                step_ratio=seconds / plain,
                step_ratio_range=None,
                step_seconds=seconds,
            )
        )
    return rows


@dataclasses.dataclass(frozen=True)
class _Program:
    compiled: jax.stages.Compiled
    cost: cost.Cost
    compile_seconds: float


def _experiments(
    config: ml_collections.ConfigDict, forms: Sequence[str]
) -> dict[str, experiment.Experiment]:
    """The plain network and each form, all checked before the first is compiled."""
    if not forms:
        raise UserError(f"No form is named: give some of {', '.join(FORMS)}.")
    parts = {
        form: experiment.build(_with_form(config, form)) for form in (PLAIN, *forms)
    }
    if not parts[forms[0]].model.spec.connections.topology.edges:
        raise UserError(f"{config.model.name} has no connections to measure.")
    return parts


def _with_form(
    config: ml_collections.ConfigDict, form: str
) -> ml_collections.ConfigDict:
    config = copy.deepcopy(config)
    if form == PLAIN:
        config.model.connections.topology = PLAIN
    else:
        config.model.connections.form = form
    return config


def _batch(parts: experiment.Experiment) -> pipeline.Batch:
    size, side = parts.recipe.batch_size, parts.dataset.image_size
    random = np.random.RandomState(0)
    shape = (size, side, side, parts.dataset.channels)
    return pipeline.make_batch(
        parts.recipe,
        jnp.asarray(random.randint(256, size=shape), jnp.uint8),
        jnp.asarray(random.randint(parts.dataset.num_classes, size=size), jnp.int32),
    )


def _compile(
    parts: experiment.Experiment, state: TrainState, batch: pipeline.Batch
) -> _Program:
    start = time.perf_counter()
    compiled = jax.jit(parts.step, donate_argnums=0).lower(state, batch).compile()
    seconds = time.perf_counter() - start
    return _Program(compiled, cost.of(compiled), seconds)


def _runner(
    compiled: jax.stages.Compiled, state: TrainState, batch: pipeline.Batch
) -> Callable[[], object]:
    def run() -> object:
        nonlocal state
        state, result = compiled(state, batch)
        return result.loss

    return run


def _rows(
    config: ml_collections.ConfigDict, programs: Mapping[str, _Program]
) -> dict[str, dict[str, Any]]:
    """The fields of each form's `Row` that the compiler alone gives."""
    plain = programs[PLAIN]
    return {
        form: {
            "model": config.model.name,
            "form": form,
            "depth": sum(config.model.blocks_per_stage),
            "flops_ratio": program.cost.flops / plain.cost.flops,
            "bytes_ratio": program.cost.bytes_accessed / plain.cost.bytes_accessed,
            "temp_ratio": (
                program.cost.temp_bytes / plain.cost.temp_bytes
                if plain.cost.temp_bytes
                else None
            ),
            "compile_ratio": program.compile_seconds / plain.compile_seconds,
        }
        for form, program in programs.items()
    }
