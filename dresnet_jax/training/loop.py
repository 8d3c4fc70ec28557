"""The only training loop."""

import contextlib
import dataclasses
import functools
import math
import platform
import signal
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax
import optax
from absl import logging
from etils import epath

import dresnet_jax
from dresnet_jax.connections import module as connections
from dresnet_jax.connections.module import Openings
from dresnet_jax.data.streaming import Call
from dresnet_jax.errors import RunFailedError
from dresnet_jax.training import checkpointing, metrics, optimizer, workdir
from dresnet_jax.training.evaluation import Evaluator
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.metrics import Log, Metrics
from dresnet_jax.training.roads import Splits
from dresnet_jax.training.state import TrainState
from dresnet_jax.training.steps import StepResult

# Mean change of F(w), from half of the run on, below which a person is warned.
_STILL_GATES = 0.01


class NonFiniteLossError(RunFailedError):
    """The loss or its gradient is infinite or not a number."""


def run(experiment: Experiment, directory: epath.Path) -> dict[str, Any]:
    """Trains from the newest checkpoint, or from the start, to the end.

    Args:
      experiment: what is trained.
      directory: the run directory, claimed for this experiment's config.

    Returns:
      The report, which is also written to `report.json`.

    Raises:
      NonFiniteLossError: names the step; the checkpoints before it stay.
      KeyboardInterrupt: Ctrl-C, after a step that is saved.
    """
    print(f"data: {experiment.road.description}", flush=True)
    print(f"connections: {experiment.connections_description}", flush=True)
    splits = experiment.open_splits()
    evaluate = Evaluator(experiment)
    state, start = _restore_or_create(experiment, directory)
    keep = experiment.config.train.keep_checkpoints
    with (
        checkpointing.Checkpoints(directory, keep) as checkpoints,
        Log(directory, start, experiment.num_steps) as log,
        _ctrl_c() as stop,
    ):
        if start == 0:
            log.write_gates(0, experiment.gate_openings(state))
        if start < experiment.num_steps:
            gates = metrics.first_gates(directory)
            trainer = _Trainer(experiment, splits, evaluate, checkpoints, log, gates)
            state = trainer.train(state, start, stop)
    report: dict[str, Any] = {"workdir": str(directory)}
    report |= _report(experiment, state, evaluate, splits)
    report["gate_drift"] = connections.drift(
        metrics.first_gates(directory), report["gates"]
    )
    workdir.write_json(directory / "report.json", report)
    return report


def _report(
    experiment: Experiment, state: TrainState, evaluate: Evaluator, splits: Splits
) -> dict[str, Any]:
    validation = evaluate(state, splits["validation"])
    test = evaluate(state, splits["test"])
    return {
        "model": experiment.config.model.name,
        "dataset": experiment.dataset.name,
        "seed": experiment.config.seed,
        "steps": experiment.num_steps,
        "data": experiment.road.description,
        "connections": experiment.connections_description,
        "params": optax.tree.size(state.params),
        "val_loss": validation.loss,
        "val_accuracy": validation.accuracy,
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "skipped_records": {"validation": validation.skipped, "test": test.skipped},
        "gates": experiment.gate_openings(state),
        "versions": _versions(),
    }


@dataclasses.dataclass(frozen=True)
class _Trainer:
    """What the steps of a run need besides the state."""

    experiment: Experiment
    splits: Splits
    evaluate: Evaluator
    checkpoints: checkpointing.Checkpoints
    log: Log
    first_gates: Openings

    def train(self, state: TrainState, start: int, stop: threading.Event) -> TrainState:
        """Runs the steps after `start`; evaluates, logs and saves on the way."""
        experiment, config = self.experiment, self.experiment.config.train
        compiled = functools.cache(experiment.compile_train_step)
        calls = experiment.calls(start)
        data = experiment.road.data(self.splits["train"], experiment.config.seed, calls)
        late = _LateReport(experiment, self.log, start)
        with contextlib.closing(data):
            for call in calls:
                step = call.start + call.steps
                train_step = compiled(call.steps)
                with late.waiting():
                    arrays, skipped = next(data)
                state, result = train_step(state, *arrays)
                late.add(call, result, skipped)
                is_last = step == experiment.num_steps
                stops = stop.is_set() and not is_last
                if is_last or step % experiment.eval_every_steps == 0:
                    late.flush()
                    self._validate(state, step)
                if is_last or stops or step % config.checkpoint_every_steps == 0:
                    # Only a state whose steps were found finite is worth keeping.
                    late.flush()
                    self.checkpoints.save(step, state)
                if stops:
                    raise KeyboardInterrupt(
                        f"after step {step}, which is saved: "
                        "the same command goes on from it"
                    )
        return state

    def _validate(self, state: TrainState, step: int) -> None:
        validation = self.evaluate(state, self.splits["validation"])
        scalars = {
            "epoch": step / self.experiment.steps_per_epoch,
            "val_loss": validation.loss,
            "val_accuracy": validation.accuracy,
        }
        openings = self.experiment.gate_openings(state)
        if self.first_gates:
            scalars["gate_drift"] = connections.drift(self.first_gates, openings)
            self._warn_of_still_gates(step, scalars["gate_drift"])
        self.log.write(step, scalars)
        self.log.write_gates(step, openings)

    def _warn_of_still_gates(self, step: int, drift: float) -> None:
        multiplier = self.experiment.config.optimizer.gate_multiplier
        is_late = 2 * step >= self.experiment.num_steps
        if is_late and multiplier and drift < _STILL_GATES:
            logging.warning(
                "Gates hardly move: after step %d the mean change of F(w) is %.4f. A "
                "higher optimizer.gate_multiplier than %g lets them learn.",
                step,
                drift,
                multiplier,
            )


