"""The only training loop."""

import contextlib
import dataclasses
import functools
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeVar

import jax
from absl import logging
from etils import epath

from dresnet_jax.connections import module as connections
from dresnet_jax.connections.module import Openings
from dresnet_jax.data.streaming import Call
from dresnet_jax.errors import UserError
from dresnet_jax.training import (
    checkpointing,
    metrics,
    processes,
    reporting,
    transfer,
    watching,
    workdir,
)
from dresnet_jax.training.evaluation import Evaluator
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.late_report import LateReport, NonFiniteLossError
from dresnet_jax.training.roads import Placed, Splits
from dresnet_jax.training.run_log import Log
from dresnet_jax.training.state import TrainState
from dresnet_jax.training.steps import StepResult

# Mean change of F(w), from half of the run on, below which a person is warned.
_STILL_GATES = 0.01


class Opened(NamedTuple):
    """The data of a run.

    Attributes:
      splits: as the road reads them.
      train: the training split in its place.
    """

    splits: Splits
    train: Placed


class Wanted(NamedTuple):
    """What a run wants computed next.

    Attributes:
      call: the steps.
      state: before them; it is consumed.
      arrays: their data, as the road gives it.
    """

    call: Call
    state: TrainState
    arrays: tuple[jax.Array, ...]


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


Answer = tuple[TrainState, StepResult]
T = TypeVar("T")
# Wants calls computed, takes what came of each, and returns the report.
Run = Generator[Wanted, Answer, dict[str, Any]]


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
      late_report.NonFiniteLossError: names the step; the checkpoints before it stay.
      KeyboardInterrupt: Ctrl-C, after a step that is saved.
      PreemptedError: SIGTERM, after a step that is saved.
    """
    watch = watch or watching.Watch(directory)
    asking = begin(
        experiment, directory, open_data(experiment), processes.stop_signals(), watch
    )
    return drive(asking, experiment, watch)


def drive(
    asking: Generator[Wanted, Answer, T], experiment: Experiment, watch: watching.Watch
) -> T:
    """Computes the calls that are asked for, to the end, and returns what is."""
    programs: dict[int, jax.stages.Compiled] = {}

    def compiled(steps: int) -> jax.stages.Compiled:
        if steps not in programs:
            programs[steps] = experiment.compile_train_step(steps)
            watch.count(experiment.step_flops)
            if len(programs) == 1:
                experiment.print_connections_cost()
        return programs[steps]

    with contextlib.closing(asking):
        try:
            wanted = next(asking)
            while True:
                program = compiled(wanted.call.steps)
                wanted = asking.send(program(wanted.state, *wanted.arrays))
        except StopIteration as end:
            return end.value


def open_data(experiment: Experiment) -> Opened:
    """Opens every split, and puts the training split in its place."""
    splits = experiment.open_splits()
    return Opened(splits, experiment.road.place(splits["train"]))


def begin(
    experiment: Experiment,
    directory: epath.Path,
    data: Opened,
    stopping: AbstractContextManager[processes.Stop],
    watched: AbstractContextManager[watching.Watch],
) -> Run:
    """As `run`, but for the calls of the compiled step, which the driver makes.

    Args:
      experiment: what is trained.
      directory: the run directory, claimed for this experiment's config.
      data: of the experiment.
      stopping: gives what says when to stop.
      watched: gives what looks at the steps from outside.
    """
    if events := experiment.config.growth.events:
        raise UserError(
            f"growth.events = {tuple(events)}: only train changes networks while they "
            "train; leave () here."
        )
    processes.say(f"data: {experiment.road.description}")
    processes.say(f"connections: {experiment.connections_description}")
    state, start = restore_or_create(experiment, directory)
    segment = Segment(state, start, experiment.num_steps)
    state = yield from train(experiment, directory, data, stopping, watched, segment)
    return reporting.report(experiment, directory, data.splits, state)


def train(
    experiment: Experiment,
    directory: epath.Path,
    data: Opened,
    stopping: AbstractContextManager[processes.Stop],
    watched: AbstractContextManager[watching.Watch],
    segment: Segment,
) -> Generator[Wanted, Answer, TrainState]:
    """Trains for a segment, and saves the state at its end.

    Args:
      experiment: what is trained, of the segment's structure.
      directory: the run directory, claimed.
      data: of the experiment.
      stopping: gives what says when to stop.
      watched: gives what looks at the steps from outside.
      segment: the steps.
    """
    writes, config = processes.is_first(), experiment.config.train
    keep = checkpointing.Keep(
        config.keep_checkpoints,
        config.keep_every_steps,
        config.keep_best,
        always=segment.kept,
    )
    about = _about(experiment, segment.history)
    state, start = segment.state, segment.start
    with (
        checkpointing.Checkpoints(directory, keep, about) as checkpoints,
        Log(directory, start, experiment.num_steps, writes=writes) as log,
        stopping as stop,
        watched as watch,
    ):
        if start == 0 or segment.history:
            log.write_gates(start, experiment.gate_openings(state))
        if start < segment.until:
            # Where the network has grown, its blocks may have other numbers.
            is_as_at_first = writes and not segment.history
            gates = metrics.first_gates(directory) if is_as_at_first else {}
            trainer = _Trainer(
                directory,
                experiment,
                data,
                Evaluator(experiment),
                checkpoints,
                log,
                gates,
                watch,
                segment.until,
            )
            state = yield from trainer.train(state, start, stop)
    return state


def _about(
    experiment: Experiment, history: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What a checkpoint tells a person or a program, besides the state."""
    return {
        "config": workdir.plain(experiment.config),
        "history": list(history),
        "edges": experiment.model.spec.connections.topology.edges,
        "versions": reporting.versions(),
    }


