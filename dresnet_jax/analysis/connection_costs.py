"""What learned connections cost a training step, beside the same network without."""

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dresnet_jax.analysis import cost
from dresnet_jax.connections.weighted_sum import FORMS
from dresnet_jax.data import pipeline
from dresnet_jax.errors import UserError
from dresnet_jax.training import experiment

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
      temp_ratio: temporary memory, as the compiler counts.
      step_ratio: median over the rounds of (step time / plain's in that round).
      step_ratio_range: the least and the largest of these.
      step_seconds: median step time.
      compile_ratio: compile time.
    """

    model: str
    form: str
    depth: int
    flops_ratio: float
    bytes_ratio: float
    temp_ratio: float
    step_ratio: float
    step_ratio_range: tuple[float, float]
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
    if not forms:
        raise UserError(f"No form is named: give some of {', '.join(FORMS)}.")
    # All are built, and so checked, before the first is compiled.
    parts = {
        form: experiment.build(_with_form(config, form)) for form in (PLAIN, *forms)
    }
    if not parts[forms[0]].model.spec.connections.topology.edges:
        raise UserError(f"{config.model.name} has no connections to measure.")
    programs = {form: _compile(part) for form, part in parts.items()}
    runners = {form: program.run for form, program in programs.items()}
    seconds = cost.interleaved_seconds(runners, runs)
    plain = programs[PLAIN]
    rows = []
    for form, program in programs.items():
        ratios = seconds[form] / seconds[PLAIN]
        rows.append(
            Row(
                model=config.model.name,
                form=form,
                depth=sum(config.model.blocks_per_stage),
                flops_ratio=program.cost.flops / plain.cost.flops,
                bytes_ratio=program.cost.bytes_accessed / plain.cost.bytes_accessed,
                temp_ratio=program.cost.temp_bytes / plain.cost.temp_bytes,
                step_ratio=float(np.median(ratios)),
                step_ratio_range=(float(ratios.min()), float(ratios.max())),
                step_seconds=float(np.median(seconds[form])),
                compile_ratio=program.compile_seconds / plain.compile_seconds,
            )
        )
    return rows


@dataclasses.dataclass(frozen=True)
class _Program:
    cost: cost.Cost
    compile_seconds: float
    run: Callable[[], object]


def _with_form(
    config: ml_collections.ConfigDict, form: str
) -> ml_collections.ConfigDict:
    config = copy.deepcopy(config)
    if form == PLAIN:
        config.model.connections.topology = PLAIN
    else:
        config.model.connections.form = form
    return config


def _compile(parts: experiment.Experiment) -> _Program:
    state = parts.create_state()
    size, side = parts.recipe.batch_size, parts.dataset.image_size
    random = np.random.RandomState(0)
    shape = (size, side, side, parts.dataset.channels)
    batch = pipeline.make_batch(
        parts.recipe,
        jnp.asarray(random.randint(256, size=shape), jnp.uint8),
        jnp.asarray(random.randint(parts.dataset.num_classes, size=size), jnp.int32),
    )
    start = time.perf_counter()
    compiled = jax.jit(parts.step, donate_argnums=0).lower(state, batch).compile()
    compile_seconds = time.perf_counter() - start

    def run() -> object:
        nonlocal state
        state, result = compiled(state, batch)
        return result.loss

    return _Program(cost.of(compiled), compile_seconds, run)
