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
from dresnet_jax.connections.superset import Edge, Superset, superset
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
    loop,
    transfer,
)
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.inputs import StepInputs
from dresnet_jax.training.metrics import Metrics
from dresnet_jax.training.state import TrainState

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
        self._data: loop.Data | None = None
        self._shapes: dict[tuple[Any, ...], _Shape] = {}
        self._known: dict[Structure, Found] = {}
        if directory is not None:
            for line in json_files.read_lines(directory / _FOUND):
                one = _from_json(line)
                self._known[one.structure] = one

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
        groups: dict[tuple[Any, ...], list[Structure]] = {}
        for one in structures:
            if one not in self._known:
                shape = one.block, one.blocks_per_stage, one.hidden
                groups.setdefault(shape, []).append(one)
        together = self._config.evolution.together
        for shape, group in groups.items():
            if shape not in self._shapes:
                self._shapes[shape] = _Shape(self._config, group[0])
            for start in range(0, len(group), together):
                self._train(
                    self._shapes[shape], group[start : start + together], before
                )
        return [self._known[one] for one in structures]

    def _train(
        self, shape: "_Shape", group: list[Structure], before: Sequence[Found]
    ) -> None:
        """Trains structures of one shape in one program, and keeps them."""
        if self._data is None:
            self._data = loop.open_data(shape.parts)
        begun = [self._begun(shape, one, before) for one in group]
        states, losses = shape.train([state for state, _ in begun], group, self._data)
        for (_, parent), one, state, of_one in zip(
            begun, group, states, losses, strict=True
        ):
            parts = experiment.build(one.config(self._config))
            shapes = parts.create_state(abstract=True)
            accuracy = shape.accuracy(state, self._data)
            falls = np.diff(of_one[len(of_one) // 2 :])
            # Batches may have been skipped; what has no loss at the end went astray.
            is_sound = bool(np.isfinite(of_one[-1]))
            found = Found(
                structure=one,
                error=1 - accuracy if is_sound else 1.0,
                multiply_adds=changes.products(parts),
                params=sum(leaf.size for leaf in jax.tree.leaves(shapes.params)),
                unsteadiness=float(np.nanstd(falls)) if is_sound else _ASTRAY,
                parent=parent,
            )
            self._known[one] = found
            if self._directory is not None:
                self._keep(found, parts, shape.alone(state, one, parts))

    def _keep(self, found: Found, parts: Experiment, state: TrainState) -> None:
        """Writes a network as a run that has yet to begin, and what came of it."""
        assert self._directory is not None, "runs are kept"
        directory = self.member(found.structure)
        if directory.exists():
            # Of a process that was ended before the line was written.
            directory.rmtree()
        about = {"evolved_in": str(self._directory), "error": found.error}
        transfer.write_start(directory, parts.config, state, about)
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
            try:
                state = shape.started(self._grown(parent, structure))
            except UserError:
                # Of a kind whose answers would change: docs/growth.md names them.
                return shape.parts.create_state(), None
            return state, list(self._known).index(parent)
        return shape.parts.create_state(), None

    def _grown(self, parent: Structure, structure: Structure) -> Network:
        """A trained network, changed into another structure with the same answers."""
        parts, restored = evaluation.open_run(self.member(parent))
        now = Network(parts, restored.state)
        hidden = dict(zip(structure.slots, structure.hidden, strict=False))
        for stage, wanted in enumerate(structure.blocks_per_stage):
            while (own := now.parts.model.spec.blocks_per_stage)[stage] < wanted:
                new = hidden.get((stage, own[stage]), 0)
                last = sum(own[: stage + 1])
                now, _ = deepening.deepened(now, last, None, new)
        there = widening.hidden_channels(now)
        copies = {
            i: [unit % n for unit in range(wanted - n)]
            for i, (n, wanted) in enumerate(
                zip(there, structure.hidden, strict=False), 1
            )
            if n < wanted
        }
        if copies:
            now, _ = widening.widened(now, copies, None)
        edges = set(now.parts.model.spec.connections.topology.edges)
        if new_edges := sorted(set(structure.edges) - edges):
            now, _ = growing.grown(now, new_edges, None)
        return now


class _Shape:
    """The programs of structures that differ in nothing but their connections."""

    def __init__(self, config: ml_collections.ConfigDict, example: Structure) -> None:
        edges: tuple[Edge, ...] = ()
        if config.evolution.edges:
            blocks = range(1, len(example.slots) + 1)
            edges = tuple((i, k) for i in blocks for k in blocks if i - k > 1)
        self.parts = experiment.build(
            dataclasses.replace(example, edges=edges).config(config)
        )
        spec = self.parts.model.spec
        self._connections, self._channels = spec.connections, spec.channels
        self._together = config.evolution.together
        self._program = jax.jit(self._steps, donate_argnums=0)

    def started(self, network: Network) -> TrainState:
        """Returns a fresh state with the weights of a network of fewer connections."""
        fresh, state = self.parts.create_state(), network.state
        weights = {"params": state.params, "batch_stats": state.batch_stats}
        connections = network.parts.model.spec.connections
        if missing := self._missing(connections.topology.edges):
            larger = superset(connections, self._channels, missing)
            own = leaves.by_name(state.params.get("connections", {}))
            of_all = jax.tree_util.tree_map_with_path(
                lambda path, leaf: larger.carried(
                    leaves.name(path), own.get(leaves.name(path)), leaf
                ),
                fresh.params["connections"],
            )
            weights["params"] = {**state.params, "connections": of_all}
        return transfer.exchange(fresh, leaves.by_name(weights))

    def train(
        self,
        states: Sequence[TrainState],
        structures: Sequence[Structure],
        data: loop.Data,
    ) -> tuple[list[TrainState], np.ndarray]:
        """Trains states, which are consumed, for the config's steps.

        Returns:
          The states, their missing connections 0, and the losses, [structures, steps].
        """
        empty = self._together - len(states)
        now = (*states, *(jax.tree.map(jnp.copy, states[0]) for _ in range(empty)))
        masks = [self._mask(one) for one in structures]
        full = (*masks, *masks[:1] * empty)
        calls, losses = self.parts.calls(0), []
        given = self.parts.inputs.data(data.train, self.parts.config.seed, calls)
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

    def accuracy(self, state: TrainState, data: loop.Data) -> float:
        """Measures the accuracy on the validation split."""
        examples = data.splits["validation"]
        return evaluation.evaluate(self.parts, state, examples).accuracy

    def alone(
        self, state: TrainState, structure: Structure, parts: Experiment
    ) -> TrainState:
        """Returns a state of the structure alone, of a run that has yet to begin."""

        def own(params: Any) -> Any:
            if params is None or "connections" not in params:
                return params
            found = dict(params)
            connections = found.pop("connections")
            if structure.edges:
                _, few = subset(self._connections, connections, structure.edges)
                found["connections"] = few
            return found

        params = own(state.params)
        fresh = state.replace(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=parts.optimizer.init(params),
            ema_params=own(state.ema_params),
            running=Metrics.empty(),
            model=parts.model,
            optimizer=parts.optimizer,
        )
        # A program that makes one would be compiled for each structure.
        places = jax.tree.map(lambda x: x.sharding, parts.create_state(abstract=True))
        return jax.device_put(fresh, places)

    def _missing(self, edges: Sequence[Edge]) -> list[Edge]:
        return sorted(set(self._connections.topology.edges) - set(edges))

    def _mask(self, structure: Structure) -> Any:
        """1 for what a structure has of the connections' parameters, and 0."""
        shapes = self.parts.create_state(abstract=True).params.get("connections", {})
        ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)
        of_all = Superset(self._connections, self._connections, self._channels)
        marks = [of_all.own(ones, edge) for edge in self._missing(structure.edges)]
        return functools.reduce(optax.tree.sub, marks, ones)

    def _steps(
        self,
        states: tuple[TrainState, ...],
        masks: tuple[Any, ...],
        inputs: StepInputs,
    ) -> tuple[tuple[TrainState, ...], jax.Array]:
        """A step of each, and their losses, [structures]."""
        parts = self.parts

        def one(state: TrainState, mask: Any) -> tuple[TrainState, jax.Array]:
            batch = parts.batch(inputs, state.key, state.step)

            def loss(model: Any, params: Any, *given: Any) -> Any:
                return parts.loss(model, _masked(mask, params), *given)

            state, result = parts.step(state, batch, loss=loss)
            return state, result.loss

        if len(states) == 1:
            # Convolutions of several networks at once are slow on a CPU.
            state, loss = one(states[0], masks[0])
            return (state,), loss[None]
        stacked = jax.tree.map(
            lambda *x: jnp.stack(x), *zip(states, masks, strict=True)
        )
        found, losses = jax.vmap(one)(*stacked)
        return tuple(
            jax.tree.map(lambda x, n=n: x[n], found) for n in range(len(states))
        ), losses


def _masked(mask: Any, params: Any) -> Any:
    """Parameters of which those of missing connections are 0."""
    if params is None or "connections" not in params:
        return params
    return {**params, "connections": optax.tree.mul(mask, params["connections"])}


def _from_json(line: Mapping[str, Any]) -> Found:
    """What `_keep` wrote."""
    structure = line["structure"]
    edges = tuple((i, k) for i, k in structure["edges"])
    fields = {name: tuple(structure[name]) for name in ("blocks_per_stage", "hidden")}
    return Found(
        **{
            **line,
            "structure": Structure(block=structure["block"], edges=edges, **fields),
        }
    )