@contextlib.contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, to be obeyed between two steps; a second one acts at once.

    An exception out of the signal's handler can be lost in a callback of JAX.
    """
    asked = threading.Event()

    def handle(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        asked.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


class _LateReport:
    """Looks at a call's result when the next is under way, so as not to stop it."""

    def __init__(self, experiment: Experiment, log: Log, start: int) -> None:
        config = experiment.config
        self._schedule = optimizer.schedule(config.optimizer, experiment.num_steps)
        self._every = config.train.log_every_steps
        self._last_step = experiment.num_steps
        self._batch_size = experiment.recipe.batch_size
        self._log = log
        self._pending: tuple[Call, StepResult] | None = None
        self._logged = (start, time.monotonic())
        self._rates: dict[str, float] = {}
        self._waited = 0.0
        self._skipped = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as time that the loop waited for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def add(self, call: Call, result: StepResult, skipped: int) -> None:
        """Takes the result of a call just dispatched; reports the one before it."""
        self.flush()
        self._pending = (call, result)
        self._skipped += skipped

    def flush(self) -> None:
        """Waits for the call last taken and reports its steps."""
        if self._pending is None:
            return
        (call, result), self._pending = self._pending, None
        losses, grad_norms = jax.device_get((result.loss, result.grad_norm))
        for i, (loss, grad_norm) in enumerate(zip(losses, grad_norms, strict=True)):
            step = call.start + i + 1
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                raise NonFiniteLossError(
                    f"At step {step} the loss is {loss} and the norm of its gradient "
                    f"{grad_norm}. Training stopped; earlier checkpoints are kept. A "
                    "lower optimizer.learning_rate or optimizer.clip_norm may help."
                )
            if step % self._every == 0 or step == self._last_step:
                running = jax.tree.map(lambda x, i=i: x[i], result.running)
                self._write(step, running, call.start + call.steps)
            self._log.advance(step)

    def _write(self, step: int, running: Metrics, done: int) -> None:
        """Writes the line of a step, of a call after which `done` steps are done."""
        means = jax.device_get(running).compute()
        before, then = self._logged
        if done > before:
            now = time.monotonic()
            self._rates = {
                "images_per_second": (done - before) * self._batch_size / (now - then),
                "data_wait": self._waited / (now - then),
            }
            self._logged, self._waited = (done, now), 0.0
        self._log.write(
            step,
            {
                "train_loss": float(means["loss"]),
                "train_accuracy": float(means["accuracy"]),
                "learning_rate": float(self._schedule(step - 1)),
            }
            | self._rates
            | ({"skipped_records": self._skipped} if self._skipped else {}),
        )


def _restore_or_create(
    experiment: Experiment, directory: epath.Path
) -> tuple[TrainState, int]:
    restored = checkpointing.restore(directory, experiment.create_state(abstract=True))
    if restored is None:
        return experiment.create_state(), 0
    checkpointing.set_aside(directory, restored.damaged)
    print(f"Going on from the checkpoint of step {restored.step}.", flush=True)
    return restored.state, restored.step


def _versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    return {
        "python": platform.python_version(),
        "dresnet_jax": dresnet_jax.__version__,
        **{package: metadata.version(package) for package in packages},
    }
