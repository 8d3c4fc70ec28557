"""The connection as pure functions: a block's input from its base and its sources.

    x_i = y_{i-1} + sum_k F(w_ik) * P_ik(y_k)

`reference` reads like the formula; `folded` is faster and agrees with it in value and
gradient. Both have the same arguments:

  outputs: y_0 to y_{i-1}; the last is the base, [batch, height, width, channels].
  sources: the k, in ascending order. No y_k is smaller than the base.
  gates: F(w_ik), [sources], or [sources, channels] for a gate per channel of x_i.
  kernels: one 1x1 kernel per source, [channels_k, channels], or None for all or one
    where the projections only pool; the sources then have as many channels as the base.
  biases: one bias per source, [channels], or None for projections without bias.
  narrowings: one 1x1 kernel per source, [channels_k, rank], before its own, which is
    then [rank, channels]; or None for all or one.

They return x_i, with the shape and dtype of the base. Outputs without a base leave
y_{i-1} out of the sum. The projection P_ik is the
1x1 convolution with average pooling to the base's height and width.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

Arrays = Sequence[jax.Array]
SomeArrays = Sequence[jax.Array | None]

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
        self._pooled: dict[tuple[tuple[int, ...], tuple[int, int]], jax.Array] = {}
        self._narrowed: dict[tuple[tuple[int, ...], tuple[int, int]], jax.Array] = {}

    @classmethod
    def resumed(
        cls, kept: Mapping[int, jax.Array], *, normalise: bool = False
    ) -> "BlockOutputs":
        """Goes on from what `kept` gave; the outputs between must not be asked for."""
        of_all: list[Any] = [kept.get(k) for k in range(max(kept) + 1)]
        found = cls(of_all[0], normalise=normalise)
        found.extend(of_all[1:])
        return found

    def kept(self, blocks: Iterable[int]) -> dict[int, jax.Array]:
        """Some y_k, and the newest, as they are."""
        return {k: self._outputs[k] for k in {*blocks, len(self._outputs) - 1}}

    def append(self, output: jax.Array) -> None:
        """Adds the next block's output, [batch, height, width, channels]."""
        self._outputs.append(output)

    def extend(self, outputs: Iterable[jax.Array]) -> None:
        """Adds the outputs of the next blocks."""
        self._outputs.extend(outputs)

    def skip(self, shape: jax.ShapeDtypeStruct) -> None:
        """Adds the shape of the next block's output, which nobody reads."""
        self._outputs.append(shape)

    @property
    def last(self) -> jax.Array:
        """The newest output."""
        return self._outputs[-1]

    @property
    def base(self) -> list[jax.Array]:
        """What is added to the next block's sum as it is: the newest output, if any."""
        return [self.last] if self._has_base else []

    def size(self, k: int) -> tuple[int, int]:
        """Height and width of y_k."""
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
        """Several y_k, each average-pooled to a size, their channels side by side.

        One array for all who ask for the same blocks. Where it can, it is pooled from
        an array of the first of these blocks at a resolution between.

        Args:
          blocks: the k.
          size: (height, width).

        Returns:
          [batch, *size, sum of the channels].
        """
        if (blocks, size) not in self._pooled:
            first, nearest = self._nearest(blocks, size)
            parts = [average_pool(array, size) for array in nearest]
            parts += [self.pooled((k,), size) for k in blocks[len(first) :]]
            self._pooled[blocks, size] = jnp.concatenate(parts, axis=-1)
        return self._pooled[blocks, size]

    def narrowed(
        self, blocks: tuple[int, ...], size: tuple[int, int], narrowings: Arrays
    ) -> jax.Array:
        """Narrow copies of several y_k, average-pooled to a size, side by side.

        One array for all who ask for the same blocks. The y_k are pooled before they
        are made narrow, and where they can, at the next resolution, behind it.

        Args:
          blocks: the k.
          size: (height, width).
          narrowings: the 1x1 kernel of each, [channels_k, rank], always the same.

        Returns:
          [batch, *size, blocks * rank].
        """
        if (blocks, size) not in self._narrowed:
            copies = zip(blocks, narrowings, strict=True)
            parts = [self._narrow(k, size, kernel) for k, kernel in copies]
            self._narrowed[blocks, size] = jnp.concatenate(parts, axis=-1)
        return self._narrowed[blocks, size]

    def _narrow(self, k: int, size: tuple[int, int], kernel: jax.Array) -> jax.Array:
        if ((k,), size) not in self._narrowed:
            larger = [
                array
                for (blocks, middle), array in self._narrowed.items()
                if blocks == (k,)
                and _divides(size, middle)
                and _divides(middle, self.size(k))
            ]
            if larger:
                copy = average_pool(larger[-1], size)
            else:
                pooled = average_pool(self[k], size)
                copy = pooled @ kernel.astype(pooled.dtype)
            self._narrowed[(k,), size] = copy
        return self._narrowed[(k,), size]

    def _nearest(
        self, blocks: tuple[int, ...], size: tuple[int, int]
    ) -> tuple[tuple[int, ...], Arrays]:
        """The longest array of the first blocks from which pooling is exact, if any.

        Averages of averages are exact only where all windows nest.
        """
        of_one = (blocks, [self[blocks[0]]]) if len(blocks) == 1 else ((), [])
        return max(
            (
                (first, [array])
                for (first, middle), array in self._pooled.items()
                if first == blocks[: len(first)]
                and middle != size
                and _divides(size, middle)
                and all(_divides(middle, self.size(k)) for k in first)
            ),
            # Of equally long ones the smallest.
            key=lambda found: (len(found[0]), -found[1][0].shape[1]),
            default=of_one,
        )


