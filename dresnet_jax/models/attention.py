"""Attention inside a block: what it made of its input, weighted by itself."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from dresnet_jax.models.layers import Layers

# Channels divided by those of the hidden layer of `SqueezeExcite` and `Cbam`.
_REDUCTION = 16


class _Hidden(nn.Module):
    """Two linear layers with a ReLU between: [..., channels] to the same."""

    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        hidden = max(1, channels // _REDUCTION)
        x = nn.Dense(hidden, dtype=self.layers.dtype, name="reduce")(x)
        return nn.Dense(channels, dtype=self.layers.dtype, name="expand")(nn.relu(x))


class SqueezeExcite(nn.Module):
    """Channels weighted by what all of them are on average (Hu et al. 2018)."""

    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels], weighted."""
        del train
        pooled = x.mean(axis=(1, 2), keepdims=True)
        return x * nn.sigmoid(_Hidden(self.layers, name="weights")(pooled))


class EfficientChannelAttention(nn.Module):
    """Channels weighted by their neighbours' averages (Wang et al. 2020, ECA).

    The kernel over the channels grows with the logarithm of their number.
    """

    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels], weighted."""
        del train
        reach = int((math.log2(x.shape[-1]) + 1) / 2)
        size = max(3, reach + 1 - reach % 2)
        pooled = x.mean(axis=(1, 2))[..., None]
        conv = nn.Conv(
            1, (size,), padding="SAME", use_bias=False, dtype=self.layers.dtype
        )
        weights = conv(pooled)[..., 0]
        return x * nn.sigmoid(weights)[:, None, None]


class Cbam(nn.Module):
    """Channels, then pixels, weighted by averages and maxima (Woo et al. 2018)."""

    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels], weighted twice."""
        hidden = _Hidden(self.layers, name="channels")
        of_channels = hidden(x.mean(axis=(1, 2))) + hidden(x.max(axis=(1, 2)))
        x = x * nn.sigmoid(of_channels)[:, None, None]
        result = (x.mean(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True))
        of_pixels = self.layers.conv_norm(1, 7, use_bias=False, name="pixels")(
            jnp.concatenate(result, axis=-1), train=train
        )
        return x * nn.sigmoid(of_pixels)


ATTENTIONS: dict[str, Callable[..., nn.Module] | None] = {
    "none": None,
    "se": SqueezeExcite,
    "eca": EfficientChannelAttention,
    "cbam": Cbam,
}
