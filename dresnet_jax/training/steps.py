"""The pure functions of one step: `train_step` and `eval_step`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from dresnet_jax.connections import gate_values
from dresnet_jax.data.pipeline import Batch, derive_key
from dresnet_jax.models.backbone import Backbone
from dresnet_jax.models.exits import EXITS, ExitSpec
from dresnet_jax.models.layers import PENALTIES
from dresnet_jax.training import state as train_state
from dresnet_jax.training.metrics import Metrics
from dresnet_jax.training.state import TrainState


class StepResult(flax.struct.PyTreeNode):
    """What the host reads of one step.

    Attributes:
      loss: of this step's batch, float32 scalar.
      grad_norm: global norm of the gradient before clipping, float32 scalar.
      is_finite: whether both are and, where batches may be skipped, what the step
        leads to, bool scalar.
      running: metrics since the last log line, this step included.
    """

    loss: jax.Array
    grad_norm: jax.Array
    is_finite: jax.Array
    running: Metrics


# What a step gives.
Stepped = tuple[TrainState, StepResult]
TrainStep = Callable[[TrainState, Batch], Stepped]
# `training_loss` with its settings: of (model, parameters, averages, examples, key).
Loss = Callable[..., tuple[jax.Array, tuple[Any, Metrics]]]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    loss: Loss,
    ema_decay: float,
    log_every_steps: int,
    accumulate_steps: int = 1,
    skip_non_finite: bool = False,
) -> Stepped:
    """Returns one step of the optimiser.

    Args:
      state: before the step.
      batch: its examples.
      loss: by which it learns.
      ema_decay: of the averaged parameters, if the state has them.
      log_every_steps: the running metrics restart after this many steps.
      accumulate_steps: parts of the batch whose gradients are made one after the other,
        and then averaged; norms see one part at a time.
      skip_non_finite: whether a batch whose loss, gradient or step is not finite leaves
        all but the step as it was.

    Returns:
      The state after the step, and what the host reads.
    """
    gradient = jax.value_and_grad(functools.partial(loss, state.model), has_aux=True)
    value, batch_stats, metrics, grads = _gradients(
        gradient, state, batch, accumulate_steps
    )
    updates, opt_state = state.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    after = state.replace(
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema_params=_averaged(state, params, ema_decay),
    )
    grad_norm = optax.tree.norm(grads)
    is_finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
    if skip_non_finite:
        is_finite &= train_state.is_finite(after.learned)
        before = state, Metrics.empty()
        after, metrics = optax.tree.where(is_finite, (after, metrics), before)
    is_first = state.step % log_every_steps == 0
    running = optax.tree.where(is_first, metrics, state.running.merge(metrics))
    after = after.replace(step=state.step + 1, running=running)
    return after, StepResult(value, grad_norm, is_finite, running)


def _averaged(state: TrainState, params: Any, ema_decay: float) -> Any:
    """Adds parameters to the averaged ones, if the state has them."""
    if state.ema_params is None:
        return None
    # Ramps up, so that the average soon forgets the initialisation.
    steps = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1 + steps) / (10 + steps))
    return optax.incremental_update(params, state.ema_params, 1 - decay)


def _gradients(
    gradient: Callable[..., Any], state: TrainState, batch: Batch, parts: int
) -> tuple[jax.Array, Any, Metrics, Any]:
    """Computes loss, averages of the norms, metrics and gradients of a batch.

    `gradient` is of (parameters, averages, examples, key), and its value is the loss
    and (averages, metrics). The gradients of the batch's parts are averaged.
    """
    key = jax.random.fold_in(derive_key(state.key, "dropout"), state.step)
    if parts == 1:
        (loss, (batch_stats, metrics)), grads = gradient(
            state.params, state.batch_stats, batch, key
        )
        return loss, batch_stats, metrics, grads

    def add_part(total: Any, i: jax.Array) -> tuple[Any, None]:
        loss, batch_stats, metrics, grads = total
        # Every n-th example, so that each part lies on all devices.
        part = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:])[:, i], batch)
        (part_loss, (batch_stats, part_metrics)), part_grads = gradient(
            state.params, batch_stats, part, jax.random.fold_in(key, i)
        )
        grads = optax.tree.add(grads, part_grads)
        return (loss + part_loss, batch_stats, metrics.merge(part_metrics), grads), None

    nothing = (
        jnp.zeros(()),
        state.batch_stats,
        Metrics.empty(),
        optax.tree.zeros_like(state.params),
    )
    (loss, batch_stats, metrics, grads), _ = jax.lax.scan(
        add_part, nothing, jnp.arange(parts)
    )
    loss, grads = optax.tree.scale(1 / parts, (loss, grads))
    return loss, batch_stats, metrics, grads


def training_loss(
    model: Backbone,
    params: optax.Params,
    batch_stats: Any,
    batch: Batch,
    key: jax.Array,
    *,
    label_smoothing: float,
    gate_penalty: float,
) -> tuple[jax.Array, tuple[Any, Metrics]]:
    """Returns the training loss: a scalar; the norms' averages, and metrics.

    `label_smoothing` is the share of the label spread over all classes; `gate_penalty`
    times the sum of |F(w)| is added. The key is as in `forward`.
    """
    logits, updates = forward(model, params, batch_stats, batch.images, key)
    losses = cross_entropy(logits, batch.targets, label_smoothing)
    spec = model.spec
    loss = losses.mean() + penalties(updates)
    loss += supervision(spec.exits, updates, batch.targets, label_smoothing)
    if gate_penalty:
        own = params.get("connections", {})
        loss += gate_penalty * gate_values.total(spec.connections, spec.channels, own)
    metrics = Metrics.single_from_model_output(
        loss=losses, logits=logits, labels=batch.labels, mask=batch.mask
    )
    return loss, (updates.get("batch_stats", {}), metrics)


def forward(
    model: Backbone,
    params: optax.Params,
    batch_stats: Any,
    images: jax.Array,
    key: jax.Array,
    mutable: Sequence[str] = ("batch_stats", PENALTIES, EXITS),
    **options: Any,
) -> tuple[jax.Array, Any]:
    """Runs a network as in training: its norms see the batch.

    Images are [batch, height, width, channels], and the key is of dropout and of blocks
    that are left out. `mutable` names Flax's collections that are given back; options
    are more of Flax's `apply`.

    Returns:
      Float32 logits, [batch, classes], and the collections.
    """
    return model.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        train=True,
        mutable=list(mutable),
        rngs={"dropout": key},
        **options,
    )


def penalties(updates: Any) -> jax.Array:
    """Sums what the network's parts add to the loss, as `forward` gave it."""
    return sum(jax.tree.leaves(updates.get(PENALTIES, {})), jnp.zeros(()))


