"""Blocks and their shortcuts; a new one is one class and one line of a registry."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dresnet_jax.errors import pick
from dresnet_jax.models.attention import ATTENTIONS
from dresnet_jax.models.layers import Layers


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """What a block is asked for. A kind of block reads what concerns it.

    Attributes:
      features: output channels.
      stride: of one of its convolutions, and of the shortcut.
      shortcut: a key of `SHORTCUTS`.
      dilation: of its spatial convolutions.
      groups: of the bottleneck's spatial convolution.
      group_width: channels of the bottleneck's spatial convolution per group, for 64
        channels of the stage.
      expand: hidden channels, divided by the input's, of an inverted residual.
      attention: a key of `ATTENTIONS`.
      zero_last: whether the last norm's scale, or what stands for it, starts at 0.
      drop_path: share of the examples for which the block is left out in training
        (stochastic depth, Huang et al. 2016); needs the "dropout" RNG.
    """

    features: int
    stride: int = 1
    shortcut: str = "identity"
    dilation: int = 1
    groups: int = 1
    group_width: int = 64
    expand: float = 6.0
    attention: str = "none"
    zero_last: bool = False
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        """Checks the names.

        Raises:
          UserError: one is unknown.
        """
        pick("shortcut", self.shortcut, {**SHORTCUTS, "none": None})
        pick("attention", self.attention, ATTENTIONS)


class Block(nn.Module):
    """What every block is given, and how it joins what it made with its input."""

    spec: BlockSpec
    layers: Layers

    def join(self, x: jax.Array, y: jax.Array, *, train: bool) -> jax.Array:
        """A block's input x, by its kind of shortcut, added to what it made of it, y.

        Attention comes first, and stochastic depth.
        """
        spec, layers = self.spec, self.layers
        if attention := ATTENTIONS[spec.attention]:
            y = attention(layers, name="attention")(y, train=train)
        if spec.drop_path:
            y = nn.Dropout(spec.drop_path, broadcast_dims=(1, 2, 3))(
                y, deterministic=not train
            )
        if spec.shortcut == "none":
            return y
        return y + SHORTCUTS[spec.shortcut](spec, layers, x, train)


def _identity(spec: BlockSpec, layers: Layers, x: jax.Array, train: bool) -> jax.Array:
    del spec, layers, train
    return x


def _conv(spec: BlockSpec, layers: Layers, x: jax.Array, train: bool) -> jax.Array:
    """A 1x1 convolution with norm."""
    return layers.conv_norm(
        spec.features, kernel=1, stride=spec.stride, name="shortcut"
    )(x, train=train)


def _pool(spec: BlockSpec, layers: Layers, x: jax.Array, train: bool) -> jax.Array:
    """Average pooling in place of the convolution's stride (He et al. 2019, D)."""
    if spec.stride > 1:
        size = (spec.stride, spec.stride)
        # An odd side is rounded up, and its last pixels are averaged alone.
        ends = [(0, -side % spec.stride) for side in x.shape[1:3]]
        x = nn.avg_pool(x, size, size, ends, count_include_pad=False)
    return layers.conv_norm(spec.features, kernel=1, name="shortcut")(x, train=train)


def _bare(spec: BlockSpec, layers: Layers, x: jax.Array, train: bool) -> jax.Array:
    """A 1x1 convolution of an input that is normalised already."""
    del train
    return layers.conv(spec.features, 1, stride=spec.stride, name="shortcut")(x)