# (outputs, sources, gates, kernels, biases, narrowings) -> x_i.
WeightedSum = Callable[..., jax.Array]


def reference(
    outputs: BlockOutputs,
    sources: Sequence[int],
    gates: jax.Array,
    kernels: SomeArrays | None = None,
    biases: SomeArrays | None = None,
    narrowings: SomeArrays | None = None,
) -> jax.Array:
    """The formula, word for word: each edge projected, then pooled, then gated.

    FLOPs: every projection runs at its source's resolution, up to (H/h)^2 times
    those of `folded`. Traffic: each edge reads its source and writes what it projects
    and pools. Kept for the backward pass: every projected and pooled source, since the
    gate's gradient is a reduction over them. Wins never; the others are tested by it.
    """
    terms = _terms(outputs, sources, gates, kernels, biases, narrowings)
    return functools.reduce(operator.add, terms, *outputs.base)


def carried(
    outputs: BlockOutputs,
    sources: Sequence[int],
    gates: jax.Array,
    kernels: SomeArrays | None = None,
    biases: SomeArrays | None = None,
    narrowings: SomeArrays | None = None,
) -> jax.Array:
    """The root mean square of each F(w_ik) P_ik(y_k), float32, [sources]."""
    terms = _terms(outputs, sources, gates, kernels, biases, narrowings)
    squares = [jnp.mean(term.astype(jnp.float32) ** 2) for term in terms]
    return jnp.sqrt(jnp.stack(squares))


def _terms(
    outputs: BlockOutputs,
    sources: Sequence[int],
    gates: jax.Array,
    kernels: SomeArrays | None = None,
    biases: SomeArrays | None = None,
    narrowings: SomeArrays | None = None,
) -> Iterator[jax.Array]:
    """Every F(w_ik) P_ik(y_k) of the formula."""
    gates = _checked(outputs, sources, gates, kernels, biases, narrowings)
    base = outputs.last
    for n, k in enumerate(sources):
        projected = outputs[k]
        if (narrowing := _entry(narrowings, n)) is not None:
            projected = projected @ narrowing.astype(base.dtype)
        if (kernel := _entry(kernels, n)) is not None:
            projected = projected @ kernel.astype(base.dtype)
        if (bias := _entry(biases, n)) is not None:
            projected = projected + _as_channels(bias.astype(base.dtype))
        gate = _as_channels(gates[n, 0].astype(base.dtype))
        yield gate * average_pool(projected, outputs.size(-1))