@dataclasses.dataclass(frozen=True)
class _Trainer:
    """What the steps of a run need besides the state."""

    directory: epath.Path
    experiment: Experiment
    data: Opened
    evaluate: Evaluator
    checkpoints: checkpointing.Checkpoints
    log: Log
    first_gates: Openings
    watch: watching.Watch
    until: int

    def train(
        self, state: TrainState, start: int, stop: processes.Stop
    ) -> Generator[Wanted, Answer, TrainState]:
        """Asks for the steps after `start`; evaluates, logs and saves on the way."""
        experiment, config = self.experiment, self.experiment.config.train
        calls = experiment.calls(start, self.until)
        data = experiment.road.data(self.data.train, experiment.config.seed, calls)
        late = LateReport(experiment, self.log, start, self.watch)
        with contextlib.closing(data):
            for number, call in enumerate(calls):
                step = call.start + call.steps
                with late.waiting("data_wait"):
                    arrays, skipped = next(data)
                self.watch.before(call)
                state, result = yield Wanted(call, state, arrays)
                workdir.require_held(self.directory)
                late.add(call, result, skipped)
                is_last = step == self.until
                # Every process has to ask after every call.
                stops = stop.now(number) and not is_last
                accuracy: dict[str, float] = {}
                validates = is_last or step % experiment.eval_every_steps == 0
                is_due = step % config.checkpoint_every_steps == 0
                if validates or stops or is_due:
                    late.flush()
                    self._require_finite(state, step)
                if validates:
                    accuracy = self._validate(state, step)
                is_candidate = config.keep_best and accuracy
                if is_last or stops or is_due or is_candidate:
                    waits = is_last or stops
                    save = (
                        self.checkpoints.save_last if waits else self.checkpoints.save
                    )
                    workdir.require_held(self.directory)
                    with late.waiting("checkpoint_wait"):
                        save(step, state, accuracy)
                if stops:
                    raise stop.error(
                        f"after step {step}, which is saved: "
                        "the same command goes on from it"
                    )
        return state

    def _require_finite(self, state: TrainState, step: int) -> None:
        """Checks that a step, whose loss was finite, led to what is worth keeping."""
        if not self.experiment.is_finite(state):
            raise NonFiniteLossError(
                f"After step {step} parameters, averages or the optimiser's memory are "
                "not finite. Training stopped; earlier checkpoints are kept. A lower "
                "optimizer.learning_rate or optimizer.clip_norm may help."
            )

    def _validate(self, state: TrainState, step: int) -> dict[str, float]:
        """Evaluates and logs; returns what checkpoints are compared by."""
        validation = self.evaluate(state, self.data.splits["validation"])
        scalars = {
            "epoch": step / self.experiment.steps_per_epoch,
            "val_loss": validation.loss,
            "val_accuracy": validation.accuracy,
        }
        openings = self.experiment.gate_openings(state)
        if self.first_gates:
            scalars["gate_drift"] = connections.drift(self.first_gates, openings)
            self._warn_of_still_gates(step, scalars["gate_drift"])
            self._warn_of_dead_gates(step, openings)
        sharpness = connections.sharpness(state.eval_params)
        if sharpness is not None:
            scalars["gate_sharpness"] = sharpness
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

    def _warn_of_dead_gates(self, step: int, openings: connections.Openings) -> None:
        dead = connections.dead(self.experiment.model.spec.connections, openings)
        if dead and 2 * step >= self.experiment.num_steps:
            logging.warning(
                "Gates have died: after step %d, F(w) is below %g in %d of %d, where "
                "its gradient is gone, too: (reader, source) %s. A larger "
                "connections.opening, a smaller connections.sharpness or a smaller "
                "optimizer.gate_multiplier than %g keeps them learning.",
                step,
                connections.DEAD,
                len(dead),
                sum(map(len, openings.values())),
                ", ".join(map(str, dead[:10])) + (", ..." if len(dead) > 10 else ""),
                self.experiment.config.optimizer.gate_multiplier,
            )


def restore_or_create(
    experiment: Experiment, directory: epath.Path
) -> tuple[TrainState, int]:
    """The state of the newest whole checkpoint, or a fresh one, and the steps done.

    Raises:
      UserError: no checkpoint is whole, or it holds another network's state.
    """
    config = experiment.config
    abstract = experiment.create_state(abstract=True)
    transfer.check_frozen(config.optimizer.freeze, abstract.params)
    processes.first_alone(lambda: checkpointing.set_aside_unfinished_start(directory))
    restored = _restored(experiment, directory)
    if restored is None:
        state = experiment.create_state()
        if config.init.workdir:
            state, taken = transfer.start_from(config.init, state)
            processes.say(taken.description)
        return state, 0
    about = checkpointing.about(directory, restored.step)
    workdir.require_own(directory, config, about)
    processes.say(f"Going on from the checkpoint of step {restored.step}.")
    return restored.state, restored.step


def _restored(
    experiment: Experiment, directory: epath.Path
) -> checkpointing.Restored[TrainState] | None:
    """The newest checkpoint that is whole and finite; newer ones are set aside."""
    abstract = experiment.create_state(abstract=True)
    while found := checkpointing.restore(directory, abstract):
        unwanted = list(found.damaged)
        is_finite = experiment.is_finite(found.state)
        if not is_finite:
            logging.warning("Checkpoint %d holds numbers not finite.", found.step)
            unwanted.append(found.step)
        processes.first_alone(
            functools.partial(checkpointing.set_aside, directory, unwanted)
        )
        if is_finite:
            return found
    return None
