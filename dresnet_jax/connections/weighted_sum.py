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
from collections.abc import Callable, Iterator, Sequence

import chex
import jax
import jax.numpy as jnp

from dresnet_jax.connections.outputs import BlockOutputs, average_pool

SomeArrays = Sequence[jax.Array | None]

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
    """Returns the formula, word for word: each edge projected, then pooled, then gated.

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
    """Returns the root mean square of each F(w_ik) P_ik(y_k), float32, [sources]."""
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
    """Pools first, folds gates into kernels, and makes few products per block.

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
