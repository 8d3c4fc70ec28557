"""Gate functions: from a raw weight w to the gate value F(w) of a connection."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dresnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Gate:
    """A gate function with its inverse.

    Attributes:
      function: (weights, sharpness) -> gate_values: arrays of shape [sources], or
        [sources, channels] for a weight per channel, float32; sharpness is of a shape
        that broadcasts. `weights` are all weights of one block, so a gate may also
        compare a block's sources.
      inverse: (value, sharpness) -> the starting weight that gives the value, of a
        gate that compares sources the one at which a single source has it by `or_none`.
      formula: F(w), as people write it.
      has_sharpness: whether the function reads the sharpness k.
      or_none: of a gate that compares sources, as `function`, but with them stands
        no source at all, with weight 0, so that gate_values may add up to less than 1.
      closed: a weight with F(w) = 0 from which it can learn, or None where F has none.
      dies: whether a gate that has closed stays so, since its gradient is gone.
    """

    function: Callable[[jax.Array, jax.Array], jax.Array]
    inverse: Callable[[float, float], float]
    formula: str
    has_sharpness: bool = False
    or_none: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    closed: float | None = None
    dies: bool = False

    @property
    def compares_sources(self) -> bool:
        """Whether F depends on a block's other weights.

        By `function`, they then all start equal, and no value can be asked for.
        """
        return self.or_none is not None


def _logit(value: float, sharpness: float) -> float:
    del sharpness
    return math.log(value / (1 - value))


def _softmax_or_none(weights: jax.Array, sharpness: jax.Array) -> jax.Array:
    """exp(w_k) / (1 + sum_j exp(w_j)); of a single source the sigmoid."""
    del sharpness
    none = jnp.zeros_like(weights[:1])
    return jax.nn.softmax(jnp.concatenate([none, weights]), axis=0)[1:]


def _hard_sigmoid(weights: jax.Array, sharpness: jax.Array) -> jax.Array:
    """Exactly 0 and 1 at its ends, with the gradient of the line between everywhere.

    Straight-through (Bengio et al. 2013): a gate that has closed can open again.
    """
    del sharpness
    line = weights / 6 + 0.5
    return line + jax.lax.stop_gradient(jnp.clip(line, 0, 1) - line)


GATES = {
    "identity": Gate(
        function=lambda weights, sharpness: weights,
        inverse=lambda value, sharpness: value,
        formula="w",
        closed=0.0,
    ),
    "sigmoid": Gate(
        function=lambda weights, sharpness: jax.nn.sigmoid(weights),
        inverse=_logit,
        formula="1 / (1 + exp(-w))",
    ),
    "gauss": Gate(
        function=lambda weights, sharpness: jnp.exp(-sharpness * weights**2),
        inverse=lambda value, sharpness: math.sqrt(-math.log(value) / sharpness),
        formula="exp(-k w^2)",
        has_sharpness=True,
        dies=True,
    ),
    "tanh": Gate(
        function=lambda weights, sharpness: jnp.tanh(weights),
        inverse=lambda value, sharpness: math.atanh(value),
        formula="tanh(w)",
        closed=0.0,
    ),
    "hard_sigmoid": Gate(
        function=_hard_sigmoid,
        inverse=lambda value, sharpness: 6 * value - 3,
        formula="min(max(w / 6 + 1/2, 0), 1)",
        closed=-3.0,
    ),
    "softmax": Gate(
        function=lambda weights, sharpness: jax.nn.softmax(weights, axis=0),
        inverse=_logit,
        formula="exp(w_k) / sum_j exp(w_j)",
        or_none=_softmax_or_none,
    ),
}


def starting_weight(gate: Gate, value: float, sharpness: float) -> float:
    """Returns the weight at which a gate has a value.

    Raises:
      UserError: the value is outside (0, 1), where a gate either has no such
        weight or would start with a zero gradient.
    """
    if not (isinstance(value, int | float) and 0 < value < 1):
        raise UserError(
            f"Initial gate value {value} is outside (0, 1): "
            "choose a number between 0 and 1, neither included."
        )
    return gate.inverse(value, sharpness)


def positive(raw: jax.Array) -> jax.Array:
    """Maps an unbounded trainable parameter to sharpness k > 0 (softplus)."""
    return jax.nn.softplus(raw)


def positive_inverse(sharpness: float) -> float:
    """Returns the raw parameter whose `positive` is the given sharpness.

    Raises:
      UserError: the sharpness is not above 0.
    """
    if not (sharpness > 0 and math.isfinite(sharpness)):
        raise UserError(f"Gate sharpness k = {sharpness} must be a number above 0.")
    return sharpness + math.log(-math.expm1(-sharpness))
