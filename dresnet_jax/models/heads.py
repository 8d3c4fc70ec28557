"""Heads: from the last block's output to logits."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class Classifier(nn.Module):
    """Global average pooling, dropout and a linear layer."""

    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to float32 logits [batch, num_classes]."""
        x = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="linear")(x)
