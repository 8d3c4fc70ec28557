"""The only training loop."""

import collections
import contextlib
import dataclasses
import functools
import math
import platform
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax
import ml_collections
import optax
from absl import logging
from etils import epath

import dresnet_jax
from dresnet_jax.connections import module as connections
from dresnet_jax.connections.module import Openings
from dresnet_jax.data.streaming import Call
from dresnet_jax.errors import RunFailedError
from dresnet_jax.training import (
    checkpointing,
    metrics,
    optimizer,
    processes,
    transfer,
    watching,
    workdir,
)
from dresnet_jax.training.evaluation import Evaluator
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.metrics import Log, Metrics
from dresnet_jax.training.roads import Splits
from dresnet_jax.training.state import TrainState
from dresnet_jax.training.steps import StepResult

# Mean change of F(w), from half of the run on, below which a person is warned.
_STILL_GATES = 0.01

# Batches in a row whose loss is not finite, after which a run that skips them stops.
_MOST_SKIPPED = 10


class NonFiniteLossError(RunFailedError):
    """The loss or its gradient is infinite or not a number."""


def run(
    experiment: Experiment,
    directory: epath.Path,
    watch: watching.Watch | None = None,
) -> dict[str, Any]:
    """Trains from the newest checkpoint, or from the start, to the end.

    Args:
      experiment: what is trained.
      directory: the run directory, claimed for this experiment's config.
      watch: what looks at the steps from outside.

    Returns:
      The report, which is also written to `report.json`.

    Raises:
      NonFiniteLossError: names the step; the checkpoints before it stay.
      KeyboardInterrupt: Ctrl-C, after a step that is saved.
      PreemptedError: SIGTERM, after a step that is saved.
    """
    processes.say(f"data: {experiment.road.description}")
    processes.say(f"connections: {experiment.connections_description}")
    splits = experiment.open_splits()
    evaluate = Evaluator(experiment)
    state, start = _restore_or_create(experiment, directory)
    keep = _keep(experiment.config.train)
    writes = processes.is_first()
    with (
        checkpointing.Checkpoints(directory, keep, _about(experiment)) as checkpoints,
        Log(directory, start, experiment.num_steps, writes=writes) as log,
        processes.stop_signals() as stop,
        watch or watching.Watch(directory) as watch,
    ):
        if start == 0:
            log.write_gates(0, experiment.gate_openings(state))
        if start < experiment.num_steps:
            gates = metrics.first_gates(directory) if writes else {}
            trainer = _Trainer(
                experiment, splits, evaluate, checkpoints, log, gates, watch
            )
            state = trainer.train(state, start, stop)
    step = experiment.num_steps
    if experiment.config.train.report_on == "best":
        best = processes.first_alone(lambda: _best_step(directory))
        step = processes.agreed(best or 0)
        abstract = experiment.create_state(abstract=True)
        restored = checkpointing.restore(directory, abstract, step)
        assert restored is not None, "one was named"
        state = restored.state
    report: dict[str, Any] = {"workdir": str(directory)}
    report |= _report(experiment, state, evaluate, splits) | {"reported_step": step}
    if writes:
        report["gate_drift"] = connections.drift(
            metrics.first_gates(directory), report["gates"]
        )
        workdir.write_json(directory / "report.json", report)
    return report


def _keep(train: ml_collections.ConfigDict) -> checkpointing.Keep:
    return checkpointing.Keep(
        train.keep_checkpoints, train.keep_every_steps, train.keep_best
    )


def _best_step(directory: epath.Path) -> int:
    """The first of the steps with the highest validation accuracy that are kept."""
    kept = checkpointing.steps(directory)
    accuracies = {
        line["step"]: line["val_accuracy"]
        for line in metrics.read(directory)
        if "val_accuracy" in line and line["step"] in kept
    }
    return min(accuracies, key=lambda step: (-accuracies[step], step))


def _about(experiment: Experiment) -> dict[str, Any]:
    """What a checkpoint tells a person or a program, besides the state."""
    return {
        "config": workdir.plain(experiment.config),
        "edges": experiment.model.spec.connections.topology.edges,
        "versions": _versions(),
    }


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
        "gate_sharpness": connections.sharpness(state.eval_params),
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
    watch: watching.Watch

    def train(self, state: TrainState, start: int, stop: processes.Stop) -> TrainState:
        """Runs the steps after `start`; evaluates, logs and saves on the way."""
        experiment, config = self.experiment, self.experiment.config.train
        compiled = functools.cache(self._compile)
        calls = experiment.calls(start)
        data = experiment.road.data(self.splits["train"], experiment.config.seed, calls)
        late = _LateReport(experiment, self.log, start, self.watch)
        with contextlib.closing(data):
            for number, call in enumerate(calls):
                step = call.start + call.steps
                train_step = compiled(call.steps)
                with late.waiting("data_wait"):
                    arrays, skipped = next(data)
                self.watch.before(call)
                state, result = train_step(state, *arrays)
                late.add(call, result, skipped)
                is_last = step == experiment.num_steps
                # Every process has to ask after every call.
                stops = stop.now(number) and not is_last
                accuracy: dict[str, float] = {}
                if is_last or step % experiment.eval_every_steps == 0:
                    late.flush()
                    accuracy = self._validate(state, step)
                is_candidate = config.keep_best and accuracy
                is_due = step % config.checkpoint_every_steps == 0
                if is_last or stops or is_due or is_candidate:
                    # Only a state whose steps were found finite is worth keeping.
                    late.flush()
                    waits = is_last or stops
                    save = (
                        self.checkpoints.save_last if waits else self.checkpoints.save
                    )
                    with late.waiting("checkpoint_wait"):
                        save(step, state, accuracy)
                if stops:
                    words = (
                        f"after step {step}, which is saved: "
                        "the same command goes on from it"
                    )
                    if stop.by_ctrl_c:
                        raise KeyboardInterrupt(words)
                    raise processes.PreemptedError(f"told to stop {words}")
        return state

    def _compile(self, steps: int) -> jax.stages.Compiled:
        program = self.experiment.compile_train_step(steps)
        self.watch.count(program, self.experiment.config.train.accumulate_steps)
        return program

    def _validate(self, state: TrainState, step: int) -> dict[str, float]:
        """Evaluates and logs; returns what checkpoints are compared by."""
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
        return {"val_accuracy": validation.accuracy}

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


