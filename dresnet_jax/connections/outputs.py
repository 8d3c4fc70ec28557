"""The block outputs of one forward pass, pooled and made narrow for their readers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

Arrays = Sequence[jax.Array]

# Arrays that several blocks are joined to, by these blocks and the size.
_Cache = dict[tuple[tuple[int, ...], tuple[int, int]], jax.Array]

# Keeps the gradient finite where all channels are 0.
_RMS_EPSILON = 1e-6


class BlockOutputs:
    """The block outputs y_0 (the stem), y_1, ... of one forward pass.

    Lives only while a program is traced. Keeps what it has pooled, so that the
    readers of one resolution share it and the next resolution starts from it.
    """

    def __init__(
        self, stem: jax.Array, *, normalise: bool = False, has_base: bool = True
    ) -> None:
        """Starts with the stem's output, [batch, height, width, channels].

        Args:
          stem: y_0.
          normalise: whether sources are read as `rms_normalised` makes them; the base
            of a sum never is.
          has_base: whether y_{i-1} is added to the sum of block i as it is; else it
            only gives the sum its shape.
        """
        self._outputs: list[Any] = [stem]
        self._has_base = has_base
        self._normalise = normalise
        self._normalised: dict[int, jax.Array] = {}
        self._pooled: _Cache = {}
        self._narrowed: _Cache = {}

    @classmethod
    def resumed(
        cls, kept: Mapping[int, jax.Array], *, normalise: bool = False
    ) -> "BlockOutputs":
        """Continues from what `kept` gave; the outputs between must not be read."""
        of_all: list[Any] = [kept.get(k) for k in range(max(kept) + 1)]
        result = cls(of_all[0], normalise=normalise)
        result.extend(of_all[1:])
        return result

    def kept(self, blocks: Iterable[int]) -> dict[int, jax.Array]:
        """Returns some y_k, and the newest, as they are."""
        return {k: self._outputs[k] for k in {*blocks, len(self._outputs) - 1}}

    def append(self, output: jax.Array | jax.ShapeDtypeStruct) -> None:
        """Adds the next block's output, [batch, height, width, channels].

        Its shape is enough where nobody reads it.
        """
        self._outputs.append(output)

    def extend(self, outputs: Iterable[jax.Array]) -> None:
        """Adds the outputs of the next blocks."""
        self._outputs.extend(outputs)

    @property
    def last(self) -> jax.Array:
        """The newest output."""
        return self._outputs[-1]

    @property
    def base(self) -> list[jax.Array]:
        """What is added to the next block's sum as it is: the newest output, if any."""
        return [self.last] if self._has_base else []

    def size(self, k: int) -> tuple[int, int]:
        """Returns height and width of y_k."""
        _, height, width, _ = self._outputs[k].shape
        return height, width

    def __getitem__(self, k: int) -> jax.Array:
        """y_k as a source, at its own resolution."""
        if not self._normalise:
            return self._outputs[k]
        if k not in self._normalised:
            self._normalised[k] = rms_normalised(self._outputs[k])
        return self._normalised[k]

    def pooled(self, blocks: tuple[int, ...], size: tuple[int, int]) -> jax.Array:
        """Average-pools several y_k to a size, and joins their channels.

        One array for all who ask for the same blocks. Where it can, it is pooled from
        an array of the first of these blocks at a resolution between.

        Args:
          blocks: the k.
          size: (height, width).

        Returns:
          [batch, *size, sum of the channels].
        """
        if (blocks, size) not in self._pooled:
            first, nearest = self._nearest(self._pooled, blocks, size)
            if len(blocks) == 1 and not nearest:
                first, nearest = blocks, [self[blocks[0]]]
            parts = [average_pool(array, size) for array in nearest]
            parts += [self.pooled((k,), size) for k in blocks[len(first) :]]
            self._pooled[blocks, size] = jnp.concatenate(parts, axis=-1)
        return self._pooled[blocks, size]

    def narrowed(
        self, blocks: tuple[int, ...], size: tuple[int, int], narrowings: Arrays
    ) -> jax.Array:
        """Joins narrow copies of several y_k, average-pooled to a size.

        One array for all who ask for the same blocks. The y_k are pooled before they
        are made narrow, and where they can, at the next resolution, after it.

        Args:
          blocks: the k.
          size: (height, width).
          narrowings: the 1x1 kernel of each, [channels_k, rank], always the same.

        Returns:
          [batch, *size, blocks * rank].
        """
        if (blocks, size) not in self._narrowed:
            if len(blocks) == 1:
                _, nearest = self._nearest(self._narrowed, blocks, size)
                copy = average_pool(nearest[0] if nearest else self[blocks[0]], size)
                if not nearest:
                    copy = copy @ narrowings[0].astype(copy.dtype)
            else:
                pairs = zip(blocks, narrowings, strict=True)
                parts = [self.narrowed((k,), size, [kernel]) for k, kernel in pairs]
                copy = jnp.concatenate(parts, axis=-1)
            self._narrowed[blocks, size] = copy
        return self._narrowed[blocks, size]

    def _nearest(
        self, cache: _Cache, blocks: tuple[int, ...], size: tuple[int, int]
    ) -> tuple[tuple[int, ...], list[jax.Array]]:
        """The longest array of the first blocks from which pooling is exact, if any.

        Averages of averages are exact only where all windows nest.
        """
        return max(
            (
                (first, [array])
                for (first, middle), array in cache.items()
                if first == blocks[: len(first)]
                and middle != size
                and _divides(size, middle)
                and all(_divides(middle, self.size(k)) for k in first)
            ),
            # Of equally long ones the smallest.
            key=lambda result: (len(result[0]), -result[1][0].shape[1]),
            default=((), []),
        )


def rms_normalised(images: jax.Array) -> jax.Array:
    """Returns each position divided by the root mean square of its channels.

    RMSNorm (Zhang and Sennrich 2019) without trainable parameters.

    Args:
      images: [batch, height, width, channels].
    """
    exact = images.astype(jnp.float32)
    mean_square = jnp.mean(exact**2, axis=-1, keepdims=True)
    return (exact * jax.lax.rsqrt(mean_square + _RMS_EPSILON)).astype(images.dtype)


def average_pool(images: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Returns average pooling to a given size, as PyTorch's `adaptive_avg_pool2d`.

    Args:
      images: [batch, height, width, channels].
      size: the (height, width) of the result, neither larger than the images'.

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
    j, positions = np.arange(m), np.arange(n)[:, None]
    start, end = j * n // m, -(-(j + 1) * n // m)
    is_read = (start <= positions) & (positions < end)
    return (is_read / (end - start)).astype(np.float32)


def _divides(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    return all(n % m == 0 for m, n in zip(small, large, strict=True))
