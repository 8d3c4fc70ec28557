"""The optimiser of a config, from optax's parts."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from dresnet_jax.errors import UserError, pick
from dresnet_jax.training import leaves


def build(
    config: ml_collections.ConfigDict,
    num_steps: int,
    is_gate: Callable[[Any], Any],
    events: Sequence[int] = (),
    warmup_steps: int = 0,
) -> optax.GradientTransformation:
    """Builds clipping, the optimiser, its schedule, and the gates' learning rate.

    Args:
      config: the `optimizer` part of a config.
      num_steps: the run's length, over which the learning rate falls to 0.
      is_gate: marks the parameters that the gates' learning rate acts on.
      events: steps after which the network changes.
      warmup_steps: after each event, in which the learning rate rises from 0 again.

    Raises:
      UserError: the optimiser is unknown, or gates are always frozen.
    """
    make = pick("optimizer", config.name, OPTIMIZERS)
    first, last = config.gate_freeze_first, config.gate_freeze_last
    if first + last >= 1:
        raise UserError(
            f"optimizer.gate_freeze_first = {first} and gate_freeze_last = {last} "
            "freeze the gates in the whole run: their sum must be below 1."
        )
    clip = optax.clip_by_global_norm(config.clip_norm)
    warm_up = optax.scale_by_schedule(_warm_up(events, warmup_steps))
    return optax.chain(
        clip if config.clip_norm else optax.identity(),
        make(config, schedule(config, num_steps)),
        optax.masked(_gate_scale(config, num_steps), is_gate),
        *([warm_up] if events and warmup_steps else []),
        *freezing(config),
    )


def schedule(config: ml_collections.ConfigDict, num_steps: int) -> optax.Schedule:
    """Returns a linear warm-up to the peak learning rate, then a cosine to 0."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=int(config.warmup_fraction * num_steps),
        decay_steps=num_steps,
    )


def _warm_up(events: Sequence[int], steps: int) -> optax.Schedule:
    """The part of the learning rate that is left after events; 1 before the first."""

    def part(step: jax.Array) -> jax.Array:
        since = step - jnp.asarray(events)
        since = jnp.min(jnp.where(since >= 0, since, steps))
        return jnp.minimum(1.0, (since + 1) / steps)

    return part


def _gate_scale(
    config: ml_collections.ConfigDict, num_steps: int
) -> optax.GradientTransformation:
    """The gates' multiple of the base learning rate; 0 while they are frozen."""
    first = int(config.gate_freeze_first * num_steps)
    end = num_steps - int(config.gate_freeze_last * num_steps)
    if (first, end) == (0, num_steps):
        return optax.scale(config.gate_multiplier)
    return optax.scale_by_schedule(
        lambda step: config.gate_multiplier * ((first <= step) & (step < end))
    )


def is_kernel(params: Any) -> Any:
    """Marks the leaves that weight decay acts on: no norm, bias, gate or sharpness."""
    return leaves.map_by_name(lambda name, _: name.split("/")[-1] == "kernel", params)


def _frozen(config: ml_collections.ConfigDict, params: Any) -> Any:
    """Marks the leaves whose path has the pattern of what is not trained."""
    return leaves.map_by_name(
        lambda name, _: bool(re.search(config.freeze, name)), params
    )


def freezing(config: ml_collections.ConfigDict) -> list[optax.GradientTransformation]:
    """Returns what keeps the leaves that are not trained as they are, if there are."""
    is_frozen = functools.partial(_frozen, config)
    return [optax.masked(optax.set_to_zero(), is_frozen)] if config.freeze else []


def without_gradients(config: ml_collections.ConfigDict, params: Any) -> Any:
    """Stops the gradients of the leaves that are not trained."""
    if not config.freeze:
        return params
    return jax.tree.map(
        lambda leaf, is_frozen: jax.lax.stop_gradient(leaf) if is_frozen else leaf,
        params,
        _frozen(config, params),
    )


OPTIMIZERS: dict[
    str,
    Callable[[ml_collections.ConfigDict, optax.Schedule], optax.GradientTransformation],
] = {
    "sgd": lambda config, rate: optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=is_kernel),
        optax.sgd(rate, momentum=config.momentum, nesterov=True),
    ),
    "adamw": lambda config, rate: optax.adamw(
        *(rate, config.b1, config.b2),
        weight_decay=config.weight_decay,
        mask=is_kernel,
    ),
}


def event_steps(growth: ml_collections.ConfigDict, steps_per_epoch: int) -> list[int]:
    """Returns the steps after which a run's network changes."""
    return [
        number * growth.every_epochs * steps_per_epoch
        for number in range(1, len(growth.events) + 1)
    ]
