"""The operations of a mixed block; a new one is one function and one line."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from dresnet_jax.models.layers import Layers


class Branch(nn.Module):
    """One operation, with its parameters.

    Attributes:
      operation: a key of `OPERATIONS`.
      layers: what the network's layers have in common.
      features: output channels.
      stride: input pixels of an output pixel, along a side.
      dilation: of spatial convolutions.
    """

    operation: str
    layers: Layers
    features: int
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features]."""
        return OPERATIONS[self.operation](self, x, train)


def _none(branch: Branch, x: jax.Array, train: bool) -> jax.Array:
    """Zeros: the block is its shortcut."""
    del train
    sides = (-(-side // branch.stride) for side in x.shape[1:3])
    return jnp.zeros((x.shape[0], *sides, branch.features), x.dtype)


def _identity(branch: Branch, x: jax.Array, train: bool) -> jax.Array:
    """The input; where the shape changes, its averages through a 1x1 convolution."""
    if branch.stride == 1 and x.shape[-1] == branch.features:
        return x
    x = _averages(x, branch.stride, branch.stride)
    return branch.layers.conv_norm(branch.features, 1, name="resize")(x, train=train)


def _pool(branch: Branch, x: jax.Array, train: bool) -> jax.Array:
    """Averages of 3x3 pixels; a 1x1 convolution where there are new channels."""
    x = _averages(x, 3, branch.stride)
    if x.shape[-1] == branch.features:
        return branch.layers.normalise(x, train=train)
    return branch.layers.conv_norm(branch.features, 1, name="resize")(x, train=train)


def _averages(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Averages of squares; the image's edge has fewer pixels, not zeros."""
    before = (size - 1) // 2 if size % 2 else 0
    ends = []
    for side in x.shape[1:3]:
        reach = (-(-side // stride) - 1) * stride + size
        ends.append((before, max(0, reach - side - before)))
    return nn.avg_pool(x, (size,) * 2, (stride,) * 2, ends, count_include_pad=False)


def _depthwise(branch: Branch, x: jax.Array, train: bool) -> jax.Array:
    """A 3x3 convolution of each channel, then a 1x1 across them (Chollet 2017)."""
    channels, layers = x.shape[-1], branch.layers
    x = layers.conv(
        channels,
        stride=branch.stride,
        dilation=branch.dilation,
        groups=channels,
        name="depthwise",
    )(x)
    return layers.conv_norm(branch.features, 1, name="pointwise")(x, train=train)


def _conv(
    branch: Branch,
    x: jax.Array,
    train: bool,
    kernel: int = 3,
    widened: int = 1,
    activate: bool = False,
) -> jax.Array:
    """A convolution, whose pixels lie `widened` times as far apart."""
    return branch.layers.conv_norm(
        branch.features,
        kernel,
        stride=branch.stride,
        dilation=widened * branch.dilation,
        activate=activate,
        name="conv1",
    )(x, train=train)


def _deep(branch: Branch, x: jax.Array, train: bool) -> jax.Array:
    """Two 3x3 convolutions: what a basic block adds (He et al. 2015)."""
    second = branch.layers.conv_norm(
        branch.features, dilation=branch.dilation, name="conv2"
    )
    return second(_conv(branch, x, train, activate=True), train=train)


# The last layer of each is a norm, so that no branch is larger than another at the
# start.
OPERATIONS: dict[str, Callable[[Branch, jax.Array, bool], jax.Array]] = {
    "none": _none,
    "identity": _identity,
    "pool": _pool,
    "depthwise": _depthwise,
    "conv3": _conv,
    "conv5": partial(_conv, kernel=5),
    "dilated": partial(_conv, widened=2),
    "deep": _deep,
}
# Those without a kernel where the shape is kept, of use before anything is trained.
SKIPS = ("identity", "pool")
