"""What a run's calls are found to be, a call later than they are made."""

import collections
import contextlib
import math
import time
from collections.abc import Iterator

import jax
from absl import logging

from dresnet_jax.data.calls import Call
from dresnet_jax.errors import RunFailedError
from dresnet_jax.training import compilation, optimizer, watching
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.metrics import Metrics
from dresnet_jax.training.run_log import Log
from dresnet_jax.training.steps import StepResult

# Batches in a row whose loss is not finite, after which a run that skips them stops.
_MOST_SKIPPED = 10
# How the text of a `NonFiniteLossError` ends.
ADVICE = (
    "Training stopped; earlier checkpoints are kept. A lower optimizer.learning_rate "
    "or optimizer.clip_norm may help."
)


class NonFiniteLossError(RunFailedError):
    """The loss, its gradient or the state is infinite or not a number."""


class LateReport:
    """Looks at a call's result when the next is under way, so as not to stop it."""

    def __init__(
        self, experiment: Experiment, log: Log, start: int, watch: watching.Watch
    ) -> None:
        schedule = optimizer.schedule(experiment.config.optimizer, experiment.num_steps)
        self._schedule = jax.jit(schedule)
        self._experiment, self._log, self._watch = experiment, log, watch
        self._in_a_row = 0
        self._pending: tuple[Call, StepResult] | None = None
        self._logged = (start, compilation.clock())
        self._rates: dict[str, float] = {}
        self._waited: dict[str, float] = collections.defaultdict(float)
        self._counts: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Counts the time inside as time that the loop waited for something."""
        start = time.monotonic()
        yield
        self._waited[what] += time.monotonic() - start

    def add(self, call: Call, result: StepResult, skipped: int) -> None:
        """Takes the result of a call just dispatched; reports the one before it."""
        self.flush()
        self._pending = (call, result)
        self._counts["skipped_records"] += skipped

    def flush(self) -> None:
        """Waits for the call last taken and reports its steps."""
        if self._pending is None:
            return
        (call, result), self._pending = self._pending, None
        every = self._experiment.config.train.log_every_steps
        values = jax.device_get((result.loss, result.grad_norm, result.is_finite))
        for i, (loss, grad_norm, is_finite) in enumerate(zip(*values, strict=True)):
            step = call.start + i + 1
            if is_finite:
                self._in_a_row = 0
            else:
                self._non_finite(step, loss, grad_norm)
            if step % every == 0 or step == self._experiment.num_steps:
                running = jax.tree.map(lambda x, i=i: x[i], result.running)
                self._write(step, running, call.start + call.steps)
            self._log.advance(step)
        self._watch.after(call)

    def _non_finite(self, step: int, loss: float, grad_norm: float) -> None:
        self._in_a_row += 1
        self._counts["skipped_batches"] += 1
        result = (
            f"At step {step} the loss is {loss} and its gradient's norm {grad_norm}"
        )
        if math.isfinite(loss) and math.isfinite(grad_norm):
            result += ", but what they lead to is not finite"
        skips = self._experiment.config.train.on_non_finite == "skip"
        if skips and self._in_a_row < _MOST_SKIPPED:
            logging.warning("%s: the batch is skipped.", result)
            return
        often = f", in {self._in_a_row} batches in a row" if skips else ""
        raise NonFiniteLossError(f"{result}{often}. {ADVICE}")

    def _write(self, step: int, running: Metrics, done: int) -> None:
        """Writes the line of a step, of a call after which `done` steps are done."""
        means = jax.device_get(running).compute()
        before, then = self._logged
        if done > before:
            now = compilation.clock()
            step_seconds = (now - then) / (done - before)
            self._rates = {
                "images_per_second": self._experiment.recipe.batch_size / step_seconds,
                "step_seconds": step_seconds,
                **self._watch.utilisation(
                    self._experiment.programs.flops, step_seconds
                ),
                "data_wait": self._waited["data_wait"] / (now - then),
                "checkpoint_wait": self._waited["checkpoint_wait"] / (now - then),
            }
            self._logged = (done, now)
            self._waited.clear()
        scalars = {
            "train_loss": float(means["loss"]),
            "train_accuracy": float(means["accuracy"]),
            "learning_rate": float(self._schedule(step - 1)),
            **self._rates,
            **{name: number for name, number in self._counts.items() if number},
        }
        self._log.write(step, scalars)