def folded(
    outputs: BlockOutputs,
    sources: Sequence[int],
    gates: jax.Array,
    kernels: SomeArrays | None = None,
    biases: SomeArrays | None = None,
    narrowings: SomeArrays | None = None,
) -> jax.Array:
    """Pool first, gates folded into the kernels, few matrix products per block.

    A 1x1 convolution and average pooling commute, and F(w) (y W) = y (F(w) W). So
    the projection runs at the reader's resolution, and the gate's gradient comes
    from the small gradient of the folded kernel, not from a reduction over
    activations. All sources of a higher resolution are one array, pooled once for all
    readers, and one product; those of the reader's own shape are a product each, since
    to put them side by side would copy them. Narrow copies stand side by side in one
    buffer that all readers of a resolution share: one product gates and sums them.

    FLOPs: 2 * batch * height * width * sum_k(channels_k) * channels. Traffic: each
    source is read once at the reader's resolution, and pooled once per resolution. Kept
    for the backward pass: the pooled sources only. Wins wherever projections are per
    edge, and on CPUs.
    """
    terms = _folded_terms(outputs, sources, gates, kernels, biases, narrowings)
    return functools.reduce(operator.add, terms, *outputs.base)


def _folded_terms(
    outputs: BlockOutputs,
    sources: Sequence[int],
    gates: jax.Array,
    kernels: SomeArrays | None = None,
    biases: SomeArrays | None = None,
    narrowings: SomeArrays | None = None,
) -> Iterator[jax.Array]:
    """The sources without a kernel, those with one in groups, and the bias."""
    gates = _checked(outputs, sources, gates, kernels, biases, narrowings)
    dtype, size = outputs.last.dtype, outputs.size(-1)
    projected = {
        n: kernel
        for n in range(len(sources))
        if (kernel := _entry(kernels, n)) is not None
    }

    def product(numbers: Sequence[int], together: jax.Array) -> jax.Array:
        # The folding is done in the parameters' precision, the product in the base's.
        kernel = jnp.concatenate([gates[n] * projected[n] for n in numbers])
        return together @ kernel.astype(dtype)

    narrow = {
        n: narrowing
        for n in projected
        if (narrowing := _entry(narrowings, n)) is not None
    }
    if narrow:
        blocks = tuple(sources[n] for n in narrow)
        together = outputs.narrowed(blocks, size, list(narrow.values()))
        yield product(list(narrow), together)
    for n, k in enumerate(sources):
        if n not in projected:
            gate = _as_channels(gates[n, 0].astype(dtype))
            yield gate * outputs.pooled((k,), size)
    wide = [n for n in projected if n not in narrow]
    larger = [n for n in wide if outputs.size(sources[n]) != size]
    own = [[n] for n in wide if n not in larger]
    for group in [larger, *own] if larger else own:
        together = outputs.pooled(tuple(sources[n] for n in group), size)
        yield product(group, together)
    rows = [
        gates[n, 0] * bias for n in projected if (bias := _entry(biases, n)) is not None
    ]
    if rows:
        yield _as_channels(jnp.sum(jnp.stack(rows), axis=0).astype(dtype))


FORMS: dict[str, WeightedSum] = {"reference": reference, "folded": folded}


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


def _checked(
    outputs: BlockOutputs,
    sources: Sequence[int],
    gates: jax.Array,
    kernels: SomeArrays | None = None,
    biases: SomeArrays | None = None,
    narrowings: SomeArrays | None = None,
) -> jax.Array:
    """The gates as [sources, 1, channels or 1], if all shapes fit."""
    channels = outputs.last.shape[-1]
    gates = gates[:, None, None] if gates.ndim == 1 else gates[:, None]
    chex.assert_shape(gates, (len(sources), 1, {1, channels}))
    given = [None] * len(sources) if kernels is None else kernels
    for n, (k, kernel) in enumerate(zip(sources, given, strict=True)):
        own = outputs[k].shape[-1]
        if (narrowing := _entry(narrowings, n)) is not None:
            rank = narrowing.shape[-1]
            chex.assert_shape(narrowing, (own, rank))
            own = rank
        if kernel is None:
            chex.assert_shape(outputs[k], (..., channels))
        else:
            chex.assert_shape(kernel, (own, channels))
    for bias in biases or ():
        if bias is not None:
            chex.assert_shape(bias, (channels,))
    return gates


def _entry(arrays: SomeArrays | None, n: int) -> jax.Array | None:
    return None if arrays is None else arrays[n]
