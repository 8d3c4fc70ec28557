"""Runs whose networks change their structure while they train.

A run is a chain of segments, each of one structure, and each begins from a checkpoint.
An event changes the network after the last step of a segment. What follows is its
trial; where accuracy has fallen then, the checkpoints after the event are deleted, and
the run resumes from the one before as if nothing had been. A change is a function of
the config and of the state before it, so that a run that was killed makes it again.
"""

import contextlib
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
      late_report.NonFiniteLossError, KeyboardInterrupt, PreemptedError: as `loop.run`.
    """
    return _Growth(config, directory, watch).run()


class _Growth:
    """The segments of a run and the events between them."""

    network: Network  # Where the run stands; the next step consumes its state.
    step: int  # Steps done.
    history: list[Entry]  # The events so far; the last may be on trial.

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        directory: epath.Path,
        watch: Callable[[], watching.Watch],
    ) -> None:
        self._config, self._directory, self._watch = config, directory, watch
        self._start = start = experiment.build(config)
        events.check(start)
        self._data = start.open_data()
        event_steps = optimizer.event_steps(config.growth, start.steps_per_epoch)
        # Of the segments: the steps after which events are, and the last one.
        self._ends = (*event_steps, start.num_steps)
        self._trial = config.growth.trial_epochs * start.steps_per_epoch

    @property
    def _is_on_trial(self) -> bool:
        return bool(self.history) and self.history[-1]["result"] == ON_TRIAL

    def run(self) -> dict[str, Any]:
        self._restore()
        processes.say(f"data: {self.network.experiment.inputs.description}")
        while True:
            self._train()
            if self._is_on_trial:
                self._judge()
            elif len(self.history) + 1 < len(self._ends):
                self._change()
            else:
                break
        growth = {"history": self.history, "training_multiply_adds": self._spent()}
        exp, state = self.network.experiment, self.network.state
        splits = self._data.splits
        return reporting.report(exp, self._directory, splits, state, growth)

    def _train(self) -> None:
        """Trains to the end of the segment, which is saved."""
        until = self._ends[len(self.history)]
        kept: tuple[int, ...] = ()
        if self._is_on_trial:
            kept = (self.history[-1]["step"],)
            until = kept[0] + self._trial
        if self.step == until:
            return
        exp, state = self.network.experiment, self.network.state
        connections = reporting.connections(exp)
        processes.say(f"steps {self.step + 1} to {until}: connections {connections}")
        segment = loop.Segment(state, self.step, until, self.history, kept)
        state = loop.train(exp, self._directory, self._data, segment, self._watch())
        self.network, self.step = Network(exp, state), until

    def _change(self) -> None:
        """Makes an event, whose change is then on trial, or rejected."""
        growth, number = self._config.growth, len(self.history)
        network, kind = self.network, growth.events[number]
        before = self._validated()
        entry: Entry = {"event": number, "step": self.step, "kind": kind}
        count, passes = growth.trial_batches, 0
        batches = changes.training_batches(network, self._data, self.step, count)
        try:
            after, what, passes = events.EVENTS[kind](network, batches)
            if after is None:
                raise UserError(what)
            both = network, after
            params = [optax.tree.size(one.state.params) for one in both]
            multiply_adds = [changes.products(one.experiment) for one in both]
            self._check_budget("max_params", params[1])
            self._check_budget("max_multiply_adds", multiply_adds[1])
            self._check_time(after.experiment, after.state)
        except UserError as error:
            rejected = {"result": REJECTED, "why": str(error), "passes": passes}
            self._decide(entry | rejected)
            return
        entry |= {
            "what": what,
            "params": params,
            "multiply_adds": multiply_adds,
            "error": changes.difference(network, after, batches[0]),
            "passes": passes,
            "structure": [_structure(one) for one in both],
            "result": ON_TRIAL,
            "before": before,
        }
        processes.say(
            f"step {self.step}: {kind}: {what}; parameters {params[0]} to {params[1]}, "
            f"multiply-adds {multiply_adds[0]} to {multiply_adds[1]}, error "
            f"{entry['error']:.1e}"
        )
        self.network, self.history = after, [*self.history, entry]

    def _judge(self) -> None:
        """Decides a trial: whether the network stays as it is now."""
        *self.history, entry = self.history
        after = self._validated()
        fall = entry["before"]["accuracy"] - after["accuracy"]
        accepted = fall <= self._config.growth.max_loss
        result = ACCEPTED if accepted else REVERTED
        self._decide(
            {**entry, "result": result, "after": after, "trial_steps": self._trial}
        )

    def _decide(self, entry: Entry) -> None:
        """Writes a decision, before anything is deleted."""
        self.history = [*self.history, entry]
        self._write_history(self.history)
        why = f": {entry['why']}" if "why" in entry else ""
        processes.say(
            f"step {self.step}: {entry['kind']} of step {entry['step']} is "
            f"{entry['result']}{why}"
        )
        if entry["result"] == REVERTED:
            self._restore()

    def _write_history(self, history: list[Entry]) -> None:
        processes.first_alone(lambda: workdir.write_history(self._directory, history))

    def _restore(self) -> None:
        """Goes to where the run stands by its checkpoints and its history."""
        processes.first_alone(self._drop_reverted)
        _, about = checkpointing.newest(self._directory) or (0, {})
        exp = experiment.build(evaluation.config_of(self._config, about))
        state, self.step = loop.restore_or_create(exp, self._directory)
        self.network = Network(exp, state)
        self.history = workdir.with_new_words(about.get("history", []))
        # A checkpoint does not know what was decided after it.
        decided = workdir.read_history(self._directory)
        for entry in decided[len(self.history) :]:
            if entry["result"] in (REVERTED, REJECTED) and entry["step"] == self.step:
                self.history.append(entry)
        self._write_history([e for e in self.history if e["result"] != ON_TRIAL])

    def _drop_reverted(self) -> None:
        """Deletes the checkpoints of trials that were reverted."""
        reverted = _of_result(workdir.read_history(self._directory), REVERTED)
        for step in checkpointing.steps(self._directory):
            about = checkpointing.about(self._directory, step)
            history = workdir.with_new_words(about.get("history", []))
            if reverted & _of_result(history, ON_TRIAL):
                checkpointing.discard(self._directory, [step])

    def _check_budget(self, field: str, number: int) -> None:
        most = self._config.growth[field]
        if most is not None and number > most:
            raise UserError(f"It would be {number}, above growth.{field}.")

    def _check_time(self, exp: Experiment, state: TrainState) -> None:
        """Times a few steps of a changed network, if their time has a budget."""
        most = self._config.growth.max_step_seconds
        if most is None:
            return
        calls = exp.calls(int(state.step))[:1]
        data = exp.inputs.data(self._data, self._config.seed, calls)
        with contextlib.closing(data):
            inputs, _ = next(data)
        program, seconds = exp.compile_train_step(calls[0].steps), []
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

    def _spent(self) -> int:
        """Multiply-adds of all training, trials and choices, but not of evaluations.

        Those of one image as evaluated, times the passes, times the batch.
        """
        now, steps, passes = changes.products(self._start), 0, 0
        each = changes.step_passes(self._config)
        for entry in self.history:
            passes += each * now * (entry["step"] - steps) + entry["passes"] * now
            steps = entry["step"]
            if entry["result"] == REVERTED:
                passes += each * entry["multiply_adds"][1] * entry["trial_steps"]
            if entry["result"] == ACCEPTED:
                now = entry["multiply_adds"][1]
        passes += each * now * (self._start.num_steps - steps)
        return passes * self._start.recipe.batch_size

    def _validated(self) -> dict[str, float]:
        exp, state = self.network.experiment, self.network.state
        result = evaluation.evaluate(exp, state, self._data.splits["validation"])
        return {"accuracy": result.accuracy, "loss": result.loss}


def _of_result(history: list[Entry], result: str) -> set[tuple[int, int]]:
    """The number and the step of each event that had a result."""
    return {(e["event"], e["step"]) for e in history if e["result"] == result}


def _structure(network: Network) -> dict[str, int]:
    """What a network has of each kind of part."""
    spec = network.experiment.model.spec
    return {
        "connections": len(spec.connections.topology.edges),
        "blocks": len(spec.stages),
        "channels inside of blocks": sum(widening.hidden_channels(network)),
    }
