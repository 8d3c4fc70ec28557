"""The connection as pure functions: a block's input from its base and its sources.

    x_i = y_{i-1} + sum_k F(w_ik) * P_ik(y_k)

`reference` reads like the formula; the other forms are faster and agree with it
in value and gradient. All have the same arguments:

  base: y_{i-1}, [batch, height, width, channels].
  sources: the y_k, each [batch, height_k, width_k, channels_k], with height_k >=
    height and width_k >= width.
  gates: F(w_ik), [sources], or [sources, channels] for a gate per channel of x_i.
  kernels: one 1x1 kernel per source, [channels_k, channels].
  biases: one bias per source, [channels], or None for projections without bias.

They return x_i, with the shape and dtype of the base. The projection P_ik is the
1x1 convolution with average pooling to the base's height and width.
"""

import dataclasses
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

Arrays = Sequence[jax.Array]

# Keeps the gradient finite where all channels are 0.
_RMS_EPSILON = 1e-6

WeightedSum = Callable[[jax.Array, Arrays, jax.Array, Arrays, Arrays | None], jax.Array]


def reference(
    base: jax.Array,
    sources: Arrays,
    gates: jax.Array,
    kernels: Arrays,
    biases: Arrays | None,
) -> jax.Array:
    """The formula, word for word: each edge projected, then pooled, then gated.

    FLOPs: every projection runs at its source's resolution, up to (H/h)^2 times
    those of `folded`. Kept for the backward pass: every projected and pooled
    source, since the gate's gradient is a reduction over them.
    """
    _check_shapes(base, sources, gates, kernels, biases)
    x = base
    for k, (source, kernel) in enumerate(zip(sources, kernels, strict=True)):
        projected = source @ kernel.astype(base.dtype)
        if biases is not None:
            projected = projected + _as_channels(biases[k].astype(base.dtype))
        gate = _as_channels(jnp.atleast_1d(gates[k]).astype(base.dtype))
        x = x + gate * average_pool(projected, base.shape[1:3])
    return x


def folded(
    base: jax.Array,
    sources: Arrays,
    gates: jax.Array,
    kernels: Arrays,
    biases: Arrays | None,
) -> jax.Array:
    """Pool first, gates folded into the kernels, one matrix product per block.

    A 1x1 convolution and average pooling commute, and F(w) (y W) = y (F(w) W). So
    the projection runs at the reader's resolution, and the gate's gradient comes
    from the small gradient of the folded kernel, not from a reduction over
    activations. FLOPs: 2 * batch * height * width * sum_k(channels_k) * channels.
    Kept for the backward pass: the pooled sources only.
    """
    _check_shapes(base, sources, gates, kernels, biases)
    if not sources:
        return base
    pooled = [average_pool(source, base.shape[1:3]) for source in sources]
    # The folding is done in the parameters' precision, the product in the base's.
    # A factor for each column of a source's kernel, or one for all.
    columns = gates.reshape(len(sources), 1, -1)
    kernel = jnp.concatenate([columns[k] * kernels[k] for k in range(len(kernels))])
    x = base + jnp.concatenate(pooled, axis=-1) @ kernel.astype(base.dtype)
    if biases is not None:
        bias = (columns[:, 0] * jnp.stack(biases)).sum(axis=0)
        x = x + _as_channels(bias.astype(base.dtype))
    return x


@dataclasses.dataclass(frozen=True)
class Form:
    """One way to compute the weighted sum.

    Attributes:
      function: the pure function.
      pools_first: whether it may be given sources that are already pooled to the
        base's resolution, so that several readers can share the pooling.
    """

    function: WeightedSum
    pools_first: bool


FORMS = {
    "reference": Form(reference, pools_first=False),
    "folded": Form(folded, pools_first=True),
}


