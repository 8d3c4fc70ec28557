"""What all blocks have in common: what they are asked for, shortcuts, and the sum."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from dresnet_jax.errors import UserError, pick
from dresnet_jax.models.attention import ATTENTIONS
from dresnet_jax.models.layers import Layers
from dresnet_jax.models.mixture import Mixture

# What has a number a of its own in the learned residual x + a F(x).
RESIDUAL_SCALES = dict.fromkeys(("none", "scalar", "channel"))


@dataclasses.dataclass(frozen=True)
class ResidualScale:
    """The a of a learned residual x + a F(x).

    A start of 0 makes each block an identity (Bachlechner et al. 2020, ReZero); small
    ones by channel are LayerScale's (Touvron et al. 2021).

    Attributes:
      each: a key of `RESIDUAL_SCALES`; "none" for a residual that is not scaled.
      start: of a.
    """

    each: str = "none"
    start: float = 1.0

    def __post_init__(self) -> None:
        """Raises a `UserError` for an unknown `each`, or a start that is not finite."""
        pick("residual_scale", self.each, RESIDUAL_SCALES)
        if not math.isfinite(self.start):
            raise UserError(f"residual_start = {self.start} must be finite.")


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """What a block is asked for. A kind of block reads what concerns it.

    Attributes:
      features: output channels.
      stride: of one of its convolutions, and of the shortcut.
      hidden: channels between its convolutions; 0 for the kind's own number.
      shortcut: a key of `SHORTCUTS`.
      dilation: of its spatial convolutions.
      groups: of the bottleneck's spatial convolution.
      group_width: channels of the bottleneck's spatial convolution per group, for 64
        channels of the stage.
      expand: hidden channels, divided by the input's, of an inverted residual.
      attention: a key of `ATTENTIONS`.
      residual: what the block's result is multiplied by; None for the kind's own.
      zero_last: whether the last norm's scale, or what stands for it, starts at 0.
      drop_path: share of the examples for which the block is left out in training
        (stochastic depth, Huang et al. 2016); needs the "dropout" RNG.
      mixture: the operations of a mixed block.
    """

    features: int
    stride: int = 1
    hidden: int = 0
    shortcut: str = "identity"
    dilation: int = 1
    groups: int = 1
    group_width: int = 64
    expand: float = 6.0
    attention: str = "none"
    residual: ResidualScale | None = None
    zero_last: bool = False
    drop_path: float = 0.0
    mixture: Mixture = dataclasses.field(default_factory=Mixture)

    def __post_init__(self) -> None:
        """Raises a `UserError` for an unknown name."""
        pick("shortcut", self.shortcut, {**SHORTCUTS, "none": None})
        pick("attention", self.attention, ATTENTIONS)


class Block(nn.Module):
    """What every block is given, and how it joins what it made with its input."""

    spec: BlockSpec
    layers: Layers

    @property
    def residual(self) -> ResidualScale:
        """What the block's result is multiplied by."""
        return self.spec.residual or ResidualScale()

    def join(self, x: jax.Array, y: jax.Array, *, train: bool) -> jax.Array:
        """Adds a block's input x, by its kind of shortcut, to what it made of it, y.

        Attention comes first, then the scale of a learned residual, and stochastic
        depth.
        """
        spec, layers = self.spec, self.layers
        if attention := ATTENTIONS[spec.attention]:
            y = attention(layers, name="attention")(y, train=train)
        residual = self.residual
        if residual.each != "none":
            shape = (y.shape[-1],) if residual.each == "channel" else (1,)
            start = nn.initializers.constant(residual.start)
            y *= self.param("scale", start, shape).astype(y.dtype)[None, None, None]
        if spec.drop_path:
            y = nn.Dropout(spec.drop_path, broadcast_dims=(1, 2, 3))(
                y, deterministic=not train
            )
        if spec.shortcut == "none":
            return y
        return y + SHORTCUTS[spec.shortcut](spec, layers, x, train)


def _conv(spec: BlockSpec, layers: Layers, x: jax.Array, train: bool) -> jax.Array:
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
    "identity": lambda spec, layers, x, train: x,
    "conv": _conv,
    "pool": _pool,
    "bare": _bare,
    "pad": _pad,
}

# (number of the block, whether it keeps the shape) -> its key of `SHORTCUTS`.
SHORTCUT_RULES: dict[str, Callable[[int, bool], str]] = {
    "none": lambda block, keeps_shape: "none",
    # Option A of He et al. (2015).
    "pad": lambda block, keeps_shape: "identity" if keeps_shape else "pad",
    # Option B.
    "identity": lambda block, keeps_shape: "identity" if keeps_shape else "conv",
    # Option C, except for the first block.
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
