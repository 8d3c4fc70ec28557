"""The pure functions of one step: `train_step` and `eval_step`."""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from dresnet_jax.connections.module import total_opening
from dresnet_jax.data.pipeline import Batch, derive_key
from dresnet_jax.training.metrics import Metrics
from dresnet_jax.training.state import TrainState


class StepResult(flax.struct.PyTreeNode):
    """What the host is told of one step.

    Attributes:
      loss: of this step's batch, float32 scalar.
      grad_norm: global norm of the gradient before clipping, float32 scalar.
      running: metrics since the last log line, this step included.
    """

    loss: jax.Array
    grad_norm: jax.Array
    running: Metrics


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepResult]]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    label_smoothing: float,
    gate_penalty: float,
    ema_decay: float,
    log_every_steps: int,
) -> tuple[TrainState, StepResult]:
    """One step of the optimiser.

    Args:
      state: before the step.
      batch: its examples.
      label_smoothing: share of the label spread over all classes.
      gate_penalty: this times the sum of |F(w)| is added to the loss.
      ema_decay: of the averaged parameters, if the state has them.
      log_every_steps: the running metrics start anew after so many steps.

    Returns:
      The state after the step, and what the host is told.
    """

    def loss_function(params: optax.Params) -> tuple[jax.Array, tuple]:
        logits, updates = state.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            batch.images,
            train=True,
            mutable=["batch_stats"],
            rngs={
                "dropout": jax.random.fold_in(
                    derive_key(state.key, "dropout"), state.step
                )
            },
        )
        losses = cross_entropy(logits, batch.targets, label_smoothing)
        loss = losses.mean()
        if gate_penalty:
            spec = state.model.spec
            loss += gate_penalty * total_opening(
                spec.connections, spec.channels, params.get("connections", {})
            )
        return loss, (losses, logits, updates["batch_stats"])

    (loss, (losses, logits, batch_stats)), grads = jax.value_and_grad(
        loss_function, has_aux=True
    )(state.params)
    updates, opt_state = state.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_params is not None:
        # Ramps up, so that the average soon forgets the initialisation.
        steps = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1 + steps) / (10 + steps))
        ema_params = optax.incremental_update(params, ema_params, 1 - decay)

    metrics = Metrics.single_from_model_output(
        loss=losses, logits=logits, labels=batch.labels, mask=batch.mask
    )
    starts_anew = state.step % log_every_steps == 0
    running = jax.tree.map(
        lambda alone, merged: jnp.where(starts_anew, alone, merged),
        metrics,
        state.running.merge(metrics),
    )
    new_state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema_params=ema_params,
        running=running,
    )
    result = StepResult(loss=loss, grad_norm=optax.tree.norm(grads), running=running)
    return new_state, result


def eval_step(state: TrainState, batch: Batch) -> tuple[Metrics, jax.Array]:
    """Metrics of one batch, without padding, and its float32 logits."""
    logits: Any = state.model.apply(
        {"params": state.eval_params, "batch_stats": state.batch_stats},
        batch.images,
        train=False,
    )
    losses = cross_entropy(logits, batch.targets, label_smoothing=0.0)
    metrics = Metrics.single_from_model_output(
        loss=losses, logits=logits, labels=batch.labels, mask=batch.mask
    )
    return metrics, logits


def cross_entropy(
    logits: jax.Array, targets: jax.Array, label_smoothing: float
) -> jax.Array:
    """Cross entropy of logits and class probabilities, [batch, classes]: [batch]."""
    smooth = optax.smooth_labels(targets, label_smoothing)
    return optax.softmax_cross_entropy(logits, smooth)
