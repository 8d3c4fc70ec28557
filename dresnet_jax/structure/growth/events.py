"""The events of growth: which change each makes, as the config asks."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from dresnet_jax.connections.superset import Edge, superset
from dresnet_jax.data.pipeline import Batch
from dresnet_jax.errors import UserError, pick
from dresnet_jax.structure import changes, deepening, growing, pruning, widening
from dresnet_jax.structure.changes import Change
from dresnet_jax.structure.growth import candidates, units
from dresnet_jax.structure.pruning import Network
from dresnet_jax.training import sharding, steps
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.state import TrainState

# (network, `config.growth`, batches of training) -> the changed one.
Event = Callable[
    [Network, ml_collections.ConfigDict, Sequence[Batch]], tuple[Network, Change]
]
CHOICES = dict.fromkeys(("score", "random"))


def check(parts: Experiment) -> None:
    """Checks `config.growth`.

    Raises:
      UserError: a value is wrong, or the events do not fit into the run.
    """
    growth, steps_per_epoch = parts.config.growth, parts.steps_per_epoch
    for kind in growth.events:
        pick("growth.events", kind, EVENTS)
    pick("growth.choose", growth.choose, CHOICES)
    pick("growth.channel_rule", growth.channel_rule, units.RULES)
    if parts.config.train.report_on == "best":
        raise UserError(
            "train.report_on = best is of one structure: with growth.events, take last."
        )
    if not 1 <= growth.trial_epochs < growth.every_epochs:
        raise UserError(
            f"growth.trial_epochs = {growth.trial_epochs} must be from 1 to "
            f"growth.every_epochs - 1 = {growth.every_epochs - 1}."
        )
    epochs = len(growth.events) * growth.every_epochs + growth.trial_epochs
    if epochs * steps_per_epoch > parts.num_steps:
        raise UserError(
            f"growth.events = {tuple(growth.events)}: {len(growth.events)} events "
            f"every {growth.every_epochs} epochs, and {growth.trial_epochs} after the "
            f"last, need {epochs} epochs, {epochs * steps_per_epoch} steps; the run "
            f"has {parts.num_steps}."
        )


def within_budget(growth: ml_collections.ConfigDict, change: Change) -> None:
    """Checks what a change came to.

    Raises:
      UserError: it is more than the config allows.
    """
    for field, found in (
        ("max_params", change.params[1]),
        ("max_multiply_adds", change.multiply_adds[1]),
    ):
        if growth[field] is not None and found > growth[field]:
            raise UserError(f"It would be {found}, above growth.{field}.")


def _connect(
    network: Network, growth: ml_collections.ConfigDict, batches: Sequence[Batch]
) -> tuple[Network, Change]:
    """Adds those of the silent connections whose trial lets the loss fall most."""
    spec = network.parts.model.spec
    edges = [
        edge
        for edge in candidates.possible(spec.connections.topology)
        if _can_start(network, edge)
    ]
    if not edges:
        raise UserError("No connection is left that could be added without an effect.")
    if growth.choose == "random":
        order = _random(network).permutation(len(edges))[: growth.connections]
        return growing.grown(network, [edges[n] for n in sorted(order)], batches[0])
    falls, passes = _falls(network, edges, growth, batches)
    best = sorted(falls, key=lambda edge: -falls[edge])[: growth.connections]
    if not (useful := [edge for edge in best if falls[edge] > 0]):
        raise changes.FruitlessError(
            f"No connection of {len(edges)} let the loss fall in a trial.", passes
        )
    return _counted(growing.grown(network, useful, batches[0]), passes)


def _counted(made: tuple[Network, Change], passes: int) -> tuple[Network, Change]:
    """A change with the passes through the network that choosing it took."""
    network, change = made
    return network, dataclasses.replace(change, passes=passes)


def _falls(
    network: Network,
    edges: list[Edge],
    growth: ml_collections.ConfigDict,
    batches: Sequence[Batch],
) -> tuple[dict[Edge, float], int]:
    """By how much the loss falls with each of the candidates, in a trial of its own.

    Returns:
      It, and the passes of a batch through the network that it took.
    """
    passes = 0
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)
    everywhere = sharding.replicated(network.parts.mesh)

    def scores(edges: list[Edge], score: Callable[..., jax.Array]) -> dict[Edge, float]:
        larger, _ = growing.grown(network, edges, None)
        before, model = network.parts.model.spec, larger.parts.model
        found = superset(before.connections, before.channels, edges)

        def of_all(state: TrainState, batches: Batch) -> jax.Array:
            def loss(connections: Any, batch: Batch) -> jax.Array:
                params = {**state.params, "connections": connections}
                return steps.mean_loss(model, params, state, batch)

            return score(loss, found, state.params["connections"], batches, edges)

        values = jax.jit(of_all, out_shardings=everywhere)(larger.state, stacked)
        return dict(zip(edges, map(float, np.asarray(values)), strict=True))

    if len(edges) > growth.candidates:
        first = scores(edges, candidates.by_gradient)
        # A gradient of all, and of each the gradient and its derivative along itself.
        passes += changes.GRADIENT * len(batches) * (1 + 2 * len(edges))
        best = sorted(edges, key=lambda edge: -first[edge])
        edges = sorted(best[: growth.candidates])

    trial = functools.partial(candidates.by_trial, steps=growth.trial_steps)
    # Of each step a gradient and all tries, and the loss after the last.
    each = growth.trial_steps * (changes.GRADIENT + candidates.TRIES) + 1
    return scores(edges, trial), passes + len(batches) * len(edges) * each


def _can_start(network: Network, edge: Edge) -> bool:
    spec = network.parts.model.spec
    try:
        superset(spec.connections, spec.channels, [edge])
    except UserError:
        return False
    return True


def _widen(
    network: Network, growth: ml_collections.ConfigDict, batches: Sequence[Batch]
) -> tuple[Network, Change]:
    """Divides the channels inside of blocks that the rule scores highest."""
    blocks = range(1, len(network.parts.model.spec.stages) + 1)
    reasons = {i: widening.why_not(network, i) for i in blocks}
    able = [i for i, why in reasons.items() if not why]
    if not able:
        raise UserError(f"No channel can be divided: {reasons[1]}.")
    rule = "random" if growth.choose == "random" else growth.channel_rule
    scores = units.RULES[rule](network, batches[0], able)
    copies = units.chosen(scores, growth.quantile, growth.bucket)
    made = widening.widened(network, copies, batches[0], growth.noise)
    return _counted(made, units.PASSES[rule])


def _deepen(
    network: Network, growth: ml_collections.ConfigDict, batches: Sequence[Batch]
) -> tuple[Network, Change]:
    """Puts a block at the end of the stage where it has the largest gradient.

    Of the loss, for the new block's parameters, relative to the root of their number.
    """
    stages = network.parts.model.spec.stages
    last = {stage: i for i, stage in enumerate(stages, 1)}
    reasons = {i: deepening.why_not(network.parts.model.spec, i) for i in last.values()}
    able = [i for i, why in reasons.items() if not why]
    if not able:
        raise UserError(f"No block can be added: {next(iter(reasons.values()))}.")
    if growth.choose == "random":
        chosen = able[_random(network).integers(len(able))]
        return deepening.deepened(network, chosen, batches[0])
    found = {i: deepening.deepened(network, i, batches[0]) for i in able}
    scores = {
        i: _gradient(deeper, i + 1, batches[0]) for i, (deeper, _) in found.items()
    }
    best = found[max(scores, key=lambda i: scores[i])]
    return _counted(best, changes.GRADIENT * len(able))


def _gradient(network: Network, block: int, batch: Batch) -> float:
    """Root mean square of the loss's gradient for a block's parameters."""
    model, name = network.parts.model, f"block_{block}"

    def size(state: TrainState, batch: Batch) -> jax.Array:
        def loss(own: Any) -> jax.Array:
            return steps.mean_loss(model, {**state.params, name: own}, state, batch)

        found = jax.grad(loss)(state.params[name])
        return optax.tree.norm(found) / jnp.sqrt(float(optax.tree.size(found)))

    everywhere = sharding.replicated(network.parts.mesh)
    return float(jax.jit(size, out_shardings=everywhere)(network.state, batch))


def _prune(
    network: Network, growth: ml_collections.ConfigDict, batches: Sequence[Batch]
) -> tuple[Network, Change]:
    """Removes the connections that carry least."""
    edges = network.parts.model.spec.connections.topology.edges
    if len(edges) < growth.connections:
        raise UserError(f"There are {len(edges)} connections, too few to remove any.")
    if growth.choose == "random":
        order = _random(network).permutation(len(edges))[: growth.connections]
        gone = [edges[n] for n in order]
        return growing.shrunk(network, gone, batches[0])
    ranked = pruning.ranked(network, batches[0])
    gone = [carrier.edge for carrier in ranked[: growth.connections]]
    return _counted(growing.shrunk(network, gone, batches[0]), 1)


def _random(network: Network) -> np.random.Generator:
    """Of the run's seed and step, so that a run that resumes draws the same."""
    return np.random.default_rng((network.parts.config.seed, int(network.state.step)))


EVENTS: dict[str, Event] = {
    "connections": _connect,
    "width": _widen,
    "depth": _deepen,
    "prune": _prune,
}
