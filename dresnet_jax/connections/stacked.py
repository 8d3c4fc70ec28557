"""Blocks of one shape over one buffer of their outputs, under one scan.

Where projections are shared or absent, the input of block i is a weighted sum over one
buffer of what came before it, the base included:

    x_i = sum_p mixing[i, 0, p] * buffer[p] + (sum_p mixing[i, 1, p] * buffer[p]) @ kernel

The second sum, of what goes through the stage's shared projection, may be absent. Only
the buffer is kept for the backward pass: a reverse scan rebuilds each x_i from it.
Compile time and program size do not grow with the number of blocks.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# (parameters of one block, its input) -> (its output of the same shape, auxiliary tree).
Block = Callable[[Any, jax.Array], tuple[jax.Array, Any]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run(
    block: Block,
    read_later: bool,
    parameters: Any,
    mixing: jax.Array,
    kernel: jax.Array | None,
    start: jax.Array,
) -> tuple[jax.Array, jax.Array, Any]:
    """Runs n blocks, each on a weighted sum of what came before.

    The buffer has P = m + n - 1 places: m that are given, then the outputs of all blocks
    but the last.

    FLOPs: those of the blocks, their forward pass twice, as under rematerialisation, and
    6 n P times the elements of one output. Traffic: the buffer is read once a block on
    the way forward and twice on the way back. Kept for the backward pass: the buffer,
    which for one stage is the n outputs that a rematerialised plain network keeps too.
    The backward pass turns it, place by place, into the gradients of the blocks' inputs
    and needs no second one. Wins where a stage is deep; not on CPUs, where convolutions
    in a loop are slow.

    Args:
      block: the pure function of one block.
      read_later: whether others read the buffer; if not, it counts as constant.
      parameters: of all blocks, each leaf [n, ...].
      mixing: [n, sums, P] or, for a weight per channel, [n, sums, P, channels], float32;
        the weight of each place in the input of block i, from 0. Places from m + i on
        are not read, whatever stands there.
      kernel: [channels, channels], what the second sum is multiplied with; None where
        there is one sum.
      start: the first m places, the last of them the base of the first block,
        [m, batch, height, width, channels].

    Returns:
      The last block's output, [batch, height, width, channels]; the buffer; and the
      auxiliary trees, each leaf [n, ...].
    """
    return _forward(block, read_later, parameters, mixing, kernel, start)[0]


def _forward(
    block: Block,
    read_later: bool,
    parameters: Any,
    mixing: jax.Array,
    kernel: jax.Array | None,
    start: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array, Any], tuple]:
    del read_later
    blocks, _, places = mixing.shape[:3]
    empty = jnp.zeros((places - len(start), *start.shape[1:]), start.dtype)

    def step(carry: tuple, given: tuple) -> tuple[tuple, Any]:
        buffer, y = carry
        place, rows, one = given
        # What is written is the output before: the last one needs no place.
        buffer = jax.lax.dynamic_update_index_in_dim(buffer, y, place, 0)
        y, auxiliary = block(one, _projected(_sums(rows, buffer), kernel))
        return (buffer, y), auxiliary

    carry = jnp.concatenate([start, empty]), start[-1]
    before = len(start) - 1 + jnp.arange(blocks)
    (buffer, last), auxiliary = jax.lax.scan(
        step, carry, (before, _earlier(mixing), parameters)
    )
    return (last, buffer, auxiliary), (parameters, mixing, kernel, buffer)


def _backward(
    block: Block, read_later: bool, kept: tuple, cotangents: tuple
) -> tuple[Any, jax.Array, jax.Array | None, jax.Array]:
    parameters, mixing, kernel, buffer = kept
    d_last, d_buffer, d_auxiliary = cotangents
    blocks, sums, places = mixing.shape[:3]
    first = places - blocks + 1
    mixing = _earlier(mixing)
    readers = _readers(mixing)
    turned = None if kernel is None else kernel.T

    def from_outside(block_number: jax.Array) -> jax.Array:
        """What is read of y_i after the run: the last output, and the buffer."""
        is_last = block_number == blocks - 1
        given = jnp.where(is_last, d_last, jnp.zeros_like(d_last))
        if read_later:
            other = d_buffer[jnp.minimum(first + block_number, places - 1)]
            given += jnp.where(is_last, jnp.zeros_like(other), other)
        return given

    def step(carry: tuple, given: tuple) -> tuple[tuple, tuple]:
        buffer, d_next, d_kernel = carry
        number, rows, readers_of_it, one, d_aux = given
        # Nobody before reads this block's output: the gradient of the next block's input
        # takes its place. (The last block's has none; it is the place before's own value
        # that is written there.)
        buffer = jax.lax.dynamic_update_index_in_dim(buffer, d_next, first + number, 0)
        both = _sums(jnp.concatenate([rows, readers_of_it]), buffer)
        x, d_y = _projected(both[:sums], kernel), _projected(both[sums:], turned)
        _, pull_back = jax.vjp(block, one, x)
        d_one, d_x = pull_back((d_y + from_outside(number), d_aux))
        d_sums = [d_x]
        if kernel is not None:
            d_sums.append(d_x @ turned.astype(d_x.dtype))
            d_kernel += jnp.einsum(
                "...c,...d->cd", both[1], d_x, preferred_element_type=jnp.float32
            )
        d_rows = jnp.stack([_products(d_sum, buffer, rows.ndim) for d_sum in d_sums])
        return (buffer, d_x, d_kernel), (d_one, d_rows)

    # Without a second sum there is no kernel, and this stays 0.
    d_kernel = jnp.zeros(() if kernel is None else kernel.shape)
    given = (
        jnp.arange(blocks),
        mixing,
        jnp.concatenate([readers[first:], jnp.zeros_like(readers[:1])]),
        parameters,
        d_auxiliary,
    )
    carry = (buffer, buffer[places - 1], d_kernel)
    (buffer, d_x, d_kernel), (d_parameters, d_mixing) = jax.lax.scan(
        step, carry, given, reverse=True
    )

    # The gradient of the first block's input was never stored.
    channels = mixing.shape[3:]
    totals = _sums(readers[:first].reshape(first * sums, places, *channels), buffer)
    of_first = mixing[0, :, :first].swapaxes(0, 1)
    totals += _sums(of_first.reshape(first * sums, 1, *channels), d_x[None])
    totals = totals.reshape(first, sums, *d_x.shape).swapaxes(0, 1)
    d_start = _projected(totals, turned)
    if read_later:
        d_start += d_buffer[:first]
    d_kernel = None if kernel is None else d_kernel.astype(kernel.dtype)
    return d_parameters, _earlier(d_mixing), d_kernel, d_start


run.defvjp(_forward, _backward)


def _earlier(mixing: jax.Array) -> jax.Array:
    """The weights, with 0 wherever a block would read itself or a later one."""
    blocks, _, places = mixing.shape[:3]
    block, place = jnp.arange(blocks)[:, None], jnp.arange(places)
    reads = place <= places - blocks + block
    return mixing * reads.reshape(blocks, 1, places, *[1] * (mixing.ndim - 3))


def _readers(mixing: jax.Array) -> jax.Array:
    """[P, sums, P]: for each place, the weight of each place in its gradient.

    On the way back the place behind y_{j-1}'s holds the gradient of the input of block j.
    """
    turned = mixing[1:].swapaxes(0, 2)
    places, sums, later = turned.shape[:3]
    none = jnp.zeros((places, sums, places - later, *turned.shape[3:]))
    return jnp.concatenate([none, turned], axis=2)


def _sums(weights: jax.Array, buffer: jax.Array) -> jax.Array:
    """[rows, P] or [rows, P, channels] times [P, ...]: [rows, ...], summed in float32.

    Reads empty places too: a loop over the others would write its sum as often.
    """
    flat = buffer.reshape(len(buffer), -1, *weights.shape[2:])
    terms = "rp,pn->rn" if weights.ndim == 2 else "rpc,pnc->rnc"
    sums = jnp.einsum(
        terms,
        weights.astype(buffer.dtype),
        flat,
        preferred_element_type=jnp.float32,
    )
    return sums.astype(buffer.dtype).reshape(len(weights), *buffer.shape[1:])


def _products(image: jax.Array, buffer: jax.Array, ndim: int) -> jax.Array:
    """The gradient of the weights in a sum: [P], or [P, channels] where `ndim` is 3."""
    flat = buffer.reshape(len(buffer), -1, image.shape[-1])
    terms = "pnc,nc->p" if ndim == 2 else "pnc,nc->pc"
    return jnp.einsum(
        terms, flat, image.reshape(flat.shape[1:]), preferred_element_type=jnp.float32
    )


def _projected(sums: Any, kernel: jax.Array | None) -> jax.Array:
    if kernel is None:
        return sums[0]
    return sums[0] + sums[1] @ kernel.astype(sums[1].dtype)
