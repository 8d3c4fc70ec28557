"""Heads: from the last block's output to logits."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from dresnet_jax.errors import pick
from dresnet_jax.models.layers import Layers

# What stands before or after the average pooling: nothing; a norm and an activation,
# which pre-activation blocks leave to be done; a 1x1 convolution to 4 times the
# channels with norm and activation (MobileNetV2); a norm of the pooled channels
# (ConvNeXt).
HEADS = dict.fromkeys(("linear", "norm_act", "conv", "pooled_norm"))


class Classifier(nn.Module):
    """Global average pooling, dropout and a linear layer.

    Attributes:
      num_classes: how many logits.
      dropout: rate before the linear layer.
      layers: what the network's layers have in common.
      kind: one of `HEADS`.
    """

    num_classes: int
    dropout: float
    layers: Layers = Layers()
    kind: str = "linear"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to float32 logits [batch, num_classes]."""
        pick("head", self.kind, HEADS)
        if self.kind == "norm_act":
            x = self.layers.norm_act(name="norm_act")(x, train=train)
        if self.kind == "conv":
            x = self.layers.conv_norm(
                4 * x.shape[-1], kernel=1, activate=True, name="conv"
            )(x, train=train)
        x = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        if self.kind == "pooled_norm":
            x = nn.LayerNorm(epsilon=1e-6, name="norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="linear")(x)