def supervision(
    spec: ExitSpec, updates: Any, targets: jax.Array, label_smoothing: float
) -> jax.Array:
    """Returns what the classifiers before the last one add to the loss.

    How much of it counts for the blocks is said where they read
    (`exits.with_scaled_gradient`). `updates` is as `forward` gave it, and `targets`
    holds class probabilities, [batch, classes].
    """
    total = jnp.zeros(())
    if not spec.after:
        return total
    (answers,), (scores,) = (updates[EXITS][name] for name in ("answers", "scores"))
    for answer, score in zip(answers, scores, strict=True):
        total += cross_entropy(answer, targets, label_smoothing).mean()
        if spec.learn_confidence:
            is_right = answer.argmax(axis=-1) == targets.argmax(axis=-1)
            total += optax.sigmoid_binary_cross_entropy(score, is_right).mean()
    return total


def eval_step(state: TrainState, batch: Batch) -> tuple[Metrics, jax.Array]:
    """Returns metrics of one batch, without padding, and its float32 logits."""
    logits: Any = state.model.apply(state.eval_variables, batch.images, train=False)
    losses = cross_entropy(logits, batch.targets, label_smoothing=0.0)
    metrics = Metrics.single_from_model_output(
        loss=losses, logits=logits, labels=batch.labels, mask=batch.mask
    )
    return metrics, logits


def mean_loss(
    model: Backbone, params: Any, state: TrainState, batch: Batch
) -> jax.Array:
    """Returns mean cross entropy of a batch as trained, with other parameters."""
    logits, _ = forward(model, params, state.batch_stats, batch.images, state.key)
    return cross_entropy(logits, batch.targets, 0.0).mean()


def cross_entropy(
    logits: jax.Array, targets: jax.Array, label_smoothing: float
) -> jax.Array:
    """Computes the cross entropy of logits and class probabilities, [batch]."""
    smooth = optax.smooth_labels(targets, label_smoothing)
    return optax.softmax_cross_entropy(logits, smooth)
