"""The connection as pure functions: a block's input from its base and its sources.

    x_i = y_{i-1} + sum_k F(w_ik) * P_ik(y_k)

`reference` reads like the formula; `folded` is faster and agrees with it in value and
gradient. Both have the same arguments:

  outputs: y_0 to y_{i-1}; the last is the base, [batch, height, width, channels].
  sources: the k, in ascending order. No y_k is smaller than the base.
  gates: F(w_ik), [sources], or [sources, channels] for a gate per channel of x_i.
  projections: what each P_ik is made of, by name: a 1x1 "kernel", [channels_k,
    channels]; a "bias", [channels]; a "narrowing", [channels_k, rank], before the
    kernel, which is then [rank, channels]. Without a kernel it only pools, and the
    source has as many channels as the base.

They return x_i, with the shape and dtype of the base. Outputs without a base leave
y_{i-1} out of the sum. The projection P_ik is the 1x1 convolution with average pooling
to the base's height and width.
"""

import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence

import chex
import jax
import jax.numpy as jnp

from dresnet_jax.connections.outputs import BlockOutputs, average_pool

Sources = Sequence[int]
Projections = Sequence[Mapping[str, jax.Array]]
WeightedSum = Callable[[BlockOutputs, Sources, jax.Array, Projections], jax.Array]


def reference(
    outputs: BlockOutputs, sources: Sources, gates: jax.Array, projections: Projections
) -> jax.Array:
    """Returns the formula, word for word: each edge projected, then pooled, then gated.

    FLOPs: every projection runs at its source's resolution, up to (H/h)^2 times
    those of `folded`. Traffic: each edge reads its source and writes what it projects
    and pools. Kept for the backward pass: every projected and pooled source, since the
    gate's gradient is a reduction over them. Wins never; the others are tested by it.
    """
    terms = _terms(outputs, sources, gates, projections)
    return functools.reduce(operator.add, terms, *outputs.base)


def contributions(
    outputs: BlockOutputs, sources: Sources, gates: jax.Array, projections: Projections
) -> jax.Array:
    """Returns the root mean square of each F(w_ik) P_ik(y_k), float32, [sources]."""
    terms = _terms(outputs, sources, gates, projections)
    squares = [jnp.mean(term.astype(jnp.float32) ** 2) for term in terms]
    return jnp.sqrt(jnp.stack(squares))


def _terms(
    outputs: BlockOutputs, sources: Sources, gates: jax.Array, projections: Projections
) -> Iterator[jax.Array]:
    """Every F(w_ik) P_ik(y_k) of the formula."""
    gates = _checked(outputs, sources, gates, projections)
    base = outputs.last
    for n, (k, projection) in enumerate(zip(sources, projections, strict=True)):
        projected = outputs[k]
        for name in ("narrowing", "kernel"):
            if name in projection:
                projected = projected @ projection[name].astype(base.dtype)
        if "bias" in projection:
            bias = projection["bias"].astype(base.dtype)
            projected = projected + _as_channels(bias)
        gate = _as_channels(gates[n, 0].astype(base.dtype))
        yield gate * average_pool(projected, outputs.size(-1))


def folded(
    outputs: BlockOutputs, sources: Sources, gates: jax.Array, projections: Projections
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
    terms = _folded_terms(outputs, sources, gates, projections)
    return functools.reduce(operator.add, terms, *outputs.base)


def _folded_terms(
    outputs: BlockOutputs, sources: Sources, gates: jax.Array, projections: Projections
) -> Iterator[jax.Array]:
    """The sources without a kernel, those with one in groups, and the bias."""
    gates = _checked(outputs, sources, gates, projections)
    dtype, size = outputs.last.dtype, outputs.size(-1)
    kernels, narrowings, biases = (
        {n: one[name] for n, one in enumerate(projections) if name in one}
        for name in ("kernel", "narrowing", "bias")
    )

    def product(numbers: Sequence[int], together: jax.Array) -> jax.Array:
        # The folding is done in the parameters' precision, the product in the base's.
        kernel = jnp.concatenate([gates[n] * kernels[n] for n in numbers])
        return together @ kernel.astype(dtype)

    if narrowings:
        blocks = tuple(sources[n] for n in narrowings)
        together = outputs.narrowed(blocks, size, list(narrowings.values()))
        yield product(list(narrowings), together)
    for n, k in enumerate(sources):
        if n not in kernels:
            gate = _as_channels(gates[n, 0].astype(dtype))
            yield gate * outputs.pooled((k,), size)
    wide = [n for n in kernels if n not in narrowings]
    larger = [n for n in wide if outputs.size(sources[n]) != size]
    own = [[n] for n in wide if n not in larger]
    for group in [larger, *own] if larger else own:
        together = outputs.pooled(tuple(sources[n] for n in group), size)
        yield product(group, together)
    if biases:
        rows = [gates[n, 0] * bias for n, bias in biases.items()]
        yield _as_channels(jnp.sum(jnp.stack(rows), axis=0).astype(dtype))


FORMS: dict[str, WeightedSum] = {"reference": reference, "folded": folded}


def _as_channels(vector: jax.Array) -> jax.Array:
    return vector[None, None, None, :]


def _checked(
    outputs: BlockOutputs, sources: Sources, gates: jax.Array, projections: Projections
) -> jax.Array:
    """The gates as [sources, 1, channels or 1], if all shapes fit."""
    channels = outputs.last.shape[-1]
    gates = gates[:, None, None] if gates.ndim == 1 else gates[:, None]
    chex.assert_shape(gates, (len(sources), 1, {1, channels}))
    for k, projection in zip(sources, projections, strict=True):
        read = outputs[k].shape[-1]
        if "narrowing" in projection:
            chex.assert_shape(projection["narrowing"], (read, None))
            read = projection["narrowing"].shape[-1]
        if "kernel" in projection:
            chex.assert_shape(projection["kernel"], (read, channels))
        else:
            chex.assert_shape(outputs[k], (..., channels))
        if "bias" in projection:
            chex.assert_shape(projection["bias"], (channels,))
    return gates
