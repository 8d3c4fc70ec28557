"""What a mixed block's weights are: the pure functions, and what they are asked for."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from dresnet_jax.errors import UserError, pick
from dresnet_jax.models.operations import OPERATIONS

# How a block comes from its parameters to the weights of its operations.
WEIGHTS = dict.fromkeys(("softmax", "gumbel", "routed"))


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The operations of a mixed block, and how they are weighted.

    Attributes:
      operations: keys of `OPERATIONS`. A single one has no weight.
      weights: a key of `WEIGHTS`: of the block (softmax); of the block, one operation
        for each image in training and the likeliest in evaluation (gumbel); of the
        image (routed).
      temperature_start, temperature_end: that the logits are divided by.
      temperature_steps: batches of training in which it falls, by the same factor each.
      skip_drop: share of the images for which an operation without kernels is left out
        at the start of training; it falls to 0 evenly, with the temperature.
      price: this times the parameters that are in use, each operation's by its weight
        and as a part of the largest's, is added to the loss.
      balance: this times `imbalance` is added to the loss, if routed.
    """

    operations: tuple[str, ...] = tuple(OPERATIONS)
    weights: str = "softmax"
    temperature_start: float = 1.0
    temperature_end: float = 1.0
    temperature_steps: int = 1
    skip_drop: float = 0.0
    price: float = 0.0
    balance: float = 0.0

    def __post_init__(self) -> None:
        """Raises a `UserError` for operations or numbers that cannot be."""
        for name in self.operations:
            pick("operation", name, OPERATIONS)
        if not self.operations or len(set(self.operations)) < len(self.operations):
            raise UserError(
                f"mixture.operations = {self.operations} must be one operation or "
                "several, each once."
            )
        pick("mixture.weights", self.weights, WEIGHTS)
        for name, is_right, what in (
            ("temperature_start", lambda x: 0 < x < math.inf, "a number above 0"),
            ("temperature_end", lambda x: 0 < x < math.inf, "a number above 0"),
            ("temperature_steps", lambda x: x >= 1, "above 0"),
            ("skip_drop", lambda x: 0 <= x < 1, "in [0, 1)"),
            ("price", lambda x: 0 <= x < math.inf, "a number, not below 0"),
            ("balance", lambda x: 0 <= x < math.inf, "a number, not below 0"),
        ):
            value = getattr(self, name)
            if not is_right(value):
                raise UserError(f"mixture.{name} = {value} must be {what}.")

    @property
    def is_mixed(self) -> bool:
        """Whether there is something to weigh."""
        return len(self.operations) > 1

    def progress(self, steps: jax.Array) -> jax.Array:
        """Returns the part of the schedule that is over after some steps, 0 to 1."""
        return jnp.minimum(steps.astype(jnp.float32) / self.temperature_steps, 1.0)

    def temperature_after(self, steps: jax.Array) -> jax.Array:
        """Returns the temperature after some steps, a float32 scalar."""
        start, end = self.temperature_start, self.temperature_end
        return start * (end / start) ** self.progress(steps)


def straight_through(soft: jax.Array) -> jax.Array:
    """Sets the largest of the last axis to 1, the rest to 0, with soft's gradient.

    Jang et al. (2017), "Categorical Reparameterization with Gumbel-Softmax".
    """
    hard = jax.nn.one_hot(soft.argmax(axis=-1), soft.shape[-1], dtype=soft.dtype)
    # The difference is 0: added to `soft` instead, it would be rounded.
    return hard + (soft - jax.lax.stop_gradient(soft))


def imbalance(weights: jax.Array) -> jax.Array:
    """Returns how unevenly a batch uses the operations: a scalar, 0 where evenly.

    The squared coefficient of variation of the operations' mean weights (Shazeer et al.
    2017, "importance"); operations - 1 where all images use a single one.

    Args:
      weights: [batch, operations], each row of sum 1.
    """
    used = weights.mean(axis=0)
    return used.size * jnp.sum(used**2) - 1
