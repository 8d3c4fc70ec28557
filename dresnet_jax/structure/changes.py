"""Changes of a network's structure: what they have in common, and what they cost."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from dresnet_jax import defaults
from dresnet_jax.data.calls import Call
from dresnet_jax.data.pipeline import Batch, derive_key
from dresnet_jax.models.backbone import Backbone
from dresnet_jax.models.counting import multiply_adds
from dresnet_jax.structure.pruning import Network
from dresnet_jax.training import experiment, leaves, steps
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.loop import Data
from dresnet_jax.training.state import TrainState

# Of a connection's parameters among those of the network.
CONNECTIONS = "connections/"
# The running mean of squared gradients, by which Adam divides.
SQUARES = "/nu/"
# Passes through a network that a gradient costs: forward, and twice as much back.
GRADIENT = 3

# Gradients that a step of training takes: of the network, and of an architecture that
# learns from examples of its own, to the second order through one of the network.
_GRADIENTS = {"none": 1, "first": 2, "second": 5}

# (name of a leaf of the changed state, all leaves of the old one, the leaf as it would
# start) -> what it is.
Carry = Callable[[str, Mapping[str, jax.Array], jax.Array], jax.Array]


def made(
    network: Network,
    fields: Mapping[str, Any],
    carry: Carry,
    silenced: Callable[[Any, jax.Array], Any] = lambda params, key: params,
) -> Network:
    """Returns a network of another config, with what it has of the one before.

    The running mean of squared gradients of what is new starts as the mean of the
    others of its name: from 0, Adam's first steps would be far too long.

    Args:
      network: what is changed; it stays as it is.
      fields: of the config, that change, by path.
      carry: from the old leaves to the new ones.
      silenced: from fresh parameters, and a key, to those of which the new ones have no
        effect.
    """
    exp = experiment.build(
        # The weights are there already.
        defaults.replace(network.experiment.config, {"init.workdir": "", **fields}),
        devices=list(network.experiment.mesh.devices.flat),
        dataset=network.experiment.dataset,
    )

    def filled(fresh: TrainState, state: TrainState) -> TrainState:
        params = silenced(fresh.params, derive_key(state.key, "init"))
        opt_state = exp.optimizer.init(params)
        start = fresh.replace(
            params=params,
            opt_state=_with_mean_squares(opt_state, state.opt_state),
            ema_params=None if state.ema_params is None else params,
        )
        old = leaves.by_name(state)
        return leaves.map_by_name(lambda name, leaf: carry(name, old, leaf), start)

    # One program, since no process of several has the whole of an array.
    places = jax.tree.map(lambda x: x.sharding, exp.create_state(abstract=True))
    program = jax.jit(filled, out_shardings=places)
    result = program(exp.create_state(), network.state)
    # Copies, since a step consumes each array of the state once.
    return Network(exp, jax.tree.map(jnp.copy, result))


def step_passes(config: ml_collections.ConfigDict) -> int:
    """Passes of a batch through the network that a step of training takes."""
    search = config.search
    return GRADIENT * _GRADIENTS[search.order if search.share else "none"]


def products(exp: Experiment) -> int:
    """Counts the multiply-adds of one image as evaluated."""
    state, view = exp.create_state(abstract=True), exp.recipe.view
    shape = (1, view.size, view.size, view.channels)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    apply = functools.partial(exp.model.apply, train=False)
    return multiply_adds(apply, state.variables, images)


def difference(one: Network, other: Network, batch: Batch) -> float:
    """Returns the largest of the logits' differences as a share of the largest logit.

    As trained and as evaluated, whichever is more.
    """

    def largest(states: tuple[TrainState, TrainState], images: jax.Array) -> jax.Array:
        a = _logits(one.experiment.model, states[0], images)
        b = _logits(other.experiment.model, states[1], images)
        changed, most = (jnp.abs(x).max(axis=(1, 2)) for x in (a - b, a))
        return (changed / jnp.maximum(most, 1e-30)).max()

    return float(one.on_host(largest, (one.state, other.state), batch.images))


def training_batches(
    network: Network, data: Data, start: int, count: int
) -> list[Batch]:
    """Returns `count` augmented batches of a run's training, after `start` steps."""
    exp, key = network.experiment, network.state.key
    program = jax.jit(exp.batch)
    calls = [Call(start + n, 1) for n in range(count)]
    given = exp.inputs.data(data, exp.config.seed, calls)
    return [
        program(inputs, key, jnp.asarray(call.start))
        for call, (inputs, _) in zip(calls, given, strict=True)
    ]


def _logits(model: Backbone, state: TrainState, images: jax.Array) -> jax.Array:
    """As trained and as evaluated, [2, batch, classes]."""
    trained, _ = steps.forward(
        model, state.params, state.batch_stats, images, state.key
    )
    evaluated: Any = model.apply(state.variables, images, train=False)
    return jnp.stack([trained, evaluated])


def _with_mean_squares(fresh: Any, old: Any) -> Any:
    """A fresh optimiser's memory, its squared gradients the mean of the old ones."""
    means: dict[str, list[jax.Array]] = {}
    for name, leaf in leaves.by_name(old).items():
        if SQUARES in name:
            for kind in _kinds(name):
                means.setdefault(kind, []).append(leaf.mean())

    def filled(name: str, leaf: jax.Array) -> jax.Array:
        result = next((means[kind] for kind in _kinds(name) if kind in means), None)
        if SQUARES not in name or result is None:
            return leaf
        return jnp.full_like(leaf, jnp.stack(result).mean())

    return leaves.map_by_name(filled, fresh)


def _kinds(name: str) -> tuple[str, ...]:
    """What a leaf is like, closest first: its like among the connections, or at all."""
    own = name.rpartition("/")[2]
    among = CONNECTIONS if CONNECTIONS in name else "blocks/"
    return among + own, own, ""
