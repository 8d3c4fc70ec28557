"""Gate functions: from a raw weight w to the opening F(w) of a connection."""

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
      function: (weights, sharpness) -> openings, each an array of shape
        [sources] (sharpness may be a scalar), float32. `weights` are all weights
        of one block, so a gate may also compare a block's sources.
      inverse: (opening, sharpness) -> the starting weight that gives the opening.
      formula: F(w), as people write it.
      has_sharpness: whether the function reads the sharpness k.
    """

    function: Callable[[jax.Array, jax.Array], jax.Array]
    inverse: Callable[[float, float], float]
    formula: str
    has_sharpness: bool = False


GATES = {
    "identity": Gate(
        function=lambda weights, sharpness: weights,
        inverse=lambda opening, sharpness: opening,
        formula="w",
    ),
    "sigmoid": Gate(
        function=lambda weights, sharpness: jax.nn.sigmoid(weights),
        inverse=lambda opening, sharpness: math.log(opening / (1 - opening)),
        formula="1 / (1 + exp(-w))",
    ),
    "gauss": Gate(
        function=lambda weights, sharpness: jnp.exp(-sharpness * weights**2),
        inverse=lambda opening, sharpness: math.sqrt(-math.log(opening) / sharpness),
        formula="exp(-k w^2)",
        has_sharpness=True,
    ),
}


def starting_weight(gate: Gate, opening: float, sharpness: float) -> float:
    """The weight at which a gate is open by `opening`.

    Raises:
      UserError: the opening is outside (0, 1), where a gate either has no such
        weight or would start with a zero gradient.
    """
    if not 0 < opening < 1:
        raise UserError(
            f"Gate opening {opening} is outside (0, 1): "
            "choose a number between 0 and 1, neither included."
        )
    return gate.inverse(opening, sharpness)


def positive(raw: jax.Array) -> jax.Array:
    """Sharpness k > 0 from its unbounded trainable parameter (softplus)."""
    return jax.nn.softplus(raw)


def positive_inverse(sharpness: float) -> float:
    """The raw parameter whose `positive` is the given sharpness.

    Raises:
      UserError: the sharpness is not above 0.
    """
    if not (sharpness > 0 and math.isfinite(sharpness)):
        raise UserError(f"Gate sharpness k = {sharpness} must be a number above 0.")
    return sharpness + math.log(-math.expm1(-sharpness))
