"""Several seeds of one experiment, trained side by side by one program."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import jax
import jax.numpy as jnp
from etils import epath

from dresnet_jax.data.calls import Call
from dresnet_jax.training import (
    compilation,
    late_report,
    loop,
    processes,
    reporting,
    sharding,
    watching,
)
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.inputs import StepInputs
from dresnet_jax.training.state import TrainState
from dresnet_jax.training.steps import Stepped


@dataclasses.dataclass(frozen=True)
class Member:
    """One of the runs.

    Attributes:
      experiment: what is trained: that of the other members, with another seed.
      directory: its run directory, claimed for this experiment's config.
      output: takes the lines that it prints.
    """

    experiment: Experiment
    directory: epath.Path
    output: TextIO


class Group:
    """Runs that are trained in step, each in a slot of one program.

    A run ends with the same bits whatever the other slots hold, if it is always in the
    same slot of as many. Members are by slot; some slots may be empty.
    """

    def __init__(self, members: Mapping[int, Member], slots: int) -> None:
        self._members = members
        self._slots = slots
        self._first = next(iter(members.values()))
        self._failed: dict[int, late_report.NonFiniteLossError] = {}
        self._stopped: list[BaseException] = []

    def train(self) -> dict[int, late_report.NonFiniteLossError]:
        """Trains all from their newest checkpoints to their ends, as `loop.run` one.

        Returns:
          By slot, why a run did not end well; the others were trained to their ends.

        Raises:
          KeyboardInterrupt, PreemptedError: as `loop.run`, after each has saved.
        """
        data = self._first.experiment.open_data()
        trainers: dict[int, loop.Trainer] = {}
        pending: dict[int, tuple[Call, StepInputs]] = {}
        with (
            processes.stop_signals() as stop,
            watching.Watch(self._first.directory) as watch,
            contextlib.ExitStack() as stack,
        ):
            inputs: dict[int, Iterator[tuple[Call, StepInputs]]] = {}
            for slot, member in self._members.items():
                with self._of_member(slot):
                    segment = loop.begin(member.experiment, member.directory)
                    trainer = trainers[slot] = loop.Trainer(
                        *(member.experiment, member.directory, data, segment),
                        *(watch, stack),
                    )
                    inputs[slot] = trainer.inputs()
            waiting = list(trainers)
            while True:
                for slot in waiting:
                    if fetched := next(inputs[slot], None):
                        pending[slot] = fetched
                    else:
                        member, state = self._members[slot], trainers[slot].state
                        with self._of_member(slot):
                            reporting.report(
                                member.experiment, member.directory, data.splits, state
                            )
                if not pending:
                    break
                # First those that have done the fewest steps: they may have been
                # killed apart.
                call = min(call for call, _ in pending.values())
                slots = [slot for slot, (own, _) in pending.items() if own == call]
                results = self._step(
                    call,
                    {slot: trainers[slot].state for slot in slots},
                    {slot: pending.pop(slot)[1] for slot in slots},
                )
                waiting = []
                for slot in slots:
                    with self._of_member(slot):
                        trainers[slot].after(call, *results[slot], stop)
                        waiting.append(slot)
        if self._stopped:
            raise self._stopped[0]
        return self._failed

    @contextlib.contextmanager
    def _of_member(self, slot: int) -> Iterator[None]:
        """Takes what a member prints, and why it ends early."""
        with contextlib.redirect_stdout(self._members[slot].output):
            try:
                yield
            except late_report.NonFiniteLossError as error:
                self._failed[slot] = error
            except (KeyboardInterrupt, processes.PreemptedError) as error:
                # The others have yet to save.
                self._stopped.append(error)

    def _step(
        self,
        call: Call,
        states: Mapping[int, TrainState],
        inputs: Mapping[int, StepInputs],
    ) -> dict[int, Stepped]:
        """Computes a call for some slots; what comes of the others is thrown away."""
        filler = next(iter(states))
        slots = [slot if slot in states else filler for slot in range(self._slots)]
        program = compile_train_steps(self._first.experiment, self._slots, call.steps)
        results = program(
            tuple(states[slot] for slot in slots),
            tuple(inputs[slot] for slot in slots),
        )
        return {slot: results[slot] for slot in states}


def compile_train_steps(
    experiment: Experiment, slots: int, num_steps: int
) -> jax.stages.Compiled:
    """Compiles some steps of several seeds, once; the program consumes nothing.

    Returns:
      From the states and the inputs of the slots, a tuple each, to a tuple of what
      `Experiment.compile_train_step` gives for each.
    """
    programs, key = experiment.programs.train, (slots, num_steps)
    if key in programs:
        return programs[key]
    train_steps = experiment.train_steps(num_steps)

    def together(
        states: tuple[TrainState, ...], inputs: tuple[StepInputs, ...]
    ) -> tuple[Stepped, ...]:
        own = _stacked([one.own for one in inputs])
        # What is fixed is the same for all.
        both = StepInputs(inputs[0].fixed, own)
        result = jax.vmap(train_steps, in_axes=(0, StepInputs(None, 0)))(
            _stacked(states), both
        )
        return tuple(jax.tree.map(lambda x, i=i: x[i], result) for i in range(slots))

    state = experiment.create_state(abstract=True)
    place = sharding.replicated(experiment.mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    program = jax.jit(together, out_shardings=((shardings, place),) * slots)
    with compilation.announced(f"the training step of {slots} seeds"):
        data = (experiment.inputs.abstract(num_steps),) * slots
        programs[key] = program.lower((state,) * slots, data).compile()
    return programs[key]


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
