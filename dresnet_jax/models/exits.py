"""Classifiers after several blocks: where they stand, and how they answer together."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from dresnet_jax.errors import UserError, pick
from dresnet_jax.models.heads import HEADS

# Flax's collection of what the classifiers before the last one answer in training.
EXITS = "exits"
# What a classifier answers, from its own logits and those of the ones before: its own,
# their mean, or a mean with weights that are learned, or made from the image.
FUSIONS = dict.fromkeys(("none", "mean", "learned", "attention"))


@dataclasses.dataclass(frozen=True)
class ExitSpec:
    """Where a network has classifiers besides the last one.

    Attributes:
      after: the blocks, from 1, after which they stand, in ascending order.
      loss_weights: what the loss of each counts for the blocks, that of the last one
        counting 1 (deep supervision, Lee et al. 2015). The classifiers themselves learn
        from the whole of their losses.
      head: one of `heads.HEADS`; "" for the network's own.
      fusion: a key of `FUSIONS`.
      learn_confidence: whether each learns, besides its answer, how probable it is that
        this is right.
    """

    after: tuple[int, ...] = ()
    loss_weights: tuple[float, ...] = ()
    head: str = ""
    fusion: str = "none"
    learn_confidence: bool = False

    def check(self, num_blocks: int) -> None:
        """Checks the values, as those of `config.model.exits`.

        Raises:
          UserError: one is wrong.
        """
        numbers = list(range(1, num_blocks))
        if sorted({*self.after} & {*numbers}) != list(self.after):
            raise UserError(
                f"model.exits.after = {self.after} must be numbers of blocks before "
                f"the last, 1 to {num_blocks - 1}, in ascending order."
            )
        if len(self.loss_weights) != len(self.after) or not all(
            0 <= weight < math.inf for weight in self.loss_weights
        ):
            raise UserError(
                f"model.exits.loss_weights = {self.loss_weights} must be a number, not "
                f"below 0, or one for each of the {len(self.after)} exits."
            )
        pick("model.exits.fusion", self.fusion, FUSIONS)
        if self.head:
            pick("model.exits.head", self.head, HEADS)


def with_scaled_gradient(x: jax.Array, scale: float) -> jax.Array:
    """Returns the array x to the bit, whose gradient is this times as large."""
    fixed = jax.lax.stop_gradient(x)
    return fixed + scale * (x - fixed)


class Fusion(nn.Module):
    """The answer of a classifier, from its logits and those of the ones before it."""

    spec: ExitSpec

    @nn.compact
    def __call__(self, logits: Sequence[jax.Array], x: jax.Array) -> jax.Array:
        """One answer.

        Args:
          logits: of each classifier so far, [batch, classes].
          x: what the newest one reads, [batch, height, width, channels].

        Returns:
          [batch, classes]. All weights are equal at the start.
        """
        count, zeros = len(logits), nn.initializers.zeros
        if self.spec.fusion == "none":
            return logits[-1]
        scores = jnp.zeros((1, count))
        if self.spec.fusion == "learned":
            of_all = self.param("scores", zeros, (len(self.spec.after) + 1,))
            scores = of_all[None, :count]
        if self.spec.fusion == "attention":
            pooled = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
            query = nn.Dense(count, kernel_init=zeros, name=f"query_{count}")
            scores = query(pooled)
        shares = jax.nn.softmax(scores)[..., None]
        return jnp.sum(shares * jnp.stack(logits, axis=1), axis=1)


class Confidence(nn.Module):
    """How probable it is that an answer is right, as learned with it."""

    @nn.compact
    def __call__(self, logits: jax.Array, x: jax.Array) -> jax.Array:
        """A score, [batch], whose sigmoid is the probability.

        Its loss teaches the network nothing.

        Args:
          logits: the answer, [batch, classes].
          x: what its classifier reads, [batch, height, width, channels].
        """
        pooled = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        sorted_probabilities = jnp.sort(jax.nn.softmax(logits))
        read = jnp.concatenate([pooled, sorted_probabilities], axis=-1)
        return nn.Dense(1, name="linear")(jax.lax.stop_gradient(read))[:, 0]


def _entropy(logits: jax.Array, score: jax.Array) -> jax.Array:
    del score
    log = jax.nn.log_softmax(logits)
    return 1 + jnp.sum(jnp.exp(log) * log, axis=-1) / math.log(logits.shape[-1])


# (logits [batch, classes], score of `Confidence` [batch]) -> [batch], from 0 to 1: the
# highest probability, 1 minus the entropy as a share of the highest there is, and what
# was learned.
CONFIDENCES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "probability": lambda logits, score: jax.nn.softmax(logits).max(axis=-1),
    "entropy": _entropy,
    "learned": lambda logits, score: jax.nn.sigmoid(score),
}
