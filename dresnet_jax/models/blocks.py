"""The kinds of blocks; a new one is a class, or its convolutions, and a line."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from dresnet_jax.models.mixed import MixedBlock
from dresnet_jax.models.residual import Block, BlockSpec, ResidualScale

# Output channels of a bottleneck, divided by the width of its stage.
_BOTTLENECK = 4
# Of each convolution, by its name, what `Layers.conv` is given.
Convolutions = dict[str, dict[str, Any]]


def _spatial(
    spec: BlockSpec, features: int, stride: int = 1, groups: int = 1
) -> dict[str, Any]:
    """A 3x3 convolution with the block's dilation."""
    settings = {"features": features, "stride": stride, "groups": groups}
    return settings | {"dilation": spec.dilation}


def _basic(spec: BlockSpec, channels: int) -> Convolutions:
    """Two 3x3, of which the first has the stride (He et al. 2015, basic block)."""
    del channels
    return {
        "conv1": _spatial(spec, spec.hidden or spec.features, spec.stride),
        "conv2": _spatial(spec, spec.features),
    }


def _bottleneck(
    spec: BlockSpec, channels: int, *, stride_first: bool = False
) -> Convolutions:
    """1x1, 3x3 and 1x1 (He et al. 2015, bottleneck).

    With groups it is a ResNeXt's (Xie et al. 2017). The stride is the 3x3's, as in
    torchvision ("v1.5"), or, with `stride_first`, the first 1x1's, as published.
    """
    del channels
    # Torchvision's rule, in whole groups.
    per_group = max(1, spec.features // _BOTTLENECK * spec.group_width // 64)
    inner = spec.hidden or per_group * spec.groups
    first, second = (spec.stride, 1) if stride_first else (1, spec.stride)
    return {
        "conv1": {"features": inner, "kernel": 1, "stride": first},
        "conv2": _spatial(spec, inner, second, spec.groups),
        "conv3": {"features": spec.features, "kernel": 1},
    }


def _separable(spec: BlockSpec, channels: int) -> Convolutions:
    """Twice a 3x3 of each channel and a 1x1 across them (Chollet 2017).

    With attention "se" it is the block of `dssresnet18`.
    """
    inner = spec.hidden or spec.features
    return {
        "depthwise1": _spatial(spec, channels, spec.stride, groups=channels),
        "pointwise1": {"features": inner, "kernel": 1},
        "depthwise2": _spatial(spec, inner, groups=inner),
        "pointwise2": {"features": spec.features, "kernel": 1},
    }


def _inverted(spec: BlockSpec, channels: int) -> Convolutions:
    """1x1 to more channels, 3x3 of each, 1x1 to few (Sandler et al. 2018)."""
    hidden = spec.hidden or round(channels * spec.expand)
    result: Convolutions = {
        "expand": {"features": hidden, "kernel": 1},
        "depthwise": _spatial(spec, hidden, spec.stride, groups=hidden),
        "project": {"features": spec.features, "kernel": 1},
    }
    if spec.expand == 1:
        del result["expand"]
    return result


class PostActivationBlock(Block):
    """Convolutions with norms, activations between them, and a shortcut.

    Attributes:
      convolutions: (spec, input channels) -> what they are.
      activates: whether an activation follows the sum.
    """

    convolutions: Callable[[BlockSpec, int], Convolutions]
    activates: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features]."""
        y, convolutions = x, self.convolutions(self.spec, x.shape[-1])
        for number, (name, settings) in enumerate(convolutions.items(), 1):
            is_last = number == len(convolutions)
            zero = is_last and self.spec.zero_last
            y = self.layers.conv_norm(
                **settings, activate=not is_last, zero=zero, name=name
            )(y, train=train)
        y = self.join(x, y, train=train)
        return self.layers.activate(y) if self.activates else y


class PreActivationBlock(Block):
    """Norm and activation before convolutions, nothing after the sum.

    He et al. (2016), "Identity Mappings in Deep Residual Networks".

    Attributes:
      convolutions: as those of `PostActivationBlock`.
      per_norm: how many of them follow each norm.
    """

    convolutions: Callable[[BlockSpec, int], Convolutions]
    per_norm: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features]."""
        y, convolutions = x, self.convolutions(self.spec, x.shape[-1])
        for number, (name, settings) in enumerate(convolutions.items()):
            if number % self.per_norm == 0:
                norm = f"norm{number // self.per_norm + 1}"
                y = self.layers.norm_act(name=norm)(y, train=train)
            # A shortcut's convolution reads what is normalised, an identity does not.
            if number == 0 and self.spec.shortcut != "identity":
                x = y
            zero = self.spec.zero_last and number + 1 == len(convolutions)
            y = self.layers.conv(**settings, zero=zero, name=name)(y)
        return self.join(x, y, train=train)


