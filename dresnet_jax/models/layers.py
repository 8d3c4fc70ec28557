"""The layers that every block is made of, with PyTorch's padding."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn


class ConvNorm(nn.Module):
    """A square convolution, batch normalisation and, if given, an activation.

    Padding is symmetric, (kernel - 1) / 2 a side, as in PyTorch: a stride of 2
    halves a side and rounds up. Kernels start as He et al. (2015) propose, by
    fan-out. Under `jit` the batch statistics are those of the whole global batch.

    Attributes:
      features: output channels.
      kernel: side of the kernel, odd.
      stride: of the convolution.
      activation: applied last.
      use_bias: whether the convolution has a bias, which the norm makes redundant.
      dtype: of the computation; parameters are float32.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    activation: Callable[[jax.Array], jax.Array] | None = None
    use_bias: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features].

        With `train`, normalises by the batch and updates the running averages.
        """
        x = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            self.stride,
            padding=(self.kernel - 1) // 2,
            use_bias=self.use_bias,
            dtype=self.dtype,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            name="conv",
        )(x)
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            name="norm",
        )(x)
        return x if self.activation is None else self.activation(x)