class BlockOutputs:
    """The block outputs y_0 (the stem), y_1, ... of one forward pass.

    Lives only while a program is traced. Keeps each pooled output, so that the
    readers of one resolution share it and the next resolution starts from it.
    """

    def __init__(self, stem: jax.Array, *, normalise: bool = False) -> None:
        """Starts with the stem's output, [batch, height, width, channels].

        Args:
          stem: y_0.
          normalise: whether sources are read as `rms_normalised` makes them; the base
            of a sum never is.
        """
        self._outputs = [stem]
        self._normalise = normalise
        self._normalised: dict[int, jax.Array] = {}
        self._pooled: list[dict[tuple[int, int], jax.Array]] = [{}]

    def append(self, output: jax.Array) -> None:
        """Adds the next block's output, [batch, height, width, channels]."""
        self._outputs.append(output)
        self._pooled.append({})

    @property
    def last(self) -> jax.Array:
        """The newest output."""
        return self._outputs[-1]

    def __getitem__(self, k: int) -> jax.Array:
        """y_k as a source, at its own resolution."""
        if not self._normalise:
            return self._outputs[k]
        if k not in self._normalised:
            self._normalised[k] = rms_normalised(self._outputs[k])
        return self._normalised[k]

    def pooled(self, k: int, size: tuple[int, int]) -> jax.Array:
        """y_k, average-pooled to (height, width); the same array for every caller."""
        known = self._pooled[k]
        if size not in known:
            # Averages of averages are exact only where all windows nest.
            whole = self._outputs[k].shape[1:3]
            nested = [
                pooled
                for middle, pooled in known.items()
                if _divides(size, middle) and _divides(middle, whole)
            ]
            start = nested[-1] if nested else self[k]
            known[size] = average_pool(start, size)
        return known[size]


def rms_normalised(images: jax.Array) -> jax.Array:
    """Each position divided by the root mean square of its channels.

    RMSNorm (Zhang and Sennrich 2019) without trainable parameters.

    Args:
      images: [batch, height, width, channels].
    """
    exact = images.astype(jnp.float32)
    mean_square = jnp.mean(exact**2, axis=-1, keepdims=True)
    return (exact * jax.lax.rsqrt(mean_square + _RMS_EPSILON)).astype(images.dtype)


def average_pool(images: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Average pooling to a given size, as PyTorch's `adaptive_avg_pool2d`.

    Args:
      images: [batch, height, width, channels].
      size: the (height, width) wanted, neither larger than the images'.

    Returns:
      [batch, *size, channels]; the images themselves where the size is theirs.
    """
    height, width = images.shape[1:3]
    if (height, width) == tuple(size):
        return images
    if height < size[0] or width < size[1]:
        raise ValueError(f"Cannot pool {(height, width)} to the larger {size}.")
    if _divides(size, (height, width)):
        window = (height // size[0], width // size[1])
        # Flax divides by a whole number, which strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            return nn.avg_pool(images, window, strides=window)
    rows, columns = (
        jnp.asarray(_pooling_matrix(n, m), images.dtype)
        for n, m in zip((height, width), size, strict=True)
    )
    return jnp.einsum("bhwc,hp,wq->bpqc", images, rows, columns)


def _pooling_matrix(n: int, m: int) -> np.ndarray:
    """[n, m]: column j averages the positions floor(jn/m) to ceil((j+1)n/m)."""
    matrix = np.zeros((n, m), np.float32)
    for j in range(m):
        start, end = j * n // m, -(-(j + 1) * n // m)
        matrix[start:end, j] = 1 / (end - start)
    return matrix


def _divides(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    return all(n % m == 0 for m, n in zip(small, large, strict=True))


def _as_channels(vector: jax.Array) -> jax.Array:
    return vector[None, None, None, :]


def _check_shapes(
    base: jax.Array,
    sources: Arrays,
    gates: jax.Array,
    kernels: Arrays,
    biases: Arrays | None,
) -> None:
    batch, _, _, channels = base.shape
    chex.assert_shape(
        gates, [(len(sources),), (len(sources), channels)][gates.ndim - 1]
    )
    for source, kernel in zip(sources, kernels, strict=True):
        chex.assert_shape(source, (batch, None, None, kernel.shape[0]))
        chex.assert_shape(kernel, (None, channels))
    for bias in biases or ():
        chex.assert_shape(bias, (channels,))