def _pad(spec: BlockSpec, layers: Layers, x: jax.Array, train: bool) -> jax.Array:
    """Every stride-th pixel, and channels of zeros, half on each side: no parameter."""
    del layers, train
    x = x[:, :: spec.stride, :: spec.stride]
    more = spec.features - x.shape[-1]
    return jnp.pad(x, ((0, 0),) * 3 + ((more // 2, more - more // 2),))


SHORTCUTS: dict[str, Callable[[BlockSpec, Layers, jax.Array, bool], jax.Array]] = {
    "identity": _identity,
    "conv": _conv,
    "pool": _pool,
    "bare": _bare,
    "pad": _pad,
}


class BasicBlock(Block):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, basic block).

    The stride is the first one's.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features]."""
        spec, layers = self.spec, self.layers
        y = layers.conv_norm(
            spec.features,
            stride=spec.stride,
            dilation=spec.dilation,
            activate=True,
            name="conv1",
        )(x, train=train)
        y = layers.conv_norm(
            spec.features, dilation=spec.dilation, zero=spec.zero_last, name="conv2"
        )(y, train=train)
        return layers.activate(self.join(x, y, train=train))


# Output channels of a bottleneck, divided by the width of its stage.
_BOTTLENECK = 4


def _bottleneck_conv(spec: BlockSpec) -> dict[str, Any]:
    """The settings of the 3x3 convolution: torchvision's rule, in whole groups."""
    planes = spec.features // _BOTTLENECK
    per_group = max(1, planes * spec.group_width // 64)
    return {
        "features": per_group * spec.groups,
        "groups": spec.groups,
        "dilation": spec.dilation,
    }


class BottleneckBlock(Block):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (He et al. 2015, bottleneck).

    With groups it is a ResNeXt's (Xie et al. 2017). The stride is the 3x3's, as in
    torchvision ("v1.5").

    Attributes:
      stride_first: whether the stride is the first 1x1's, as published.
    """

    stride_first: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features]."""
        spec, layers = self.spec, self.layers
        inner = _bottleneck_conv(spec)
        strides = (spec.stride, 1) if self.stride_first else (1, spec.stride)
        y = layers.conv_norm(
            inner["features"], 1, stride=strides[0], activate=True, name="conv1"
        )(x, train=train)
        y = layers.conv_norm(**inner, stride=strides[1], activate=True, name="conv2")(
            y, train=train
        )
        y = layers.conv_norm(spec.features, 1, zero=spec.zero_last, name="conv3")(
            y, train=train
        )
        return layers.activate(self.join(x, y, train=train))


class _PreActivationBlock(Block):
    """Norm and activation before each convolution, nothing behind the sum.

    He et al. (2016), "Identity Mappings in Deep Residual Networks".
    """

    def start(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """The input normalised and activated, and that of the shortcut."""
        ready = self.layers.norm_act(name="norm1")(x, train=train)
        # A convolution reads what is normalised, which an identity must not.
        return ready, x if self.spec.shortcut == "identity" else ready


class PreActivationBasicBlock(_PreActivationBlock):
    """Two 3x3 convolutions, each behind norm and activation (He et al. 2016)."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features]."""
        spec, layers = self.spec, self.layers
        y, x = self.start(x, train=train)
        y = layers.conv(
            spec.features, stride=spec.stride, dilation=spec.dilation, name="conv1"
        )(y)
        y = layers.norm_act(name="norm2")(y, train=train)
        y = layers.conv(
            spec.features, dilation=spec.dilation, zero=spec.zero_last, name="conv2"
        )(y)
        return self.join(x, y, train=train)


class PreActivationBottleneckBlock(_PreActivationBlock):
    """1x1, 3x3 and 1x1 convolutions behind norm and activation (He et al. 2016)."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features]."""
        spec, layers = self.spec, self.layers
        inner = _bottleneck_conv(spec)
        y, x = self.start(x, train=train)
        y = layers.conv(inner["features"], 1, name="conv1")(y)
        y = layers.norm_act(name="norm2")(y, train=train)
        y = layers.conv(**inner, stride=spec.stride, name="conv2")(y)
        y = layers.norm_act(name="norm3")(y, train=train)
        y = layers.conv(spec.features, 1, zero=spec.zero_last, name="conv3")(y)
        return self.join(x, y, train=train)


class SeparableBlock(_PreActivationBlock):
    """Two depthwise-separable convolutions, each behind norm and activation.

    A 3x3 convolution of each channel, then a 1x1 across them (Chollet 2017). With
    attention "se" it is the block of `dssresnet18`.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features]."""
        spec, layers = self.spec, self.layers
        y, x = self.start(x, train=train)
        for number, stride in enumerate((spec.stride, 1), 1):
            if number > 1:
                y = layers.norm_act(name=f"norm{number}")(y, train=train)
            y = layers.conv(
                y.shape[-1],
                stride=stride,
                dilation=spec.dilation,
                groups=y.shape[-1],
                name=f"depthwise{number}",
            )(y)
            zero = spec.zero_last and number == 2
            y = layers.conv(spec.features, 1, zero=zero, name=f"pointwise{number}")(y)
        return self.join(x, y, train=train)


class InvertedResidualBlock(Block):
    """1x1 to more channels, 3x3 of each, 1x1 to few, linear (Sandler et al. 2018)."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features]."""
        spec, layers, y = self.spec, self.layers, x
        hidden = round(x.shape[-1] * spec.expand)
        if spec.expand != 1:
            y = layers.conv_norm(hidden, 1, activate=True, name="expand")(
                y, train=train
            )
        y = layers.conv_norm(
            hidden,
            stride=spec.stride,
            dilation=spec.dilation,
            groups=hidden,
            activate=True,
            name="depthwise",
        )(y, train=train)
        y = layers.conv_norm(spec.features, 1, zero=spec.zero_last, name="project")(
            y, train=train
        )
        return self.join(x, y, train=train)


class ConvNeXtBlock(Block):
    """7x7 of each channel, norm, 1x1 to 4 times as many and back (Liu et al. 2022).

    Where the shape changes, a norm and a convolution with its stride come before, and
    the shortcut begins behind them.

    Attributes:
      scale: that the result starts to be multiplied with, channel by channel.
    """

    scale: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features]."""
        spec, layers = self.spec, self.layers
        if spec.stride > 1 or x.shape[-1] != spec.features:
            x = layers.normalise(x, train=train, name="downsample_norm")
            x = layers.conv(
                spec.features,
                spec.stride,
                stride=spec.stride,
                use_bias=True,
                name="downsample",
            )(x)
        y = layers.conv(
            spec.features,
            7,
            groups=spec.features,
            dilation=spec.dilation,
            use_bias=True,
            name="depthwise",
        )(x)
        y = layers.normalise(y, train=train)
        y = layers.conv(4 * spec.features, 1, use_bias=True, name="expand")(y)
        y = layers.conv(spec.features, 1, use_bias=True, name="project")(
            layers.activate(y)
        )
        start = nn.initializers.constant(0.0 if spec.zero_last else self.scale)
        scale = self.param("scale", start, (spec.features,))
        y *= scale.astype(y.dtype)[None, None, None]
        return self.join(x, y, train=train)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of block.

    Attributes:
      make: the module, given a `BlockSpec` and `Layers`.
      expansion: output channels divided by the width of the stage.
      pre_activation: whether it begins with norm and activation, so that the stem has
        none and the head begins with them.
      settings: of the module, beside those.
    """

    make: Callable[..., Block]
    expansion: int = 1
    pre_activation: bool = False
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


BLOCKS: dict[str, Kind] = {
    "basic": Kind(BasicBlock),
    "bottleneck": Kind(BottleneckBlock, _BOTTLENECK),
    "bottleneck_v1": Kind(
        BottleneckBlock, _BOTTLENECK, settings={"stride_first": True}
    ),
    "preact_basic": Kind(PreActivationBasicBlock, pre_activation=True),
    "preact_bottleneck": Kind(
        PreActivationBottleneckBlock, _BOTTLENECK, pre_activation=True
    ),
    "separable": Kind(SeparableBlock, pre_activation=True),
    "inverted": Kind(InvertedResidualBlock),
    "convnext": Kind(ConvNeXtBlock),
}

# (number of the block, whether it keeps the shape) -> its key of `SHORTCUTS`.
SHORTCUT_RULES: dict[str, Callable[[int, bool], str]] = {
    "none": lambda block, keeps_shape: "none",
    # Option A of He et al. (2015).
    "pad": lambda block, keeps_shape: "identity" if keeps_shape else "pad",
    # Option B.
    "identity": lambda block, keeps_shape: "identity" if keeps_shape else "conv",
    # Option C, but for the first block.
    "conv": lambda block, keeps_shape: (
        "identity" if block == 1 and keeps_shape else "conv"
    ),
    # ResNet-D's.
    "pool": lambda block, keeps_shape: "identity" if keeps_shape else "pool",
    # That of blocks whose input is normalised before.
    "bare": lambda block, keeps_shape: "identity" if keeps_shape else "bare",
    # Only where the shape is kept.
    "kept": lambda block, keeps_shape: "identity" if keeps_shape else "none",
    # Of blocks that change the shape by themselves.
    "always": lambda block, keeps_shape: "identity",
}
