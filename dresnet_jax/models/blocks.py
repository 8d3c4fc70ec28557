"""Blocks, shortcuts and stems; a new one is one entry here, and no other change."""

import dataclasses
from collections.abc import Callable

import jax
from flax import linen as nn

ConvNormFactory = Callable[..., nn.Module]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, basic block).

    Attributes:
      features: output channels.
      stride: of the first convolution and of the shortcut.
      shortcut: "none", "identity" or "conv".
      conv_norm: makes a convolution with norm, given its features.
    """

    features: int
    stride: int
    shortcut: str
    conv_norm: ConvNormFactory

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features]."""
        y = self.conv_norm(
            self.features, stride=self.stride, activation=nn.relu, name="conv1"
        )(x, train=train)
        y = self.conv_norm(self.features, name="conv2")(y, train=train)
        if self.shortcut == "identity":
            y = y + x
        elif self.shortcut == "conv":
            y = y + self.conv_norm(
                self.features, kernel=1, stride=self.stride, name="shortcut"
            )(x, train=train)
        return nn.relu(y)


BLOCKS: dict[str, type[BasicBlock]] = {"basic": BasicBlock}

# (number of the block, whether it keeps the shape) -> the block's kind of shortcut.
SHORTCUTS: dict[str, Callable[[int, bool], str]] = {
    "none": lambda block, keeps_shape: "none",
    # Option B of He et al. (2015).
    "identity": lambda block, keeps_shape: "identity" if keeps_shape else "conv",
    # Option C, but for the first block.
    "conv": lambda block, keeps_shape: "identity" if block == 1 else "conv",
}


@dataclasses.dataclass(frozen=True)
class Stem:
    """The first layers: a convolution with norm, then perhaps a 3x3/2 max-pool."""

    kernel: int
    stride: int
    pool: bool

    @property
    def total_stride(self) -> int:
        """Side of the image divided by the side of the stem's output."""
        return self.stride * (2 if self.pool else 1)


STEMS = {
    "cifar": Stem(kernel=3, stride=1, pool=False),
    "pooled": Stem(kernel=3, stride=1, pool=True),
    "imagenet": Stem(kernel=7, stride=2, pool=True),
}
