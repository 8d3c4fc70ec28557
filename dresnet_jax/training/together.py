"""Several seeds of one experiment, trained side by side by one program."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import jax
import jax.numpy as jnp
from etils import epath

from dresnet_jax.data.streaming import Call
from dresnet_jax.training import (
    compilation,
    late_report,
    loop,
    processes,
    sharding,
    watching,
)
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.state import TrainState
from dresnet_jax.training.steps import StepResult

Answer = tuple[TrainState, StepResult]


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
    """Runs that go on in step, each in a slot of one program.

    A run ends with the same bits whatever the other slots hold, if it is always in the
    same slot of as many.
    """

    def __init__(self, members: Mapping[int, Member], slots: int) -> None:
        """Starts nothing.

        Args:
          members: by slot, some of which may be empty.
          slots: of the program.
        """
        self._members = members
        self._slots = slots
        self._experiment = next(iter(members.values())).experiment
        self._wanted: dict[int, loop.Wanted] = {}
        self._failed: dict[int, late_report.NonFiniteLossError] = {}
        self._stopped: list[BaseException] = []

    def train(self) -> dict[int, late_report.NonFiniteLossError]:
        """Trains all from their newest checkpoints to their ends, as `loop.run` one.

        Returns:
          By slot, why a run did not end well; the others went on.

        Raises:
          KeyboardInterrupt: Ctrl-C, after a step that each has saved.
          PreemptedError: SIGTERM, after a step that each has saved.
        """
        data = loop.open_data(self._experiment)
        directory = next(iter(self._members.values())).directory
        with (
            processes.stop_signals() as stop,
            watching.Watch(directory) as watch,
            contextlib.ExitStack() as stack,
        ):
            runs = {
                slot: stack.enter_context(
                    contextlib.closing(
                        loop.begin(
                            member.experiment,
                            member.directory,
                            data,
                            contextlib.nullcontext(stop),
                            contextlib.nullcontext(watch),
                        )
                    )
                )
                for slot, member in self._members.items()
            }
            for slot, run in runs.items():
                self._go_on(slot, run, None)
            while self._wanted:
                # Those that are behind first: they may have been killed apart.
                call = min(wanted.call for wanted in self._wanted.values())
                for slot, answer in self._answers(call).items():
                    self._go_on(slot, runs[slot], answer)
        if self._stopped:
            raise self._stopped[0]
        return self._failed

    def _go_on(self, slot: int, run: loop.Run, answer: Answer | None) -> None:
        """Lets a run go on until it wants the next call, or ends."""
        with contextlib.redirect_stdout(self._members[slot].output):
            try:
                wanted = next(run) if answer is None else run.send(answer)
                self._wanted[slot] = wanted
            except StopIteration:
                pass
            except late_report.NonFiniteLossError as error:
                self._failed[slot] = error
            except (KeyboardInterrupt, processes.PreemptedError) as error:
                # The others have yet to save.
                self._stopped.append(error)

    def _answers(self, call: Call) -> dict[int, Answer]:
        """What comes of a call for those that want it."""
        asked = {
            slot: self._wanted.pop(slot)
            for slot, wanted in list(self._wanted.items())
            if wanted.call == call
        }
        # What comes of an empty slot is thrown away.
        filler = next(iter(asked.values()))
        full = [asked.get(slot, filler) for slot in range(self._slots)]
        program = compile_train_steps(self._experiment, self._slots, call.steps)
        found = program(
            tuple(wanted.state for wanted in full),
            tuple(wanted.arrays for wanted in full),
        )
        return {slot: found[slot] for slot in asked}


def compile_train_steps(
    experiment: Experiment, slots: int, num_steps: int
) -> jax.stages.Compiled:
    """The program of some steps of several seeds, compiled once; consumes nothing.

    Returns:
      From the states and the data of the slots, a tuple each, to a tuple of what
      `Experiment.compile_train_step` gives for each.
    """
    programs, key = experiment.programs, ("together", slots, num_steps)
    if key not in programs:
        programs[key] = _compile(experiment, slots, num_steps)
    return programs[key]


def _compile(experiment: Experiment, slots: int, num_steps: int) -> jax.stages.Compiled:
    train_steps = experiment.train_steps(num_steps)
    road = experiment.road

    def together(
        states: tuple[TrainState, ...], data: tuple[tuple[jax.Array, ...], ...]
    ) -> tuple[Answer, ...]:
        placed = data[0][: road.num_placed]
        own = [arrays[road.num_placed :] for arrays in data]
        of_all, each = (None,) * len(placed), (0,) * len(own[0])
        found = jax.vmap(train_steps, in_axes=(0, *of_all, *each))(
            _stacked(states), *placed, *_stacked(own)
        )
        return tuple(jax.tree.map(lambda x, i=i: x[i], found) for i in range(slots))

    state, place = (
        experiment.create_state(abstract=True),
        sharding.replicated(experiment.mesh),
    )
    shardings = jax.tree.map(lambda x: x.sharding, state)
    program = jax.jit(together, out_shardings=((shardings, place),) * slots)
    with compilation.announced(f"the training step of {slots} seeds"):
        data = (road.abstract(num_steps),) * slots
        return program.lower((state,) * slots, data).compile()


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
