"""Conditional paths: each example runs a block or skips it, as a gate decides.

    y_i = g_i(x_i) B_i(x_i) + (1 - g_i(x_i)) x_i,    g_i(x) in {0, 1}

A gate sees its block's input averaged over the pixels (Veit & Belongie 2018,
"Convolutional Networks with Adaptive Inference Graphs"). In training its logit has
logistic noise, and the gradient is that of a sigmoid (straight-through, Jang et al.
2017); in evaluation the sign of the logit decides. `masked` runs a block for all
examples and is the reference; `compacted` runs it for those that need it.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from dresnet_jax.errors import UserError
from dresnet_jax.models.layers import PENALTIES

# Of a gate's hidden layer, as published.
_HIDDEN = 16
# A logit at the start: 9 of 10 examples run the block.
_START = math.log(9.0)
# Parts of a batch in which `compacted` counts the examples that run: a block is
# compiled once for each number of parts, and half of one is run in vain on average.
_PARTS = 16


@dataclasses.dataclass(frozen=True)
class ConditionalSpec:
    """What the gates of a network are asked for.

    Attributes:
      target_rate: share of the examples that are to run each block, in (0, 1).
      penalty: this times the squared distance of each block's share from the target is
        added to the loss.
      compact: whether evaluation leaves out what is skipped; else it is computed, and
        masked.
    """

    target_rate: float
    penalty: float = 1.0
    compact: bool = True

    def __post_init__(self) -> None:
        """Raises a `UserError` for a number out of range."""
        if not 0 < self.target_rate < 1:
            raise UserError(
                f"model.conditional.target_rate = {self.target_rate} must be in (0, "
                "1), or None for no gates."
            )
        if not 0 <= self.penalty < math.inf:
            raise UserError(
                f"model.conditional.penalty = {self.penalty} must be a number, not "
                "below 0."
            )


class Gate(nn.Module):
    """Which examples run a block."""

    spec: ConditionalSpec

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch], float32, each 0 or 1.

        With `train` it needs the "dropout" RNG, and adds to the loss.
        """
        pooled = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        # What blocks add up grows with their number; a logit must not.
        pooled = nn.LayerNorm(epsilon=1e-6, name="norm")(pooled)
        hidden = nn.relu(nn.Dense(_HIDDEN, name="hidden")(pooled))
        start = nn.initializers.constant(_START)
        logits = nn.Dense(1, bias_init=start, name="logit")(hidden)[:, 0]
        self.sow("intermediates", "logits", logits)
        if not train:
            return opened(logits)
        # Of what evaluation would decide, so that the target is met there.
        rate = opened(logits).mean()
        penalty = self.spec.penalty * (rate - self.spec.target_rate) ** 2
        self.sow(PENALTIES, "rate", penalty)
        noise = jax.random.logistic(self.make_rng("dropout"), logits.shape)
        return opened(logits + noise)


def opened(logits: jax.Array) -> jax.Array:
    """Returns 1 where a logit is above 0, else 0, with its sigmoid's gradient."""
    soft = nn.sigmoid(logits)
    # In this order the value is 0 or 1 to the bit.
    return soft - jax.lax.stop_gradient(soft) + (logits > 0)


def masked(x: jax.Array, y: jax.Array, gates: jax.Array) -> jax.Array:
    """Returns the formula: y where the gate is 1, x where it is 0.

    Args:
      x: input of a block, [batch, height, width, channels].
      y: its output, of the same shape and dtype.
      gates: [batch], each 0 or 1.
    """
    gates = gates.astype(x.dtype)[:, None, None, None]
    return gates * y + (1 - gates) * x


def sizes(batch: int) -> tuple[int, ...]:
    """Lists how many examples `compacted` may run, from 0 to all."""
    return tuple(sorted({-(-batch * n // _PARTS) for n in range(_PARTS + 1)}))


def compacted(
    run: Callable[[jax.Array], jax.Array], x: jax.Array, gates: jax.Array
) -> jax.Array:
    """Runs a block as `masked` does, for few more examples than need it.

    Those are brought together in a smaller batch, of the least of `sizes` that holds
    them.

    Args:
      run: the block in evaluation, for any batch size.
      x: its input, [batch, height, width, channels].
      gates: [batch], each 0 or 1.
    """
    batch = len(x)
    is_open = gates > 0
    first_open = jnp.argsort(~is_open, stable=True)
    places = jnp.cumsum(is_open) - 1

    def of_size(size: int) -> Callable[[jax.Array], jax.Array]:
        def some(x: jax.Array) -> jax.Array:
            y = run(x[first_open[:size]])
            # Read from their places, since a CPU is slow to scatter.
            spread = y[jnp.clip(places, 0, size - 1)]
            return jnp.where(is_open[:, None, None, None], spread, x)

        if size == 0:
            return lambda x: x
        if size == batch:
            return lambda x: masked(x, run(x), gates)
        return some

    there = sizes(batch)
    least = jnp.searchsorted(jnp.asarray(there), is_open.sum())
    return jax.lax.switch(least, [of_size(size) for size in there], x)
