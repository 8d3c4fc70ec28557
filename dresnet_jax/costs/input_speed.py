"""Compares the speed of each input pipeline with that of the training step."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dresnet_jax import defaults
from dresnet_jax.data.calls import Call
from dresnet_jax.errors import UserError, pick
from dresnet_jax.training import experiment
from dresnet_jax.training.inputs import StepInputs

MODES = ("resident", "streaming")


@dataclasses.dataclass(frozen=True)
class Row:
    """Images per second of one input pipeline.

    Attributes:
      mode: of `MODES`.
      what: `pipeline` (batches alone, augmented, on the devices), `step` (training on
        the data of one call again and again) or `both`, as in training.
      images_per_second: median over the rounds.
      images_per_second_range: the least and the largest of them.
      data_wait: share of the time that was spent waiting for data; median over the
        rounds.
    """

    mode: str
    what: str
    images_per_second: float
    images_per_second_range: tuple[float, float]
    data_wait: float


def settings(config: ml_collections.ConfigDict, runs: int, steps: int) -> str:
    """Describes in one line how `measure` measures, and what."""
    data = config.data
    return (
        f"{runs} interleaved rounds of {steps} steps; {data.dataset}, batch "
        f"{data.batch_size}; streaming by {data.num_threads} threads and "
        f"{data.num_workers} further processes"
    )


def measure(
    config: ml_collections.ConfigDict, modes: Sequence[str], runs: int, steps: int
) -> list[Row]:
    """Times the pipeline alone, the step alone and both, in turn.

    Args:
      config: of a run.
      modes: some of `MODES`.
      runs: timed rounds, each of every measurement in turn.
      steps: training steps of each measurement of a round, at least.

    Returns:
      Three rows per pipeline.

    Raises:
      UserError: a value of the config is wrong, or a pipeline is not possible with it.
    """
    if not modes:
        raise UserError(f"No mode is named: give some of {', '.join(MODES)}.")
    measurements: dict[tuple[str, str], _Measurement] = {}
    for mode in modes:
        pick("mode", mode, dict.fromkeys(MODES))
        exp = experiment.build(defaults.replace(config, {"data.mode": mode}))
        for what, measurement in _measurements(exp, steps).items():
            measurements[mode, what] = measurement
    # [rounds, measurements, 2]
    result = np.asarray(
        [[time() for time in measurements.values()] for _ in range(runs)]
    )
    rows = []
    for n, (mode, what) in enumerate(measurements):
        seconds, waited = result[:, n].T
        per_call = config.train.steps_per_call
        speeds = _calls(config, steps) * per_call * config.data.batch_size / seconds
        rows.append(
            Row(
                mode=mode,
                what=what,
                images_per_second=float(np.median(speeds)),
                images_per_second_range=(float(speeds.min()), float(speeds.max())),
                data_wait=float(np.median(waited / seconds)),
            )
        )
    return rows


# Runs some steps, and returns the seconds that they took and that data were waited for.
_Measurement = Callable[[], tuple[float, float]]


def _measurements(exp: experiment.Experiment, steps: int) -> dict[str, _Measurement]:
    per_call = exp.config.train.steps_per_call
    train_step = exp.compile_train_step(per_call)
    make_batches = _compile_batches(exp, per_call)
    data = exp.open_data()
    # So many calls first that all that was read ahead of them is used up.
    fields = exp.config.data
    before = 2 * fields.num_threads * max(1, fields.num_workers)
    count = before + _calls(exp.config, steps)
    calls = [Call(i * per_call, per_call) for i in range(count)]
    state = exp.create_state()

    def train(inputs: StepInputs) -> jax.Array:
        nonlocal state
        state, result = train_step(state, inputs)
        return result.loss

    def make(inputs: StepInputs) -> jax.Array:
        return make_batches(inputs, state.key, state.step)

    def read() -> Iterator[StepInputs]:
        given = exp.inputs.data(data, exp.config.seed, calls)
        return (inputs for inputs, _ in given)

    same = next(read())

    def timed(
        source: Iterator[StepInputs], use: Callable[[StepInputs], jax.Array]
    ) -> tuple[float, float]:
        for _ in calls[:before]:
            jax.block_until_ready(use(next(source)))
        start, waited = time.perf_counter(), 0.0
        for _ in calls[before:]:
            asked = time.perf_counter()
            inputs = next(source)
            waited += time.perf_counter() - asked
            last = use(inputs)
        jax.block_until_ready(last)
        return time.perf_counter() - start, waited

    return {
        "pipeline": lambda: timed(read(), make),
        "step": lambda: timed(itertools.repeat(same), train),
        "both": lambda: timed(read(), train),
    }


def _calls(config: ml_collections.ConfigDict, steps: int) -> int:
    """The calls that make this many steps, or a few more."""
    return -(-steps // config.train.steps_per_call)


def _compile_batches(
    exp: experiment.Experiment, num_steps: int
) -> Callable[..., jax.Array]:
    """A program that makes the batches of a call and returns a number of them all."""

    def make(inputs: StepInputs, key: jax.Array, step: jax.Array) -> jax.Array:
        def one(step: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
            batch = exp.batch(inputs, key, step, i)
            return step + 1, batch.images.sum() + batch.targets.sum()

        return jax.lax.scan(one, step, jnp.arange(num_steps))[1]

    return jax.jit(make)
