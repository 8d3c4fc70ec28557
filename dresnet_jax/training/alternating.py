"""Architecture and network learn in turn, each from examples of its own.

Liu, Simonyan and Yang (2019), "DARTS: Differentiable Architecture Search". What the
architecture is: the weights of operations and of connections.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from dresnet_jax.data.pipeline import Batch, derive_key
from dresnet_jax.errors import UserError, pick
from dresnet_jax.models.backbone_spec import BackboneSpec
from dresnet_jax.training import steps
from dresnet_jax.training.state import TrainState

ORDERS = dict.fromkeys(("first", "second"))
# Of Adam, as published.
_BETAS = 0.5, 0.999


class Optimizers(NamedTuple):
    """What each part learns by; neither changes the other part.

    Attributes:
      network: of all but the architecture.
      architecture: of it alone.
      is_architecture: marks its parameters.
    """

    network: optax.GradientTransformation
    architecture: optax.GradientTransformation
    is_architecture: Callable[[Any], Any]

    @property
    def joined(self) -> optax.GradientTransformation:
        """Both as one, whose memory is (network's, architecture's)."""

        def init(params: optax.Params) -> optax.OptState:
            return self.network.init(params), self.architecture.init(params)

        def update(grads: Any, memory: Any, params: Any = None) -> tuple[Any, Any]:
            first, own = self.network.update(grads, memory[0], params)
            second, other = self.architecture.update(grads, memory[1], params)
            return optax.tree.add(first, second), (own, other)

        return optax.GradientTransformation(init, update)


def check(config: ml_collections.ConfigDict, spec: BackboneSpec) -> None:
    """Checks `config.search`.

    Raises:
      UserError: a value is wrong, or the network has no architecture to learn.
    """
    search = config.search
    pick("search.order", search.order, ORDERS)
    if not search.share:
        return
    if not spec.mixed and not spec.connections.topology.edges:
        raise UserError(
            f"search.share = {search.share}: {config.model.name} has neither mixed "
            "blocks nor learned connections, whose weights could be searched."
        )
    if config.optimizer.gate_freeze_first or config.optimizer.gate_freeze_last:
        raise UserError(
            f"search.share = {search.share} needs optimizer.gate_freeze_first and "
            "gate_freeze_last of 0: they are of gates that learn with the network."
        )
    if config.train.steps_per_call > 1:
        raise UserError(
            f"search.share = {search.share} needs train.steps_per_call = 1, not "
            f"{config.train.steps_per_call}: the epochs of both parts end apart."
        )


def optimizers(
    network: optax.GradientTransformation,
    learning_rate: float,
    is_architecture: Callable[[Any], Any],
    freezing: Sequence[optax.GradientTransformation] = (),
) -> Optimizers:
    """Returns those of a search.

    `network` is what the network would learn by alone, `learning_rate` that of the
    architecture, and `freezing` keeps parameters that are not trained as they are.
    """
    nothing = optax.set_to_zero()
    adam = optax.adam(learning_rate, b1=_BETAS[0], b2=_BETAS[1])
    own = optax.partition({True: adam, False: nothing}, is_architecture)
    return Optimizers(
        network=optax.chain(optax.masked(nothing, is_architecture), network),
        architecture=optax.chain(own, *freezing) if freezing else own,
        is_architecture=is_architecture,
    )


def gradient(
    own_loss: Callable[[Any], jax.Array],
    other_loss: Callable[[Any], jax.Array],
    params: Any,
    is_architecture: Any,
    rate: jax.Array | float | None,
) -> Any:
    """Computes the gradient of the other examples' loss, for the architecture.

    Second order: d other_loss(a, w - rate d own_loss(a, w)/dw) / da, through the step
    of w; first order is rate 0.

    Args:
      own_loss: of the network's examples, by all parameters.
      other_loss: of the architecture's examples, by all parameters.
      params: architecture a and network w.
      is_architecture: as `params`, marks those of a.
      rate: of the network's step; None for first order.

    Returns:
      As `params`; what it holds for w is not the gradient of w.
    """

    def looked_ahead(given: Any) -> jax.Array:
        if rate is None:
            return other_loss(given)
        grads = jax.grad(own_loss)(given)
        ahead = jax.tree.map(
            lambda is_own, x, d: x if is_own else x - rate * d,
            is_architecture,
            given,
            grads,
        )
        return other_loss(ahead)

    return jax.grad(looked_ahead)(params)


def step(
    state: TrainState,
    batch: Batch,
    other: Batch,
    *,
    optimizers: Optimizers,
    network_step: steps.TrainStep,
    loss: steps.Loss,
    rate: optax.Schedule | None,
    skip_non_finite: bool = False,
) -> steps.Stepped:
    """Takes a step of the architecture, then one of the network.

    Args:
      state: before the step, its memory that of `Optimizers.joined`.
      batch: the network's examples.
      other: the architecture's.
      optimizers: of both.
      network_step: from a state whose optimiser is the network's.
      loss: by which the architecture learns.
      rate: of the step that the architecture looks ahead; None for first order.
      skip_non_finite: whether an architecture whose step or whose network's is not
        finite stays as it was.

    Returns:
      The state after the step, and what the host reads of the network's.
    """
    key = jax.random.fold_in(derive_key(state.key, "search"), state.step)

    def value(params: Any, examples: Batch) -> jax.Array:
        return loss(state.model, params, state.batch_stats, examples, key)[0]

    grads = gradient(
        functools.partial(value, examples=batch),
        functools.partial(value, examples=other),
        state.params,
        optimizers.is_architecture(state.params),
        rate and rate(state.step),
    )
    of_network, before = state.opt_state
    updates, memory = optimizers.architecture.update(grads, before, state.params)
    is_finite = jnp.isfinite(optax.tree.norm(updates))
    if skip_non_finite:
        updates = jax.tree.map(lambda x: jnp.where(is_finite, x, 0), updates)
    params = optax.apply_updates(state.params, updates)
    after, result = network_step(
        state.replace(
            params=params, opt_state=of_network, optimizer=optimizers.network
        ),
        batch,
    )
    if skip_non_finite:
        is_finite &= jnp.isfinite(result.loss) & jnp.isfinite(result.grad_norm)
        memory = optax.tree.where(is_finite, memory, before)
        params = jax.tree.map(
            lambda is_own, new, old: jnp.where(is_finite, new, old) if is_own else new,
            optimizers.is_architecture(state.params),
            after.params,
            state.params,
        )
        after = after.replace(params=params)
    return (
        after.replace(opt_state=(after.opt_state, memory), optimizer=state.optimizer),
        result,
    )
