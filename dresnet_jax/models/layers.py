"""The layers that every block is made of, with PyTorch's padding."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

# Flax's collection of scalars that parts of a network add to its loss, by `sow`.
PENALTIES = "penalties"
# Momentum of the running averages; PyTorch's momentum is 1 minus this.
_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Layers:
    """What the layers of a network have in common, and what makes them.

    Attributes:
      norm: a key of `NORMS`.
      activation: a key of `ACTIVATIONS`.
      conv_bias: whether convolutions that a norm follows have a bias.
      norm_shards: consecutive parts of a batch that batch norms take by themselves.
      frozen: regular expression of the paths of parameters that are not trained; batch
        norms whose scale and bias are among them use, and keep, their running
        statistics. Empty for none.
      folded: whether what norms after convolutions do stands in the kernels and biases
        of these, for inference.
      dtype: of the computation, "float32" or "bfloat16"; parameters are float32.
    """

    norm: str = "batch"
    activation: str = "relu"
    conv_bias: bool = False
    norm_shards: int = 1
    frozen: str = ""
    folded: bool = False
    dtype: str = "float32"

    def conv(
        self,
        features: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        use_bias: bool | None = None,
        zero: bool = False,
        name: str = "conv",
    ) -> nn.Conv:
        """Returns a square convolution.

        Padding is symmetric, as in PyTorch: an odd kernel keeps the side, except for
        the stride, which rounds up; an even kernel has none. Kernels start as He et al.
        (2015) propose, by fan-out.

        Args:
          features: output channels.
          kernel: its side.
          stride: of the convolution.
          groups: parts of the channels that see only each other.
          dilation: distance of the pixels that a kernel reads.
          use_bias: None for what the network's convolutions have.
          zero: whether the kernel starts at 0.
          name: of the module.
        """
        he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        return nn.Conv(
            features,
            (kernel, kernel),
            stride,
            padding=dilation * (kernel - 1) // 2 if kernel % 2 else 0,
            kernel_dilation=dilation,
            feature_group_count=groups,
            use_bias=(self.conv_bias or self.norm == "none")
            if use_bias is None
            else use_bias,
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros if zero else he,
            name=name,
        )

    def normalise(
        self, x: jax.Array, *, train: bool, zero: bool = False, name: str = "norm"
    ) -> jax.Array:
        """Returns the network's norm of [batch, height, width, channels].

        With `train`, batch norms use the batch's statistics and update their averages.
        With `zero`, the norm's scale starts at 0.
        """
        start = nn.initializers.zeros if zero else nn.initializers.ones
        return NORMS[self.norm](self, x, train, scale_init=start, name=name)

    def activate(self, x: jax.Array) -> jax.Array:
        """Returns the network's activation function."""
        return ACTIVATIONS[self.activation](x)

    def conv_norm(self, features: int, kernel: int = 3, **settings: Any) -> nn.Module:
        """Makes a `ConvNorm`: convolution, norm and, with `activate`, activation."""
        return ConvNorm(self, features, kernel, **settings)

    def norm_act(self, name: str) -> nn.Module:
        """Returns a norm and an activation, as pre-activation blocks have them."""
        return NormAct(self, name=name)


class ConvNorm(nn.Module):
    """A convolution, as `Layers.conv`, a norm and, if asked for, an activation.

    Attributes:
      activate: whether an activation follows.
      zero: whether the norm's scale starts at 0.
    """

    layers: Layers
    features: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    activate: bool = False
    zero: bool = False
    use_bias: bool | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features]."""
        folded = self.layers.folded
        x = self.layers.conv(
            self.features,
            self.kernel,
            stride=self.stride,
            groups=self.groups,
            dilation=self.dilation,
            use_bias=True if folded else self.use_bias,
        )(x)
        if not folded:
            x = self.layers.normalise(x, train=train, zero=self.zero)
        return self.layers.activate(x) if self.activate else x


class NormAct(nn.Module):
    """A norm and an activation."""

    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels], normalised and activated."""
        return self.layers.activate(self.layers.normalise(x, train=train))


def _batch_norm(
    layers: Layers, x: jax.Array, train: bool, **settings: Any
) -> jax.Array:
    """Over the batch and all pixels; under `jit`, of the whole global batch.

    With `norm_shards`, of each of this many equal parts of the batch.
    """
    settings |= {
        "momentum": _MOMENTUM,
        "epsilon": BATCH_NORM_EPSILON,
        "dtype": layers.dtype,
    }
    norm: Any = (
        _PerShardNorm(shards=layers.norm_shards, **settings)
        if train and layers.norm_shards > 1
        else nn.BatchNorm(**settings)
    )
    return norm(x, use_running_average=not train or _is_frozen(layers, norm.path))


def _is_frozen(layers: Layers, path: Sequence[str]) -> bool:
    """Whether neither the scale nor the bias of a norm is trained."""
    return bool(layers.frozen) and all(
        re.search(layers.frozen, "/".join([*path, name])) for name in ("scale", "bias")
    )


def _group_norm(
    layers: Layers, x: jax.Array, train: bool, **settings: Any
) -> jax.Array:
    """Over all pixels and a group of channels: 32 groups, or fewer that divide them."""
    del train
    groups = math.gcd(32, x.shape[-1])
    return nn.GroupNorm(groups, epsilon=1e-5, dtype=layers.dtype, **settings)(x)


def _layer_norm(
    layers: Layers, x: jax.Array, train: bool, **settings: Any
) -> jax.Array:
    """Over the channels of each pixel."""
    del train
    return nn.LayerNorm(epsilon=1e-6, dtype=layers.dtype, **settings)(x)


# (layers, x, train, the norm's name and how its scale starts) -> x, normalised.
NORMS: dict[str, Callable[..., jax.Array]] = {
    "batch": _batch_norm,
    "group": _group_norm,
    "layer": _layer_norm,
    # Convolutions then have a bias.
    "none": lambda layers, x, train, **settings: x,
}

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "relu6": nn.relu6,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "silu": nn.silu,
}


class _PerShardNorm(nn.Module):
    """In training, batch normalisation of equal parts of a batch, each by itself.

    Has the variables of `nn.BatchNorm`. Where each device holds one part, statistics
    need no communication; the running averages are means over the parts.
    """

    shards: int
    momentum: float
    epsilon: float
    dtype: Any
    scale_init: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, use_running_average: bool) -> jax.Array:
        """[batch, height, width, channels], normalised part by part."""
        channels = x.shape[-1:]
        scale = self.param("scale", self.scale_init, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        parts = x.astype(jnp.float32).reshape(self.shards, -1, *x.shape[1:])
        running = [
            self.variable("batch_stats", name, start, channels)
            for name, start in (("mean", jnp.zeros), ("var", jnp.ones))
        ]
        if use_running_average:
            mean, var = (average.value[None] for average in running)
        else:
            mean, var = parts.mean(axis=(1, 2, 3)), parts.var(axis=(1, 2, 3))
            for average, result in zip(running, (mean, var), strict=True):
                new = (1 - self.momentum) * result.mean(axis=0)
                average.value = self.momentum * average.value + new

        def spread(array: jax.Array) -> jax.Array:
            return array.reshape(-1, 1, 1, 1, *channels)

        factor = spread(jax.lax.rsqrt(var + self.epsilon)) * spread(scale)
        y = (parts - spread(mean)) * factor + spread(bias)
        return y.reshape(x.shape).astype(self.dtype or x.dtype)
