"""The operations of a mixed block; a new one is one function and one line."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from dresnet_jax.models.layers import Layers


@dataclasses.dataclass(frozen=True)
class Shape:
    """What an operation is to make of its input.

    Attributes:
      features: output channels.
      stride: input pixels of an output pixel, along a side.
      dilation: of spatial convolutions.
    """

    features: int
    stride: int = 1
    dilation: int = 1

    def is_kept(self, x: jax.Array) -> bool:
        """Checks whether the output has the shape of the input x."""
        return self.stride == 1 and x.shape[-1] == self.features


Run = Callable[[Layers, Shape, jax.Array, bool], jax.Array]


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation: [batch, height, width, channels] to the `Shape` asked for.

    Attributes:
      run: calls the layers of a branch. The last is a norm, so that no branch is larger
        than another at the start.
      is_skip: whether it has no kernel where the shape is kept, so that it is of use
        before anything is trained.
    """

    run: Run
    is_skip: bool = False


class Branch(nn.Module):
    """One operation, with its parameters.

    Attributes:
      operation: a key of `OPERATIONS`.
      layers: what the network's layers have in common.
      shape: of the output.
    """

    operation: str
    layers: Layers
    shape: Shape

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features]."""
        return OPERATIONS[self.operation].run(self.layers, self.shape, x, train)


def _none(layers: Layers, shape: Shape, x: jax.Array, train: bool) -> jax.Array:
    """Zeros: the block is its shortcut."""
    del layers, train
    sides = (-(-side // shape.stride) for side in x.shape[1:3])
    return jnp.zeros((x.shape[0], *sides, shape.features), x.dtype)


def _identity(layers: Layers, shape: Shape, x: jax.Array, train: bool) -> jax.Array:
    """The input; where the shape changes, its averages through a 1x1 convolution."""
    if shape.is_kept(x):
        return x
    x = _averages(x, shape.stride, shape.stride)
    return layers.conv_norm(shape.features, 1, name="resize")(x, train=train)


def _pool(layers: Layers, shape: Shape, x: jax.Array, train: bool) -> jax.Array:
    """Averages of 3x3 pixels; a 1x1 convolution where there are new channels."""
    x = _averages(x, 3, shape.stride)
    if x.shape[-1] == shape.features:
        return layers.normalise(x, train=train)
    return layers.conv_norm(shape.features, 1, name="resize")(x, train=train)


def _averages(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Averages of squares; the image's edge has fewer pixels, not zeros."""
    before = (size - 1) // 2 if size % 2 else 0
    ends = []
    for side in x.shape[1:3]:
        reach = (-(-side // stride) - 1) * stride + size
        ends.append((before, max(0, reach - side - before)))
    return nn.avg_pool(x, (size,) * 2, (stride,) * 2, ends, count_include_pad=False)


def _conv(kernel: int, widened: int = 1) -> Run:
    """A convolution, whose pixels lie `widened` times as far apart."""

    def run(layers: Layers, shape: Shape, x: jax.Array, train: bool) -> jax.Array:
        return layers.conv_norm(
            shape.features,
            kernel,
            stride=shape.stride,
            dilation=widened * shape.dilation,
            name="conv1",
        )(x, train=train)

    return run


def _depthwise(layers: Layers, shape: Shape, x: jax.Array, train: bool) -> jax.Array:
    """A 3x3 convolution of each channel, then a 1x1 across them (Chollet 2017)."""
    channels = x.shape[-1]
    x = layers.conv(
        channels,
        stride=shape.stride,
        dilation=shape.dilation,
        groups=channels,
        name="depthwise",
    )(x)
    return layers.conv_norm(shape.features, 1, name="pointwise")(x, train=train)


def _deep(layers: Layers, shape: Shape, x: jax.Array, train: bool) -> jax.Array:
    """Two 3x3 convolutions: what a basic block adds (He et al. 2015)."""
    x = layers.conv_norm(
        shape.features,
        stride=shape.stride,
        dilation=shape.dilation,
        activate=True,
        name="conv1",
    )(x, train=train)
    return layers.conv_norm(shape.features, dilation=shape.dilation, name="conv2")(
        x, train=train
    )


OPERATIONS: dict[str, Operation] = {
    "none": Operation(_none),
    "identity": Operation(_identity, is_skip=True),
    "pool": Operation(_pool, is_skip=True),
    "depthwise": Operation(_depthwise),
    "conv3": Operation(_conv(3)),
    "conv5": Operation(_conv(5)),
    "dilated": Operation(_conv(3, widened=2)),
    "deep": Operation(_deep),
}
