"""The kinds of blocks; a new one is one class and one line of the registry."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from dresnet_jax.models.mixed import MixedBlock
from dresnet_jax.models.residual import Block, BlockSpec, ResidualScale


class BasicBlock(Block):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, basic block).

    The stride is the first one's.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features]."""
        spec, layers = self.spec, self.layers
        y = layers.conv_norm(
            spec.hidden or spec.features,
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
        "features": spec.hidden or per_group * spec.groups,
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
    """Norm and activation before each convolution, nothing after the sum.

    He et al. (2016), "Identity Mappings in Deep Residual Networks".
    """

    def start(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Returns the input normalised and activated, and that of the shortcut."""
        ready = self.layers.norm_act(name="norm1")(x, train=train)
        # A convolution reads what is normalised, which an identity must not.
        return ready, x if self.spec.shortcut == "identity" else ready


class PreActivationBasicBlock(_PreActivationBlock):
    """Two 3x3 convolutions, each after norm and activation (He et al. 2016)."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features]."""
        spec, layers = self.spec, self.layers
        y, x = self.start(x, train=train)
        y = layers.conv(
            spec.hidden or spec.features,
            stride=spec.stride,
            dilation=spec.dilation,
            name="conv1",
        )(y)
        y = layers.norm_act(name="norm2")(y, train=train)
        y = layers.conv(
            spec.features, dilation=spec.dilation, zero=spec.zero_last, name="conv2"
        )(y)
        return self.join(x, y, train=train)


class PreActivationBottleneckBlock(_PreActivationBlock):
    """1x1, 3x3 and 1x1 convolutions after norm and activation (He et al. 2016)."""

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
    """Two depthwise-separable convolutions, each after norm and activation.

    A 3x3 convolution of each channel, then a 1x1 across them (Chollet 2017). With
    attention "se" it is the block of `dssresnet18`.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features]."""
        spec, layers = self.spec, self.layers
        y, x = self.start(x, train=train)
        for number, stride, features in (
            (1, spec.stride, spec.hidden or spec.features),
            (2, 1, spec.features),
        ):
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
            y = layers.conv(features, 1, zero=zero, name=f"pointwise{number}")(y)
        return self.join(x, y, train=train)


class InvertedResidualBlock(Block):
    """1x1 to more channels, 3x3 of each, 1x1 to few, linear (Sandler et al. 2018)."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features]."""
        spec, layers, y = self.spec, self.layers, x
        hidden = spec.hidden or round(x.shape[-1] * spec.expand)
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
    the shortcut begins after them.
    """

    @property
    def residual(self) -> ResidualScale:
        """Its own are by channel; what stands for the last norm's scale."""
        found = self.spec.residual or ResidualScale("channel", 1e-6)
        return dataclasses.replace(found, start=0.0) if self.spec.zero_last else found

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
        hidden = spec.hidden or 4 * spec.features
        y = layers.conv(hidden, 1, use_bias=True, name="expand")(y)
        y = layers.conv(spec.features, 1, use_bias=True, name="project")(
            layers.activate(y)
        )
        return self.join(x, y, train=train)


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Where the channels between a block's convolutions are among its parameters.

    Attributes:
      makes: modules whose last axes they are.
      reads: modules whose kernels' last axis but one they are.
    """

    makes: tuple[str, ...]
    reads: tuple[str, ...]

    @property
    def seen(self) -> str:
        """The last module that makes them."""
        return self.makes[-1]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of block.

    Attributes:
      make: the module, given a `BlockSpec` and `Layers`.
      expansion: output channels divided by the width of the stage.
      pre_activation: whether it begins with norm and activation, so that the stem has
        none and the head begins with them.
      settings: of the module, besides those.
      hidden: where the channels between its convolutions are; None where their number
        cannot be chosen.
      last: the module whose norm's scale at 0, or whose kernel where it has no norm,
        lets the block add nothing.
      activates: whether it ends with an activation, after the sum.
    """

    make: Callable[..., Block]
    expansion: int = 1
    pre_activation: bool = False
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    hidden: Hidden | None = None
    last: str = ""
    activates: bool = False


_BOTTLENECK_KIND = Kind(
    BottleneckBlock,
    _BOTTLENECK,
    hidden=Hidden(("conv1", "conv2"), ("conv2", "conv3")),
    last="conv3",
    activates=True,
)
BLOCKS: dict[str, Kind] = {
    "basic": Kind(
        BasicBlock,
        hidden=Hidden(("conv1",), ("conv2",)),
        last="conv2",
        activates=True,
    ),
    "bottleneck": _BOTTLENECK_KIND,
    "bottleneck_v1": dataclasses.replace(
        _BOTTLENECK_KIND, settings={"stride_first": True}
    ),
    "preact_basic": Kind(
        PreActivationBasicBlock,
        pre_activation=True,
        hidden=Hidden(("conv1", "norm2"), ("conv2",)),
        last="conv2",
    ),
    "preact_bottleneck": Kind(
        PreActivationBottleneckBlock,
        _BOTTLENECK,
        pre_activation=True,
        hidden=Hidden(("conv1", "norm2", "conv2", "norm3"), ("conv2", "conv3")),
        last="conv3",
    ),
    "separable": Kind(
        SeparableBlock,
        pre_activation=True,
        hidden=Hidden(("pointwise1", "norm2", "depthwise2"), ("pointwise2",)),
        last="pointwise2",
    ),
    "inverted": Kind(
        InvertedResidualBlock,
        hidden=Hidden(("expand", "depthwise"), ("project",)),
        last="project",
    ),
    "convnext": Kind(
        ConvNeXtBlock, hidden=Hidden(("expand",), ("project",)), last="project"
    ),
    "mixed": Kind(MixedBlock),
}
