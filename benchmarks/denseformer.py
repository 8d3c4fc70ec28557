"""DenseFormer's depth-weighted average as a connection scheme, for comparison.

x_i = sum_{k=0}^{i-1} alpha_ik y_k, one trained number per pair, from alpha = 1 for the
newest output and 0 for all others (Pagliardini et al. 2024, arXiv:2402.02622).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from dresnet_jax.connections.outputs import BlockOutputs
from dresnet_jax.connections.spec import ConnectionSpec


class DepthWeightedAverage(nn.Module):
    """Has the interface of `Connections`; all outputs have one shape.

    Attributes:
      spec: says how many blocks there are; nothing else of it is read.
      channels: not read.
    """

    spec: ConnectionSpec
    channels: tuple[int, ...]

    def setup(self) -> None:
        """Creates the weights of each block."""
        blocks = range(1, self.spec.topology.num_blocks + 1)
        self.alphas = {
            str(i): self.param(
                f"block_{i}", lambda key, i=i: jnp.zeros(i).at[-1].set(1)
            )
            for i in blocks
        }

    def __call__(self, block: int, outputs: BlockOutputs) -> jax.Array:
        """The input of a block, [batch, height, width, channels]."""
        alphas = self.alphas[str(block)].astype(outputs.last.dtype)
        average = alphas[0] * outputs[0]
        for k in range(1, block):
            average = average + alphas[k] * outputs[k]
        return average
