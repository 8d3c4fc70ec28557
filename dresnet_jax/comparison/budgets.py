"""What a run costs before it is trained, and configs that cost the same as another."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import ml_collections
import numpy as np
import optax

from dresnet_jax import defaults
from dresnet_jax.costs import cost
from dresnet_jax.errors import UserError
from dresnet_jax.models import zoo
from dresnet_jax.training import experiment, together

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
        how = "one after the other"
        if self.seeds > 1:
            how = f"{self.seeds} in one program"
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
    parts = experiment.build(config)
    steps: dict[int, Callable[[], object]] = {
        1: _Step(parts),
        seeds: _StepTogether(parts, seeds),
    }
    seconds = cost.interleaved_seconds(steps, _ROUNDS)
    medians = {count: float(np.median(found)) for count, found in seconds.items()}
    ratio = medians[seeds] / (seeds * medians[1])
    return Together(seeds if ratio < 1 else 1, seeds, ratio)


def measure(configs: Mapping[str, ml_collections.ConfigDict]) -> dict[str, Costs]:
    """Counts and times a training step of every variant, in turn."""
    steps = {name: _Step(experiment.build(config)) for name, config in configs.items()}
    seconds = cost.interleaved_seconds(steps, _ROUNDS)
    return {
        name: Costs(
            step.params,
            step.flops,
            *(
                float(x) / _STEPS
                for x in np.quantile(seconds[name], (0.5, 0, 1), method="nearest")
            ),
        )
        for name, step in steps.items()
    }


class _Step:
    """A compiled training step with its data; runs `_STEPS` times when called."""

    def __init__(self, parts: experiment.Experiment) -> None:
        self._program = parts.compile_train_step()
        self._state = parts.create_state()
        self.params = optax.tree.size(self._state.params)
        self.flops = parts.step_flops
        train = parts.inputs.place(parts.open_splits()["train"])
        data = parts.inputs.data(train, parts.config.seed, parts.calls(0)[:1])
        self._inputs, _ = next(data)
        data.close()

    def __call__(self) -> object:
        for _ in range(_STEPS):
            self._state, result = self._program(self._state, self._inputs)
        return result


class _StepTogether:
    """As `_Step`, of several seeds in one program."""

    def __init__(self, parts: experiment.Experiment, seeds: int) -> None:
        self._program = together.compile_train_steps(parts, seeds, 1)
        train = parts.inputs.place(parts.open_splits()["train"])
        states, data = [], []
        for seed in range(seeds):
            states.append(parts.with_seed(seed).create_state())
            found = parts.inputs.data(train, seed, parts.calls(0)[:1])
            data.append(next(found)[0])
            found.close()
        self._states, self._data = tuple(states), tuple(data)

    def __call__(self) -> object:
        for _ in range(_STEPS):
            found = self._program(self._states, self._data)
            self._states = tuple(state for state, _ in found)
        return [result for _, result in found]


def count_params(config: ml_collections.ConfigDict) -> float:
    """Returns parameters of a config's network."""
    state = experiment.build(config).create_state(abstract=True)
    return float(sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)))


def count_flops(config: ml_collections.ConfigDict) -> float:
    """Returns FLOPs of a training step of a config's network."""
    return experiment.build(config).step_flops


def widened(
    config: ml_collections.ConfigDict,
    wanted: float,
    count: Callable[[ml_collections.ConfigDict], float],
) -> ml_collections.ConfigDict:
    """Returns the config with the width that comes nearest to a count.

    Args:
      config: of a run; its width is where the search begins.
      wanted: what shall be counted.
      count: `count_params` or `count_flops`, which grow with the width.

    Raises:
      UserError: no width within a factor of 4 fits.
    """

    def at(step: int) -> ml_collections.ConfigDict:
        return defaults.replace(config, {"model.width": step * _WIDTH_STEP})

    start = zoo.width(config.model) / _WIDTH_STEP
    least, most = max(round(1 / _WIDTH_STEP), round(start / 4)), round(start * 4)
    # Counts by step, of which the one at `low` is not above what is wanted, and the one
    # at `high` is. Each takes a trace, and is nearly a square: a few are enough.
    counts: dict[int, float] = {}
    low, high, step = least - 1, most + 1, round(start)
    while high - low > 1:
        counts[step] = count(at(step))
        low, high = (step, high) if counts[step] <= wanted else (low, step)
        by_square = round(step * math.sqrt(wanted / counts[step]))
        step = min(max(by_square, low + 1), high - 1)
    if low < least or (high > most and counts[low] != wanted):
        raise UserError(
            f"No model.width from {least * _WIDTH_STEP:g} to {most * _WIDTH_STEP:g} of "
            f"{config.model.name} has {wanted:,.0f}."
        )
    return at(min(counts, key=lambda step: abs(counts[step] - wanted)))
