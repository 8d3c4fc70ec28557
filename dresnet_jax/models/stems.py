"""Stems: from the image to the first block's input."""

import dataclasses
import math

import jax
from flax import linen as nn

from dresnet_jax.models.layers import Layers


@dataclasses.dataclass(frozen=True)
class Stem:
    """Convolutions with norm and activation, then perhaps a 3x3/2 max-pool.

    Attributes:
      convs: of each its kernel, its stride, and its channels divided by the stem's.
      pool: whether the pool follows.
      activation: whether an activation follows the norms.
      use_bias: of the convolutions; None for what the network's have.
    """

    convs: tuple[tuple[int, int, float], ...]
    pool: bool = False
    activation: bool = True
    use_bias: bool | None = None

    @property
    def total_stride(self) -> int:
        """Side of the image divided by the side of the stem's output."""
        strides = math.prod(stride for _, stride, _ in self.convs)
        return strides * (2 if self.pool else 1)

    def run(
        self,
        layers: Layers,
        features: int,
        images: jax.Array,
        *,
        train: bool,
        bare: bool,
        activate: bool = True,
    ) -> jax.Array:
        """Returns the stem's output, y_0; to be called inside a compact module.

        Args:
          layers: what the network's layers have in common.
          features: output channels.
          images: [batch, height, width, channels].
          train: whether norms use the batch's statistics.
          bare: whether the last convolution has neither norm nor activation, as before
            blocks that begin with them.
          activate: whether an activation follows the norms, where the stem has one.
        """
        x = images
        for number, (kernel, stride, share) in enumerate(self.convs, 1):
            name = "stem" if len(self.convs) == 1 else f"stem_{number}"
            channels = max(1, round(share * features))
            if bare and number == len(self.convs):
                x = layers.conv(channels, kernel, stride=stride, name=name)(x)
                continue
            x = layers.conv_norm(
                channels,
                kernel,
                stride=stride,
                activate=self.activation and activate,
                use_bias=self.use_bias,
                name=name,
            )(x, train=train)
        if self.pool:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return x


STEMS = {
    "cifar": Stem(((3, 1, 1),)),
    "pooled": Stem(((3, 1, 1),), pool=True),
    "imagenet": Stem(((7, 2, 1),), pool=True),
    # ResNet-D's (He et al. 2019).
    "deep": Stem(((3, 2, 0.5), (3, 1, 0.5), (3, 1, 1)), pool=True),
    # MobileNetV2's.
    "strided": Stem(((3, 2, 1),)),
    # ConvNeXt's.
    "patches": Stem(((4, 4, 1),), activation=False, use_bias=True),
}
