"""Blocks of one shape over one buffer of their outputs, under one scan.

Where projections are shared or absent, the input of block i is a weighted sum over one
buffer of what came before it, the base included:

    x_i = sum_p mixing[i, 0, p] * buffer[p] + (sum_p mixing[i, 1, p] * buffer[p]) @ K

The second sum, of what goes through the stage's shared projection, may be absent. Only
the buffer is kept for the backward pass: a reverse scan rebuilds each x_i from it.
Compile time and program size do not grow with the number of blocks.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# (parameters of one block, its input) -> (its output of the same shape, other results).
Block = Callable[[Any, jax.Array], tuple[jax.Array, Any]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def run(
    block: Block,
    unroll: int,
    read_later: bool,
    parameters: Any,
    mixing: jax.Array,
    kernel: jax.Array | None,
    start: jax.Array,
) -> tuple[jax.Array, jax.Array, Any]:
    """Runs n blocks, each on a weighted sum of what came before.

    The buffer has P = m + n - 1 places: m that are given, then the outputs of all
    blocks but the last.

    FLOPs: those of the blocks, their forward pass twice, as under rematerialisation,
    and 8 n P times the elements of one output. Traffic: the buffer is read once a block
    on the way forward and twice on the way back. Kept for the backward pass: the
    buffer, for one stage as much as a rematerialised plain network keeps, n outputs.
    The backward pass turns it, place by place, into the gradients of the blocks' inputs
    and needs no second one. Wins where a stage is deep; not on CPUs, where convolutions
    in a loop are slow.

    Args:
      block: the pure function of one block.
      unroll: blocks in one turn of the loop.
      read_later: whether others read the buffer; if not, it counts as constant.
      parameters: of all blocks, each leaf [n, ...].
      mixing: [n, sums, P] or, for a weight per channel, [n, sums, P, channels],
        float32; the weight of each place in the input of block i, from 0. Places from
        m + i on are not read, whatever stands there.
      kernel: [channels, channels], what the second sum is multiplied with; None where
        there is one sum.
      start: the first m places, the last of them the base of the first block,
        [m, batch, height, width, channels].

    Returns:
      The last block's output, [batch, height, width, channels]; the buffer; and the
      auxiliary trees, each leaf [n, ...].
    """
    return _forward(block, unroll, read_later, parameters, mixing, kernel, start)[0]


def _forward(
    block: Block, unroll: int, read_later: bool, *arrays: Any
) -> tuple[tuple[jax.Array, jax.Array, Any], tuple]:
    del read_later
    parameters, mixing, kernel, start = arrays
    blocks, _, places = mixing.shape[:3]
    shape = start.shape[1:]
    empty = jnp.zeros((places - len(start), *shape), start.dtype)

    def step(carry: tuple, given: tuple) -> tuple[tuple, Any]:
        buffer, _ = carry
        place, rows, one = given
        y, auxiliary = block(one, _projected(_sums(rows, buffer, shape), kernel))
        # The last output has no place: what stands in the last one is written again.
        old = jax.lax.dynamic_index_in_dim(buffer, places - 1, keepdims=False)
        new = jnp.where(place < places, y.reshape(old.shape), old)
        buffer = jax.lax.dynamic_update_index_in_dim(buffer, new, place, 0)
        return (buffer, y), auxiliary

    # The last output is carried next to the buffer: to read it there would copy all.
    carry = _flat(jnp.concatenate([start, empty]), mixing), start[-1]
    filled = len(start) + jnp.arange(blocks)
    (buffer, last), auxiliary = jax.lax.scan(
        step, carry, (filled, _earlier(mixing), parameters), unroll=unroll
    )
    buffer = buffer.reshape(places, *shape)
    return (last, buffer, auxiliary), (parameters, mixing, kernel, buffer)


def _backward(
    block: Block, unroll: int, read_later: bool, kept: tuple, cotangents: tuple
) -> tuple[Any, jax.Array, jax.Array | None, jax.Array]:
    parameters, mixing, kernel, buffer = kept
    d_last, d_buffer, d_auxiliary = cotangents
    blocks, sums, places = mixing.shape[:3]
    first, shape = places - blocks + 1, buffer.shape[1:]
    mixing = _earlier(mixing)
    readers = _readers(mixing)
    turned = None if kernel is None else kernel.T

    def from_outside(number: jax.Array) -> jax.Array:
        """Returns what is read of y_i after the run: the last output, the buffer."""
        is_last = number == blocks - 1
        given = jnp.where(is_last, d_last, jnp.zeros_like(d_last))
        if read_later:
            other = d_buffer[jnp.minimum(first + number, places - 1)]
            given += jnp.where(is_last, jnp.zeros_like(other), other)
        return given

    def step(carry: tuple, given: tuple) -> tuple[tuple, tuple]:
        buffer, d_kernel = carry
        number, rows, readers_of_it, one, d_aux = given
        both = _sums(jnp.concatenate([rows, readers_of_it]), buffer, shape)
        x, d_y = _projected(both[:sums], kernel), _projected(both[sums:], turned)
        _, pull_back = jax.vjp(block, one, x)
        d_one, d_x = pull_back((d_y + from_outside(number), d_aux))
        d_sums = [d_x]
        if turned is not None:
            d_sums.append(d_x @ turned.astype(d_x.dtype))
            d_kernel += jnp.einsum(
                "...c,...d->cd", both[1], d_x, preferred_element_type=jnp.float32
            )
        d_rows = jnp.stack([_products(d_sum, buffer) for d_sum in d_sums])
        # No block before this one reads its base: the gradient of its input takes the
        # base's place. All that reads the buffer has to come before what writes to it,
        # or XLA copies it; this makes the order known.
        d_x = d_x.reshape(buffer.shape[1:]) + (0 * d_rows.ravel()[0]).astype(d_x.dtype)
        place = first - 1 + number
        buffer = jax.lax.dynamic_update_index_in_dim(buffer, d_x, place, 0)
        return (buffer, d_kernel), (d_one, d_rows)

    # Without a second sum there is no kernel, and its gradient stays 0.
    carry = _flat(buffer, mixing), jnp.zeros(() if kernel is None else kernel.shape)
    later = jnp.concatenate([readers[first:], jnp.zeros_like(readers[:1])])
    given = jnp.arange(blocks), mixing, later, parameters, d_auxiliary
    (buffer, d_exact), (d_parameters, d_mixing) = jax.lax.scan(
        step, carry, given, reverse=True, unroll=unroll
    )
    weights = readers[:first].reshape(first * sums, *readers.shape[2:])
    totals = _sums(weights, buffer, shape).reshape(first, sums, *shape)
    d_start = _projected(totals.swapaxes(0, 1), turned)
    if read_later:
        d_start += d_buffer[:first]
    d_kernel = None if kernel is None else d_exact.astype(kernel.dtype)
    return d_parameters, _earlier(d_mixing), d_kernel, d_start


run.defvjp(_forward, _backward)


def _earlier(mixing: jax.Array) -> jax.Array:
    """The weights, with 0 wherever a block would read itself or a later one."""
    blocks, _, places = mixing.shape[:3]
    reads = np.tri(blocks, places, places - blocks, dtype=np.float32)
    return mixing * reads.reshape(blocks, 1, places, *[1] * (mixing.ndim - 3))


def _readers(mixing: jax.Array) -> jax.Array:
    """[P, sums, P]: for each place, the weight of each place in its gradient.

    On the way back, the gradient of a block's input stands where its base stood.
    """
    turned = mixing.swapaxes(0, 2)
    places, sums, blocks = turned.shape[:3]
    none = jnp.zeros((places, sums, places - blocks, *turned.shape[3:]))
    return jnp.concatenate([none, turned], axis=2)


def _flat(buffer: jax.Array, mixing: jax.Array) -> jax.Array:
    """[P, elements] or, for a weight per channel, [P, positions, channels]."""
    return buffer.reshape(len(buffer), -1, *mixing.shape[3:])


def _sums(weights: jax.Array, buffer: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[rows, P] or [rows, P, channels] times the buffer: [rows, *shape].

    Summed in float32. Reads empty places too: a loop over the others would write its
    sum as often.
    """
    sums = jnp.einsum(
        "rp,pn->rn" if weights.ndim == 2 else "rpc,pnc->rnc",
        weights.astype(buffer.dtype),
        buffer,
        preferred_element_type=jnp.float32,
    )
    return sums.astype(buffer.dtype).reshape(len(weights), *shape)


def _products(image: jax.Array, buffer: jax.Array) -> jax.Array:
    """The gradient of the weights in a sum, from that of the sum."""
    return jnp.einsum(
        "pn,n->p" if buffer.ndim == 2 else "pnc,nc->pc",
        buffer,
        image.reshape(buffer.shape[1:]),
        preferred_element_type=jnp.float32,
    )


def _projected(sums: Any, kernel: jax.Array | None) -> jax.Array:
    if kernel is None:
        return sums[0]
    return sums[0] + sums[1] @ kernel.astype(sums[1].dtype)
