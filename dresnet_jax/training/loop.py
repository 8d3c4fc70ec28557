"""The only training loop."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from dresnet_jax.connections import gate_values
from dresnet_jax.data.calls import Call
from dresnet_jax.errors import UserError
from dresnet_jax.training import (
    checkpointing,
    evaluation,
    metrics,
    processes,
    reporting,
    run_config,
    transfer,
    watching,
    workdir,
)
from dresnet_jax.training import state as train_state
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.inputs import Data, StepInputs
from dresnet_jax.training.late_report import ADVICE, LateReport, NonFiniteLossError
from dresnet_jax.training.run_log import Log
from dresnet_jax.training.state import TrainState
from dresnet_jax.training.steps import StepResult

# Mean change of F(w), from half of the run on, below which a person is warned.
_STILL_GATES = 0.01


@dataclasses.dataclass(frozen=True)
class Segment:
    """Some steps of a run, in which its network stays of one structure.

    Attributes:
      state: at their start; it is consumed.
      start: steps done.
      until: the last of them.
      history: how the structure came to be, of JSON's types.
      kept: steps of checkpoints that are kept, whatever comes.
    """

    state: TrainState
    start: int
    until: int
    history: Sequence[Mapping[str, Any]] = ()
    kept: tuple[int, ...] = ()


def run(
    experiment: Experiment,
    directory: epath.Path,
    watch: watching.Watch | None = None,
) -> dict[str, Any]:
    """Trains from the newest checkpoint, or from the start, to the end.

    The directory is claimed for the experiment's config.

    Returns:
      The report, which is also written to `report.json`.

    Raises:
      late_report.NonFiniteLossError: names the step; the checkpoints before it stay.
      KeyboardInterrupt: Ctrl-C, after a step that is saved.
      PreemptedError: SIGTERM, after a step that is saved.
    """
    data = experiment.open_data()
    segment = begin(experiment, directory)
    state = train(experiment, directory, data, segment, watch)
    return reporting.report(experiment, directory, data.splits, state)


def train(
    experiment: Experiment,
    directory: epath.Path,
    data: Data,
    segment: Segment,
    watch: watching.Watch | None = None,
) -> TrainState:
    """Trains for a segment, of the experiment's structure; saves the state at its end.

    Raises:
      late_report.NonFiniteLossError, KeyboardInterrupt, PreemptedError: as `run`.
    """
    watch = watch or watching.Watch(directory)
    with processes.stop_signals() as stop, contextlib.ExitStack() as stack:
        trainer = Trainer(experiment, directory, data, segment, watch, stack)
        with watch:
            for number, (call, inputs) in enumerate(trainer.inputs()):
                step = experiment.compile_train_step(call.steps)
                if number == 0:
                    reporting.print_connection_cost(experiment)
                watch.before(call)
                state, result = step(trainer.state, inputs)
                trainer.after(call, state, result, stop)
        return trainer.state


def begin(experiment: Experiment, directory: epath.Path) -> Segment:
    """Prints what is trained, and restores or creates its state.

    Returns:
      The steps that are left.

    Raises:
      UserError: the network would change while it trains, or as `restore_or_create`.
    """
    if events := experiment.config.growth.events:
        raise UserError(
            f"growth.events = {tuple(events)}: only train changes networks while they "
            "train; leave () here."
        )
    processes.say(f"data: {experiment.inputs.description}")
    processes.say(f"connections: {reporting.connections(experiment)}")
    state, start = restore_or_create(experiment, directory)
    return Segment(state, start, experiment.num_steps)


class Trainer:
    """The host's part of training: feeds steps, evaluates, logs and saves.

    Attributes:
      state: after the last step that was taken; the next one consumes it.
    """

    def __init__(
        self,
        experiment: Experiment,
        directory: epath.Path,
        data: Data,
        segment: Segment,
        watch: watching.Watch,
        stack: contextlib.ExitStack,
    ) -> None:
        """Opens the checkpoints, the log and the inputs, which `stack` closes."""
        self.state = segment.state
        self._experiment, self._directory = experiment, directory
        self._segment, self._splits = segment, data.splits
        config = experiment.config.train
        keep = checkpointing.keep(
            config.keep_checkpoints,
            config.keep_every_steps,
            config.keep_best,
            always=segment.kept,
        )
        about = {
            "config": run_config.plain(experiment.config),
            "history": list(segment.history),
            "edges": experiment.model.spec.connections.topology.edges,
            "versions": reporting.versions(),
        }
        checkpoints = checkpointing.Checkpoints(directory, keep, about)
        self._checkpoints = stack.enter_context(checkpoints)
        log = Log(directory, segment.start, experiment.num_steps)
        self._log = stack.enter_context(log)
        if segment.start == 0 or segment.history:
            values = experiment.gate_values(self.state)
            self._log.write_gates(segment.start, values)
        # Where the network has grown, its blocks may have other numbers.
        is_as_at_first = processes.is_first() and not segment.history
        self._first_gates = metrics.first_gates(directory) if is_as_at_first else {}
        self._late = LateReport(experiment, self._log, segment.start, watch)
        self._calls = experiment.calls(segment.start, segment.until)
        inputs = experiment.inputs.data(data, experiment.config.seed, self._calls)
        self._inputs = stack.enter_context(contextlib.closing(inputs))

    def inputs(self) -> Iterator[tuple[Call, StepInputs]]:
        """Yields the inputs of each call that is left; `after` comes after each."""
        for call in self._calls:
            with self._late.waiting("data_wait"):
                inputs, self._skipped = next(self._inputs)
            yield call, inputs

    def after(
        self,
        call: Call,
        state: TrainState,
        result: StepResult,
        stop: processes.Stop,
    ) -> None:
        """Takes what came of a call; evaluates, logs and saves where it is due.

        Raises:
          late_report.NonFiniteLossError, KeyboardInterrupt, PreemptedError: as `run`.
        """
        self.state = state
        workdir.require_held(self._directory)
        self._late.add(call, result, self._skipped)
        experiment, config = self._experiment, self._experiment.config.train
        step = call.start + call.steps
        is_last = step == self._segment.until
        stops = stop.now() and not is_last
        eval_every_steps = config.eval_every_epochs * experiment.steps_per_epoch
        validates = is_last or step % eval_every_steps == 0
        is_due = is_last or stops or step % config.checkpoint_every_steps == 0
        accuracy: dict[str, float] = {}
        if validates or is_due:
            self._late.flush()
            if not train_state.all_finite(state, experiment.mesh):
                raise NonFiniteLossError(
                    f"After step {step} parameters, averages or the optimiser's memory "
                    f"are not finite. {ADVICE}"
                )
        if validates:
            accuracy = self._validate(step)
        if is_due or (config.keep_best and accuracy):
            checkpoints = self._checkpoints
            save = checkpoints.save_last if is_last or stops else checkpoints.save
            workdir.require_held(self._directory)
            with self._late.waiting("checkpoint_wait"):
                save(step, state, accuracy)
        if stops:
            raise stop.error(
                f"after step {step}, which is saved: the same command resumes from it"
            )

    def _validate(self, step: int) -> dict[str, float]:
        """Evaluates and logs; returns what checkpoints are compared by."""
        examples = self._splits["validation"]
        validation = evaluation.evaluate(self._experiment, self.state, examples)
        scalars = {
            "epoch": step / self._experiment.steps_per_epoch,
            "val_loss": validation.loss,
            "val_accuracy": validation.accuracy,
        }
        values = self._experiment.gate_values(self.state)
        if self._first_gates:
            scalars["gate_drift"] = gate_values.drift(self._first_gates, values)
            self._warn_of_gates(step, scalars["gate_drift"], values)
        sharpness = gate_values.sharpness(self.state.eval_params)
        if sharpness is not None:
            scalars["gate_sharpness"] = sharpness
        self._log.write(step, scalars)
        self._log.write_gates(step, values)
        return {"val_accuracy": validation.accuracy}

    def _warn_of_gates(
        self, step: int, drift: float, values: gate_values.GateValues
    ) -> None:
        """Warns, from half of the run on, of gates that do not learn."""
        if 2 * step < self._experiment.num_steps:
            return
        multiplier = self._experiment.config.optimizer.gate_multiplier
        if multiplier and drift < _STILL_GATES:
            logging.warning(
                "Gates hardly move: after step %d the mean change of F(w) is %.4f. A "
                "higher optimizer.gate_multiplier than %g lets them learn.",
                step,
                drift,
                multiplier,
            )
        dead = gate_values.dead(self._experiment.model.spec.connections, values)
        if dead:
            logging.warning(
                "Gates have died: after step %d, F(w) is below %g in %d of %d, where "
                "its gradient is gone, too: (reader, source) %s. A larger "
                "connections.initial_gate, a smaller connections.sharpness or a "
                "smaller optimizer.gate_multiplier than %g keeps them learning.",
                step,
                gate_values.DEAD,
                len(dead),
                sum(map(len, values.values())),
                ", ".join(map(str, dead[:10])) + (", ..." if len(dead) > 10 else ""),
                multiplier,
            )


def restore_or_create(
    experiment: Experiment, directory: epath.Path
) -> tuple[TrainState, int]:
    """Restores the newest whole and finite checkpoint, or makes a fresh state.

    Newer checkpoints are set aside.

    Raises:
      UserError: no checkpoint is whole, or it holds another network's state.
    """
    config = experiment.config
    abstract = experiment.create_state(abstract=True)
    transfer.check_frozen(config.optimizer.freeze, abstract.params)
    processes.first_alone(lambda: checkpointing.set_aside_unfinished_start(directory))
    while result := checkpointing.restore(directory, abstract):
        unwanted = list(result.damaged)
        is_finite = train_state.all_finite(result.state, experiment.mesh)
        if not is_finite:
            logging.warning("Checkpoint %d holds numbers not finite.", result.step)
            unwanted.append(result.step)
        processes.first_alone(
            functools.partial(checkpointing.set_aside, directory, unwanted)
        )
        if is_finite:
            about = checkpointing.about(directory, result.step)
            run_config.require_own(directory, config, about)
            processes.say(f"Resuming from the checkpoint of step {result.step}.")
            return result.state, result.step
    state = experiment.create_state()
    if config.init.workdir:
        state, description = transfer.start_from(config.init, state)
        processes.say(description)
    return state, 0