class ConvNeXtBlock(Block):
    """7x7 of each channel, norm, 1x1 to 4 times as many and back (Liu et al. 2022).

    Where the shape changes, a norm and a convolution with its stride come before, and
    the shortcut begins after them.
    """

    @property
    def residual(self) -> ResidualScale:
        """Its own are by channel; what stands for the last norm's scale."""
        result = self.spec.residual or ResidualScale("channel", 1e-6)
        return dataclasses.replace(result, start=0.0) if self.spec.zero_last else result

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features]."""
        spec, layers, features = self.spec, self.layers, self.spec.features
        conv = partial(layers.conv, use_bias=True)
        if spec.stride > 1 or x.shape[-1] != features:
            x = layers.normalise(x, train=train, name="downsample_norm")
            x = conv(features, spec.stride, stride=spec.stride, name="downsample")(x)
        y = conv(
            features, 7, groups=features, dilation=spec.dilation, name="depthwise"
        )(x)
        y = layers.normalise(y, train=train)
        y = conv(spec.hidden or 4 * features, 1, name="expand")(y)
        y = conv(features, 1, name="project")(layers.activate(y))
        return self.join(x, y, train=train)


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Where the channels between a block's convolutions are among its parameters.

    Attributes:
      makes: modules whose last axes they are.
      reads: modules whose kernels' last axis but one they are.
    """

    makes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of block.

    Attributes:
      make: the module, given a `BlockSpec` and `Layers`.
      expansion: output channels divided by the width of the stage.
      pre_activation: whether it begins with norm and activation, so that the stem has
        none and the head begins with them.
      hidden: where the channels between its convolutions are; nowhere if their number
        cannot be chosen.
      last: the module whose norm's scale at 0, or whose kernel where it has no norm,
        lets the block add nothing.
      activates: whether it ends with an activation, after the sum.
    """

    make: Callable[..., Block]
    expansion: int = 1
    pre_activation: bool = False
    hidden: Hidden = Hidden()
    last: str = ""
    activates: bool = False


BLOCKS: dict[str, Kind] = {
    "basic": Kind(
        partial(PostActivationBlock, convolutions=_basic),
        hidden=Hidden(("conv1",), ("conv2",)),
        last="conv2",
        activates=True,
    ),
    "bottleneck": Kind(
        partial(PostActivationBlock, convolutions=_bottleneck),
        _BOTTLENECK,
        hidden=Hidden(("conv1", "conv2"), ("conv2", "conv3")),
        last="conv3",
        activates=True,
    ),
    "preact_basic": Kind(
        partial(PreActivationBlock, convolutions=_basic),
        pre_activation=True,
        hidden=Hidden(("conv1", "norm2"), ("conv2",)),
        last="conv2",
    ),
    "preact_bottleneck": Kind(
        partial(PreActivationBlock, convolutions=_bottleneck),
        _BOTTLENECK,
        pre_activation=True,
        hidden=Hidden(("conv1", "norm2", "conv2", "norm3"), ("conv2", "conv3")),
        last="conv3",
    ),
    "separable": Kind(
        partial(PreActivationBlock, convolutions=_separable, per_norm=2),
        pre_activation=True,
        hidden=Hidden(("pointwise1", "norm2", "depthwise2"), ("pointwise2",)),
        last="pointwise2",
    ),
    "inverted": Kind(
        partial(PostActivationBlock, convolutions=_inverted, activates=False),
        hidden=Hidden(("expand", "depthwise"), ("project",)),
        last="project",
    ),
    "convnext": Kind(
        ConvNeXtBlock, hidden=Hidden(("expand",), ("project",)), last="project"
    ),
    "mixed": Kind(MixedBlock),
}
BLOCKS["bottleneck_v1"] = dataclasses.replace(
    BLOCKS["bottleneck"],
    make=partial(
        PostActivationBlock, convolutions=partial(_bottleneck, stride_first=True)
    ),
)
