"""Learned connections ranked by what they carry, and networks without the least."""

import bisect
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dresnet_jax import defaults
from dresnet_jax.connections import graphs
from dresnet_jax.connections.subset import subset
from dresnet_jax.data.calls import Call
from dresnet_jax.data.pipeline import Batch
from dresnet_jax.errors import UserError
from dresnet_jax.models.backbone import with_form
from dresnet_jax.training import (
    evaluation,
    experiment,
    leaves,
    sharding,
    steps,
    transfer,
)
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.inputs import StepInputs
from dresnet_jax.training.state import TrainState

Edge = tuple[int, int]

# Batches by which averages of norms are measured: enough for a momentum of 0.9.
_MEASURED_STEPS = 50


@dataclasses.dataclass(frozen=True)
class RankedEdge:
    """A connection, with what it contributes.

    Attributes:
      edge: (reader, source).
      gate: F(w).
      strength: root mean square of F(w) P(y) over a batch, as evaluated: of what the
        reader's input would lack.
    """

    edge: Edge
    gate: float
    strength: float


@dataclasses.dataclass(frozen=True)
class Network:
    """An experiment with a state of it."""

    experiment: Experiment
    state: TrainState

    def on_host(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a function in one program; its arrays are whole on every process."""
        everywhere = sharding.replicated(self.experiment.mesh)
        program = jax.jit(function, out_shardings=everywhere)
        return jax.device_get(program(*arguments))


def ranked(network: Network, batch: Batch | None = None) -> list[RankedEdge]:
    """Returns all connections, those first that carry least.

    Without a batch, they are ranked by the first examples of training.

    Raises:
      UserError: the network has none, or the dataset is not prepared.
    """
    exp, state = network.experiment, network.state
    if not exp.model.spec.connections.topology.edges:
        raise UserError(f"{exp.config.model.name} has no learned connections.")
    # In a loop over blocks their inputs have no names.
    model = with_form(exp.model, "folded")

    def contributions(state: TrainState, images: jax.Array) -> dict[str, jax.Array]:
        _, result = model.apply(
            state.eval_variables, images, train=False, mutable=["intermediates"]
        )
        of_connections = result["intermediates"]["connections"]
        return {name: values[0] for name, values in of_connections.items()}

    if batch is None:
        batch = evaluation.first_batch(exp)
    result = network.on_host(contributions, state, batch.images)
    ranking = [
        RankedEdge((i, k), gate, float(value))
        for i, row in exp.gate_values(state).items()
        for (k, gate), value in zip(
            row.items(), result[f"contributions_{i}"], strict=True
        )
    ]
    return sorted(ranking, key=lambda one: one.strength)


def pruned(network: Network, edges: Sequence[Edge]) -> Network:
    """Returns the network with some of its connections, and the weights that it had.

    Averaged weights are taken where there are; the optimiser restarts. What norms
    have averaged is measured again, on augmented batches of training. With a learned
    base, blocks that are then on no path from the stem to the classifier go with all
    their connections.

    Args:
      network: what is pruned.
      edges: the (reader, source) that are kept.

    Raises:
      UserError: the classifier would be cut off.
    """
    spec, params = network.experiment.model.spec, network.state.eval_params
    connections, own = subset(spec.connections, params["connections"], edges)
    fields = {"model.connections.topology": connections.topology.edges or "none"}
    return measured(decided(network, fields, {**params, "connections": own}))


def decided(network: Network, fields: Mapping[str, Any], params: Any) -> Network:
    """Returns a fresh network of another architecture, which is no longer searched.

    Args:
      network: whose averages of norms it has.
      fields: of the config, that change, by path.
      params: its parameters, and maybe others.
    """
    config = defaults.replace(
        network.experiment.config, {"init.workdir": "", "search.share": 0.0, **fields}
    )
    exp = experiment.build(config, dataset=network.experiment.dataset)
    stats = network.state.batch_stats
    weights = leaves.by_name({"params": params, "batch_stats": stats})
    return Network(exp, transfer.exchange(exp.create_state(), weights))


def accuracy_with(network: Network, edges: Sequence[Edge]) -> float:
    """Measures the accuracy of `pruned`; 0 where the classifier is cut off."""
    topology = network.experiment.model.spec.connections.topology
    if topology.is_free and not graphs.on_paths(edges, topology.num_blocks):
        return 0.0
    return accuracy(pruned(network, edges))


def measured(network: Network) -> Network:
    """Measures the averages of a network's norms again, on 50 batches."""
    exp, state = network.experiment, network.state
    if not jax.tree.leaves(state.batch_stats):
        return network

    def measure(state: TrainState, step: jax.Array, inputs: StepInputs) -> TrainState:
        batch = exp.batch(inputs, state.key, step)
        _, updates = steps.forward(
            exp.model, state.params, state.batch_stats, batch.images, state.key
        )
        return state.replace(batch_stats=updates["batch_stats"])

    program = jax.jit(measure)
    calls = [Call(step, 1) for step in range(_MEASURED_STEPS)]
    data = exp.inputs.data(exp.open_data(), exp.config.seed, calls)
    for call, (inputs, _) in zip(calls, data, strict=True):
        state = program(state, jnp.asarray(call.start), inputs)
    return Network(exp, state)


def accuracy(network: Network) -> float:
    """Measures the accuracy on the validation split."""
    examples = network.experiment.open_splits()["validation"]
    return evaluation.evaluate(network.experiment, network.state, examples).accuracy


def most_removed(
    ranking: Sequence[RankedEdge],
    accuracy_of: Callable[[list[Edge]], float],
    least: float,
) -> list[Edge]:
    """Returns the fewest edges with which the accuracy is at least `least`.

    The others go in the order of the ranking, and accuracy is taken to fall with each,
    so that halving finds how many.
    """
    edges = [one.edge for one in ranking]
    left = bisect.bisect_left(
        range(len(edges)),
        True,
        key=lambda count: accuracy_of(edges[len(edges) - count :]) >= least,
    )
    return edges[len(edges) - left :]


def table(ranking: Sequence[RankedEdge], left: Sequence[Edge]) -> str:
    """Returns a row per connection, those first that carry most."""
    lines = [f"{'block':>7s}{'from':>7s}{'F(w)':>10s}{'strength':>10s}"]
    lines += [
        f"{c.edge[0]:7d}{c.edge[1]:7d}{c.gate:10.4f}{c.strength:10.4f}"
        f"{'' if c.edge in left else '  removed'}"
        for c in reversed(ranking)
    ]
    return "\n".join(lines)
