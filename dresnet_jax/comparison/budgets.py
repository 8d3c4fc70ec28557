"""Costs of a run before it is trained, and configs that cost as much as another."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np

from dresnet_jax import defaults
from dresnet_jax.costs import cost
from dresnet_jax.errors import UserError
from dresnet_jax.models import zoo
from dresnet_jax.training import experiment, together
from dresnet_jax.training.inputs import StepInputs
from dresnet_jax.training.state import num_parameters

# Widths are tried in steps of this: by less, no stage of four changes.
_WIDTH_STEP = 1 / 8
# Steps in a row that are timed, and how often, after one round that is not.
_STEPS, _ROUNDS = 5, 7


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a variant costs.

    Attributes:
      params: parameters.
      flops: of a training step on each device.
      step_seconds: median of the rounds, all variants in turn.
      low_seconds: of the fastest round.
      high_seconds: of the slowest.
    """

    params: int
    flops: float
    step_seconds: float
    low_seconds: float
    high_seconds: float


@dataclasses.dataclass(frozen=True)
class Together:
    """How many seeds of a variant one program trains.

    Attributes:
      seeds: how many; 1 where they are trained one after the other.
      tried: seeds of the program that was measured; 0 for none.
      ratio: a step's time in it, a seed, to that of a step of one seed alone.
    """

    seeds: int
    tried: int = 0
    ratio: float | None = None

    @property
    def description(self) -> str:
        """In a sentence."""
        how = (
            f"{self.seeds} in one program" if self.seeds > 1 else "one after the other"
        )
        why = "as the config says"
        if self.ratio is not None:
            why = (
                f"a step of {self.tried} in one program takes {self.ratio:.2f} times "
                f"as long as {self.tried} steps"
            )
        return f"The seeds of a variant are trained {how}: {why}."


def measure_together(config: ml_collections.ConfigDict, seeds: int) -> Together:
    """Measures whether several seeds of a run train faster in one program."""
    if seeds == 1:
        return Together(1)
    exp = experiment.build(config)
    steps = {1: _steps(exp), seeds: _steps_together(exp, seeds)}
    seconds = cost.interleaved_seconds(steps, _ROUNDS)
    medians = {count: float(np.median(result)) for count, result in seconds.items()}
    ratio = medians[seeds] / (seeds * medians[1])
    return Together(seeds if ratio < 1 else 1, seeds, ratio)


def measure(configs: Mapping[str, ml_collections.ConfigDict]) -> dict[str, Costs]:
    """Counts and times a training step of every variant, in turn."""
    exp = {name: experiment.build(config) for name, config in configs.items()}
    steps = {name: _steps(part) for name, part in exp.items()}
    seconds = cost.interleaved_seconds(steps, _ROUNDS)
    times = {
        name: np.quantile(result, (0.5, 0, 1), method="nearest") / _STEPS
        for name, result in seconds.items()
    }
    return {
        name: Costs(_num_parameters(part), part.step_flops, *times[name].tolist())
        for name, part in exp.items()
    }


def _steps(exp: experiment.Experiment) -> Callable[[], object]:
    """Compiles a training step, to run it on its data."""
    (inputs,) = _inputs(exp, [exp.config.seed])
    return _repeated(exp.compile_train_step(), exp.create_state(), inputs)


def _steps_together(exp: experiment.Experiment, seeds: int) -> Callable[[], object]:
    """Does as `_steps`, with several seeds in one program."""
    program = together.compile_train_steps(exp, seeds, 1)
    return _repeated(
        lambda states, inputs: zip(*program(states, inputs), strict=True),
        tuple(exp.with_seed(seed).create_state() for seed in range(seeds)),
        tuple(_inputs(exp, range(seeds))),
    )


def _repeated(
    step: Callable[..., Any], state: Any, inputs: Any
) -> Callable[[], object]:
    """Returns what runs a step `_STEPS` times, each from the state before."""

    def run() -> object:
        nonlocal state
        for _ in range(_STEPS):
            state, result = step(state, inputs)
        return result

    return run


def _inputs(exp: experiment.Experiment, seeds: Iterable[int]) -> Iterator[StepInputs]:
    """The inputs of the first step with each seed."""
    data = exp.open_data()
    for seed in seeds:
        given = exp.inputs.data(data, seed, exp.calls(0)[:1])
        yield next(given)[0]
        given.close()


def _num_parameters(exp: experiment.Experiment) -> int:
    return num_parameters(exp.create_state(abstract=True).params)


def count_params(config: ml_collections.ConfigDict) -> float:
    """Returns parameters of a config's network."""
    return float(_num_parameters(experiment.build(config)))


def count_flops(config: ml_collections.ConfigDict) -> float:
    """Returns FLOPs of a training step of a config's network."""
    return experiment.build(config).step_flops


def widened(
    config: ml_collections.ConfigDict,
    target: float,
    count: Callable[[ml_collections.ConfigDict], float],
) -> ml_collections.ConfigDict:
    """Returns the config with the width that comes nearest to a count.

    Args:
      config: of a run; its width is where the search begins.
      target: the count to reach.
      count: `count_params` or `count_flops`, which grow with the width.

    Raises:
      UserError: no width within a factor of 4 fits.
    """

    def at(step: int) -> ml_collections.ConfigDict:
        return defaults.replace(config, {"model.width": step * _WIDTH_STEP})

    start = zoo.width(config.model) / _WIDTH_STEP
    least, most = max(round(1 / _WIDTH_STEP), round(start / 4)), round(start * 4)
    # Counts by step, of which the one at `low` is not above the target, and the one
    # at `high` is. Each takes a trace, and is nearly a square: a few are enough.
    counts: dict[int, float] = {}
    low, high, step = least - 1, most + 1, round(start)
    while high - low > 1:
        counts[step] = count(at(step))
        low, high = (step, high) if counts[step] <= target else (low, step)
        by_square = round(step * math.sqrt(target / counts[step]))
        step = min(max(by_square, low + 1), high - 1)
    if low < least or (high > most and counts[low] != target):
        raise UserError(
            f"No model.width from {least * _WIDTH_STEP:g} to {most * _WIDTH_STEP:g} of "
            f"{config.model.name} has {target:,.0f}."
        )
    return at(min(counts, key=lambda step: abs(counts[step] - target)))