class _LateReport:
    """Looks at a call's result when the next is under way, so as not to stop it."""

    def __init__(
        self, experiment: Experiment, log: Log, start: int, watch: watching.Watch
    ) -> None:
        config = experiment.config
        self._schedule = optimizer.schedule(config.optimizer, experiment.num_steps)
        self._every = config.train.log_every_steps
        self._last_step = experiment.num_steps
        self._batch_size = experiment.recipe.batch_size
        self._log = log
        self._watch = watch
        self._skips = config.train.on_non_finite == "skip"
        self._in_a_row = 0
        self._pending: tuple[Call, StepResult] | None = None
        self._logged = (start, time.monotonic())
        self._rates: dict[str, float] = {}
        self._waited: dict[str, float] = collections.defaultdict(float)
        self._skipped = 0
        self._skipped_batches = 0

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
        self._skipped += skipped

    def flush(self) -> None:
        """Waits for the call last taken and reports its steps."""
        if self._pending is None:
            return
        (call, result), self._pending = self._pending, None
        losses, grad_norms = jax.device_get((result.loss, result.grad_norm))
        for i, (loss, grad_norm) in enumerate(zip(losses, grad_norms, strict=True)):
            step = call.start + i + 1
            if math.isfinite(loss) and math.isfinite(grad_norm):
                self._in_a_row = 0
            else:
                self._non_finite(step, loss, grad_norm)
            if step % self._every == 0 or step == self._last_step:
                running = jax.tree.map(lambda x, i=i: x[i], result.running)
                self._write(step, running, call.start + call.steps)
            self._log.advance(step)
        self._watch.after(call)

    def _non_finite(self, step: int, loss: float, grad_norm: float) -> None:
        self._in_a_row += 1
        self._skipped_batches += 1
        found = f"At step {step} the loss is {loss} and the norm of its gradient "
        if self._skips and self._in_a_row < _MOST_SKIPPED:
            logging.warning("%s%s: the batch is skipped.", found, grad_norm)
            return
        often = f", in {self._in_a_row} batches in a row" if self._skips else ""
        raise NonFiniteLossError(
            f"{found}{grad_norm}{often}. Training stopped; earlier checkpoints are "
            "kept. A lower optimizer.learning_rate or optimizer.clip_norm may help."
        )

    def _write(self, step: int, running: Metrics, done: int) -> None:
        """Writes the line of a step, of a call after which `done` steps are done."""
        means = jax.device_get(running).compute()
        before, then = self._logged
        if done > before:
            now = time.monotonic()
            step_seconds = (now - then) / (done - before)
            self._rates = {
                "images_per_second": self._batch_size / step_seconds,
                "step_seconds": step_seconds,
                **self._watch.utilisation(step_seconds),
                "data_wait": self._waited["data_wait"] / (now - then),
                "checkpoint_wait": self._waited["checkpoint_wait"] / (now - then),
            }
            self._logged = (done, now)
            self._waited.clear()
        self._log.write(
            step,
            {
                "train_loss": float(means["loss"]),
                "train_accuracy": float(means["accuracy"]),
                "learning_rate": float(self._schedule(step - 1)),
            }
            | self._rates
            | ({"skipped_records": self._skipped} if self._skipped else {})
            | (
                {"skipped_batches": self._skipped_batches}
                if self._skipped_batches
                else {}
            ),
        )


def _restore_or_create(
    experiment: Experiment, directory: epath.Path
) -> tuple[TrainState, int]:
    config = experiment.config
    abstract = experiment.create_state(abstract=True)
    transfer.check_frozen(config.optimizer.freeze, abstract.params)
    restored = checkpointing.restore(directory, abstract)
    if restored is None:
        state = experiment.create_state()
        if config.init.workdir:
            state, taken = transfer.start_from(config.init, state)
            processes.say(taken.description)
        return state, 0
    processes.first_alone(lambda: checkpointing.set_aside(directory, restored.damaged))
    processes.say(f"Going on from the checkpoint of step {restored.step}.")
    return restored.state, restored.step


def _versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    return {
        "python": platform.python_version(),
        "dresnet_jax": dresnet_jax.__version__,
        **{package: metadata.version(package) for package in packages},
    }
