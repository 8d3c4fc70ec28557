"""Runs whose networks change their structure while they train.

A run is a chain of segments, each of one structure, and each begins from a checkpoint.
An event changes the network after the last step of a segment. What follows is its
trial; where accuracy has fallen then, the checkpoints after the event are deleted, and
the run resumes from the one before as if nothing had been. A change is a function of
the config and of the state before it, so that a run that was killed makes it again.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from dresnet_jax.errors import UserError
from dresnet_jax.structure import changes, widening
from dresnet_jax.structure.growth import events
from dresnet_jax.structure.pruning import Network
from dresnet_jax.training import (
    checkpointing,
    evaluation,
    experiment,
    loop,
    optimizer,
    processes,
    reporting,
    watching,
    workdir,
)
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.state import TrainState

# What became of an event.
ON_TRIAL, ACCEPTED, REVERTED, REJECTED = (
    "on trial",
    "accepted",
    "reverted",
    "rejected",
)

Entry = dict[str, Any]
# Of a changed network, where a step's time has a budget; their median counts.
_TIMED_CALLS = 5


def run(
    config: ml_collections.ConfigDict,
    directory: epath.Path,
    watch: Callable[[], watching.Watch],
) -> dict[str, Any]:
    """Trains from the newest checkpoint, or from the start, to the end, through events.

    Args:
      config: of the run, with the structure that it begins with.
      directory: the run directory, claimed for the config.
      watch: makes what looks at the steps of a segment from outside.

    Returns:
      The report, which is also written to `report.json`, with the history.

    Raises:
      UserError: `config.growth` is wrong.
      late_report.NonFiniteLossError: names the step; the checkpoints before it stay.
      KeyboardInterrupt: Ctrl-C, after a step that is saved.
      PreemptedError: SIGTERM, after a step that is saved.
    """
    return _Growth(config, directory, watch).run()


@dataclasses.dataclass
class _Stand:
    """Where a run stands.

    Attributes:
      parts: of the structure.
      state: of the network; consumed by the next step.
      step: steps done.
      history: the events so far; the last may be on trial.
    """

    parts: Experiment
    state: TrainState
    step: int
    history: list[Entry]

    @property
    def is_on_trial(self) -> bool:
        return bool(self.history) and self.history[-1]["result"] == ON_TRIAL


class _Growth:
    """The segments of a run and the events between them."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        directory: epath.Path,
        watch: Callable[[], watching.Watch],
    ) -> None:
        self._config = config
        self._directory = directory
        self._watch = watch
        start = experiment.build(config)
        events.check(start)
        self._data = loop.open_data(start)
        self._start, self._num_steps = start, start.num_steps
        growth, steps = config.growth, start.steps_per_epoch
        self._events = optimizer.event_steps(growth, steps)
        self._trial = growth.trial_epochs * steps

    def run(self) -> dict[str, Any]:
        stand = self._restored()
        processes.say(f"data: {stand.parts.inputs.description}")
        while True:
            stand = self._trained(stand, self._until(stand))
            if stand.is_on_trial:
                stand = self._judged(stand)
            elif len(stand.history) < len(self._events):
                stand = self._changed(stand)
            else:
                break
        growth = {
            "history": stand.history,
            "training_multiply_adds": self._spent(stand.history),
        }
        splits = self._data.splits
        return reporting.report(
            stand.parts, self._directory, splits, stand.state, growth
        )

    def _until(self, stand: _Stand) -> int:
        """The last step of the segment."""
        if stand.is_on_trial:
            return stand.history[-1]["step"] + self._trial
        return (*self._events, self._num_steps)[len(stand.history)]

    def _trained(self, stand: _Stand, until: int) -> _Stand:
        """Behind the last step of a segment, which is saved."""
        if stand.step == until:
            return stand
        connections = reporting.connections(stand.parts)
        processes.say(f"steps {stand.step + 1} to {until}: connections {connections}")
        back = (stand.history[-1]["step"],) if stand.is_on_trial else ()
        segment = loop.Segment(stand.state, stand.step, until, stand.history, back)
        state = loop.train(
            stand.parts, self._directory, self._data, segment, self._watch()
        )
        return dataclasses.replace(stand, state=state, step=until)

    def _changed(self, stand: _Stand) -> _Stand:
        """Behind an event, whose change is on trial, or has been refused."""
        growth, number = self._config.growth, len(stand.history)
        kind = growth.events[number]
        network = Network(stand.parts, stand.state)
        before = self._validated(network)
        entry: Entry = {"event": number, "step": stand.step, "kind": kind}
        batches = list(
            changes.training_batches(
                network, self._data, stand.step, growth.trial_batches
            )
        )
        passes = 0
        try:
            after, change = events.EVENTS[kind](network, growth, batches)
            passes = change.passes
            events.within_budget(growth, change)
            parts, state = after.parts, after.state
            self._check_time(parts, state)
        except UserError as error:
            passes = getattr(error, "passes", passes)
            entry |= {"result": REJECTED, "why": str(error), "passes": passes}
            return self._decided(stand, entry)
        entry |= dataclasses.asdict(change) | {
            "structure": [_structure(network), _structure(after)],
            "result": ON_TRIAL,
            "before": before,
        }
        processes.say(
            f"step {stand.step}: {kind}: {change.what}; parameters {change.params[0]} "
            f"to {change.params[1]}, multiply-adds {change.multiply_adds[0]} to "
            f"{change.multiply_adds[1]}, error {change.error:.1e}"
        )
        return _Stand(parts, state, stand.step, [*stand.history, entry])

    def _judged(self, stand: _Stand) -> _Stand:
        """Behind a trial: as it is now, or as it was before the event."""
        entry = stand.history[-1]
        after = self._validated(Network(stand.parts, stand.state))
        fall = entry["before"]["accuracy"] - after["accuracy"]
        accepted = fall <= self._config.growth.max_loss
        entry = entry | {
            "result": ACCEPTED if accepted else REVERTED,
            "after": after,
            "trial_steps": self._trial,
        }
        stand = dataclasses.replace(stand, history=stand.history[:-1])
        return self._decided(stand, entry)

    def _decided(self, stand: _Stand, entry: Entry) -> _Stand:
        """Behind a decision, which is written before anything is deleted."""
        history = [*stand.history, entry]
        processes.first_alone(lambda: workdir.write_history(self._directory, history))
        why = f": {entry['why']}" if "why" in entry else ""
        processes.say(
            f"step {stand.step}: {entry['kind']} of step {entry['step']} is "
            f"{entry['result']}{why}"
        )
        if entry["result"] == REVERTED:
            return self._restored()
        return dataclasses.replace(stand, history=history)

    def _restored(self) -> _Stand:
        """Where the run stands by its checkpoints and its history."""
        processes.first_alone(self._drop_reverted)
        newest = checkpointing.newest(self._directory)
        if newest is None:
            parts = experiment.build(self._config)
            state, step = loop.restore_or_create(parts, self._directory)
            return _Stand(parts, state, step, [])
        step, about = newest
        config = evaluation.config_of(self._config, about)
        parts = experiment.build(config)
        state, step = loop.restore_or_create(parts, self._directory)
        history = workdir.with_new_words(about["history"])
        # A checkpoint does not know what was decided after it.
        decided = workdir.read_history(self._directory)
        for entry in decided[len(history) :]:
            if entry["result"] in (REVERTED, REJECTED) and entry["step"] == step:
                history.append(entry)
        known = [entry for entry in history if entry["result"] != ON_TRIAL]
        processes.first_alone(lambda: workdir.write_history(self._directory, known))
        return _Stand(parts, state, step, history)

    def _drop_reverted(self) -> None:
        """Deletes the checkpoints of trials that were reverted."""
        reverted = [
            (entry["event"], entry["step"])
            for entry in workdir.read_history(self._directory)
            if entry["result"] == REVERTED
        ]
        for step in checkpointing.steps(self._directory):
            about = checkpointing.about(self._directory, step)
            history = workdir.with_new_words(about.get("history", []))
            if history and history[-1]["result"] == ON_TRIAL:
                last = history[-1]
                if (last["event"], last["step"]) in reverted:
                    checkpointing.discard(self._directory, [step])

    def _check_time(self, parts: Experiment, state: TrainState) -> None:
        """Times a few steps of a changed network, if there is a budget.

        Raises:
          UserError: they take longer than the config allows.
        """
        most = self._config.growth.max_step_seconds
        if most is None:
            return
        calls = parts.calls(int(state.step))[:1]
        data = parts.inputs.data(self._data.train, self._config.seed, calls)
        with contextlib.closing(data):
            inputs, _ = next(data)
        program, seconds = parts.compile_train_step(calls[0].steps), []
        state = jax.tree.map(jnp.copy, state)
        for _ in range(_TIMED_CALLS):
            start = time.perf_counter()
            state, _ = jax.block_until_ready(program(state, inputs))
            seconds.append((time.perf_counter() - start) / calls[0].steps)
        # All processes have to go the same way.
        if processes.agreed(int(float(np.median(seconds)) > most)):
            raise UserError(
                f"A step would take longer than growth.max_step_seconds = {most:g}."
            )

    def _spent(self, history: list[Entry]) -> int:
        """Multiply-adds of all training, trials and choices, but not of evaluations.

        Those of one image as evaluated, times the passes, times the batch.
        """
        now, steps, passes = changes.products(self._start), 0, 0
        each = changes.step_passes(self._config)
        for entry in history:
            passes += each * now * (entry["step"] - steps) + entry["passes"] * now
            steps = entry["step"]
            if entry["result"] == REVERTED:
                passes += each * entry["multiply_adds"][1] * entry["trial_steps"]
            if entry["result"] == ACCEPTED:
                now = entry["multiply_adds"][1]
        passes += each * now * (self._num_steps - steps)
        return passes * self._start.recipe.batch_size

    def _validated(self, network: Network) -> dict[str, float]:
        examples = self._data.splits["validation"]
        found = evaluation.evaluate(network.parts, network.state, examples)
        return {"accuracy": found.accuracy, "loss": found.loss}


def _structure(network: Network) -> dict[str, int]:
    """What a network has of each kind of part."""
    spec = network.parts.model.spec
    return {
        "connections": len(spec.connections.topology.edges),
        "blocks": len(spec.stages),
        "channels inside of blocks": sum(widening.hidden_channels(network)),
    }
