"""Structures trained side by side, in programs that those of equal shapes share.

Structures that differ in nothing but their connections are one network with all of
them, of which some are multiplied by 0: they neither have an effect nor learn.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from etils import epath

from dresnet_jax import defaults
from dresnet_jax.connections.subset import subset
from dresnet_jax.connections.superset import Edge, Superset
from dresnet_jax.connections.topology import dense
from dresnet_jax.errors import UserError
from dresnet_jax.structure import changes, deepening, growing, widening
from dresnet_jax.structure.evolution.evolution import Found
from dresnet_jax.structure.evolution.space import Structure
from dresnet_jax.structure.pruning import Network
from dresnet_jax.training import (
    evaluation,
    experiment,
    json_files,
    leaves,
    transfer,
)
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.inputs import Data, StepInputs
from dresnet_jax.training.metrics import Metrics
from dresnet_jax.training.state import TrainState, num_parameters

States = tuple[TrainState, ...]
# In a directory: a line for each structure, and a run of each.
_FOUND, _MEMBERS = "evaluations.jsonl", "members"
# The unsteadiness of a loss that came to no number.
_ASTRAY = 1e6


class Population:
    """Trains structures of a config, and keeps what came of each in a directory."""

    def __init__(
        self, config: ml_collections.ConfigDict, directory: epath.Path | None
    ) -> None:
        """Reads what the directory holds.

        Args:
          config: of the runs.
          directory: claimed; None to keep nothing, where nothing is inherited.

        Raises:
          UserError: what it holds is damaged.
        """
        self._config = defaults.replace(config, {"train.steps_per_call": 1})
        self._directory = directory
        self._data: Data | None = None
        self._shapes: dict[Structure, _Shape] = {}
        lines = json_files.read_lines(directory / _FOUND) if directory else []
        self._known = {one.structure: one for one in map(_from_json, lines)}

    @property
    def num_known(self) -> int:
        """How many structures have been trained."""
        return len(self._known)

    def member(self, structure: Structure) -> epath.Path:
        """Returns the run of a structure that has been trained."""
        assert self._directory is not None, "runs are kept"
        number = list(self._known).index(structure)
        return self._directory / _MEMBERS / str(number)

    def __call__(
        self, structures: Sequence[Structure], before: Sequence[Found]
    ) -> list[Found]:
        """What comes of structures, trained now or before: `evolution.Evaluate`."""
        groups: dict[Structure, list[Structure]] = {}
        for one in structures:
            if one not in self._known:
                bare = dataclasses.replace(one, edges=())
                groups.setdefault(bare, []).append(one)
        together = self._config.evolution.together
        for bare, group in groups.items():
            if bare not in self._shapes:
                self._shapes[bare] = _Shape(self._config, bare)
            for start in range(0, len(group), together):
                some = group[start : start + together]
                self._train(self._shapes[bare], some, before)
        return [self._known[one] for one in structures]

    def _train(
        self, shape: "_Shape", group: list[Structure], before: Sequence[Found]
    ) -> None:
        """Trains structures of one shape in one program, and keeps them."""
        if self._data is None:
            self._data = shape.experiment.open_data()
        begun = [self._begun(shape, one, before) for one in group]
        states, parents = zip(*begun, strict=True)
        trained = shape.train(states, group, self._data)
        for one, parent, state, of_one in zip(group, parents, *trained, strict=True):
            exp = experiment.build(one.config(self._config))
            examples = self._data.splits["validation"]
            validated = evaluation.evaluate(shape.experiment, state, examples)
            falls = np.diff(of_one[len(of_one) // 2 :])
            # Batches may have been skipped; what has no loss at the end went astray.
            is_sound = bool(np.isfinite(of_one[-1]))
            result = Found(
                structure=one,
                error=1 - validated.accuracy if is_sound else 1.0,
                multiply_adds=changes.products(exp),
                params=num_parameters(exp.create_state(abstract=True).params),
                unsteadiness=float(np.nanstd(falls)) if is_sound else _ASTRAY,
                parent=parent,
            )
            self._known[one] = result
            if self._directory is not None:
                self._keep(result, exp, shape.alone(state, one, exp))

    def _keep(self, result: Found, exp: Experiment, state: TrainState) -> None:
        """Writes a network as a run that has yet to begin, and what came of it."""
        assert self._directory is not None, "runs are kept"
        directory = self.member(result.structure)
        # Of a process that was ended before the line was written.
        directory.rmtree(missing_ok=True)
        about = {"evolved_in": str(self._directory), "error": result.error}
        transfer.write_start(directory, exp.config, state, about)
        lines = [dataclasses.asdict(one) for one in self._known.values()]
        json_files.write_lines(self._directory / _FOUND, lines)

    def _begun(
        self, shape: "_Shape", structure: Structure, before: Sequence[Found]
    ) -> tuple[TrainState, int | None]:
        """The state that a structure begins with, and the member that it is from.

        That is the largest one before it that can become it, the first of equal ones.
        """
        able = [one for one in before if one.structure.is_within(structure)]
        if self._config.evolution.inherit and able:
            parent = max(able, key=lambda one: one.params).structure
            # The answers of some kinds would change: docs/growth.md names them.
            with contextlib.suppress(UserError):
                state = shape.started(self._grown(parent, structure, shape.edges))
                return state, list(self._known).index(parent)
        return shape.experiment.create_state(), None

    def _grown(
        self, parent: Structure, structure: Structure, edges: Sequence[Edge]
    ) -> Network:
        """A trained network with other blocks and edges, which answers as before."""
        exp, restored = evaluation.open_run(self.member(parent))
        now = Network(exp, restored.state)
        for stage, count in enumerate(structure.blocks_per_stage):
            while (own := now.experiment.model.spec.blocks_per_stage)[stage] < count:
                new = structure.channels.get((stage, own[stage]), 0)
                last = sum(own[: stage + 1])
                now = deepening.deepened(now, last, new)
        pairs = zip(widening.hidden_channels(now), structure.hidden, strict=False)
        copies = {
            i: [unit % n for unit in range(count - n)]
            for i, (n, count) in enumerate(pairs, 1)
            if n < count
        }
        if copies:
            now = widening.widened(now, copies)
        there = now.experiment.model.spec.connections.topology.edges
        missing = [edge for edge in edges if edge not in there]
        return growing.grown(now, missing) if missing else now


class _Shape:
    """The programs of structures that differ in nothing but their connections.

    Attributes:
      experiment: of the network with all that any of them may have.
      edges: its connections.
    """

    def __init__(self, config: ml_collections.ConfigDict, example: Structure) -> None:
        stages = [stage for stage, _ in example.slots]
        self.edges = dense(stages).edges if config.evolution.edges else ()
        self.experiment = experiment.build(
            dataclasses.replace(example, edges=self.edges).config(config)
        )
        self._together = config.evolution.together
        self._program = jax.jit(self._steps, donate_argnums=0)

    def started(self, network: Network) -> TrainState:
        """Returns a fresh state with the weights of a network of this shape."""
        weights = leaves.by_name(network.state.variables)
        return transfer.exchange(self.experiment.create_state(), weights)

    def train(
        self, states: States, structures: Sequence[Structure], data: Data
    ) -> tuple[list[TrainState], np.ndarray]:
        """Trains states, which are consumed, for the config's steps.

        Returns:
          The states, their missing connections 0, and the losses, [structures, steps].
        """
        empty = self._together - len(states)
        now = (*states, *(jax.tree.map(jnp.copy, states[0]) for _ in range(empty)))
        masks = [self._mask(one) for one in structures]
        full = (*masks, *masks[:1] * empty)
        exp, losses = self.experiment, []
        given = exp.inputs.data(data, exp.config.seed, exp.calls(0))
        with contextlib.closing(given):
            for inputs, _ in given:
                now, of_step = self._program(now, full, inputs)
                losses.append(of_step)
        own = [
            state.replace(
                params=_masked(mask, state.params),
                ema_params=_masked(mask, state.ema_params),
            )
            for state, mask in zip(now, masks, strict=False)
        ]
        return own, np.stack(jax.device_get(losses), axis=1)[: len(own)]

    def alone(
        self, state: TrainState, structure: Structure, exp: Experiment
    ) -> TrainState:
        """Returns a state of the structure alone, of a run that has yet to begin."""

        def own(params: Any) -> Any:
            if params is None or "connections" not in params:
                return params
            every = self.experiment.model.spec.connections
            _, few = subset(every, params["connections"], structure.edges)
            others = {name: x for name, x in params.items() if name != "connections"}
            return {**others, "connections": few} if few else others

        params = own(state.params)
        fresh = state.replace(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=exp.optimizer.init(params),
            ema_params=own(state.ema_params),
            running=Metrics.empty(),
            model=exp.model,
            optimizer=exp.optimizer,
        )
        # A program that makes one would be compiled for each structure.
        places = jax.tree.map(lambda x: x.sharding, exp.create_state(abstract=True))
        return jax.device_put(fresh, places)

    def _mask(self, structure: Structure) -> Any:
        """1 for what a structure has of the connections' parameters, and 0."""
        exp, spec = self.experiment, self.experiment.model.spec
        shapes = exp.create_state(abstract=True).params.get("connections", {})
        ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)
        of_all = Superset(spec.connections, spec.connections, spec.channels)
        missing = sorted(set(self.edges) - set(structure.edges))
        marks = [of_all.own(ones, edge) for edge in missing]
        return functools.reduce(optax.tree.sub, marks, ones)

    def _steps(
        self, states: States, masks: tuple[Any, ...], inputs: StepInputs
    ) -> tuple[States, jax.Array]:
        """A step of each, and their losses, [structures]."""
        exp = self.experiment

        def one(state: TrainState, mask: Any) -> tuple[TrainState, jax.Array]:
            batch = exp.batch(inputs, state.key, state.step)

            def loss(model: Any, params: Any, *given: Any) -> Any:
                return exp.loss(model, _masked(mask, params), *given)

            state, result = exp.step(state, batch, loss=loss)
            return state, result.loss

        if len(states) == 1:
            # Convolutions of several networks at once are slow on a CPU.
            state, loss = one(states[0], masks[0])
            return (state,), loss[None]
        stacked = jax.tree.map(
            lambda *x: jnp.stack(x), *zip(states, masks, strict=True)
        )
        together, losses = jax.vmap(one)(*stacked)
        return tuple(
            jax.tree.map(lambda x, n=n: x[n], together) for n in range(len(states))
        ), losses


def _masked(mask: Any, params: Any) -> Any:
    """Parameters of which those of missing connections are 0."""
    if params is None or "connections" not in params:
        return params
    return {**params, "connections": optax.tree.mul(mask, params["connections"])}


def _from_json(line: Mapping[str, Any]) -> Found:
    """What `_keep` wrote."""
    own = line["structure"]
    structure = Structure(
        block=own["block"],
        blocks_per_stage=tuple(own["blocks_per_stage"]),
        hidden=tuple(own["hidden"]),
        edges=tuple((i, k) for i, k in own["edges"]),
    )
    return Found(**{**line, "structure": structure})
