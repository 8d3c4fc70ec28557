"""The events of growth: which change each makes, as the config asks."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dresnet_jax.connections.superset import Edge, superset
from dresnet_jax.data.pipeline import Batch
from dresnet_jax.errors import UserError, pick
from dresnet_jax.structure import changes, deepening, growing, pruning, widening
from dresnet_jax.structure.growth import candidates, units
from dresnet_jax.structure.pruning import Network
from dresnet_jax.training import steps
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.state import TrainState

# The changed network, or None where no change would be of use; what was changed, of
# JSON's types, or why none; and the passes of a batch through the network before, that
# choosing it took: a gradient counts as `GRADIENT`.
Outcome = tuple[Network | None, Any, int]
# (network, batches of training) -> what came of it.
Event = Callable[[Network, Sequence[Batch]], Outcome]
CHOICES = dict.fromkeys(("score", "random"))


def check(exp: Experiment) -> None:
    """Checks `config.growth`.

    Raises:
      UserError: a value is wrong, or the events do not fit into the run.
    """
    growth, steps_per_epoch = exp.config.growth, exp.steps_per_epoch
    for kind in growth.events:
        pick("growth.events", kind, EVENTS)
    pick("growth.choose", growth.choose, CHOICES)
    pick("growth.channel_rule", growth.channel_rule, units.RULES)
    if exp.config.train.report_on == "best":
        raise UserError(
            "train.report_on = best is of one structure: with growth.events, take last."
        )
    if not 1 <= growth.trial_epochs < growth.every_epochs:
        raise UserError(
            f"growth.trial_epochs = {growth.trial_epochs} must be from 1 to "
            f"growth.every_epochs - 1 = {growth.every_epochs - 1}."
        )
    epochs = len(growth.events) * growth.every_epochs + growth.trial_epochs
    if epochs * steps_per_epoch > exp.num_steps:
        raise UserError(
            f"growth.events = {tuple(growth.events)}: {len(growth.events)} events "
            f"every {growth.every_epochs} epochs, and {growth.trial_epochs} after the "
            f"last, need {epochs} epochs, {epochs * steps_per_epoch} steps; the run "
            f"has {exp.num_steps}."
        )


def _connect(network: Network, batches: Sequence[Batch]) -> Outcome:
    """Adds those of the silent connections whose trial reduces the loss most."""
    growth, spec = network.experiment.config.growth, network.experiment.model.spec
    possible = candidates.possible(spec.connections.topology)
    edges = [edge for edge in possible if _can_start(network, edge)]
    if not edges:
        raise UserError("No connection is left that could be added without an effect.")
    if growth.choose == "random":
        chosen, passes = _drawn(network, edges), 0
    else:
        falls, passes = _falls(network, edges, batches)
        best = sorted(falls, key=lambda edge: -falls[edge])[: growth.connections]
        chosen = [edge for edge in best if falls[edge] > 0]
    if not chosen:
        why = f"No connection of {len(edges)} let the loss fall in a trial."
        return None, why, passes
    larger = growing.grown(network, chosen)
    return larger, _edges_without(larger, network), passes


def _falls(
    network: Network, edges: list[Edge], batches: Sequence[Batch]
) -> tuple[dict[Edge, float], int]:
    """How much each candidate reduces the loss in its own trial, and the passes."""
    growth, passes = network.experiment.config.growth, 0
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)

    def scores(edges: list[Edge], score: Callable[..., jax.Array]) -> dict[Edge, float]:
        larger = growing.grown(network, edges)
        before, model = network.experiment.model.spec, larger.experiment.model
        result = superset(before.connections, before.channels, edges)

        def of_all(state: TrainState, batches: Batch) -> jax.Array:
            def loss(connections: Any, batch: Batch) -> jax.Array:
                params = {**state.params, "connections": connections}
                return steps.mean_loss(model, params, state, batch)

            silent = state.params["connections"]
            marks = candidates.edge_marks(result, silent, edges)
            return score(loss, silent, marks, batches)

        values = network.on_host(of_all, larger.state, stacked)
        return dict(zip(edges, map(float, values), strict=True))

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
    spec = network.experiment.model.spec
    try:
        superset(spec.connections, spec.channels, [edge])
    except UserError:
        return False
    return True


def _widen(network: Network, batches: Sequence[Batch]) -> Outcome:
    """Divides the channels inside of blocks that the rule scores highest."""
    growth = network.experiment.config.growth
    blocks = range(1, len(network.experiment.model.spec.stages) + 1)
    reasons = {i: widening.why_not(network, i) for i in blocks}
    able = _able("No channel can be divided", reasons)
    rule = "random" if growth.choose == "random" else growth.channel_rule
    scores = units.RULES[rule](network, batches[0], able)
    copies = units.chosen(scores, growth.quantile, growth.bucket)
    what = {str(i): sorted(channels) for i, channels in copies.items()}
    return widening.widened(network, copies, growth.noise), what, units.PASSES[rule]


def _deepen(network: Network, batches: Sequence[Batch]) -> Outcome:
    """Puts a block at the end of the stage where it has the largest gradient.

    Of the loss, for the new block's parameters, relative to the root of their number.
    """
    spec = network.experiment.model.spec
    last = {stage: i for i, stage in enumerate(spec.stages, 1)}
    reasons = {i: deepening.why_not(spec, i) for i in last.values()}
    able = _able("No block can be added", reasons)
    if network.experiment.config.growth.choose == "random":
        chosen = able[units.random(network).integers(len(able))]
        return deepening.deepened(network, chosen), chosen + 1, 0
    result = {i: deepening.deepened(network, i) for i in able}
    best = max(able, key=lambda i: _gradient(result[i], i + 1, batches[0]))
    return result[best], best + 1, changes.GRADIENT * len(able)


def _able(problem: str, reasons: dict[int, str]) -> list[int]:
    """The blocks that have no reason against a change; an error if there is none."""
    if all(reasons.values()):
        raise UserError(f"{problem}: {next(iter(reasons.values()))}.")
    return [i for i, why in reasons.items() if not why]


def _gradient(network: Network, block: int, batch: Batch) -> float:
    """Root mean square of the loss's gradient for a block's parameters."""
    model, name = network.experiment.model, f"block_{block}"

    def size(state: TrainState, batch: Batch) -> jax.Array:
        def loss(own: Any) -> jax.Array:
            return steps.mean_loss(model, {**state.params, name: own}, state, batch)

        result = jax.grad(loss)(state.params[name])
        return optax.tree.norm(result) / jnp.sqrt(float(optax.tree.size(result)))

    return float(network.on_host(size, network.state, batch))


def _prune(network: Network, batches: Sequence[Batch]) -> Outcome:
    """Removes the connections that carry least."""
    growth = network.experiment.config.growth
    edges = network.experiment.model.spec.connections.topology.edges
    if len(edges) < growth.connections:
        raise UserError(f"There are {len(edges)} connections, too few to remove any.")
    if growth.choose == "random":
        gone, passes = _drawn(network, edges), 0
    else:
        ranked = pruning.ranked(network, batches[0])
        gone, passes = [one.edge for one in ranked[: growth.connections]], 1
    smaller = growing.shrunk(network, gone)
    return smaller, _edges_without(network, smaller), passes


def _edges_without(one: Network, other: Network) -> list[list[int]]:
    """The connections of a network, (reader, source), that another one lacks."""
    own, there = (
        n.experiment.model.spec.connections.topology.edges for n in (one, other)
    )
    return [list(edge) for edge in own if edge not in there]


def _drawn(network: Network, edges: Sequence[Edge]) -> list[Edge]:
    """As many edges as one event changes, at random."""
    order = units.random(network).permutation(len(edges))
    return [edges[n] for n in order[: network.experiment.config.growth.connections]]


EVENTS: dict[str, Event] = {
    "connections": _connect,
    "width": _widen,
    "depth": _deepen,
    "prune": _prune,
}
