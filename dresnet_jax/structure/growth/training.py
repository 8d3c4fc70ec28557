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
import optax
from etils import epath

from dresnet_jax.errors import UserError
from dresnet_jax.structure import changes, widening
from dresnet_jax.structure.growth import events
from dresnet_jax.structure.pruning import Network
from dresnet_jax.training import (
    checkpointing,
    connection_report,
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
ON_TRIAL, ACCEPTED = "on trial", "accepted"
REVERTED, REJECTED = "reverted", "rejected"

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


@dataclasses.dataclass(frozen=True)
class _Stand(Network):
    """Where a run stands; the next step consumes its state.

    Attributes:
      step: steps done.
      history: the events so far; the last may be on trial.
    """

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
        self._config, self._directory, self._watch = config, directory, watch
        self._start = experiment.build(config)
        events.check(self._start)
        self._data = loop.open_data(self._start)
        steps = self._start.steps_per_epoch
        self._events = optimizer.event_steps(config.growth, steps)
        self._trial = config.growth.trial_epochs * steps

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
        where = self._directory, self._data.splits
        return reporting.report(stand.parts, *where, stand.state, growth)

    def _until(self, stand: _Stand) -> int:
        """The last step of the segment."""
        if stand.is_on_trial:
            return stand.history[-1]["step"] + self._trial
        return (*self._events, self._start.num_steps)[len(stand.history)]

    def _trained(self, stand: _Stand, until: int) -> _Stand:
        """After the last step of a segment, which is saved."""
        if stand.step == until:
            return stand
        connections = connection_report.description(stand.parts)
        processes.say(f"steps {stand.step + 1} to {until}: connections {connections}")
        back = (stand.history[-1]["step"],) if stand.is_on_trial else ()
        segment = loop.Segment(stand.state, stand.step, until, stand.history, back)
        state = loop.train(
            stand.parts, self._directory, self._data, segment, self._watch()
        )
        return dataclasses.replace(stand, state=state, step=until)

    def _changed(self, stand: _Stand) -> _Stand:
        """After an event, whose change is on trial, or has been rejected."""
        growth, number, step = self._config.growth, len(stand.history), stand.step
        kind = growth.events[number]
        before = self._validated(stand)
        entry: Entry = {"event": number, "step": step, "kind": kind}
        given = changes.training_batches(stand, self._data, step, growth.trial_batches)
        batches, passes = list(given), 0
        try:
            after, what, passes = events.EVENTS[kind](stand, growth, batches)
            both = stand, after
            params = [optax.tree.size(one.state.params) for one in both]
            multiply_adds = [changes.products(one.parts) for one in both]
            events.within_budget(growth, params[1], multiply_adds[1])
            self._check_time(after.parts, after.state)
        except UserError as error:
            passes = getattr(error, "passes", passes)
            entry |= {"result": REJECTED, "why": str(error), "passes": passes}
            return self._decided(stand, entry)
        entry |= {
            "what": what,
            "params": params,
            "multiply_adds": multiply_adds,
            "error": changes.difference(stand, after, batches[0]),
            "passes": passes,
            "structure": [_structure(one) for one in both],
            "result": ON_TRIAL,
            "before": before,
        }
        processes.say(
            f"step {step}: {kind}: {what}; parameters {params[0]} to "
            f"{params[1]}, multiply-adds {multiply_adds[0]} to {multiply_adds[1]}, "
            f"error {entry['error']:.1e}"
        )
        return _Stand(after.parts, after.state, step, [*stand.history, entry])

    def _judged(self, stand: _Stand) -> _Stand:
        """After a trial: as it is now, or as it was before the event."""
        entry = stand.history[-1]
        after = self._validated(stand)
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
        """After a decision, which is written before anything is deleted."""
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
        _, about = checkpointing.newest(self._directory) or (0, {})
        parts = experiment.build(evaluation.config_of(self._config, about))
        state, step = loop.restore_or_create(parts, self._directory)
        history = workdir.with_new_words(about.get("history", []))
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
        passes += each * now * (self._start.num_steps - steps)
        return passes * self._start.recipe.batch_size

    def _validated(self, network: Network) -> dict[str, float]:
        evaluate = evaluation.Evaluator(network.parts)
        found = evaluate(network.state, self._data.splits["validation"])
        return {"accuracy": found.accuracy, "loss": found.loss}


def _structure(network: Network) -> dict[str, int]:
    """What a network has of each kind of part."""
    spec = network.parts.model.spec
    return {
        "connections": len(spec.connections.topology.edges),
        "blocks": len(spec.stages),
        "channels inside of blocks": sum(widening.hidden_channels(network)),
    }
